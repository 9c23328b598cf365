// What the pool costs by itself: CPU time of store, load and free, without the codec, from one to
// sixteen threads and from 1 MiB to 4 GiB of objects.
//
// A pool is filled once for each size, and churned until every object has been replaced. Then every
// thread works on objects of its own, picked at random: loads some, frees them, stores others of
// other sizes in their place. Each of the three is timed by itself, by the thread's own CPU clock;
// medians. Two ways:
//   warm  64 at a time, with nothing between: a small pool stays in the caches, a large one cannot.
//   cold  one at a time, after the thread has read more than the last-level cache holds: what a
//         fault finds when a program has worked on its own data.
// Beside each, in the same run, the least that memory of that size can cost: a bare memcpy of as
// many bytes out of (or into) random places of a mapping as large as the pool's frames; for free, a
// read and a write of 8 bytes.
// The goal is that a price hardly depends on the size or the number of threads: the last lines say
// how far apart the cheapest and the dearest are.
#include <benchmark/benchmark.h>

#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "base/mapping.h"
#include "base/os.h"
#include "pool/pool.h"

namespace foldswap::bench {
namespace {

constexpr std::size_t kGroup = 64;
constexpr int kMostThreads = 16;
constexpr std::int64_t kMiBs[] = {1, 16, 256, 1024, 4096};
constexpr benchmark::IterationCount kWarmRounds = 2'000, kColdRounds = 320;  // of all threads
constexpr const char* kOperations[] = {"load", "free", "store"};
enum Operation : std::uint8_t { kLoad, kFree, kStore, kOperationCount };
constexpr const char* kWays[] = {"warm", "bare_warm", "cold", "bare_cold"};
enum Way : std::uint8_t { kWarm, kBareWarm, kCold, kBareCold, kWayCount };
using Page = std::array<std::byte, 4096>;

double thread_clock() {
  timespec now{};
  ::clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) * 1e9 + static_cast<double>(now.tv_nsec);
}

double median(std::vector<double>& values) {
  if (values.empty()) return 0;
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::ranges::nth_element(values, middle);
  return *middle;
}

double price_of_clock() {
  std::vector<double> prices(1'001);
  for (double& price : prices) {
    const double start = thread_clock();
    price = thread_clock() - start;
  }
  return median(prices);
}

// Nanoseconds of CPU time, without the clock's own. The clock is asked before, so that what it
// needs is in the caches.
template <typename F>
double timed(F work) {
  static const double clock = price_of_clock();
  benchmark::DoNotOptimize(thread_clock());
  const double start = thread_clock();
  work();
  return std::max(0.0, thread_clock() - start - clock);
}

// As zstd makes them of heaps: mostly 200 to 1,400 bytes, few small ones, few whole pages.
std::size_t length_of(std::uint64_t random) {
  const std::uint64_t kind = random % 32;
  if (kind == 0) return 4096;
  if (kind < 3) return 24 + random / 32 % 100;
  return 200 + random / 32 % 1'200;
}

std::vector<std::byte> content(1 << 20);  // whatever: nobody compresses it

std::span<const std::byte> bytes_of(std::uint64_t random) {
  return std::span(content).subspan(random / 64 % (content.size() - 4096), length_of(random));
}

// A pool with so many bytes of objects in it, in random order, and other memory of that size.
struct Filled {
  std::unique_ptr<Pool> pool;
  std::vector<ObjectId> ids;
  UniqueFd bare_fd;
  Mapping bare;
  std::int64_t mib = 0;
};
Filled filled;

// Prices by size and threads; of each thread the median, and of these the average.
using Row = std::array<std::array<double, kOperationCount>, kWayCount>;
std::map<std::pair<std::int64_t, int>, Row> rows;
std::mutex rows_mutex;

void fill(const benchmark::State& state) {
  if (filled.mib == state.range(0)) return;
  filled = {};
  std::mt19937_64 random(7);
  for (auto& b : content) b = static_cast<std::byte>(random());
  const auto bytes = static_cast<std::uint64_t>(state.range(0)) * kMiB;
  PoolConfig config;
  config.limit_bytes = 2 * bytes + 64 * kMiB;
  filled.pool = Pool::create(real_os(), config).value();
  for (std::uint64_t stored = 0; stored < bytes;) {
    const auto data = bytes_of(random());
    filled.ids.push_back(filled.pool->store(data, Codec::zstd).value());
    stored += data.size();
  }
  std::ranges::shuffle(filled.ids, random);
  for (ObjectId& id : filled.ids) {
    filled.pool->unref(id);
    id = filled.pool->store(bytes_of(random()), Codec::zstd).value();
  }
  std::ranges::shuffle(filled.ids, random);
  const std::uint64_t held = filled.pool->stats().frame_bytes;
  filled.bare_fd = real_os().memory_file("bench", held).value();
  filled.bare = Mapping::shared(filled.bare_fd.get(), held).value();
  for (std::uint64_t at = 0; at < held; at += 4096) filled.bare.data()[at] = std::byte{1};
  filled.mib = state.range(0);
}

// Leaves nothing of ours in the caches, nor in the TLB.
void evict() {
  static const Mapping other = [] {
    std::uint64_t cache = 32 * kMiB;  // sysconf() counts it once for each core
    for (const auto& c : benchmark::CPUInfo::Get().caches) {
      if (c.level >= 3) cache = static_cast<std::uint64_t>(c.size);
    }
    Mapping made = Mapping::anonymous(2 * cache).value();
    ::madvise(made.data(), made.size(), MADV_NOHUGEPAGE);
    std::memset(made.data(), 1, made.size());
    return made;
  }();
  unsigned sum = 0;
  for (std::size_t i = 0; i < other.size(); i += 64) {
    sum += static_cast<unsigned>(other.data()[i]);
  }
  benchmark::DoNotOptimize(sum);
}

// One thread at work on its share of the objects.
class Worker {
 public:
  Worker(int thread, int threads) : random_(static_cast<std::uint64_t>(thread) + 1) {
    const auto t = static_cast<std::size_t>(thread), n = static_cast<std::size_t>(threads);
    const std::size_t first = filled.ids.size() * t / n, end = filled.ids.size() * (t + 1) / n;
    mine_ = std::span(filled.ids).subspan(first, end - first);
  }

  void warm_round() {
    // Distinct ones.
    std::array<std::size_t, kGroup> picked{};
    const std::size_t first = random_() % mine_.size();
    for (std::size_t i = 0; i < kGroup; ++i) picked[i] = (first + i * 7'919) % mine_.size();
    std::ranges::sort(picked);
    const std::span group(picked.begin(), std::ranges::unique(picked).begin());
    std::ranges::shuffle(group, random_);
    std::array<ObjectId, kGroup> id{};
    std::array<std::span<const std::byte>, kGroup> data;
    for (std::size_t i = 0; i < group.size(); ++i) {
      id[i] = mine_[group[i]];
      data[i] = bytes_of(random_());
    }
    const double load = timed([&] {
      for (std::size_t i = 0; i < group.size(); ++i) check(filled.pool->load(id[i], page_));
    });
    const double free = timed([&] {
      for (std::size_t i = 0; i < group.size(); ++i) filled.pool->unref(id[i]);
    });
    const double store = timed([&] {
      for (std::size_t i = 0; i < group.size(); ++i) {
        id[i] = check(filled.pool->store(data[i], Codec::zstd)).value_or(id[i]);
      }
    });
    for (std::size_t i = 0; i < group.size(); ++i) mine_[group[i]] = id[i];
    const auto count = static_cast<double>(group.size());
    add(kWarm, {load / count, free / count, store / count});
    std::array<std::byte*, kGroup> bare{};
    const auto again = [&](auto work) {
      for (std::byte*& b : bare) b = somewhere();
      return timed([&] {
               for (std::size_t i = 0; i < group.size(); ++i) work(bare[i], data[i]);
             }) /
             count;
    };
    const double out = again([&](std::byte* at, auto bytes) { bare_load(at, bytes.size()); });
    const double touch = again([](std::byte* at, auto) { bare_free(at); });
    const double in = again([](std::byte* at, auto bytes) { bare_store(at, bytes); });
    add(kBareWarm, {out, touch, in});
  }

  // What the caller has in its caches anyway is brought back: where to load to, what to store.
  void cold_round() {
    ObjectId& id = mine_[random_() % mine_.size()];
    const ObjectId old = id;
    const auto from = bytes_of(random_());
    Page page;
    const auto data = std::span(page).first(from.size());
    const auto cold = [&](auto work) {
      std::byte* const bare = somewhere();
      evict();
      page_.fill(std::byte{0});
      std::ranges::copy(from, page.begin());
      return timed([&] { work(bare); });
    };
    const double load = cold([&](auto*) { check(filled.pool->load(old, page_)); });
    const double free = cold([&](auto*) { filled.pool->unref(old); });
    ObjectId made = old;
    const double store =
        cold([&](auto*) { made = check(filled.pool->store(data, Codec::zstd)).value_or(old); });
    id = made;
    add(kCold, {load, free, store});
    const double out = cold([&](std::byte* at) { bare_load(at, data.size()); });
    const double touch = cold([](std::byte* at) { bare_free(at); });
    const double in = cold([&](std::byte* at) { bare_store(at, data); });
    add(kBareCold, {out, touch, in});
  }

  [[nodiscard]] double price(Way way, Operation o) { return median(prices_[way][o]); }
  [[nodiscard]] bool failed() const { return failed_; }

 private:
  std::byte* somewhere() {
    return filled.bare.data() + random_() % (filled.bare.size() - sizeof(Page));
  }
  void bare_load(const std::byte* from, std::size_t bytes) {
    std::memcpy(page_.data(), from, bytes);
    benchmark::DoNotOptimize(page_);
  }
  static void bare_free(std::byte* at) {
    std::uint64_t word = 0;
    std::memcpy(&word, at, sizeof word);
    ++word;
    std::memcpy(at, &word, sizeof word);
    benchmark::ClobberMemory();
  }
  static void bare_store(std::byte* to, std::span<const std::byte> data) {
    std::memcpy(to, data.data(), data.size());
    benchmark::ClobberMemory();
  }
  void add(Way way, std::array<double, kOperationCount> prices) {
    for (std::size_t o = 0; o < kOperationCount; ++o) prices_[way][o].push_back(prices[o]);
  }
  template <typename T>
  T check(T result) {
    failed_ = failed_ || !result;
    return result;
  }

  std::mt19937_64 random_;
  std::span<ObjectId> mine_;
  Page page_{};
  std::array<std::array<std::vector<double>, kOperationCount>, kWayCount> prices_;
  bool failed_ = false;
};

void report(benchmark::State& state, Worker& worker, Way way) {
  const std::lock_guard lock(rows_mutex);
  Row& row = rows[{state.range(0), state.threads()}];
  for (std::uint8_t o = 0; o < kOperationCount; ++o) {
    const double price = worker.price(way, Operation{o});
    row[way][o] += price / state.threads();
    state.counters[std::string(kWays[way]) + "_" + kOperations[o] + "_ns"] =
        benchmark::Counter(price, benchmark::Counter::kAvgThreads);
  }
  if (worker.failed()) state.SkipWithError("the pool failed");
}

void warm(benchmark::State& state) {
  Worker worker(state.thread_index(), state.threads());
  for (auto _ : state) worker.warm_round();
  report(state, worker, kWarm);
  report(state, worker, kBareWarm);
}

void cold(benchmark::State& state) {
  Worker worker(state.thread_index(), state.threads());
  for (auto _ : state) worker.cold_round();
  report(state, worker, kCold);
  report(state, worker, kBareCold);
}

void register_all() {
  for (const std::int64_t mib : kMiBs) {
    for (int threads = 1; threads <= kMostThreads; threads *= 2) {
      const auto add = [&](const char* name, auto* run, benchmark::IterationCount rounds) {
        benchmark::RegisterBenchmark(name, run)
            ->ArgName("MiB")
            ->Arg(mib)
            ->Threads(threads)
            ->Setup(fill)
            ->Iterations(rounds / threads)
            ->UseRealTime();
      };
      add("warm", warm, kWarmRounds);
      add("cold", cold, kColdRounds);
    }
  }
}

void print_rows(Way pool) {
  const auto bare = static_cast<Way>(pool + 1);
  std::printf("\n%s, ns         %24s%24s%24s\n%6s %7s", kWays[pool], "pool", "bare memory",
              "pool : bare memory", "MiB", "threads");
  for (int i = 0; i < 3; ++i) std::printf("   %6s %6s %6s", "load", "free", "store");
  for (const auto& [at, row] : rows) {
    std::printf("\n%6ld %7d", static_cast<long>(at.first), at.second);
    for (const Way way : {pool, bare}) {
      const auto& p = row[way];
      std::printf("   %6.0f %6.0f %6.0f", p[kLoad], p[kFree], p[kStore]);
    }
    const auto ratio = [&](Operation o) { return row[pool][o] / row[bare][o]; };
    std::printf("   %6.1f %6.1f %6.1f", ratio(kLoad), ratio(kFree), ratio(kStore));
  }
  std::printf("\n");
}

void print_spread() {
  std::printf("\n");
  for (std::uint8_t way = 0; way < kWayCount; ++way) {
    for (std::uint8_t o = 0; o < kOperationCount; ++o) {
      const auto price = [&](const auto& row) { return row.second[way][o]; };
      const auto [least, most] = std::ranges::minmax_element(rows, {}, price);
      if (least == rows.end() || price(*least) == 0) continue;  // not run
      std::printf(
          "%s %-5s from %.0f ns (%ld MiB, %d threads) to %.0f ns (%ld MiB, %d threads): "
          "%.1f x\n",
          kWays[way], kOperations[o], price(*least), static_cast<long>(least->first.first),
          least->first.second, price(*most), static_cast<long>(most->first.first),
          most->first.second, price(*most) / price(*least));
    }
  }
}

}  // namespace
}  // namespace foldswap::bench

int main(int argc, char** argv) {
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 2;
  foldswap::bench::register_all();
  benchmark::RunSpecifiedBenchmarks();
  foldswap::bench::print_rows(foldswap::bench::kWarm);
  foldswap::bench::print_rows(foldswap::bench::kCold);
  foldswap::bench::print_spread();
  foldswap::bench::filled = {};
  return 0;
}
