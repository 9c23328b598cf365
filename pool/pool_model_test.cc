// Property test: a pool against a model that is a map. Any sequence of calls, in several
// geometries, must leave the pool valid and every object as it was stored.
#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <map>
#include <optional>

#include "pool/testing/test_support.h"

namespace foldswap {
namespace {

using test::Bytes;
using test::content;
using test::FaultyOs;

struct Expected {
  bool pattern = false;
  std::uint64_t seed = 0;
  std::size_t bytes = 0;
  std::uint32_t refs = 1;
  std::optional<SegmentPlace> outside;
};

struct Step {
  std::uint32_t op = 0;
  std::uint32_t a = 0;
  std::uint32_t b = 0;
};
std::ostream& operator<<(std::ostream& out, const Step& step) {
  return out << '{' << step.op << ' ' << step.a << ' ' << step.b << '}';
}

class Machine {
 public:
  explicit Machine(PoolGeometry geometry) : pool_(test::make_pool(os_, config(geometry))) {}

  void run(const Step& step) {
    switch (step.op) {
      case 0:
      case 1:
      case 2:
      case 3:
        store(step);
        break;
      case 4:
        load(pick(step.a));
        break;
      case 5:
        ref(pick(step.a));
        break;
      case 6:
      case 7:
      case 8:
        unref(pick(step.a));
        break;
      case 9:
        pool_->trim(step.a % 3 * 65536);
        break;
      case 10:
        set_limit(std::uint64_t{step.a % 8} * 512 * kKiB);
        break;
      case 11:
        pattern(step);
        break;
      case 12:
        reserve(step);
        break;
      case 13:
        (void)pool_->tidy(std::uint64_t{step.a} * 100);
        break;
      case 14:
        replace(pick(step.a), step);
        break;
      case 15:
        oldest(step);
        break;
      case 17:
      case 18:
        move_outside(pick(step.a), step);
        break;
      default:
        check();
        break;
    }
    RC_ASSERT(pool_->stats().frame_bytes <= most_);
  }
  void check() {
    const Status status = pool_->validate();
    if (!status) RC_FAIL(status.error().message);
    const PoolStats stats = pool_->stats();
    std::uint64_t objects = 0, patterns = 0, bytes = 0, outside = 0, outside_bytes = 0;
    for (const auto& [id, want] : model_) {
      RC_ASSERT(pool_->refs(ObjectId{id}) == want.refs);
      (want.pattern ? patterns : want.outside ? outside : objects) += 1;
      (want.outside ? outside_bytes : bytes) += want.bytes;
    }
    RC_ASSERT(stats.outside == outside);
    RC_ASSERT(stats.outside_bytes == outside_bytes);
    RC_ASSERT(stats.objects == objects);
    RC_ASSERT(stats.pattern_objects == patterns);
    RC_ASSERT(stats.compressed_bytes == bytes);
    RC_ASSERT(stats.misuses == 0U);
  }
  void finish() {
    check();
    while (!model_.empty()) {
      load(model_.begin());
      unref(model_.begin());
    }
    pool_->trim(0);
    check();
    RC_ASSERT(pool_->stats().frame_bytes == 0U);
    RC_ASSERT(bool(test::memory_is_counted(*pool_)));
  }

 private:
  using Model = std::map<std::uint64_t, Expected>;
  static constexpr std::uint64_t kLimit = 4 * kMiB;
  static PoolConfig config(PoolGeometry geometry) {
    PoolConfig config = test::config_of(geometry, kLimit);
    config.shards = 2;
    return config;
  }

