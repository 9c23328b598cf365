// HAZARDS 19: SIGKILL at any time. A child's threads use a pool as the daemon does, publish what
// they have in a page map in shared memory, and are killed; the next child goes on with what was
// taken over.
#include <gtest/gtest.h>
#include <sys/wait.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <csignal>
#include <cstdlib>
#include <ctime>
#include <set>
#include <thread>

#include "pool/testing/crash_support.h"

namespace foldswap {
namespace {

using test::Bytes;
using test::content;
using test::FaultyOs;

constexpr std::size_t kSlots = 3'000, kThreads = 3;

// One entry of the page map: an object, and what is in it. 0: nothing.
struct Entry {
  ObjectId id = ObjectId::none;
  std::uint32_t seed = 0;
  static Entry of(std::uint64_t word) {
    return {ObjectId{word >> 32}, static_cast<std::uint32_t>(word)};
  }
  [[nodiscard]] std::uint64_t word() const { return static_cast<std::uint64_t>(id) << 32 | seed; }
  // What it was stored with, and what it may be replaced by: the codec tells which.
  [[nodiscard]] Bytes bytes(Codec codec) const {
    const bool first = codec == Codec::lz4;
    const std::size_t length = seed % 9 == 0 ? 4'096 : 50 + seed * 71 % (first ? 1'500 : 1'100);
    return content(first ? seed : ~std::uint64_t{seed}, length);
  }
  // Where it may be moved out to, first and then.
  [[nodiscard]] SegmentPlace place(bool first) const { return {seed, first ? 1U : 2U}; }
};

::testing::AssertionResult is_there(Pool& pool, const Entry& entry) {
  test::Page out;
  const auto loaded = pool.load(entry.id, out);
  if (!loaded) return ::testing::AssertionFailure() << loaded.error().text();
  const Bytes want = entry.bytes(loaded->codec);
  const auto& place = loaded->elsewhere;
  if (place ? (place->place == entry.place(true) || place->place == entry.place(false)) &&
                  place->length == want.size() && pool.verify(entry.id, want)
            : loaded->length == want.size() && std::equal(want.begin(), want.end(), out.begin())) {
    return ::testing::AssertionSuccess();
  }
  return ::testing::AssertionFailure() << "not what was stored";
}

// One of the child's threads. It alone changes its slots.
class Worker {
 public:
  Worker(Pool& pool, std::atomic<std::uint64_t>* map, std::uint32_t round, std::uint32_t thread)
      : pool_(pool),
        map_(map),
        thread_(thread),
        rng_(round * 16 + thread),
        seed_(round << 25 | thread << 22) {}

