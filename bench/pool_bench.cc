// What the pool costs by itself: CPU time of store, load and free, without the codec, from one to
// sixteen threads and from 1 MiB to 4 GiB of objects.
//
// A pool is filled once for each size. Then every thread works on objects of its own, picked at
// random: loads 64, frees 64, stores 64 others of other sizes in their place. Each of the three is
// timed by itself, by the thread's own CPU clock. The goal is that a price hardly depends on the
// size or the number of threads: the last lines say how far apart the cheapest and the dearest are.
#include <benchmark/benchmark.h>

#include <time.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <map>
#include <memory>
#include <mutex>
#include <random>
#include <string>
#include <vector>

#include "base/os.h"
#include "pool/pool.h"

namespace foldswap::bench {
namespace {

constexpr std::size_t kGroup = 64;
constexpr int kMostThreads = 16;
constexpr const char* kOperations[] = {"load", "free", "store"};
enum Operation : std::uint8_t { kLoad, kFree, kStore, kOperationCount };

double thread_ns() {
  timespec now{};
  ::clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) * 1e9 + static_cast<double>(now.tv_nsec);
}

// As zstd makes them of heaps: mostly 200 to 1,400 bytes, few small ones, few whole pages.
std::size_t length_of(std::uint64_t random) {
  const std::uint64_t kind = random % 32;
  if (kind == 0) return 4096;
  if (kind < 3) return 24 + random / 32 % 100;
  return 200 + random / 32 % 1'200;
}

// A pool with so many bytes of objects in it, the objects dealt to sixteen threads.
struct Filled {
  std::unique_ptr<Pool> pool;
  std::array<std::vector<ObjectId>, kMostThreads> ids;
  std::int64_t mib = 0;
};
Filled filled;
std::vector<std::byte> content(1 << 20);                // whatever: nobody compresses it
std::map<std::string, double> prices[kOperationCount];  // nanoseconds, by row
std::mutex prices_mutex;

std::span<const std::byte> bytes_of(std::uint64_t random) {
  const std::size_t length = length_of(random);
  return std::span(content).subspan(random / 64 % (content.size() - 4096), length);
}

void fill(const benchmark::State& state) {
  if (filled.mib == state.range(0)) return;
  filled = {};
  std::mt19937_64 random(7);
  for (auto& b : content) b = static_cast<std::byte>(random());
  const auto bytes = static_cast<std::uint64_t>(state.range(0)) * kMiB;
  PoolConfig config;
  config.limit_bytes = 2 * bytes + 64 * kMiB;
  filled.pool = Pool::create(real_os(), config).value();
  std::uint64_t stored = 0;
  for (std::size_t i = 0; stored < bytes; ++i) {
    const auto data = bytes_of(random());
    filled.ids[i % kMostThreads].push_back(filled.pool->store(data, Codec::zstd).value());
    stored += data.size();
  }
  filled.mib = state.range(0);
}

void churn(benchmark::State& state) {
  auto& ids = filled.ids[static_cast<std::size_t>(state.thread_index())];
  std::mt19937_64 random(static_cast<std::uint64_t>(state.thread_index()) + 1);
  std::array<std::byte, 4096> out;
  std::array<std::size_t, kGroup> picked{};
  double spent[kOperationCount] = {};
  std::uint64_t bad = 0;
  for (auto _ : state) {
    // Distinct ones: a group is a stretch of the thread's objects in an order that churn has mixed.
    const std::size_t first = random() % ids.size();
    for (std::size_t i = 0; i < kGroup; ++i) picked[i] = (first + i * 7'919) % ids.size();
    std::ranges::sort(picked);
    const auto end = std::ranges::unique(picked).begin();
    std::shuffle(picked.begin(), end, random);
    const std::span group(picked.begin(), end);
    const double t0 = thread_ns();
    for (const std::size_t i : group) bad += filled.pool->load(ids[i], out) ? 0U : 1U;
    const double t1 = thread_ns();
    for (const std::size_t i : group) filled.pool->unref(ids[i]);
    const double t2 = thread_ns();
    for (const std::size_t i : group) {
      const auto id = filled.pool->store(bytes_of(random()), Codec::zstd);
      bad += id ? 0U : 1U;
      ids[i] = id.value_or(ids[i]);
    }
    const double t3 = thread_ns();
    const auto count = static_cast<double>(group.size());
    spent[kLoad] += (t1 - t0) / count;
    spent[kFree] += (t2 - t1) / count;
    spent[kStore] += (t3 - t2) / count;
  }
  if (bad != 0) state.SkipWithError("the pool failed");
  const auto rounds = static_cast<double>(state.iterations());
  const std::string row =
      std::to_string(state.range(0)) + " MiB, " + std::to_string(state.threads()) + " threads";
  for (int o = 0; o < kOperationCount; ++o) {
    state.counters[std::string(kOperations[o]) + "_ns"] =
        benchmark::Counter(spent[o] / rounds, benchmark::Counter::kAvgThreads);
    const std::lock_guard lock(prices_mutex);
    double& price = prices[o][row];
    price = std::max(price, spent[o] / rounds);
  }
}

BENCHMARK(churn)
    ->ArgName("MiB")
    ->RangeMultiplier(16)
    ->Range(1, 4096)
    ->ThreadRange(1, kMostThreads)
    ->Setup(fill)
    ->Iterations(2'000)
    ->UseRealTime();

void print_spread() {
  for (int o = 0; o < kOperationCount; ++o) {
    if (prices[o].empty()) continue;
    const auto [least, most] =
        std::ranges::minmax_element(prices[o], {}, [](const auto& price) { return price.second; });
    std::printf("%-5s from %.0f ns (%s) to %.0f ns (%s): %.1f x\n", kOperations[o], least->second,
                least->first.c_str(), most->second, most->first.c_str(),
                most->second / least->second);
  }
}

}  // namespace
}  // namespace foldswap::bench

int main(int argc, char** argv) {
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 2;
  benchmark::RunSpecifiedBenchmarks();
  foldswap::bench::print_spread();
  foldswap::bench::filled = {};
  return 0;
}
