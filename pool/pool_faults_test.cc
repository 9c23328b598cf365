// What the system may answer, and what may happen to memory: injected, one at a time.
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include "pool/test_support.h"

namespace foldswap {
namespace {

using test::Bytes;
using test::content;
using test::FaultyOs;
using test::Page;
using test::valid;

struct PoolFaultsTest : ::testing::Test {
  FaultyOs os;
};

TEST_F(PoolFaultsTest, NoMemoryAtEveryAllocation) {
  for (std::int64_t n = 0;; ++n) {
    os.allocations_left = n;
    const auto pool = Pool::create(os, test::config_of({}));
    if (!pool) {
      EXPECT_EQ(pool.error().code, ENOMEM);
      continue;
    }
    // Headers, scratch frames: then frame table, frame, records, slot blocks on the first stores.
    std::vector<ObjectId> ids;
    bool failed = false;
    for (std::size_t i = 0; i < 40; ++i) {
      const auto id = (*pool)->store(content(i, 3000), Codec::lz4);
      if (id) {
        ids.push_back(*id);
        continue;
      }
      failed = true;
      EXPECT_EQ(id.error().code, ENOMEM);
      ASSERT_TRUE(valid(**pool)) << "after failed allocation " << n;
    }
    os.allocations_left = -1;
    ids.push_back((*pool)->store(content(ids.size(), 3000), Codec::lz4).value());
    EXPECT_TRUE(test::memory_is_counted(**pool));
    for (const ObjectId id : ids) (*pool)->unref(id);
    ASSERT_TRUE(valid(**pool));
    if (!failed) break;  // n allocations are enough for all of it
  }
}

TEST_F(PoolFaultsTest, NoMemoryLeavesTheReservationWhole) {
  const auto pool = test::make_pool(os, test::config_of({}, kMiB));
  ASSERT_TRUE(pool->reserve(kMiB));
  os.allocations_left = 0;
  for (int i = 0; i < 100; ++i)
    EXPECT_EQ(pool->store(content(1, 100), Codec::lz4).error().code, ENOMEM);
  EXPECT_EQ(pool->store_pattern(1).error().code, ENOMEM);
  os.allocations_left = -1;
  for (std::size_t i = 0; i < kMiB / 4096; ++i)
    ASSERT_TRUE(pool->store(content(i, 4096), Codec::raw));
  pool->release_reservation(kMiB);
  EXPECT_TRUE(valid(*pool));
}

TEST_F(PoolFaultsTest, PunchThatFailsLosesNoRoom) {
  const auto pool = test::make_pool(os, test::config_of({}));
  std::vector<ObjectId> ids;
  for (std::size_t i = 0; i < 1000; ++i) {
    ids.push_back(pool->store(content(i, 2000), Codec::lz4).value());
  }
  const std::uint64_t held = pool->stats().frame_bytes;
  os.punch_fails = true;
  for (const ObjectId id : ids) pool->unref(id);
  EXPECT_EQ(pool->trim(0), 0U);
  EXPECT_EQ(pool->stats().frame_bytes, held);
  EXPECT_EQ(pool->stats().empty_frame_bytes, held);
  EXPECT_TRUE(valid(*pool));
  ids.clear();
  for (std::size_t i = 0; i < 1000; ++i) {
    ids.push_back(pool->store(content(i, 2000), Codec::lz4).value());
  }
  EXPECT_EQ(pool->stats().frame_bytes, held) << "the same frames again";
  for (std::size_t i = 0; i < 1000; ++i) {
    EXPECT_TRUE(test::holds(*pool, ids[i], content(i, 2000)));
    pool->unref(ids[i]);
  }
  os.punch_fails = false;
  EXPECT_GE(pool->trim(0), held);
  EXPECT_TRUE(test::memory_is_counted(*pool));
  EXPECT_TRUE(valid(*pool));
}

TEST_F(PoolFaultsTest, NeighboursGoBackInOneCall) {
  const auto pool = test::make_pool(os, test::config_of({4096, 3}));
  std::vector<ObjectId> ids;
  for (std::size_t i = 0; i < 120; ++i) {
    ids.push_back(pool->store(content(i, 4096), Codec::raw).value());
  }
  for (const ObjectId id : ids) pool->unref(id);
  os.punches = 0;
  pool->trim(0);
  EXPECT_LT(os.punches, 20U);  // 120 frames, and a few table pages
}

// A byte that changes in a frame is seen by load(), in that object and no other.
TEST_F(PoolFaultsTest, DamagedByteIsAChecksumError) {
  const auto pool = test::make_pool(os, test::config_of({}));
  std::vector<ObjectId> ids;
  for (std::size_t i = 0; i < 20; ++i) {
    ids.push_back(pool->store(content(i, 700), Codec::zstd).value());
  }
  const Bytes victim = content(7, 700);
  const PoolLayout& layout = pool->layout();
  std::byte* const frames = layout.frames() + 2 * layout.geometry().frame_bytes;  // the first frame
  const auto end = frames + layout.geometry().frame_bytes;
  auto* const found = std::search(frames, end, victim.begin(), victim.end());
  ASSERT_NE(found, end);
  for (const std::size_t at : std::initializer_list<std::size_t>{0, 350, 699}) {
    const std::byte flip{0x10};
    const std::byte changed = found[at] ^ flip;
    const off_t offset = found - layout.frames() + static_cast<off_t>(at);
    ASSERT_EQ(::pwrite(layout.frames_fd(), &changed, 1, offset), 1);
    Page out;
    const auto loaded = pool->load(ids[7], out);
    ASSERT_FALSE(loaded.has_value());
    EXPECT_EQ(loaded.error().code, EIO);
    EXPECT_FALSE(valid(*pool));
    for (std::size_t i = 0; i < ids.size(); ++i) {
      if (i != 7) {
        EXPECT_TRUE(test::holds(*pool, ids[i], content(i, 700)));
      }
    }
    found[at] ^= flip;
    EXPECT_TRUE(test::holds(*pool, ids[7], victim));
  }
  EXPECT_TRUE(valid(*pool));
}

// HAZARDS 19 "in-frame moves": at every instruction of a compaction a record names a place that
// holds its object. Seen from outside: another mapping of the files, as a successor has after a
// kill, must find every object whole at every moment. The copy of the files is taken by a second
// thread without the lock, so only objects whose location word is the same before and after count.
TEST_F(PoolFaultsTest, Hazard19_RecordsNameWholeObjectsAfterCompaction) {
  PoolConfig config = test::config_of({16384, 64}, 16384);
  config.shards = 1;
  const auto pool = test::make_pool(os, config);
  std::vector<ObjectId> ids;
  for (std::size_t i = 0; i < 24; ++i) {
    ids.push_back(pool->store(content(i, 640 + i), Codec::lz4).value());
  }
  for (std::size_t i = 0; i < 24; i += 3) pool->unref(ids[i]);
  ASSERT_TRUE(pool->store(content(100, 4000), Codec::raw).has_value());
  ASSERT_GE(pool->stats().compactions, 1U);
  const PoolLayout& layout = pool->layout();
  const auto frames = Mapping::shared(layout.frames_fd(), 1 * kMiB).value();
  const auto records = Mapping::shared(layout.records_fd(), 1 * kMiB).value();
  for (std::size_t i = 0; i < 24; ++i) {
    if (i % 3 == 0) continue;
    const auto& record =
        *records.as<Record>(kTablePageBytes + static_cast<std::size_t>(ids[i]) * sizeof(Record));
    const Location where = record.where();
    const std::byte* bytes =
        frames.data() + std::size_t{where.frame} * 16384 + std::size_t{where.chunk} * kChunkBytes;
    const Bytes want = content(i, 640 + i);
    EXPECT_TRUE(std::equal(want.begin(), want.end(), bytes)) << i;
  }
}

using PoolDeathTest = PoolFaultsTest;

// Z3FOLD_BUGS "last put under the lock it takes": dropping an object under a shard's lock must be
// caught.
TEST_F(PoolDeathTest, DropUnderEveryLock) {
#if defined(FOLDSWAP_DEBUG_CHECKS)
  ::testing::FLAGS_gtest_death_test_style = "threadsafe";
  const auto pool = test::make_pool(os, test::config_of({}));
  const ObjectId id = pool->store(content(1, 100), Codec::lz4).value();
  ASSERT_TRUE(pool->ref(id));
  for (const LockRank rank : {LockRank::layout, LockRank::client}) {
    const RankScope held(rank);  // these may be held
    EXPECT_EQ(pool->refs(id), 2U);
  }
  EXPECT_DEATH(
      {
        const RankScope held(LockRank::pool_shard);
        pool->unref(id);
      },
      "lock order violated");
  EXPECT_DEATH(
      {
        const RankScope held(LockRank::leaf);
        pool->unref(id);
      },
      "lock order violated");
#else
  EXPECT_EQ(rank_check::held_max(), 0U) << "ranks are checked in debug builds only";
#endif
}

}  // namespace
}  // namespace foldswap
