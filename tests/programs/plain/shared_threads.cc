// Eight threads share one memory: each page belongs to whoever holds its stripe's lock, is checked
// and now and then rewritten.
// --mb, --threads, --rounds, --seed.
#include <array>
#include <mutex>
#include <thread>

#include "tests/programs/lib/common.h"

using namespace testprog;

namespace {

constexpr std::size_t kStripes = 64;

struct Shared {
  Region region;
  std::array<std::mutex, kStripes> locks;
};

void work(Shared& shared, std::uint64_t seed, std::uint64_t rounds) {
  Random random(seed);
  for (std::uint64_t n = 0; n < rounds; ++n) {
    const std::size_t i = random.below(shared.region.pages());
    const std::lock_guard guard(shared.locks[i % kStripes]);
    shared.region.check(i);
    if (n % 4 == 0) shared.region.write(i);
  }
}

}  // namespace

int main(int argc, char** argv) {
  const Options options(argc, argv);
  const std::size_t pages = options.number("mb", 128) * 256;
  const std::uint64_t seed = options.number("seed", 1);
  const std::uint64_t rounds = options.number("rounds", 20000);
  Shared shared{Region(map_bytes(pages * kPage), pages, seed, Kind::mixed), {}};
  shared.region.write_all();
  say("populated");
  std::vector<std::thread> threads;
  for (std::uint64_t t = 0; t < options.number("threads", 8); ++t) {
    threads.emplace_back([&shared, t, seed, rounds] { work(shared, seed * 1000 + t, rounds); });
  }
  for (auto& thread : threads) thread.join();
  shared.region.check_all();
  say("done");
  return 0;
}
