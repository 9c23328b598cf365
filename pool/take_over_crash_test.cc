// HAZARDS 19: a process may be killed at any instruction of anything that it does to a pool, also
// while it takes one over. A child does each of these while we single-step it; each time that it
// has changed its files, what is in them then is taken over.
#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <optional>

#include "pool/testing/crash_support.h"

namespace foldswap {
namespace {

using test::Bytes;
using test::content;
using test::FaultyOs;
using test::Snapshot;
using test::valid;

// What a page map names: one of these must be there.
struct Named {
  ObjectId id = ObjectId::none;
  std::uint32_t refs = 1;
  std::vector<Bytes> bytes;
  std::vector<SegmentPlace> places;
  std::optional<std::uint64_t> pattern;
};

struct PoolCrashTest : ::testing::Test {
  FaultyOs os;
  PoolConfig config{.geometry = {16'384, 64},
                    .shards = 1,
                    .limit_bytes = 256 * kKiB,
                    .frame_bytes_max = kMiB,
                    .objects_max = 2'000,
                    .waste_percent = 0};
  std::unique_ptr<Pool> pool;
  std::vector<Named> named;
  std::uint64_t seed = 0;

  void SetUp() override {
    if (test::kUnderTsan) GTEST_SKIP() << "not instruction by instruction under ThreadSanitizer";
    make();
  }
  void make() { pool = test::make_pool(os, config); }
  void store(std::size_t bytes) {
    const Bytes data = content(++seed, bytes);
    named.push_back({pool->store(data, Codec::lz4).value(), 1, {data}, {}, {}});
  }
  void store(std::size_t count, std::size_t bytes) {
    for (std::size_t i = 0; i < count; ++i) store(bytes);
  }
  // Their page-map entries are cleared; unref() comes after that.
  std::vector<ObjectId> unname(const std::function<bool(std::size_t)>& which) {
    std::vector<ObjectId> ids;
    std::vector<Named> kept;
    for (std::size_t i = 0; i < named.size(); ++i) {
      which(i) ? ids.push_back(named[i].id) : kept.push_back(named[i]);
    }
    named = kept;
    return ids;
  }
  void free(const std::function<bool(std::size_t)>& which) {
    for (const ObjectId id : unname(which)) pool->unref(id);
  }
  Loaded load(std::size_t i) {
    test::Page out;
    return pool->load(named[i].id, out).value();
  }
  void move_out(std::size_t i, SegmentPlace to) {
    ASSERT_TRUE(pool->move_out(named[i].id, load(i), to));
    named[i].places = {to};
    named[i].bytes.clear();
  }

  void expect_there(Pool& successor, const Named& want) const {
    test::Page out;
    const auto loaded = successor.load(want.id, out);
    ASSERT_TRUE(loaded.has_value()) << loaded.error().text();
    EXPECT_EQ(successor.refs(want.id), want.refs);
    if (want.pattern) {
      EXPECT_EQ(loaded->pattern, *want.pattern);
    } else if (loaded->elsewhere) {
      EXPECT_TRUE(std::ranges::count(want.places, loaded->elsewhere->place) == 1);
    } else {
      const Bytes bytes(out.begin(), out.begin() + loaded->length);
      EXPECT_TRUE(std::ranges::count(want.bytes, bytes) == 1) << "other bytes";
    }
  }
  [[nodiscard]] bool refer(PoolTakeOver& begun) const {
    bool all = true;
    for (const Named& object : named) {
      for (std::uint32_t r = 0; r < object.refs; ++r) all = all && begun.reference(object.id);
    }
    return all;
  }
  // It lives on until nothing is left.
  void expect_of_use(Pool& successor) const {
    for (std::uint64_t i = 0; i < 3; ++i) {
      const auto id = successor.store(content(i, 900), Codec::zstd);
      ASSERT_TRUE(id.has_value()) << id.error().text();
      EXPECT_TRUE(std::ranges::none_of(named, [&](const Named& n) { return n.id == *id; }));
      EXPECT_TRUE(test::holds(successor, *id, content(i, 900)));
      successor.unref(*id);
    }
    for (const Named& object : named) {
      for (std::uint32_t r = 0; r < object.refs; ++r) successor.unref(object.id);
    }
    EXPECT_TRUE(valid(successor));
    successor.trim(0);
    EXPECT_TRUE(valid(successor));
    EXPECT_EQ(successor.stats().frame_bytes, 0U);
    EXPECT_TRUE(test::memory_is_counted(successor));
  }
  [[nodiscard]] bool succeeds(PoolFiles files) {
    auto begun = PoolTakeOver::begin(os, files, config);
    EXPECT_TRUE(begun.has_value());
    EXPECT_TRUE(refer(*begun));
    std::size_t outside = 0;
    const auto successor = begun->finish([&](ObjectId, SegmentPlace, std::uint32_t) {
      ++outside;
      return true;
    });
    EXPECT_TRUE(valid(*successor));
    EXPECT_TRUE(test::memory_is_counted(*successor));
    const PoolStats stats = successor->stats();
    EXPECT_EQ(stats.lost, 0U);
    EXPECT_EQ(stats.outside, outside);
    EXPECT_EQ(stats.objects + stats.outside + stats.pattern_objects, named.size());
    for (const Named& object : named) expect_there(*successor, object);
    expect_of_use(*successor);
    return !HasFailure();
  }
  // Work: returns whether it went well.
  template <typename Work>
  void die_anywhere(Work work, std::uint64_t least_deaths) {
    const std::uint64_t deaths = test::die_at_every_store(
        test::files_of(pool->layout()), work,
        [&](const Snapshot& dead) { return succeeds(test::pool_files(dead)); });
    EXPECT_GE(deaths, least_deaths);
    RecordProperty("deaths", static_cast<int>(deaths));
  }
};

TEST_F(PoolCrashTest, Hazard19_Store) {
  store(9, 1'000);
  const Bytes data = content(99, 700);
  die_anywhere([&] { return pool->store(data, Codec::lz4).has_value(); }, 20);
}

TEST_F(PoolCrashTest, Hazard19_TheFirstStore) {
  const Bytes data = content(99, 700);
  die_anywhere([&] { return pool->store(data, Codec::lz4).has_value(); }, 50);
}

TEST_F(PoolCrashTest, Hazard19_StoreThatGrows) {
  store(16, 1'000);
  const Bytes data = content(99, 3'000);
  die_anywhere([&] { return pool->store(data, Codec::lz4).has_value(); }, 100);
}

TEST_F(PoolCrashTest, Hazard19_StoreThatNeedsAPageOfRecords) {
  config.geometry = {16'384, 1'000};
  make();
  store(253, 20);
  const Bytes data = content(99, 20);
  die_anywhere([&] { return pool->store(data, Codec::lz4).has_value(); }, 20);
}

// Short holes first, so that moves overlap and go through scratch; then long ones, for direct
// moves.
TEST_F(PoolCrashTest, Hazard19_StoreThatCompacts) {
  config.limit_bytes = 16'384;
  make();
  for (std::size_t i = 0; i < 16; ++i) store(i % 4 == 1 ? 200 : 1'100 + 8 * i);
  free([](std::size_t i) { return i == 1 || i == 5 || i == 10 || i == 12; });
  config.limit_bytes = 64 * kKiB;  // the successors'
  const Bytes data = content(99, 4'000);
  die_anywhere([&] { return pool->store(data, Codec::lz4).has_value(); }, 300);
  EXPECT_EQ(pool->stats().compactions, 1U);
}

TEST_F(PoolCrashTest, Hazard19_StorePattern) {
  store(3, 1'000);
  named.push_back({pool->store_pattern(77).value(), 1, {}, {}, 77});
  die_anywhere([&] { return pool->store_pattern(88).has_value(); }, 5);
}

TEST_F(PoolCrashTest, Hazard19_RefAndSettle) {
  store(9, 1'000);
  named[2].refs = 3;
  die_anywhere(
      [&] {
        pool->settle(named[3].id);
        return pool->ref(named[2].id) && pool->ref(named[2].id);
      },
      3);
}

TEST_F(PoolCrashTest, Hazard19_UnrefToZero) {
  store(30, 1'000);
  move_out(20, {5, 6});
  const auto gone = unname([](std::size_t i) { return i == 0 || i == 5 || i == 6 || i == 20; });
  die_anywhere(
      [&] {
        for (const ObjectId id : gone) pool->unref(id);
        return pool->stats().misuses == 0;
      },
      20);
}

// The last of a frame, and of so many that frames are given back by themselves.
TEST_F(PoolCrashTest, Hazard19_UnrefThatGivesBack) {
  store(20, 4'096);
  store(3, 1'000);
  const auto gone = unname([](std::size_t i) { return i < 20; });
  die_anywhere(
      [&] {
        for (const ObjectId id : gone) pool->unref(id);
        return pool->stats().frame_bytes < 6 * 16'384;
      },
      40);
}

TEST_F(PoolCrashTest, Hazard19_Trim) {
  config.geometry = {4'096, 1'000};
  make();
  store(700, 20);
  store(30, 1'000);
  os.punch_fails = true;  // nothing goes back before
  free([](std::size_t i) { return i > 40 && i != 710; });
  os.punch_fails = false;
  die_anywhere([&] { return pool->trim(0) > 8 * 4'096; }, 50);
}

TEST_F(PoolCrashTest, Hazard19_MoveBetweenFrames) {
  store(45, 1'000);
  free([](std::size_t i) { return i % 3 != 0 && i <= 30; });
  die_anywhere([&] { return pool->tidy(3'000) != 0; }, 100);
}

TEST_F(PoolCrashTest, Hazard19_Replace) {
  store(15, 1'000);
  for (const std::size_t bytes : {700U, 1'300U}) {
    const Bytes data = content(1'000 + bytes, bytes);
    Named& object = named[bytes / 100];
    object.bytes.push_back(data);
    die_anywhere([&] { return pool->replace(object.id, data, Codec::zstd) == Replaced::done; }, 50);
  }
}

// No frame has the room in one piece, and a replacement does not make the pool grow.
TEST_F(PoolCrashTest, Hazard19_ReplaceThatCompacts) {
  config.limit_bytes = 32'768;
  make();
  for (bool room = true; room;) {
    const Bytes fill = content(++seed, named.size() % 4 == 1 ? 500 : 1'300);
    const auto id = pool->store(fill, Codec::lz4);
    if (id) named.push_back({*id, 1, {fill}, {}, {}});
    room = id.has_value();
  }
  free([](std::size_t i) { return i % 4 == 1; });
  config.limit_bytes = 65'536;
  ASSERT_TRUE(pool->set_limit(config.limit_bytes));
  const Bytes data = content(1'234, 1'500);
  named[4].bytes.push_back(data);
  die_anywhere([&] { return pool->replace(named[4].id, data, Codec::zstd) == Replaced::done; },
               200);
  EXPECT_GE(pool->stats().compactions, 1U);
}

TEST_F(PoolCrashTest, Hazard19_MoveOutAndOn) {
  store(20, 1'000);
  move_out(3, {7, 8});
  constexpr SegmentPlace kFirst{7, 11}, kThen{9, 300};
  const Loaded leaving = load(5);
  named[5].places = {kFirst, kThen};
  named[3].places.push_back(kThen);
  die_anywhere(
      [&] {
        return pool->move_out(named[5].id, leaving, kFirst) &&
               pool->move_elsewhere(named[5].id, kFirst, kThen) &&
               pool->move_elsewhere(named[3].id, {7, 8}, kThen);
      },
      8);
}

// Those that die while they take over. The first died with an object in its scratch frame, with
// garbage, and with empty frames.
struct PoolCrashTwiceTest : PoolCrashTest {
  void SetUp() override {
    if (test::kUnderAsan) GTEST_SKIP() << "not instruction by instruction of all that it adds";
    PoolCrashTest::SetUp();
  }
  [[nodiscard]] const Record& record(const Mapping& records, ObjectId id) const {
    return *records.as<Record>(kTablePageBytes + static_cast<std::size_t>(id) * sizeof(Record));
  }
  void successor_dies_anywhere(std::uint64_t least_deaths) {
    die_anywhere(
        [&] {
          PoolFiles files = test::duplicate(pool->layout());
          auto begun = PoolTakeOver::begin(os, files, config);
          if (!begun || !refer(*begun)) return false;
          const auto all = [](ObjectId, SegmentPlace, std::uint32_t) { return true; };
          return begun->finish(all)->stats().lost == 0;
        },
        least_deaths);
  }
};

TEST_F(PoolCrashTwiceTest, Hazard19_WithAnObjectInScratch) {
  config.limit_bytes = 32'768;
  make();
  for (std::size_t i = 0; i < 16; ++i) store(i % 4 == 1 ? 200 : 1'100 + 8 * i);
  store(4, 3'900);
  free([](std::size_t i) { return i == 1 || i == 5 || i == 10 || i == 12; });
  (void)unname([&](std::size_t i) { return i == 3 || i + 4 >= named.size(); });  // garbage
  const auto records = Mapping::shared(pool->layout().records_fd(), kMiB / 16).value();
  const Bytes data = content(99, 4'000);
  test::die_when([&] { (void)pool->store(data, Codec::lz4); },
                 [&] {
                   return std::ranges::any_of(named, [&](const Named& object) {
                     const Location where = record(records, object.id).where();
                     return where.frame == PoolLayout::scratch_frame(0);
                   });
                 });
  config.limit_bytes = 64 * kKiB;
  successor_dies_anywhere(100);
}

// Between the two words of a replacement.
TEST_F(PoolCrashTwiceTest, Hazard19_WithAReplacementHalfWay) {
  store(20, 1'000);
  const Bytes data = content(1'234, 700);
  named[4].bytes = {data};
  const auto records = Mapping::shared(pool->layout().records_fd(), kMiB / 16).value();
  const std::uint64_t before = record(records, named[4].id).location.load();
  test::die_when([&] { (void)pool->replace(named[4].id, data, Codec::zstd); },
                 [&] { return record(records, named[4].id).location.load() != before; });
  ASSERT_EQ(record(records, named[4].id).what().length, 1'000U);
  successor_dies_anywhere(20);
}

}  // namespace
}  // namespace foldswap
