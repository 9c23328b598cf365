// The failures of z3fold and its relatives, row by row; most rows are tests of the pool's other
// test files, and --gtest_filter='*Z3fold*' runs them all:
//   reclaim lock-ups                   pool_stress_test (and the end-to-end storm, test_storm.py)
//   reclaim versus free of one object  pool_stress_test
//   last put under the lock it takes   pool_faults_test
//   headless pages (three rows)        pool_test; pool_stress_test once more with whole pages only
//   re-listing what another released   here: FreeDuringAFailedReplacement
//   stale lists, reuse                 here: ReuseVersusCompaction
//   allocation under a lock            here, and testing/test_alloc_hook.cc in every other test
//   handles used after free            pool_test
//   list heads copied with a page      pool_test, pool_tidy_test
//   unbalanced lock on early return    here: NoLockIsHeldAfterAFailure (and the clang build)
//   destroy while workers run          here: DestroyAfterItsWorkers
//   retry after a failed eviction      here: RetriesAfterFailures
//   claim outside the lock             pool_stress_test (under TSan)
//   compaction versus load             pool_stress_test
//   slots zeroed under a reader        here: LoadWhileNeighboursChange
//   page not relisted                  pool_faults_test
//   count underflow, clean-up, sizes   pool_test
//   migrate versus map                 pool_tidy_test
//   hysteresis                         pool_limit_test
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

struct Z3foldTest : ::testing::Test {
  FaultyOs os;

  // A pool of one frame, full but for less than a page.
  std::unique_ptr<Pool> full_pool(std::vector<ObjectId>& ids) {
    PoolConfig config = test::config_of({65536, 128}, 64 * kKiB);
    config.shards = 1;
    auto pool = test::make_pool(os, config);
    for (std::uint64_t i = 0; i < 15; ++i) {
      ids.push_back(pool->store(content(i, 4096), Codec::raw).value());
    }
    return pool;
  }
};

// One thread's replacements fail for want of room while the other frees the same objects.
TEST_F(Z3foldTest, Z3fold_FreeDuringAFailedReplacement) {
  std::vector<ObjectId> ids;
  const auto pool = full_pool(ids);
  std::atomic<std::uint64_t> current{0}, refused{0};
  std::atomic<bool> done{false};
  std::jthread replacer([&] {
    while (!done) {
      const ObjectId id{current.load()};
      if (id == ObjectId::none || !pool->try_ref(id)) continue;
      // The same bytes, so that whoever reads it next can tell; the id may be another object's.
      if (pool->replace(id, content(7, 4096), Codec::raw) == Replaced::no_room) ++refused;
      pool->unref(id);
    }
  });
  for (std::uint64_t i = 0; i < 3'000 || (refused == 0 && i < 300'000); ++i) {
    current = static_cast<std::uint64_t>(ids[3]);
    if (i % 4 == 0) std::this_thread::yield();
    current = 0;
    pool->unref(ids[3]);
    Result<ObjectId> again = pool->store(content(7, 4096), Codec::raw);
    while (!again) again = pool->store(content(7, 4096), Codec::raw);  // the last put comes late
    ids[3] = *again;
    ASSERT_TRUE(holds(*pool, ids[3], content(7, 4096)));
  }
  done = true;
  replacer.join();
  EXPECT_GT(refused, 0U);
  for (std::uint64_t i = 0; i < ids.size(); ++i) {
    EXPECT_TRUE(holds(*pool, ids[i], content(i == 3 ? 7 : i, 4096)));
    pool->unref(ids[i]);
  }
  EXPECT_EQ(pool->stats().objects, 0U);
  EXPECT_TRUE(valid(*pool));
}

