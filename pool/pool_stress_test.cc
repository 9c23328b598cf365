// Threads against each other; run under TSan too. Contents are checked, and the pool is walked at
// the end.
#include <gtest/gtest.h>

#include <chrono>
#include <thread>

#include "pool/testing/test_support.h"

namespace foldswap {
namespace {

using test::content;
using test::FaultyOs;
using test::holds;
using test::valid;

// Every test twice: with objects of all sizes, and with whole pages only (z3fold's headless pages).
struct PoolStressTest : ::testing::TestWithParam<std::tuple<test::NamedGeometry, bool>> {
  FaultyOs os;

  static PoolGeometry geometry() { return std::get<0>(GetParam()).geometry; }
  static bool whole_pages() { return std::get<1>(GetParam()); }
  static std::size_t length_of(std::uint64_t seed) {
    return whole_pages() || seed % 5 == 0 ? 4096 : 1 + seed * 53 % 1500;
  }
};

// Z3FOLD_BUGS "compaction versus load": stores and frees keep frames moving while others load what
// stays.
TEST_P(PoolStressTest, Z3fold_CompactionVersusLoad) {
  const auto pool = test::make_pool(os, test::config_of(geometry(), 8 * kMiB));
  std::vector<ObjectId> kept, filler;
  for (std::uint64_t i = 0; i < 200; ++i) {
    kept.push_back(pool->store(content(i, length_of(i)), Codec::zstd).value());
    filler.push_back(pool->store(content(1000 + i, length_of(i + 3)), Codec::zstd).value());
  }
  std::atomic<bool> done{false};
  std::atomic<std::uint64_t> wrong{0}, loads{0};
  std::vector<std::jthread> readers;
  for (std::size_t t = 0; t < 2; ++t) {
    readers.emplace_back([&, t] {
      for (std::size_t i = t; !done || i < 400; ++i, ++loads) {
        if (!holds(*pool, kept[i % kept.size()],
                   content(i % kept.size(), length_of(i % kept.size()))))
          ++wrong;
      }
    });
  }
  std::mt19937 rng(3);
  for (std::uint64_t round = 0; round < 3000; ++round) {
    const std::size_t at = rng() % filler.size();
    pool->unref(filler[at]);
    filler[at] = pool->store(content(round, length_of(rng())), Codec::zstd).value();
    if (round % 500 == 0) {
      EXPECT_TRUE(valid(*pool, false));
    }
  }
  done = true;
  readers.clear();
  EXPECT_EQ(wrong, 0U);
  EXPECT_TRUE(valid(*pool));
  if (geometry().buddies > 3 && !whole_pages()) {
    EXPECT_GT(pool->stats().compactions, 0U);
  }
}

// Z3FOLD_BUGS "reclaim versus free of one object", "page handed out while being freed": one
// thread's last reference goes while another takes, loads and drops its own.
TEST_P(PoolStressTest, Z3fold_ReclaimVersusFree) {
  const auto pool = test::make_pool(os, test::config_of(geometry(), 8 * kMiB));
  std::atomic<std::uint64_t> current{0}, wrong{0}, loaded{0};
  std::atomic<bool> done{false};
  std::jthread reader([&] {
    test::Page out;
    while (!done) {
      const ObjectId id{current.load()};
      // The owner may have freed it, and another object may have the id by now: what loads must
      // verify.
      if (id == ObjectId::none || !pool->ref(id)) continue;
      const auto got = pool->load(id, out);
      got ? ++loaded : ++wrong;
      pool->unref(id);
    }
  });
  for (std::uint64_t i = 0; i < 4000 || (loaded == 0 && i < 100'000); ++i) {
    const ObjectId id = pool->store(content(i, length_of(i)), Codec::zstd).value();
    current = static_cast<std::uint64_t>(id);
    if (i % 3 == 0) std::this_thread::yield();
    current = 0;
    pool->unref(id);
  }
  done = true;
  reader.join();
  EXPECT_EQ(wrong, 0U);
  EXPECT_EQ(pool->stats().objects, 0U);
  EXPECT_TRUE(valid(*pool));
}

// Z3FOLD_BUGS "reclaim lock-ups (the report)": a memory-eater storm at the limit, with trims; at
// most two data-path locks at once, and it ends.
TEST_P(PoolStressTest, Z3fold_ReclaimLockUps) {
  const auto pool = test::make_pool(os, test::config_of(geometry(), 2 * kMiB));
  const auto started = std::chrono::steady_clock::now();
  std::atomic<std::uint64_t> wrong{0};
  {
    std::vector<std::jthread> threads;
    for (std::uint64_t t = 0; t < 4; ++t) {
      threads.emplace_back([&, t] {
        std::mt19937 rng(static_cast<std::uint32_t>(t));
        std::vector<std::pair<ObjectId, std::uint64_t>> mine;
        for (std::uint64_t i = 0; i < 1200; ++i) {
          const std::uint64_t seed = t << 32 | i;
          const auto id = pool->store(content(seed, length_of(seed)), Codec::zstd);
          if (id) mine.emplace_back(*id, seed);
          if (mine.empty() || (id && rng() % 3 != 0)) continue;
          std::swap(mine[rng() % mine.size()], mine.back());
          const auto [victim, from] = mine.back();
          if (!holds(*pool, victim, content(from, length_of(from)))) ++wrong;
          pool->unref(victim);
          mine.pop_back();
          if (i % 100 == 0) pool->trim(0);
          if (i % 400 == 0) (void)pool->validate(false);
        }
        for (const auto& [id, seed] : mine) {
          if (!holds(*pool, id, content(seed, length_of(seed)))) ++wrong;
          pool->unref(id);
        }
      });
    }
  }
  EXPECT_EQ(wrong, 0U);
  EXPECT_LE(rank_check::held_max(), 2U);
  EXPECT_LT(std::chrono::steady_clock::now() - started, std::chrono::minutes(2)) << "watchdog";
  EXPECT_EQ(pool->stats().objects, 0U);
  EXPECT_TRUE(valid(*pool));
  EXPECT_TRUE(test::memory_is_counted(*pool));
}

// One object, many owners: fork shares objects, so counts rise and fall from several threads.
TEST_P(PoolStressTest, Z3fold_ClaimUnderTheLock) {
  const auto pool = test::make_pool(os, test::config_of(geometry()));
  for (int round = 0; round < 50; ++round) {
    const ObjectId id = pool->store(content(9, 777), Codec::zstd).value();
    for (int i = 0; i < 40; ++i) ASSERT_TRUE(pool->ref(id));
    {
      std::vector<std::jthread> threads;
      for (int t = 0; t < 4; ++t) {
        threads.emplace_back([&] {
          for (int i = 0; i < 10; ++i) pool->unref(id);
        });
      }
    }
    EXPECT_EQ(pool->refs(id), 1U);
    pool->unref(id);
  }
  EXPECT_EQ(pool->stats().misuses, 0U);
  EXPECT_TRUE(valid(*pool));
}

INSTANTIATE_TEST_SUITE_P(
    Geometries, PoolStressTest,
    ::testing::Combine(::testing::Values(test::kGeometries[0], test::kGeometries[1],
                                         test::kGeometries[2], test::kGeometries[4]),
                       ::testing::Bool()),
    [](const auto& of) {
      return std::string(std::get<0>(of.param).name) +
             (std::get<1>(of.param) ? "_whole_pages" : "");
    });

}  // namespace
}  // namespace foldswap
