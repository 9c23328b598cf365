// What the system may answer, and what may happen to memory: injected, one at a time.
#include <gtest/gtest.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <initializer_list>

#include "pool/testing/test_support.h"

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
    // Headers, scratch frames: then frame table, frame and records on the first stores.
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
  const auto pool = test::make_pool(os, test::config_of({}, 2 * kMiB));
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

TEST_F(PoolFaultsTest, Z3fold_PageRelistedAfterAFailure) {
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

// An object as a successor would find it: by record and frame, without any lock or list.
bool is_whole(const PoolLayout& layout, const Mapping& records, ObjectId id, const Bytes& want) {
  const auto& record =
      *records.as<Record>(kTablePageBytes + static_cast<std::size_t>(id) * sizeof(Record));
  const Location where = record.where();
  const std::byte* const at = layout.frames() +
                              std::size_t{where.frame} * layout.geometry().frame_bytes +
                              std::size_t{where.chunk} * kChunkBytes + kHeaderBytes;
  return record.what().length == want.size() && std::memcmp(at, want.data(), want.size()) == 0;
}

// HAZARDS 19 "in-frame moves": a daemon may be killed at any instruction of a compaction. So a
// child compacts while we single-step it, and after every instruction each object must be whole
// where its record says, in the files that both map.
TEST_F(PoolFaultsTest, Hazard19_WholeAtEveryInstructionOfACompaction) {
  if (test::kUnderTsan) GTEST_SKIP() << "not instruction by instruction under ThreadSanitizer";
  PoolConfig config = test::config_of({16384, 64}, 16384);
  config.shards = 1;
  const auto pool = test::make_pool(os, config);
  const auto length = [](std::size_t i) -> std::size_t { return i % 4 == 1 ? 200 : 1100 + 8 * i; };
  std::vector<ObjectId> ids;
  for (std::size_t i = 0; i < 16; ++i) {
    ids.push_back(pool->store(content(i, length(i)), Codec::lz4).value());
  }
  std::vector<std::pair<ObjectId, Bytes>> kept;
  for (std::size_t i = 0; i < ids.size(); ++i) {
    // Short holes first, so that moves overlap and go through scratch; then long ones, for direct
    // moves.
    const bool freed = i == 1 || i == 5 || i == 10 || i == 12;
    freed ? void(pool->unref(ids[i])) : void(kept.emplace_back(ids[i], content(i, length(i))));
  }
  const Bytes large = content(99, 4000);
  ASSERT_EQ(pool->stats().compactions, 0U);
  const auto records = Mapping::shared(pool->layout().records_fd(), kMiB).value();

  test::single_step([&] { return pool->store(large, Codec::lz4).has_value(); },
                    [&] {
                      return std::ranges::count_if(kept, [&](const auto& object) {
                        return !is_whole(pool->layout(), records, object.first, object.second);
                      });
                    });
  EXPECT_EQ(pool->stats().compactions, 1U) << "the child's, counted in the shared file";
  EXPECT_GT(pool->stats().compacted_bytes, 4000U);
}

// A record that points nowhere is an error of that object, not a crash.
TEST_F(PoolFaultsTest, DamagedRecordIsAnError) {
  const auto pool = test::make_pool(os, test::config_of({}));
  const ObjectId id = pool->store(content(1, 700), Codec::zstd).value();
  const auto records = Mapping::shared(pool->layout().records_fd(), kMiB).value();
  auto& record =
      *records.as<Record>(static_cast<std::size_t>(id) * sizeof(Record) + kTablePageBytes);
  const std::uint64_t location = record.location.load(), meta = record.meta.load();
  Page out;
  for (const std::uint64_t word : {~std::uint64_t{0}, std::uint64_t{0}, location ^ 0x3fff,
                                   location ^ std::uint64_t{1} << 58}) {
    record.location = word;
    const auto loaded = pool->load(id, out);
    ASSERT_FALSE(loaded.has_value());
    EXPECT_EQ(loaded.error().code, EIO);
  }
  // One that says that the object left the frames is for the owner of the file to judge.
  record.location = location ^ std::uint64_t{3} << 62;
  const auto outside = pool->load(id, out);
  ASSERT_TRUE(outside.has_value());
  EXPECT_TRUE(outside->elsewhere && outside->length == 0);
  record.location = location;
  record.meta = meta | std::uint64_t{0x1fff} << 20;  // a length that cannot be
  EXPECT_EQ(pool->load(id, out).error().code, EIO);
  record.meta = meta;
  EXPECT_TRUE(test::holds(*pool, id, content(1, 700)));
}

using PoolDeathTest = PoolFaultsTest;

// Z3FOLD_BUGS "last put under the lock it takes": dropping an object under a shard's lock must be
// caught.
TEST_F(PoolDeathTest, Z3fold_LastPutUnderTheLockItTakes) {
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
  EXPECT_DEATH(
      {
        const RankScope held(LockRank::pool_shard);
        (void)content(1, 100);
      },
      "allocation under a lock");
#else
  GTEST_SKIP() << "the order of locks is checked in debug builds";
#endif
}

}  // namespace
}  // namespace foldswap
