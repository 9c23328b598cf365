// Objects that move between frames, that change their bytes, and that are found by age.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <set>
#include <thread>

#include "pool/testing/test_support.h"

namespace foldswap {
namespace {

using test::Bytes;
using test::content;
using test::FaultyOs;
using test::holds;
using test::valid;

std::size_t length_of(std::uint64_t seed) {
  return seed % 11 == 0 ? 4096 : 100 + seed * 53 % 1200;
}

struct Kept {
  ObjectId id;
  std::uint64_t seed;
};

struct PoolTidyTest : ::testing::TestWithParam<test::NamedGeometry> {
  FaultyOs os;
  std::unique_ptr<Pool> pool = test::make_pool(os, test::config_of(GetParam().geometry));

  std::vector<Kept> sparse(std::size_t objects, std::uint32_t keep_percent) {
    std::vector<Kept> kept, freed;
    std::mt19937 rng(7);
    for (std::uint64_t i = 0; i < objects; ++i) {
      const Kept object{pool->store(content(i, length_of(i)), Codec::zstd).value(), i};
      (rng() % 100 < keep_percent ? kept : freed).push_back(object);
    }
    for (const Kept& object : freed) pool->unref(object.id);
    return kept;
  }
  void expect_whole(const std::vector<Kept>& kept) {
    for (const Kept& object : kept) {
      ASSERT_TRUE(holds(*pool, object.id, content(object.seed, length_of(object.seed))));
    }
  }
};

TEST_P(PoolTidyTest, WasteIsBroughtBelowItsTarget) {
  const auto kept = sparse(12'000, 40);
  const std::uint64_t before = pool->stats().frame_bytes;
  std::uint64_t moved = 0, calls = 0;
  while (const std::uint64_t now = pool->tidy(64 * kKiB)) {
    EXPECT_LE(now, 64 * kKiB + 4 * 4104U);
    moved += now;
    ASSERT_LT(++calls, 10'000U) << "it never ends";
  }
  expect_whole(kept);
  EXPECT_TRUE(valid(*pool));
  EXPECT_EQ(pool->stats().moved_bytes, moved);
  if (GetParam().geometry.buddies <= 7) return;  // few buddies: room that nobody can use
  pool->trim(0);
  const PoolStats after = pool->stats();
  EXPECT_LT(after.frame_bytes, before * 6 / 10);
  // Three percent, and in each shard a frame that is not full yet.
  EXPECT_LE(after.unused_bytes, after.frame_bytes * 3 / 100 + 4 * GetParam().geometry.frame_bytes);
}

// Z3FOLD_BUGS "list heads copied with a page": the whole pool is walked after every move.
TEST_P(PoolTidyTest, Z3fold_ListHeadsCopiedWithAPage) {
  const auto kept = sparse(400, 50);
  int moves = 0;
  for (; moves < 300 && pool->tidy(1) != 0; ++moves) ASSERT_TRUE(valid(*pool));
  expect_whole(kept);
  const bool nowhere_to_go = GetParam().geometry.buddies == 1 ||
                             pool->stats().frame_bytes < 8 * GetParam().geometry.frame_bytes;
  EXPECT_TRUE(moves > 20 || nowhere_to_go) << moves;
}

TEST_P(PoolTidyTest, ATidyPoolIsLeftAlone) {
  if (GetParam().geometry.buddies <= 7) {
    GTEST_SKIP() << "with few buddies more than that is always unused";
  }
  const auto kept = sparse(4'000, 80);
  pool->set_waste(40);
  EXPECT_EQ(pool->tidy(kMiB), 0U) << "a fifth is unused, and that is good enough";
  EXPECT_EQ(pool->stats().moved_bytes, 0U);
  pool->set_waste(3);
  if (GetParam().geometry == PoolGeometry{}) {
    EXPECT_GT(pool->tidy(kMiB), 0U);
  }
  expect_whole(kept);
}

// Z3FOLD_BUGS "migrate versus map": load during moves between frames; and frees, replacements and
// searches by age of the same objects.
TEST_P(PoolTidyTest, Z3fold_MigrateVersusMap) {
  const auto kept = sparse(3'000, 60);
  std::atomic<bool> done{false};
  std::atomic<std::uint64_t> wrong{0}, loads{0}, replaced{0};
  std::vector<std::jthread> threads;
  for (std::size_t t = 0; t < 3; ++t) {
    threads.emplace_back([&, t] {
      for (std::size_t i = t; !done; i += 3, ++loads) {
        const Kept& object = kept[i % kept.size()];
        if (!holds(*pool, object.id, content(object.seed, length_of(object.seed)))) ++wrong;
      }
    });
  }
  for (std::uint64_t t = 0; t < 3; ++t) {
    threads.emplace_back([&, t] {
      std::vector<Kept> mine;
      std::mt19937_64 rng(t);
      std::uint64_t seed = 1'000'000 * (t + 1);
      while (!done) {
        if (mine.size() < 200 || rng() % 2 == 0) {
          ++seed;
          if (const auto id = pool->store(content(seed, length_of(seed)), Codec::zstd)) {
            mine.push_back({*id, seed});
          }
          continue;
        }
        Kept& object = mine[rng() % mine.size()];
        if (!holds(*pool, object.id, content(object.seed, length_of(object.seed)))) ++wrong;
        if (rng() % 4 == 0) {
          ++seed;
          if (pool->replace(object.id, content(seed, length_of(seed)), Codec::lz4) ==
              Replaced::done) {
            object.seed = seed;
            ++replaced;
          }
          continue;
        }
        pool->unref(object.id);
        object = mine.back();
        mine.pop_back();
      }
      for (const Kept& object : mine) pool->unref(object.id);
    });
  }
  threads.emplace_back([&] {
    while (!done) {
      (void)pool->tidy(128 * kKiB);
      for (const ObjectId id : pool->oldest(64)) {
        if (!pool->try_ref(id)) continue;
        test::Page out;
        if (!pool->load(id, out)) ++wrong;
        pool->unref(id);
      }
    }
  });
  for (int i = 0; i < 12; ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(25));
    ASSERT_TRUE(valid(*pool, false));
  }
  done = true;
  threads.clear();
  EXPECT_EQ(wrong, 0U);
  EXPECT_GT(loads, 100U);
  EXPECT_GT(replaced, 20U);
  if (GetParam().geometry == PoolGeometry{}) {
    EXPECT_GT(pool->stats().moved_bytes, 10'000U);
  }
  expect_whole(kept);
  EXPECT_TRUE(valid(*pool));
  for (const Kept& object : kept) pool->unref(object.id);
  pool->trim(0);
  EXPECT_EQ(pool->stats().frame_bytes, 0U);
  EXPECT_TRUE(test::memory_is_counted(*pool));
}

INSTANTIATE_TEST_SUITE_P(Geometries, PoolTidyTest, ::testing::ValuesIn(test::kGeometries),
                         test::geometry_name);

struct PoolMovesTest : ::testing::Test {
  FaultyOs os;
};

// What is reserved can be stored, whatever is being moved.
TEST_F(PoolMovesTest, MovesRespectReservations) {
  const auto pool = test::make_pool(os, test::config_of({}, 4 * kMiB));
  std::vector<ObjectId> ids;
  for (std::uint64_t i = 0;; ++i) {
    const auto id = pool->store(content(i, length_of(i)), Codec::zstd);
    if (!id) break;
    ids.push_back(*id);
  }
  std::shuffle(ids.begin(), ids.end(), std::mt19937(5));
  while (ids.size() > 1'500) {
    pool->unref(ids.back());
    ids.pop_back();
  }
  std::uint64_t pages = 0;
  while (pool->reserve(4096)) ++pages;
  ASSERT_GT(pages, 50U);
  std::atomic<bool> done{false};
  std::jthread tidier([&] {
    while (!done) (void)pool->tidy(32 * kKiB);
  });
  for (std::uint64_t i = 0; i < pages; ++i) {
    ASSERT_TRUE(pool->store(content(i, 4096), Codec::raw).has_value()) << i << " of " << pages;
  }
  done = true;
  tidier.join();
  for (std::uint64_t i = 0; i < pages; ++i) pool->release_reservation(4096);
  EXPECT_TRUE(valid(*pool));
}

// An object that gets other bytes may move to where the last place for a reserved one was.
TEST_F(PoolMovesTest, ReplacementsRespectReservations) {
  PoolConfig config = test::config_of({65536, 4095}, 128 * kKiB);
  config.shards = 1;
  const auto pool = test::make_pool(os, config);
  std::vector<ObjectId> raw;
  for (std::uint64_t i = 0; i < 30; ++i) {
    raw.push_back(pool->store(content(i, 4096), Codec::raw).value());
  }
  const ObjectId moving = pool->store(content(50, 1596), Codec::lz4).value();
  (void)pool->store(content(51, 1572), Codec::lz4).value();
  (void)pool->store(content(52, 3356), Codec::lz4).value();
  pool->unref(raw[3]);
  ASSERT_TRUE(pool->reserve(4096));
  ASSERT_FALSE(pool->reserve(4096)) << "the one place that there is";
  EXPECT_EQ(pool->replace(moving, content(53, 1196), Codec::zstd), Replaced::no_room);
  EXPECT_TRUE(pool->store(content(54, 4096), Codec::raw).has_value());
  EXPECT_TRUE(holds(*pool, moving, content(50, 1596)));
  pool->release_reservation(4096);
  EXPECT_TRUE(valid(*pool));
}

// One damaged byte of what lies before an object, or of the mark of a hole: no other object may
// suffer for it, whatever is stored, moved and freed afterwards.
TEST_F(PoolMovesTest, DamagedMarksHurtNobodyElse) {
  for (std::uint32_t byte = 0; byte < 8; ++byte) {
    for (const auto flip : {std::byte{0x01}, std::byte{0x80}}) {
      PoolConfig config = test::config_of({16384, 64}, kMiB);
      config.shards = 2;
      const auto pool = test::make_pool(os, config);
      std::vector<Kept> kept;
      for (std::uint64_t i = 0; i < 60; ++i) {
        kept.push_back({pool->store(content(i, 900), Codec::lz4).value(), i});
      }
      const PoolLayout& layout = pool->layout();
      std::byte* const frames = layout.frames();
      const auto record_of = [&](ObjectId id) {
        const auto map = Mapping::shared(layout.records_fd(), kMiB).value();
        return map.as<Record>(static_cast<std::size_t>(id) * sizeof(Record) + kTablePageBytes)
            ->where();
      };
      const Location where = record_of(kept[7].id);
      if (byte >= 4) {  // a hole is marked by eight bytes, an object by four
        pool->unref(kept[7].id);
        kept.erase(kept.begin() + 7);
      }
      std::byte& victim =
          frames[std::size_t{where.frame} * 16384 + std::size_t{where.chunk} * kChunkBytes + byte];
      victim ^= flip;
      std::mt19937 rng(byte);
      for (std::uint64_t n = 0; n < 400; ++n) {
        if (kept.size() > 40 && rng() % 2 == 0) {
          std::swap(kept[rng() % kept.size()], kept.back());
          ASSERT_TRUE(holds(*pool, kept.back().id,
                            content(kept.back().seed, kept.back().seed < 60 ? 900 : 500)));
          pool->unref(kept.back().id);
          kept.pop_back();
        } else {
          const auto id = pool->store(content(1'000 + n, 500), Codec::lz4);
          if (id) kept.push_back({*id, 1'000 + n});
        }
        (void)pool->tidy(2'000);
      }
      for (const Kept& object : kept) {
        ASSERT_TRUE(holds(*pool, object.id, content(object.seed, object.seed < 60 ? 900 : 500)))
            << "byte " << byte << ", object " << object.seed;
      }
      EXPECT_EQ(pool->stats().misuses, 0U);
    }
  }
}

TEST_F(PoolMovesTest, OtherBytesForTheSameObject) {
  const auto pool = test::make_pool(os, test::config_of({}));
  const ObjectId id = pool->store(content(1, 900), Codec::lz4).value();
  ASSERT_TRUE(pool->ref(id));
  EXPECT_FALSE(pool->info(id).settled);
  ASSERT_EQ(pool->replace(id, content(2, 500), Codec::zstd), Replaced::done);
  EXPECT_TRUE(holds(*pool, id, content(2, 500)));
  const ObjectInfo info = pool->info(id);
  EXPECT_EQ(info.codec, Codec::zstd);
  EXPECT_EQ(info.refs, 2U);
  EXPECT_TRUE(info.settled);
  EXPECT_EQ(pool->stats().compressed_bytes, 500U);
  EXPECT_EQ(pool->replace(id, {}, Codec::zstd), Replaced::gone) << "no bytes";
  const ObjectId other = pool->store(content(3, 700), Codec::lz4).value();
  pool->settle(other);
  EXPECT_TRUE(pool->info(other).settled);
  EXPECT_TRUE(holds(*pool, other, content(3, 700)));
  EXPECT_TRUE(pool->oldest(10, {.unsettled = true, .least_age = 0, .among = 0}).empty());
  EXPECT_TRUE(pool->oldest(10, {.unsettled = false, .least_age = 1, .among = 0}).empty());
  EXPECT_EQ(pool->oldest(1).size(), 1U);
  EXPECT_EQ(pool->oldest(10).size(), 2U);
  const ObjectId pattern = pool->store_pattern(5).value();
  EXPECT_EQ(pool->replace(pattern, content(4, 10), Codec::lz4), Replaced::gone);
  EXPECT_EQ(pool->replace(ObjectId{77'777}, content(4, 10), Codec::lz4), Replaced::gone);
  EXPECT_FALSE(pool->try_ref(ObjectId{77'777}));
  EXPECT_EQ(pool->stats().misuses, 0U);
  test::Page out;
  EXPECT_EQ(pool->load(pattern, out)->pattern, 5U) << "a pattern has no bytes to replace";
  EXPECT_TRUE(valid(*pool));
}

TEST_F(PoolMovesTest, NoRoomLeavesAReplacedObjectAsItWas) {
  PoolConfig config = test::config_of({65536, 128}, 64 * kKiB);
  config.shards = 1;
  const auto pool = test::make_pool(os, config);
  std::vector<ObjectId> ids;
  for (std::uint64_t i = 0; i < 15; ++i) {
    ids.push_back(pool->store(content(i, 4096), Codec::raw).value());
  }
  EXPECT_EQ(pool->replace(ids[3], content(99, 4096), Codec::raw), Replaced::no_room);
  EXPECT_TRUE(holds(*pool, ids[3], content(3, 4096)));
  EXPECT_FALSE(pool->info(ids[3]).settled) << "it may be tried again";
  pool->unref(ids[4]);
  EXPECT_EQ(pool->replace(ids[3], content(99, 3000), Codec::zstd), Replaced::done);
  EXPECT_TRUE(holds(*pool, ids[3], content(99, 3000)));
  EXPECT_TRUE(valid(*pool));
}

TEST_F(PoolMovesTest, TheOldestAreFoundFirst) {
  const auto pool = test::make_pool(os, test::config_of({}));
  std::set<std::uint64_t> old;
  for (std::uint64_t i = 0; i < 2'000; ++i) {
    const ObjectId id = pool->store(content(i, 300), Codec::zstd).value();
    if (i < 500) old.insert(static_cast<std::uint64_t>(id));
  }
  const auto found = pool->oldest(200);
  ASSERT_GT(found.size(), 100U);
  const auto right = std::ranges::count_if(
      found, [&](ObjectId id) { return old.contains(static_cast<std::uint64_t>(id)); });
  EXPECT_GE(static_cast<std::size_t>(right) * 100, found.size() * 95);
  // Moving and replacing do not make them any younger.
  for (const ObjectId id : found) (void)pool->replace(id, content(9, 200), Codec::zstd);
  const auto again = pool->oldest(200);
  ASSERT_GT(again.size(), 100U);
  const auto same = std::ranges::count_if(
      again, [&](ObjectId id) { return old.contains(static_cast<std::uint64_t>(id)); });
  EXPECT_GE(static_cast<std::size_t>(same) * 100, again.size() * 95);
}

// An object that was packed again while its old bytes were on their way out stays: what lies out
// there is not what its record describes.
TEST_F(PoolMovesTest, WhatWasReplacedMeanwhileIsNotMovedOut) {
  const auto pool = test::make_pool(os, test::config_of({16384, 64}, kMiB));
  const ObjectId id = pool->store(content(1, 900), Codec::lz4).value();
  test::Page out;
  const Loaded old = pool->load(id, out).value();
  ASSERT_EQ(pool->replace(id, content(2, 500), Codec::zstd), Replaced::done);
  EXPECT_FALSE(pool->move_out(id, old, {1, 2}));
  const Loaded now = pool->load(id, out).value();
  const Bytes want = content(2, 500);
  ASSERT_EQ(now.length, want.size());
  EXPECT_TRUE(std::equal(want.begin(), want.end(), out.begin()));
  EXPECT_TRUE(pool->move_out(id, now, {1, 2}));
  EXPECT_EQ(pool->stats().objects, 0U);
  EXPECT_TRUE(pool->oldest(10).empty());
  EXPECT_TRUE(pool->validate());
  const auto vacated = pool->unref(id);
  ASSERT_TRUE(vacated.has_value());
  EXPECT_EQ(vacated->length, 500U);
}

// HAZARDS 19: a daemon may be killed at any instruction of a move or a replacement. A child makes
// them while we single-step it; after every instruction each object must be whole where its record
// says, or where the noted replacement says.
TEST_F(PoolMovesTest, Hazard19_WholeAtEveryInstruction) {
  if (test::kUnderTsan) GTEST_SKIP() << "not instruction by instruction under ThreadSanitizer";
  PoolConfig config = test::config_of({16384, 64}, 64 * kKiB);
  config.shards = 1;
  config.waste_percent = 0;
  const auto pool = test::make_pool(os, config);
  std::vector<ObjectId> ids;
  for (std::uint64_t i = 0; i < 45; ++i) {
    ids.push_back(pool->store(content(i, 1000), Codec::lz4).value());
  }
  std::vector<Kept> kept;
  for (std::uint64_t i = 0; i < ids.size(); ++i) {
    i % 3 == 0 || i > 30 ? kept.push_back({ids[i], i}) : void(pool->unref(ids[i]));
  }
  const auto records = Mapping::shared(pool->layout().records_fd(), kMiB).value();
  const PoolLayout& layout = pool->layout();
  const auto at = [&](Location where) {
    return layout.frames() + std::size_t{where.frame} * layout.geometry().frame_bytes +
           std::size_t{where.chunk} * kChunkBytes + kHeaderBytes;
  };
  const Bytes changed = content(1234, 700);
  const ObjectId replaced = kept.back().id;
  constexpr SegmentPlace kOutside{7, 11};
  test::Page out;
  const Loaded leaving = pool->load(kept.front().id, out).value();
  const auto is_whole = [&](const Kept& object) {
    const auto& record =
        *records.as<Record>(static_cast<std::size_t>(object.id) * sizeof(Record) + kTablePageBytes);
    Location where = record.where();
    ObjectMeta what = record.what();
    const Replacing& noted = layout.shard_state(0).replacing;
    if (noted.id == static_cast<std::uint64_t>(object.id)) {
      where = Location::unpack(noted.location);
      what = ObjectMeta::unpack(noted.meta);
    }
    if (where.tier == Tier::segment) return where.segment_place() == kOutside;
    const Bytes want = what.length == 700 ? changed : content(object.seed, 1000);
    return what.length == want.size() && std::memcmp(at(where), want.data(), want.size()) == 0 &&
           checksum28(want) == what.checksum;
  };

  test::single_step(
      [&] {
        const bool moved =
            pool->tidy(3'000) != 0 && pool->move_out(kept.front().id, leaving, kOutside);
        return pool->replace(replaced, changed, Codec::zstd) == Replaced::done && moved;
      },
      [&] {
        return std::ranges::count_if(kept, [&](const Kept& object) { return !is_whole(object); });
      });
  EXPECT_GE(pool->stats().moved_bytes, 3'000U) << "the child's, counted in the shared file";
}

}  // namespace
}  // namespace foldswap
