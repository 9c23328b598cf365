// The hard limit: never passed, and never in the way of what was reserved.
#include <gtest/gtest.h>

#include <thread>

#include "pool/testing/test_support.h"

namespace foldswap {
namespace {

using test::Bytes;
using test::content;
using test::FaultyOs;
using test::valid;

struct PoolLimitTest : ::testing::TestWithParam<test::NamedGeometry> {
  FaultyOs os;
  std::unique_ptr<Pool> make(std::uint64_t limit) {
    return test::make_pool(os, test::config_of(GetParam().geometry, limit));
  }
};

TEST_P(PoolLimitTest, FillsToTheLimitThenRefuses) {
  const auto pool = make(2 * kMiB);
  std::vector<ObjectId> ids;
  for (;;) {
    const auto id = pool->store(content(ids.size(), 4096), Codec::raw);
    if (!id) {
      EXPECT_EQ(id.error().code, ENOSPC);
      break;
    }
    ids.push_back(*id);
  }
  EXPECT_EQ(pool->stats().frame_bytes, 2 * kMiB);
  const std::uint64_t per_frame = GetParam().geometry.frame_room();
  EXPECT_EQ(ids.size(), 2 * kMiB / GetParam().geometry.frame_bytes * per_frame);
  EXPECT_FALSE(pool->reserve(1));
  EXPECT_TRUE(valid(*pool));
  EXPECT_TRUE(pool->store_pattern(7).has_value()) << "patterns need no frame";
  pool->unref(ids[ids.size() / 2]);
  EXPECT_TRUE(pool->reserve(4096));
  EXPECT_TRUE(pool->store(content(1, 4096), Codec::raw).has_value());
  pool->release_reservation(4096);
  EXPECT_TRUE(valid(*pool));
}

// From several threads: whatever one of them reserved it can store, whatever the others do.
TEST_P(PoolLimitTest, ReservedStoresNeverFail_FourThreads) {
  const auto pool = make(4 * kMiB);
  std::atomic<std::uint64_t> failed{0}, over{0}, granted{0};
  {
    std::vector<std::jthread> threads;
    for (std::uint32_t t = 0; t < 4; ++t) {
      threads.emplace_back([&, t] {
        std::mt19937 rng(t);
        std::vector<ObjectId> mine;
        for (int round = 0; round < 150; ++round) {
          const std::uint64_t pages = 1 + rng() % 64;
          if (pool->reserve(pages * 4096)) {
            ++granted;
            for (std::uint64_t i = 0; i < pages; ++i) {
              const std::size_t bytes = rng() % 4 == 0 ? 4096 : 1 + rng() % 2000;
              const auto id = pool->store(content(i, bytes), Codec::raw);
              id ? mine.push_back(*id) : void(++failed);
            }
            pool->release_reservation(pages * 4096);
          }
          if (pool->stats().frame_bytes > 4 * kMiB) ++over;
          const std::size_t keep = rng() % 2 == 0 ? 0 : mine.size() * (rng() % 4) / 4;
          while (mine.size() > keep) {
            std::swap(mine[rng() % mine.size()], mine.back());
            pool->unref(mine.back());
            mine.pop_back();
          }
          if (round % 16 == 0) pool->trim(rng() % 2 * kMiB);
        }
      });
    }
  }
  EXPECT_EQ(failed, 0U);
  EXPECT_EQ(over, 0U);
  EXPECT_GT(granted, 100U);
  EXPECT_TRUE(valid(*pool));
  EXPECT_TRUE(test::memory_is_counted(*pool));
}

// Z3FOLD_BUGS "hysteresis missing", the pool's half: at its limit it neither spins nor grows.
TEST_P(PoolLimitTest, Z3fold_Hysteresis) {
  const auto pool = make(kMiB);
  std::vector<ObjectId> ids;
  std::uint64_t refused = 0;
  for (std::size_t step = 0; step < 6000; ++step) {
    const auto id = pool->store(content(step, 1 + step * 67 % 4096), Codec::raw);
    if (id) {
      ids.push_back(*id);
    } else {
      ++refused;
      std::swap(ids[step * 31 % ids.size()], ids.back());
      pool->unref(ids.back());
      ids.pop_back();
    }
    ASSERT_LE(pool->stats().frame_bytes, kMiB);
  }
  EXPECT_GT(refused, 0U);
  EXPECT_TRUE(valid(*pool));
}

TEST_P(PoolLimitTest, LoweredLimitStopsGrowthAndDropsNothing) {
  const auto pool = make(8 * kMiB);
  std::vector<ObjectId> ids;
  for (std::size_t i = 0; i < 300; ++i) {
    ids.push_back(pool->store(content(i, 4096), Codec::raw).value());
  }
  const std::uint64_t held = pool->stats().frame_bytes;
  ASSERT_TRUE(pool->set_limit(kMiB));
  EXPECT_EQ(pool->stats().limit_bytes, kMiB);
  EXPECT_FALSE(pool->reserve(4 * kMiB));
  while (pool->store(content(1, 4096), Codec::raw)) {
  }
  EXPECT_EQ(pool->stats().frame_bytes, held);
  for (std::size_t i = 0; i < 300; ++i) {
    EXPECT_TRUE(test::holds(*pool, ids[i], content(i, 4096)));
    pool->unref(ids[i]);
  }
  pool->trim(0);
  EXPECT_TRUE(valid(*pool));
  ASSERT_TRUE(pool->set_limit(8 * kMiB));
  EXPECT_TRUE(pool->reserve(4096));
  pool->release_reservation(4096);
  EXPECT_FALSE(pool->set_limit(2 * test::kMaxBytes).has_value());
  EXPECT_TRUE(valid(*pool));
}

INSTANTIATE_TEST_SUITE_P(Geometries, PoolLimitTest, ::testing::ValuesIn(test::kGeometries),
                         test::geometry_name);

}  // namespace
}  // namespace foldswap
