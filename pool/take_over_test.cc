// A pool whose process has died, taken over: whatever it was in the middle of, every object that a
// page map names is there. HAZARDS 19 and 20; docs: DESIGN §10.
#include "pool/take_over.h"

#include <gtest/gtest.h>
#include <sys/mman.h>

#include <algorithm>
#include <chrono>
#include <functional>
#include <map>
#include <optional>
#include <thread>

#include "pool/testing/crash_support.h"
#include "pool/testing/test_support.h"

namespace foldswap {
namespace {

using test::Bytes;
using test::content;
using test::FaultyOs;
using test::valid;

using Places = std::map<std::uint64_t, std::pair<SegmentPlace, std::uint32_t>>;

// What the page maps name, and what each of it must be.
struct Named {
  std::uint64_t seed = 0;
  std::size_t bytes = 0;  // 0: a pattern
  std::uint32_t refs = 1;
  std::optional<SegmentPlace> outside;
};
using PageMap = std::map<std::uint64_t, Named>;

::testing::AssertionResult is_as_named(Pool& pool, std::uint64_t id, const Named& want) {
  test::Page out;
  const auto loaded = pool.load(ObjectId{id}, out);
  if (!loaded) return ::testing::AssertionFailure() << loaded.error().text();
  if (pool.refs(ObjectId{id}) != want.refs) return ::testing::AssertionFailure() << "references";
  if (want.bytes == 0) {
    if (loaded->codec == Codec::pattern && loaded->pattern == want.seed) {
      return ::testing::AssertionSuccess();
    }
    return ::testing::AssertionFailure() << "another pattern";
  }
  const Bytes bytes = content(want.seed, want.bytes);
  if (want.outside) {
    if (loaded->elsewhere && loaded->elsewhere->place == *want.outside &&
        loaded->elsewhere->length == want.bytes && pool.verify(ObjectId{id}, bytes)) {
      return ::testing::AssertionSuccess();
    }
    return ::testing::AssertionFailure() << "not where it was moved out to";
  }
  return test::holds(pool, ObjectId{id}, bytes);
}

// Random calls to a pool, and what the page maps would be.
class Life {
 public:
  Life(PoolGeometry geometry, std::uint64_t seed) : rng_(seed) {
    config_ = test::config_of(geometry, 8 * kMiB);
    config_.shards = 3;
    pool_ = test::make_pool(os_, config_);
  }

  void live(int steps) {
    for (int i = 0; i < steps; ++i) step();
    ASSERT_TRUE(valid(*pool_));
  }
  // Forgets some of what the maps name, as a client's death would, without the pool being told.
  void forget_some() {
    std::erase_if(map_, [&](const auto&) { return rng_() % 8 == 0; });
  }
  void die_and_take_over() {
    const PoolStats before = pool_->stats();
    PoolFiles files = test::duplicate(pool_->layout());
    pool_.reset();
    auto begun = PoolTakeOver::begin(os_, files, config_);
    ASSERT_TRUE(begun.has_value()) << begun.error().text();
    for (const auto& [id, want] : map_) {
      for (std::uint32_t r = 0; r < want.refs; ++r) ASSERT_TRUE(begun->reference(ObjectId{id}));
    }
    Places outside;
    pool_ = begun->finish([&](ObjectId id, SegmentPlace place, std::uint32_t length) {
      outside[static_cast<std::uint64_t>(id)] = {place, length};
      return true;
    });
    check(outside);
    const PoolStats after = pool_->stats();
    EXPECT_EQ(before.compactions, after.compactions);
    EXPECT_EQ(before.moved_bytes, after.moved_bytes);
  }
  void finish() {
    for (const auto& [id, want] : map_) {
      for (std::uint32_t r = 0; r < want.refs; ++r) pool_->unref(ObjectId{id});
    }
    pool_->trim(0);
    EXPECT_TRUE(valid(*pool_));
    EXPECT_EQ(pool_->stats().frame_bytes, 0U);
    EXPECT_EQ(pool_->stats().misuses, 0U);
    EXPECT_TRUE(test::memory_is_counted(*pool_));
  }

