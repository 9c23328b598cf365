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

#include "pool/crash_support.h"
#include "pool/test_support.h"

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
    PoolFiles files = test::duplicate(*pool_);
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

}  // namespace
}  // namespace foldswap