  void run() {
    for (;;) {
      const std::uint64_t kind = rng_() % 100;
      if (kind == 0) (void)pool_.tidy(20'000);
      if (kind == 1) (void)pool_.trim(rng_() % 2 * 100'000);
      auto& slot = map_[rng_() % (kSlots / kThreads) * kThreads + thread_];
      const Entry entry = Entry::of(slot.load());
      entry.id == ObjectId::none ? fill(slot) : change(slot, entry, kind);
    }
  }

 private:
  void fill(std::atomic<std::uint64_t>& slot) {
    Entry entry{ObjectId::none, ++seed_};
    const auto id = pool_.store(entry.bytes(Codec::lz4), Codec::lz4);
    if (!id) return;
    entry.id = *id;
    slot.store(entry.word());
  }
  void change(std::atomic<std::uint64_t>& slot, const Entry& entry, std::uint64_t kind) {
    if (kind < 45) {
      slot.store(0);
      pool_.unref(entry.id);
    } else if (kind < 60) {
      (void)pool_.replace(entry.id, entry.bytes(Codec::zstd), Codec::zstd);
    } else if (kind < 70) {
      test::Page out;
      const auto loaded = pool_.load(entry.id, out);
      if (!loaded) std::abort();
      const bool moved = loaded->elsewhere
                             ? pool_.move_elsewhere(entry.id, entry.place(true), entry.place(false))
                             : pool_.move_out(entry.id, *loaded, entry.place(true));
      moves_ += moved ? 1 : 0;
    } else if (kind < 75) {
      share(entry);
    } else if (!is_there(pool_, entry)) {
      std::abort();
    }
  }
  void share(const Entry& entry) {
    auto& slot = map_[rng_() % (kSlots / kThreads) * kThreads + thread_];
    if (slot.load() == 0 && pool_.ref(entry.id)) slot.store(entry.word());
  }

  Pool& pool_;
  std::atomic<std::uint64_t>* const map_;
  const std::uint32_t thread_;
  std::mt19937_64 rng_;
  std::uint32_t seed_;
  std::uint64_t moves_ = 0;
};

struct PoolKillTest : ::testing::Test {
  FaultyOs os;
  PoolConfig config = test::config_of({}, 2 * kMiB);
  UniqueFd map_file = os.memory_file("map", kSlots * 8).value();
  Mapping mapping = Mapping::shared(map_file.get(), kSlots * 8).value();
  std::atomic<std::uint64_t>* map = mapping.as<std::atomic<std::uint64_t>>();
  std::unique_ptr<Pool> pool;

  void live_and_die(std::uint32_t round, std::chrono::microseconds after) {
    const pid_t child = ::fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
      std::vector<std::jthread> threads;
      for (std::uint32_t t = 0; t < kThreads; ++t) {
        threads.emplace_back([=, this] { Worker(*pool, map, round, t).run(); });
      }
      threads.clear();
    }
    std::this_thread::sleep_for(after);
    ::kill(child, SIGKILL);
    int status = 0;
    ASSERT_EQ(::waitpid(child, &status, 0), child);
    ASSERT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL) << status;
  }
  void take_over() {
    PoolFiles files = test::duplicate(pool->layout());
    pool.reset();
    auto begun = PoolTakeOver::begin(os, files, config);
    ASSERT_TRUE(begun.has_value()) << begun.error().text();
    std::set<ObjectId> ids;
    for (std::size_t i = 0; i < kSlots; ++i) {
      const Entry entry = Entry::of(map[i].load());
      if (entry.id == ObjectId::none) continue;
      ids.insert(entry.id);
      ASSERT_TRUE(begun->reference(entry.id));
    }
    pool = begun->finish([](ObjectId, SegmentPlace, std::uint32_t) { return true; });
    ASSERT_TRUE(test::valid(*pool));
    ASSERT_TRUE(test::memory_is_counted(*pool));
    const PoolStats stats = pool->stats();
    EXPECT_EQ(stats.objects + stats.outside, ids.size());
    EXPECT_EQ(stats.lost, 0U);
    for (std::size_t i = 0; i < kSlots; ++i) {
      const Entry entry = Entry::of(map[i].load());
      ASSERT_TRUE(entry.id == ObjectId::none || is_there(*pool, entry)) << i;
    }
  }
};

TEST_F(PoolKillTest, Hazard19_KilledAtAnyTime) {
  if (test::kUnderTsan) GTEST_SKIP() << "ThreadSanitizer starts no threads after a fork";
  pool = test::make_pool(os, config);
  std::mt19937_64 rng(1);
  for (std::uint32_t round = 1; round <= 60; ++round) {
    SCOPED_TRACE("round " + std::to_string(round));
    ASSERT_NO_FATAL_FAILURE(
        live_and_die(round, std::chrono::microseconds(round == 1 ? 80'000 : rng() % 30'000)));
    ASSERT_NO_FATAL_FAILURE(take_over());
    ASSERT_FALSE(HasFailure());
  }
  EXPECT_GT(pool->stats().objects, 100U);
  EXPECT_GT(pool->stats().outside, 100U);
}

// A gigabyte that was evicted is 262,144 objects. What this took is in the test's properties.
TEST_F(PoolKillTest, HowLongItTakes) {
  const char* const asked = std::getenv("FOLDSWAP_TAKE_OVER_OBJECTS");
  const std::size_t count = asked != nullptr ? std::stoul(asked) : 32'768;
  config.limit_bytes = config.frame_bytes_max = kGiB;
  pool = test::make_pool(os, config);
  std::vector<ObjectId> ids;
  for (std::size_t i = 0; i < count; ++i) {
    ids.push_back(pool->store(Bytes(300 + i * 71 % 900, std::byte(i)), Codec::lz4).value());
  }
  for (std::size_t i = 0; i < count; i += 10) {
    pool->unref(ids[i]);
    ids[i] = pool->store(Bytes(300 + i * 31 % 900, std::byte(i)), Codec::lz4).value();
  }
  PoolFiles files = test::duplicate(pool->layout());
  pool.reset();
  const std::clock_t start = std::clock();  // of the processor: the machine may be busy
  auto begun = PoolTakeOver::begin(os, files, config).value();
  for (const ObjectId id : ids) ASSERT_TRUE(begun.reference(id));
  const std::clock_t counted = std::clock();
  pool = begun.finish([](ObjectId, SegmentPlace, std::uint32_t) { return true; });
  const std::clock_t end = std::clock();
  RecordProperty("counting_us", static_cast<int>(counted - start));
  RecordProperty("finish_us", static_cast<int>(end - counted));
  EXPECT_EQ(pool->stats().objects, count);
  EXPECT_LT(static_cast<std::size_t>(end - start), 500'000 + count * 2) << "microseconds";
}

}  // namespace
}  // namespace foldswap