 private:
  void check(const Places& outside) {
    ASSERT_TRUE(valid(*pool_));
    EXPECT_TRUE(test::memory_is_counted(*pool_));
    PoolStats sum;
    for (const auto& [id, want] : map_) {
      ASSERT_TRUE(is_as_named(*pool_, id, want)) << id;
      (want.bytes == 0 ? sum.pattern_objects : want.outside ? sum.outside : sum.objects) += 1;
      (want.outside ? sum.outside_bytes : sum.compressed_bytes) += want.bytes;
      if (!want.outside) continue;
      ASSERT_TRUE(outside.contains(id));
      EXPECT_EQ(outside.at(id).first, *want.outside);
      EXPECT_EQ(outside.at(id).second, want.bytes);
    }
    const PoolStats stats = pool_->stats();
    EXPECT_EQ(stats.objects, sum.objects);
    EXPECT_EQ(stats.pattern_objects, sum.pattern_objects);
    EXPECT_EQ(stats.compressed_bytes, sum.compressed_bytes);
    EXPECT_EQ(stats.outside, sum.outside);
    EXPECT_EQ(stats.outside_bytes, sum.outside_bytes);
    EXPECT_EQ(outside.size(), sum.outside);
    EXPECT_EQ(stats.lost, 0U);
    EXPECT_EQ(stats.reserved_bytes, 0U);
    EXPECT_EQ(stats.empty_frame_bytes, 0U);
    EXPECT_EQ(stats.misuses, 0U);
  }
  void step() {
    const auto at =
        map_.empty() ? map_.end() : map_.lower_bound(rng_() % (map_.rbegin()->first + 1));
    const std::uint64_t kind = rng_() % 20;
    if (kind < 8 || at == map_.end()) return store();
    const ObjectId id{at->first};
    Named& object = at->second;
    if (kind < 12) {
      pool_->unref(id);
      if (--object.refs == 0) map_.erase(at);
    } else if (kind == 12) {
      object.refs += pool_->ref(id) ? 1 : 0;
    } else if (kind == 13) {
      (void)pool_->tidy(rng_() % 20'000);
    } else if (kind == 14) {
      pool_->trim(rng_() % 3 * 65'536);
    } else if (kind == 15) {
      (void)pool_->reserve(rng_() % 8 * 4096);  // and never released: its owner dies
    } else if (kind < 18) {
      replace(id, object);
    } else {
      move_out(id, object);
    }
  }
  void store() {
    Named object{++seed_, rng_() % 10 == 0 ? 0 : rng_() % 6 == 0 ? 4096 : 1 + rng_() % 1200, 1, {}};
    const auto id = object.bytes == 0
                        ? pool_->store_pattern(object.seed)
                        : pool_->store(content(object.seed, object.bytes), Codec::lz4);
    if (id) map_[static_cast<std::uint64_t>(*id)] = object;
  }
  void replace(ObjectId id, Named& object) {
    const std::size_t bytes = 1 + rng_() % 1500;
    if (pool_->replace(id, content(++seed_, bytes), Codec::zstd) != Replaced::done) return;
    object.seed = seed_;
    object.bytes = bytes;
  }
  void move_out(ObjectId id, Named& object) {
    const SegmentPlace to{static_cast<std::uint32_t>(rng_()),
                          static_cast<std::uint32_t>(rng_() % 32'768)};
    test::Page out;
    const bool moved = object.outside ? pool_->move_elsewhere(id, *object.outside, to)
                                      : pool_->move_out(id, pool_->load(id, out).value(), to);
    if (moved) object.outside = to;
  }

  std::mt19937_64 rng_;
  FaultyOs os_;
  PoolConfig config_;
  std::unique_ptr<Pool> pool_;
  PageMap map_;
  std::uint64_t seed_ = 0;
};

struct PoolTakeOverTest : ::testing::TestWithParam<test::NamedGeometry> {};

TEST_P(PoolTakeOverTest, AgainAndAgain) {
  for (std::uint64_t seed = 1; seed <= 4; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    Life life(GetParam().geometry, seed);
    for (int deaths = 0; deaths < 6; ++deaths) {
      ASSERT_NO_FATAL_FAILURE(life.live(deaths == 0 ? 0 : 700));
      if (deaths % 2 == 1) life.forget_some();
      ASSERT_NO_FATAL_FAILURE(life.die_and_take_over());
    }
    life.finish();
  }
}

INSTANTIATE_TEST_SUITE_P(Geometries, PoolTakeOverTest, ::testing::ValuesIn(test::kGeometries),
                         test::geometry_name);

// -- files that are not what they should be

struct PoolTakeOverFilesTest : ::testing::Test {
  FaultyOs os;
  PoolConfig config = test::config_of({16'384, 64}, kMiB);
  std::unique_ptr<Pool> pool;
  PageMap map;

  void SetUp() override {
    config.shards = 2;
    pool = test::make_pool(os, config);
  }
  void store(std::size_t count) {
    for (std::size_t i = 0; i < count; ++i) {
      const std::uint64_t seed = map.size() + 1;
      const std::size_t bytes = 100 + seed * 53 % 1'200;
      const ObjectId id = pool->store(content(seed, bytes), Codec::zstd).value();
      map[static_cast<std::uint64_t>(id)] = {seed, bytes, 1, {}};
    }
  }
  [[nodiscard]] PoolFiles files() const {
    return test::pool_files(test::Snapshot(test::files_of(pool->layout())));
  }
  Result<std::unique_ptr<Pool>> take_over(PoolFiles& from, const PoolConfig& with) {
    auto begun = PoolTakeOver::begin(os, from, with);
    if (!begun) return std::unexpected(begun.error());
    for (const auto& [id, want] : map) EXPECT_TRUE(begun->reference(ObjectId{id}));
    return begun->finish([](ObjectId, SegmentPlace, std::uint32_t) { return false; });
  }
  // The records of a set of files, to be damaged.
  struct Records {
    Mapping mapping;
    Record& operator[](std::uint64_t id) const {
      return *mapping.as<Record>(kTablePageBytes + id * sizeof(Record));
    }
  };
  static Records records_of(const PoolFiles& from) {
    return {Mapping::shared(from.records.get(), kMiB / 4).value()};
  }
  // Either as it was, or an error; never anything else.
  ::testing::AssertionResult is_error_or_itself(Pool& successor, std::uint64_t id) {
    test::Page out;
    const auto loaded = successor.load(ObjectId{id}, out);
    if (loaded) return test::holds(successor, ObjectId{id}, content(map[id].seed, map[id].bytes));
    if (loaded.error().code == EIO) return ::testing::AssertionSuccess();
    return ::testing::AssertionFailure() << loaded.error().text();
  }
};

TEST_F(PoolTakeOverFilesTest, AnotherLayoutIsRefusedAndTheFilesStay) {
  store(100);
  const std::pair<const char*, std::function<void(PoolConfig&)>> changes[] = {
      {"pool.frame", [](PoolConfig& c) { c.geometry.frame_bytes = 8'192; }},
      {"pool.buddies", [](PoolConfig& c) { c.geometry.buddies = 63; }},
      {"shards", [](PoolConfig& c) { c.shards = 3; }},
      {"pages of records", [](PoolConfig& c) { c.objects_max *= 2; }},
      {"pages of frames", [](PoolConfig& c) { c.frame_bytes_max *= 2; }}};
  PoolFiles from = files();
  for (const auto& [what, change] : changes) {
    PoolConfig other = config;
    change(other);
    const auto refused = take_over(from, other);
    ASSERT_FALSE(refused.has_value()) << what;
    EXPECT_NE(refused.error().message.find(what), std::string::npos) << refused.error().text();
    EXPECT_NE(refused.error().message.find("drain first"), std::string::npos);
  }
  const auto taken = take_over(from, config);
  ASSERT_TRUE(taken.has_value()) << taken.error().text();
  for (const auto& [id, want] : map) EXPECT_TRUE(is_as_named(**taken, id, want));
}

TEST_F(PoolTakeOverFilesTest, DamagedHeadersAreRefused) {
  store(10);
  for (const bool in_meta : {true, false}) {
    PoolFiles from = files();
    const int fd = in_meta ? from.meta.get() : from.records.get();
    const auto page = Mapping::shared(fd, kTablePageBytes).value();
    auto* const words = page.as<std::uint32_t>();
    for (std::size_t w = 0; w < sizeof(PoolHeader) / sizeof(*words); ++w) {
      ++words[w];
      EXPECT_FALSE(take_over(from, config).has_value()) << w;
      --words[w];
    }
    ++page.as<PoolHeader>()->version;
    EXPECT_NE(take_over(from, config).error().message.find("version"), std::string::npos);
    --page.as<PoolHeader>()->version;
    EXPECT_TRUE(take_over(from, config).has_value());
  }
}

TEST_F(PoolTakeOverFilesTest, OtherFilesAreRefused) {
  PoolFiles none;
  EXPECT_FALSE(take_over(none, config).has_value());
  for (const std::uint64_t bytes : {std::uint64_t{0}, std::uint64_t{100}, kMiB}) {
    PoolFiles from = files();
    from.frames = os.memory_file("other", bytes).value();
    EXPECT_FALSE(take_over(from, config).has_value());
    from = files();
    from.records = os.memory_file("other", bytes).value();
    EXPECT_FALSE(take_over(from, config).has_value());
    from = files();
    from.meta = os.memory_file("other", bytes).value();
    EXPECT_FALSE(take_over(from, config).has_value());
  }
  PoolFiles swapped = files();
  std::swap(swapped.meta, swapped.records);
  EXPECT_FALSE(take_over(swapped, config).has_value());
}

// Ids that nothing has, or that are free: none of them is handed out while something names it.
TEST_F(PoolTakeOverFilesTest, BogusIdsAreHarmless) {
  store(100);
  const std::uint64_t freed = map.begin()->first;
  pool->unref(ObjectId{freed});
  map.erase(freed);
  PoolFiles from = files();
  auto begun = PoolTakeOver::begin(os, from, config).value();
  std::uint64_t refused = 0;
  std::mt19937_64 rng(3);
  for (int i = 0; i < 10'000; ++i) {
    const std::uint64_t id = rng() >> rng() % 64;
    if (id >= 100'000 && !begun.reference(ObjectId{id})) ++refused;
  }
  EXPECT_GT(refused, 5'000U);
  for (const std::uint64_t id : {std::uint64_t{0}, std::uint64_t{1}, std::uint64_t{256},
                                 std::uint64_t{1} << 32 | map.begin()->first, ~std::uint64_t{0}}) {
    EXPECT_FALSE(begun.reference(ObjectId{id})) << id;
  }
  for (const auto& [id, want] : map) ASSERT_TRUE(begun.reference(ObjectId{id}));
  ASSERT_TRUE(begun.reference(ObjectId{freed})) << "it could be one";
  const auto successor = begun.finish([](ObjectId, SegmentPlace, std::uint32_t) { return true; });
  EXPECT_TRUE(valid(*successor));
  EXPECT_TRUE(test::memory_is_counted(*successor)) << "looking at it made it no larger";
  EXPECT_EQ(successor->stats().lost, 1U);
  EXPECT_EQ(successor->stats().objects, map.size());
  test::Page out;
  EXPECT_EQ(successor->load(ObjectId{freed}, out).error().code, EIO);
  for (std::uint64_t i = 0; i < 600; ++i) {
    EXPECT_NE(successor->store(content(i, 50), Codec::lz4).value(), ObjectId{freed});
  }
  for (const auto& [id, want] : map) EXPECT_TRUE(is_as_named(*successor, id, want));
  EXPECT_FALSE(successor->unref(ObjectId{freed}).has_value());
  EXPECT_EQ(successor->stats().lost, 0U);
  EXPECT_TRUE(valid(*successor));
}

// What nothing named once is free: an entry that names it later names nothing.
TEST_F(PoolTakeOverFilesTest, GarbageDoesNotComeBack) {
  store(100);
  const auto garbage = *map.begin();
  map.erase(garbage.first);
  PoolFiles from = files();
  {
    const auto taken = take_over(from, config);
    ASSERT_TRUE(taken.has_value());
    EXPECT_EQ((*taken)->refs(ObjectId{garbage.first}), 0U);
    from = test::duplicate((*taken)->layout());
  }
  map.insert(garbage);
  const auto again = take_over(from, config);
  ASSERT_TRUE(again.has_value());
  EXPECT_EQ((*again)->stats().lost, 1U);
  EXPECT_TRUE(valid(**again));
}

TEST_F(PoolTakeOverFilesTest, MoreReferencesThanCanBe) {
  store(2);
  PoolFiles from = files();
  auto begun = PoolTakeOver::begin(os, from, config).value();
  const ObjectId id{map.begin()->first};
  for (std::uint32_t i = 0; i < kRefsMax; ++i) ASSERT_TRUE(begun.reference(id));
  EXPECT_FALSE(begun.reference(id));
  const auto successor = begun.finish([](ObjectId, SegmentPlace, std::uint32_t) { return true; });
  EXPECT_EQ(successor->refs(id), kRefsMax);
}

// Each is lost or (what the checksum is for) an error; the others are as they were.
TEST_F(PoolTakeOverFilesTest, ImpossibleRecords) {
  store(300);
  const PoolFiles clean = files();
  const auto good = records_of(clean);
  auto at = map.begin();
  const std::uint64_t victim = std::next(at, 7)->first, other = std::next(at, 9)->first;
  const Location here = good[victim].where();
  const ObjectMeta what = good[victim].what();
  const auto elsewhere = [&](auto change) {
    Location where = here;
    change(where);
    return std::pair(where.pack(), good[victim].meta.load());
  };
  const auto otherwise = [&](auto change) {
    ObjectMeta meta = what;
    change(meta);
    return std::pair(good[victim].location.load(), meta.pack());
  };
  const std::pair<std::uint64_t, std::uint64_t> impossible[] = {
      {~std::uint64_t{0}, ~std::uint64_t{0}},
      {0, 0},
      {good[victim].location, 0},
      {good[other].location, good[victim].meta},
      {good[other].location, good[other].meta},
      elsewhere([](Location& w) { w.tier = Tier::none; }),
      elsewhere([](Location& w) { w.tier = Tier{3}; }),
      elsewhere([](Location& w) { w.tier = Tier::segment; }),  // take_over() knows of none
      elsewhere([](Location& w) { w.frame = ~0U; }),
      elsewhere([](Location& w) { w.frame = 0; }),  // the scratch of shard 0
      elsewhere([](Location& w) { w.frame = 1; }),
      elsewhere([](Location& w) { w.frame += 90; }),
      elsewhere([](Location& w) { w.frame ^= 128; }),  // another shard's
      elsewhere([](Location& w) { w.chunk = 2'047; }),
      elsewhere([](Location& w) { w.chunk = 32'767; }),
      elsewhere([](Location& w) { w.chunk += 1; }),
      otherwise([](ObjectMeta& m) { m.refs = 0; }),
      otherwise([](ObjectMeta& m) { m.length = 0; }),
      otherwise([](ObjectMeta& m) { m.length = 4'097; }),
      otherwise([](ObjectMeta& m) { m.length = 4'096; }),
      otherwise([](ObjectMeta& m) { m.codec = Codec::pattern; }),
      otherwise([](ObjectMeta& m) { m.codec = Codec{5}; }),
      otherwise([](ObjectMeta& m) { m.checksum ^= 1; })};
  int number = 0;
  for (const auto& [location, meta] : impossible) {
    SCOPED_TRACE("case " + std::to_string(number++));
    PoolFiles from = files();
    const auto records = records_of(from);
    records[victim].location = location;
    records[victim].meta = meta;
    const auto taken = take_over(from, config);
    ASSERT_TRUE(taken.has_value());
    Pool& successor = **taken;
    test::Page out;
    const auto loaded = successor.load(ObjectId{victim}, out);
    ASSERT_FALSE(loaded.has_value());
    EXPECT_EQ(loaded.error().code, EIO);
    EXPECT_EQ(successor.refs(ObjectId{victim}), 1U);
    for (const auto& [id, want] : map) {
      EXPECT_TRUE(id == victim || is_as_named(successor, id, want)) << id;
    }
    EXPECT_EQ(successor.stats().lost + successor.stats().objects, map.size());
    for (const auto& [id, want] : map) successor.unref(ObjectId{id});
    EXPECT_TRUE(valid(successor));
    EXPECT_EQ(successor.stats().lost, 0U);
    successor.trim(0);
    EXPECT_EQ(successor.stats().frame_bytes, 0U);
  }
}

// Bits that flip in any of the records: each object is itself or an error, and those without a flip
// are themselves, whatever now says that it lies over them.
TEST_F(PoolTakeOverFilesTest, FlippedBitsOfRecords) {
  store(400);
  std::mt19937_64 rng(11);
  for (int round = 0; round < 200; ++round) {
    SCOPED_TRACE("round " + std::to_string(round));
    PoolFiles from = files();
    const auto records = records_of(from);
    std::map<std::uint64_t, bool> flipped;
    for (int flips = 0; flips < 1 + round; ++flips) {
      const auto victim = std::next(map.begin(), static_cast<std::ptrdiff_t>(rng() % map.size()));
      flipped[victim->first] = true;
      const std::uint64_t bit = std::uint64_t{1} << rng() % 64;
      (rng() % 2 == 0 ? records[victim->first].location : records[victim->first].meta) ^= bit;
    }
    const auto taken = take_over(from, config);
    ASSERT_TRUE(taken.has_value());
    for (const auto& [id, want] : map) {
      EXPECT_TRUE(flipped.contains(id) ? is_error_or_itself(**taken, id)
                                       : is_as_named(**taken, id, want));
    }
    for (int i = 0; i < 50; ++i) (void)(*taken)->store(content(1, 700), Codec::lz4);
    (void)(*taken)->tidy(kMiB);
    for (const auto& [id, want] : map) {
      EXPECT_TRUE(flipped.contains(id) ? is_error_or_itself(**taken, id)
                                       : is_as_named(**taken, id, want));
      (*taken)->unref(ObjectId{id});
    }
  }
}

// All that is derived may be junk.
TEST_F(PoolTakeOverFilesTest, JunkInAllThatIsMadeAnew) {
  store(400);
  for (auto at = map.begin(); at != map.end();) {
    if (at->second.seed % 3 != 0) {
      ++at;
      continue;
    }
    pool->unref(ObjectId{at->first});
    at = map.erase(at);
  }
  std::mt19937_64 rng(5);
  for (int round = 0; round < 50; ++round) {
    PoolFiles from = files();
    {
      auto layout = PoolLayout::open(from, config).value();
      for (std::uint32_t s = 0; s < config.shards; ++s) {
        ShardState& state = layout.shard_state(s);
        const Arena frames = layout.arena(PoolLayout::Table::frames, s);
        frames.for_each_live([&](std::uint32_t frame) {
          auto& meta = *reinterpret_cast<FrameMeta*>(frames.at(frame));
          for (std::size_t i = 0; i < sizeof(FrameMeta) / 4; ++i) {
            reinterpret_cast<std::uint32_t*>(&meta)[i] = static_cast<std::uint32_t>(rng());
          }
        });
        for (std::size_t i = 0; i < offsetof(ShardState, compactions) / 4; ++i) {
          reinterpret_cast<std::uint32_t*>(&state)[i] = static_cast<std::uint32_t>(rng());
        }
        state.age_cursor = static_cast<std::uint32_t>(rng());
        for (auto& count : state.age_count) count = static_cast<std::uint32_t>(rng());
        for (auto& count : state.unsettled_count) count = static_cast<std::uint32_t>(rng());
      }
    }
    const auto taken = take_over(from, config);
    ASSERT_TRUE(taken.has_value());
    EXPECT_TRUE(valid(**taken));
    for (const auto& [id, want] : map) EXPECT_TRUE(is_as_named(**taken, id, want)) << id;
    EXPECT_FALSE((*taken)->oldest(10).empty());
    EXPECT_EQ((*taken)->stats().lost, 0U);
  }
}

// What is held may be more than a smaller limit allows: then the pool only shrinks.
TEST_F(PoolTakeOverFilesTest, ASmallerLimit) {
  store(400);
  PoolConfig smaller = config;
  smaller.limit_bytes = 65'536;
  PoolFiles from = files();
  const auto taken = take_over(from, smaller);
  ASSERT_TRUE(taken.has_value());
  Pool& successor = **taken;
  const std::uint64_t held = successor.stats().frame_bytes;
  EXPECT_GT(held, smaller.limit_bytes);
  EXPECT_EQ(successor.stats().limit_bytes, smaller.limit_bytes);
  EXPECT_TRUE(valid(successor));
  EXPECT_FALSE(successor.can_reserve(4'096));
  for (int i = 0; i < 100; ++i) (void)successor.store(content(1, 3'000), Codec::lz4);
  EXPECT_EQ(successor.stats().frame_bytes, held);
  for (const auto& [id, want] : map) {
    EXPECT_TRUE(is_as_named(successor, id, want));
    successor.unref(ObjectId{id});
  }
  EXPECT_TRUE(valid(successor));
}

// A system that gives nothing back: what cannot be is not used either.
TEST_F(PoolTakeOverFilesTest, NothingCanBeGivenBack) {
  store(400);
  std::erase_if(map, [](const auto& entry) { return entry.second.seed < 300; });
  PoolFiles from = files();
  os.punch_fails = true;
  const auto taken = take_over(from, config);
  ASSERT_TRUE(taken.has_value());
  EXPECT_TRUE(valid(**taken));
  for (const auto& [id, want] : map) EXPECT_TRUE(is_as_named(**taken, id, want));
  os.punch_fails = false;
  for (std::uint64_t i = 0; i < 200; ++i) {
    EXPECT_TRUE((*taken)->store(content(i, 1'000), Codec::lz4).has_value());
  }
  EXPECT_TRUE(valid(**taken));
}

}  // namespace
}  // namespace foldswap
