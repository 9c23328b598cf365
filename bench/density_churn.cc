#include "bench/density_churn.h"

#include <algorithm>
#include <cstring>
#include <random>

namespace foldswap::bench {
namespace {

constexpr std::uint64_t kSeed = 4;
constexpr std::size_t kTurnover = 10;     // objects stored in the churn, by those that there are
constexpr std::size_t kVerifyShare = 16;  // one object in so many is verified after each phase
constexpr std::uint64_t kTidyStep = 64 * kKiB;

// Tidies until there is nothing worth moving; the bytes moved.
Result<std::uint64_t> tidy(Pool& pool, std::uint64_t frame_bytes) {
  std::uint64_t moved = 0;
  while (const std::uint64_t step = pool.tidy(kTidyStep)) {
    moved += step;
    if (moved > 16 * frame_bytes) return fail("tidy finds no end");
  }
  return moved;
}

// The objects in a pool, and what was put into each.
class Population {
 public:
  Population(Pool& pool, const PageSet& set, const Outputs& outputs)
      : pool_(pool), set_(set), outputs_(outputs), fixed_(pool.stats().metadata_bytes) {}

  [[nodiscard]] std::size_t size() const { return live_.size(); }
  [[nodiscard]] std::uint64_t fixed() const { return fixed_; }
  [[nodiscard]] std::uint64_t stored() const { return stored_; }
  [[nodiscard]] std::uint64_t verified() const { return verified_; }
  [[nodiscard]] std::uint64_t moved() const { return moved_; }

  [[nodiscard]] Status store(std::size_t page) {
    const auto id = pool_.store(outputs_.of(page), outputs_.pages[page].codec);
    if (!id) return std::unexpected(id.error());
    live_.push_back({*id, page});
    ++stored_;
    return {};
  }

  [[nodiscard]] Status store_random(std::size_t count) {
    for (std::size_t i = 0; i < count; ++i) {
      if (auto done = store(random(set_.pages())); !done) return done;
    }
    return {};
  }

  void free_random(std::size_t count) {
    for (std::size_t i = 0; i < count; ++i) {
      std::swap(live_[random(live_.size())], live_.back());
      pool_.unref(live_.back().id);
      live_.pop_back();
    }
  }

  // As many of both, so that the size stays; other pages' contents come into the freed ones' place.
  [[nodiscard]] Status replace_random(std::size_t count) {
    free_random(count);
    return store_random(count);
  }

  [[nodiscard]] Status churn() {
    const std::size_t most = std::max<std::size_t>(1, size() / 8);
    for (std::size_t done = 0; done < kTurnover * size();) {
      const std::size_t count = 1 + random(most);
      if (auto replaced = replace_random(count); !replaced) return replaced;
      tidy_a_little();
      done += count;
    }
    return {};
  }

  // As the daemon does all the time, in the background.
  void tidy_a_little() { moved_ += pool_.tidy(kTidyStep * 4); }

  // Looks at the pool, and whether it can be believed.
  [[nodiscard]] Result<Moment> measure() {
    const PoolStats stats = pool_.stats();
    Moment now{.objects = size(),
               .codec_bytes = 0,
               .frame_bytes = stats.frame_bytes,
               .empty_frame_bytes = stats.empty_frame_bytes,
               .metadata_bytes = stats.metadata_bytes - std::min(stats.metadata_bytes, fixed_)};
    for (const Live& object : live_) now.codec_bytes += outputs_.pages[object.page].length;
    if (stats.objects != now.objects || stats.compressed_bytes != now.codec_bytes ||
        stats.frame_bytes < now.codec_bytes) {
      return fail("the pool's statistics are not what was stored");
    }
    if (auto whole = pool_.validate(); !whole) return std::unexpected(whole.error());
    if (auto verified = verify(); !verified) return std::unexpected(verified.error());
    return now;
  }

 private:
  struct Live {
    ObjectId id;
    std::size_t page;
  };

  [[nodiscard]] std::size_t random(std::size_t below) { return random_() % below; }

  [[nodiscard]] Status verify() {
    auto codec = PageCodec::make();
    if (!codec) return std::unexpected(codec.error());
    std::array<std::byte, kPageBytes> loaded{}, page{};
    for (std::size_t i = random(kVerifyShare); i < live_.size(); i += kVerifyShare) {
      const auto object = pool_.load(live_[i].id, loaded);
      if (!object) return std::unexpected(object.error());
      const auto bytes = std::span(loaded).first(object->length);
      if (auto done = (*codec)->decompress(object->codec, bytes, page); !done) return done;
      if (std::memcmp(page.data(), set_.page(live_[i].page).data(), kPageBytes) != 0) {
        return fail("the pool gave back other contents than were stored");
      }
      ++verified_;
    }
    return {};
  }

  Pool& pool_;
  const PageSet& set_;
  const Outputs& outputs_;
  const std::uint64_t fixed_;
  std::mt19937_64 random_{kSeed};
  std::vector<Live> live_;
  std::uint64_t stored_ = 0, verified_ = 0, moved_ = 0;
};

Result<Moment> run_phase(Phase phase, Pool& pool, Population& population, const PageSet& set,
                         Life& life) {
  Status done;
  switch (phase) {
    case Phase::fresh:
      for (std::size_t i = 0; i < set.pages() && done; ++i) done = population.store(i);
      break;
    case Phase::churned:
      done = population.churn();
      break;
    case Phase::refilled:
      done = population.replace_random(population.size() * 3 / 10);
      population.tidy_a_little();
      break;
    case Phase::halved:
      population.free_random(population.size() / 2);
      break;
    case Phase::tidied: {
      const auto moved = tidy(pool, pool.stats().frame_bytes);
      if (!moved) return std::unexpected(moved.error());
      life.tidied_bytes = *moved;
      (void)pool.trim(0);
      break;
    }
  }
  if (!done) return std::unexpected(done.error());
  return population.measure();
}

}  // namespace

Result<Life> live(PoolGeometry geometry, const PageSet& set, const Outputs& outputs) {
  PoolConfig config;
  config.geometry = geometry;
  config.limit_bytes = std::max<std::uint64_t>(config.limit_bytes, 4 * set.bytes.size());
  auto pool = Pool::create(real_os(), config);
  if (!pool) return std::unexpected(pool.error());
  Population population(**pool, set, outputs);
  Life life;
  for (std::size_t p = 0; p < kPhases; ++p) {
    auto moment = run_phase(static_cast<Phase>(p), **pool, population, set, life);
    if (!moment) {
      return fail(set.name + ", " + kPhaseNames[p] + ": " + moment.error().text());
    }
    life.moments[p] = *moment;
  }
  life.fixed_metadata_bytes = population.fixed();
  life.stored = population.stored();
  life.verified = population.verified();
  life.churn_moved_bytes = population.moved();
  return life;
}

}  // namespace foldswap::bench