// A frame that compaction empties is taken for new objects at once, and the other way round.
TEST_F(Z3foldTest, Z3fold_ReuseVersusCompaction) {
  const auto pool = test::make_pool(os, test::config_of({}, 4 * kMiB));
  std::atomic<bool> done{false};
  std::jthread worker([&] {
    while (!done) {
      (void)pool->tidy(32 * kKiB);
      pool->trim(0);
    }
  });
  std::vector<std::pair<ObjectId, std::uint64_t>> mine;
  std::mt19937_64 rng(11);
  std::uint64_t seed = 0;
  for (int wave = 0; wave < 12; ++wave) {
    while (mine.size() < 1'500) {
      ++seed;
      mine.emplace_back(pool->store(content(seed, 1 + seed * 53 % 1'500), Codec::zstd).value(),
                        seed);
    }
    while (mine.size() > 200) {  // sparse frames everywhere
      std::swap(mine[rng() % mine.size()], mine.back());
      const auto [id, from] = mine.back();
      ASSERT_TRUE(holds(*pool, id, content(from, 1 + from * 53 % 1'500)));
      pool->unref(id);
      mine.pop_back();
    }
    ASSERT_TRUE(valid(*pool, false));
  }
  done = true;
  worker.join();
  EXPECT_GT(pool->stats().moved_bytes, 0U);
  for (const auto& [id, from] : mine) {
    EXPECT_TRUE(holds(*pool, id, content(from, 1 + from * 53 % 1'500)));
    pool->unref(id);
  }
  EXPECT_TRUE(valid(*pool));
}

// The hook that watches all of these tests does bite.
TEST_F(Z3foldTest, Z3fold_AllocationUnderALock) {
  ::testing::FLAGS_gtest_death_test_style = "threadsafe";
  EXPECT_DEATH(
      {
        const RankScope held(LockRank::pool_shard);
        ::operator delete(::operator new(16));
      },
      "allocation under a lock");
}

TEST_F(Z3foldTest, Z3fold_NoLockIsHeldAfterAFailure) {
  std::vector<ObjectId> ids;
  const auto pool = full_pool(ids);
  const auto expect_free = [](const char* after) {
    EXPECT_EQ(rank_check::held_now(), 0U) << after;
  };
  EXPECT_FALSE(pool->store(content(99, 4096), Codec::raw));
  expect_free("a store without room");
  EXPECT_FALSE(pool->store(content(99, 4097), Codec::raw));
  expect_free("a store that is too large");
  EXPECT_EQ(pool->replace(ids[0], content(99, 4096), Codec::raw), Replaced::no_room);
  expect_free("a replacement without room");
  EXPECT_EQ(pool->replace(ObjectId{77'777}, content(9, 10), Codec::raw), Replaced::gone);
  expect_free("a replacement of nothing");
  EXPECT_FALSE(pool->try_ref(ObjectId{77'777}));
  expect_free("a reference to nothing");
  test::Page out;
  EXPECT_FALSE(pool->load(ObjectId{77'777}, out));
  expect_free("a load of nothing");
  EXPECT_FALSE(pool->reserve(kMiB));
  expect_free("a reservation beyond the limit");
  os.punch_fails = true;
  for (const ObjectId id : ids) pool->unref(id);
  (void)pool->trim(0);
  expect_free("a trim that fails");
  os.punch_fails = false;
  os.allocations_left = 0;
  const auto empty = Pool::create(os, test::config_of({}));
  if (empty) {
    EXPECT_FALSE((*empty)->store(content(1, 100), Codec::lz4));
  }
  expect_free("no memory");
  os.allocations_left = -1;
  EXPECT_TRUE(valid(*pool));
}

// The pool has no workers of its own: whoever has, ends them first, at any moment of their work.
TEST_F(Z3foldTest, Z3fold_DestroyAfterItsWorkers) {
  for (int round = 0; round < 20; ++round) {
    const auto started = std::chrono::steady_clock::now();
    auto pool = test::make_pool(os, test::config_of({}, 4 * kMiB));
    {
      std::vector<std::jthread> workers;
      for (std::uint64_t t = 0; t < 3; ++t) {
        workers.emplace_back([&, t](const std::stop_token& stop) {
          std::vector<ObjectId> mine;
          for (std::uint64_t i = 0; !stop.stop_requested(); ++i) {
            if (const auto id = pool->store(content(t << 32 | i, 700), Codec::zstd)) {
              mine.push_back(*id);
            }
            (void)pool->tidy(16 * kKiB);
            if (mine.size() > 100) {
              pool->unref(mine.back());
              mine.pop_back();
            }
          }
        });
      }
      std::this_thread::sleep_for(std::chrono::milliseconds(round));
    }
    EXPECT_TRUE(valid(*pool));
    pool.reset();  // with objects in it
    EXPECT_LT(std::chrono::steady_clock::now() - started, std::chrono::seconds(30));
  }
}

TEST_F(Z3foldTest, Z3fold_RetriesAfterFailures) {
  std::vector<ObjectId> ids;
  const auto pool = full_pool(ids);
  for (int i = 0; i < 200; ++i) {
    ASSERT_EQ(pool->replace(ids[3], content(99, 4096), Codec::raw), Replaced::no_room);
    ASSERT_TRUE(holds(*pool, ids[3], content(3, 4096)));
    ASSERT_TRUE(valid(*pool));
  }
  pool->unref(ids[4]);
  ASSERT_EQ(pool->replace(ids[3], content(99, 3'000), Codec::zstd), Replaced::done);
  EXPECT_TRUE(holds(*pool, ids[3], content(99, 3'000)));
  for (std::uint64_t i = 0; i < ids.size(); ++i) {
    if (i != 3 && i != 4) {
      EXPECT_TRUE(holds(*pool, ids[i], content(i, 4096)));
    }
  }
  EXPECT_TRUE(valid(*pool));
}

// All in few frames: what stays is read while what lies beside it comes, goes and changes its size.
TEST_F(Z3foldTest, Z3fold_LoadWhileNeighboursChange) {
  PoolConfig config = test::config_of({}, kMiB);
  config.shards = 1;
  const auto pool = test::make_pool(os, config);
  std::vector<ObjectId> kept, changing;
  for (std::uint64_t i = 0; i < 60; ++i) {
    kept.push_back(pool->store(content(i, 600), Codec::zstd).value());
    changing.push_back(pool->store(content(1'000 + i, 900), Codec::zstd).value());
  }
  std::atomic<bool> done{false};
  std::atomic<std::uint64_t> wrong{0}, loads{0};
  {
    std::jthread reader([&] {
      for (std::size_t i = 0; !done; ++i, ++loads) {
        if (!holds(*pool, kept[i % kept.size()], content(i % kept.size(), 600))) ++wrong;
      }
    });
    std::mt19937_64 rng(5);
    for (std::uint64_t i = 0; i < 6'000 || (loads < 1'000 && i < 1'000'000); ++i) {
      ObjectId& id = changing[rng() % changing.size()];
      const std::size_t length = 1 + rng() % 1'800;
      if (i % 2 == 0) {
        ASSERT_EQ(pool->replace(id, content(i, length), Codec::lz4), Replaced::done);
      } else {
        pool->unref(id);
        id = pool->store(content(i, length), Codec::zstd).value();
      }
      if (i % 16 == 0) (void)pool->tidy(4 * kKiB);
    }
    done = true;
  }
  EXPECT_EQ(wrong, 0U);
  EXPECT_GT(loads, 0U);
  EXPECT_TRUE(valid(*pool));
}

}  // namespace
}  // namespace foldswap