  Model::iterator pick(std::uint32_t n) {
    return model_.empty() ? model_.end() : std::next(model_.begin(), n % model_.size());
  }
  static std::size_t size_of(const Step& step) {
    switch (step.a % 8) {
      case 0:
        return 4096;
      case 1:
        return 1 + step.b % 32;
      case 2:
        return 1 + step.b % 4096;
      default:
        return 200 + step.b % 900;
    }
  }
  bool put(std::size_t bytes) {
    const auto id = pool_->store(content(++seed_, bytes), Codec::zstd);
    if (!id) {
      RC_ASSERT(id.error().code == ENOSPC);
      return false;
    }
    const auto [at, fresh] =
        model_.emplace(static_cast<std::uint64_t>(*id), Expected{false, seed_, bytes, 1, {}});
    RC_ASSERT(fresh);
    return true;
  }
  void store(const Step& step) {
    for (std::uint32_t i = 0; i <= step.a % 5; ++i) (void)put(size_of({0, step.a + i, step.b + i}));
  }
  void pattern(const Step& step) {
    const auto id = pool_->store_pattern(step.b * 0x9e3779b97f4a7c15ULL);
    RC_ASSERT(id.has_value());
    model_[static_cast<std::uint64_t>(*id)] = {true, step.b * 0x9e3779b97f4a7c15ULL, 0, 1, {}};
  }
  void reserve(const Step& step) {
    const std::uint64_t pages = 1 + step.a % 40;
    if (!pool_->reserve(pages * 4096)) return;
    for (std::uint64_t i = 0; i < pages; ++i) {
      // What is reserved can be stored, whatever else happens meanwhile.
      if (step.b % 5 == 0) replace(pick(step.b + static_cast<std::uint32_t>(i) * 7), step);
      if (step.b % 7 == 0) (void)pool_->tidy(5'000);
      RC_ASSERT(put(step.b % 2 != 0 ? 4096 : 3000));
    }
    pool_->release_reservation(pages * 4096);
  }
  void load(Model::iterator at) {
    if (at == model_.end()) return;
    test::Page out;
    const auto loaded = pool_->load(ObjectId{at->first}, out);
    RC_ASSERT(loaded.has_value());
    RC_ASSERT((loaded->codec == Codec::pattern) == at->second.pattern);
    if (at->second.pattern) {
      RC_ASSERT(loaded->pattern == at->second.seed);
    } else if (at->second.outside) {
      RC_ASSERT(loaded->length == 0U && loaded->elsewhere.has_value());
      RC_ASSERT(loaded->elsewhere->place == *at->second.outside);
      RC_ASSERT(loaded->elsewhere->length == at->second.bytes);
      RC_ASSERT(pool_->verify(ObjectId{at->first}, content(at->second.seed, at->second.bytes)));
      RC_ASSERT(!pool_->verify(ObjectId{at->first}, content(at->second.seed + 1, 40)));
    } else {
      const Bytes want = content(at->second.seed, at->second.bytes);
      RC_ASSERT(!loaded->elsewhere);
      RC_ASSERT(loaded->length == want.size());
      RC_ASSERT(std::equal(want.begin(), want.end(), out.begin()));
    }
  }
  void ref(Model::iterator at) {
    if (at == model_.end()) return;
    RC_ASSERT(pool_->ref(ObjectId{at->first}));
    ++at->second.refs;
  }
  void unref(Model::iterator at) {
    if (at == model_.end()) return;
    const auto vacated = pool_->unref(ObjectId{at->first});
    const bool last = --at->second.refs == 0;
    RC_ASSERT(vacated.has_value() == (last && at->second.outside.has_value()));
    if (vacated) RC_ASSERT(vacated->place == *at->second.outside);
    if (vacated) RC_ASSERT(vacated->length == at->second.bytes);
    if (last) model_.erase(at);
  }
  void replace(Model::iterator at, const Step& step) {
    if (at == model_.end() || at->second.pattern) return;
    const std::size_t bytes = size_of({0, step.b, step.a * 37});
    const Replaced replaced =
        pool_->replace(ObjectId{at->first}, content(++seed_, bytes), Codec::lz4);
    RC_ASSERT((replaced == Replaced::gone) == at->second.outside.has_value());
    if (at->second.outside) return;
    if (replaced == Replaced::no_room) return;
    at->second.seed = seed_;
    at->second.bytes = bytes;
    RC_ASSERT(pool_->info(ObjectId{at->first}).settled);
  }
  // Out to a place of a file that the pool knows nothing about, and on to another one.
  void move_outside(Model::iterator at, const Step& step) {
    if (at == model_.end()) return;
    Expected& want = at->second;
    const ObjectId id{at->first};
    const SegmentPlace to{step.b * 7, step.a * 31};
    if (want.outside) {
      RC_ASSERT(!pool_->move_elsewhere(id, {to.segment + 1, to.unit}, to));
      RC_ASSERT(pool_->move_elsewhere(id, *want.outside, to));
    } else {
      RC_ASSERT(!pool_->move_elsewhere(id, to, to));
      test::Page out;
      Loaded loaded = pool_->load(id, out).value();
      RC_ASSERT(pool_->move_out(id, loaded, to) != want.pattern);
      if (want.pattern) return;
      RC_ASSERT(!pool_->move_out(id, loaded, to));
    }
    want.outside = to;
  }
  void oldest(const Step& step) {
    const std::size_t most = 1 + step.a % 20;
    const auto ids =
        pool_->oldest(most, {.unsettled = step.b % 2 != 0, .least_age = 0, .among = 0});
    RC_ASSERT(ids.size() <= most);
    for (const ObjectId id : ids) {
      const auto at = model_.find(static_cast<std::uint64_t>(id));
      RC_ASSERT(at != model_.end() && !at->second.pattern && !at->second.outside);
      if (step.b % 2 != 0) RC_ASSERT(!pool_->info(id).settled);
    }
    if (step.b % 2 == 0 && pool_->stats().objects != 0) RC_ASSERT(!ids.empty());
  }
  void set_limit(std::uint64_t bytes) {
    RC_ASSERT(pool_->set_limit(bytes).has_value());
    most_ = std::max(bytes, pool_->stats().frame_bytes);
  }

  FaultyOs os_;
  std::unique_ptr<Pool> pool_;
  Model model_;
  std::uint64_t seed_ = 0;
  std::uint64_t most_ = kLimit;
};

struct PoolModelTest : ::testing::TestWithParam<test::NamedGeometry> {};

TEST_P(PoolModelTest, AnySequence) {
  const auto step = rc::gen::build<Step>(rc::gen::set(&Step::op, rc::gen::inRange(0U, 20U)),
                                         rc::gen::set(&Step::a, rc::gen::inRange(0U, 1000U)),
                                         rc::gen::set(&Step::b, rc::gen::inRange(0U, 5000U)));
  EXPECT_TRUE(rc::check([&] {
    const auto steps = *rc::gen::resize(120, rc::gen::container<std::vector<Step>>(step));
    Machine machine(GetParam().geometry);
    for (const Step& s : steps) machine.run(s);
    machine.finish();
  }));
}

INSTANTIATE_TEST_SUITE_P(Geometries, PoolModelTest, ::testing::ValuesIn(test::kGeometries),
                         test::geometry_name);

}  // namespace
}  // namespace foldswap
