// Forks, execs and exits in great number, from several threads at once, with pages out. In turns of
// eight children: five forks that end at once (two of them after reading and writing pages), one
// fork that becomes /bin/true, one vfork that does, one posix_spawn. --count children in all,
// --threads, --mb, --seed. Says "ready", then "turn N" now and then, and "done".
#include <spawn.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <thread>

#include "tests/programs/lib/common.h"

using namespace testprog;

namespace {

std::uint64_t progress = 0;
std::array<char, 16> program{"/bin/true"};
std::array<char*, 2> arguments{program.data(), nullptr};

[[noreturn]] void become_true() {
  execv(program.data(), arguments.data());
  _exit(127);
}

[[noreturn]] void read_and_end(Region& region, std::uint64_t seed) {
  Random random(seed);
  region.check_random(random, 8);
  region.diverge(seed);
  for (int n = 0; n < 4; ++n) region.write(random.below(region.pages()));
  region.check_random(random, 8);
  _exit(0);
}

pid_t start_child(Region& region, std::uint64_t n) {
  pid_t child = 0;
  switch (n % 8) {
    case 0:
    case 1:
      child = must(fork(), "fork");
      if (child == 0) read_and_end(region, n);
      return child;
    case 2:
      child = must(fork(), "fork");
      if (child == 0) become_true();
      return child;
    case 3:
      child = vfork();
      if (child == 0) become_true();
      return must(child, "vfork");
    case 4:
      errno = posix_spawn(&child, program.data(), nullptr, nullptr, arguments.data(), environ);
      if (errno != 0) broken("posix_spawn");
      return child;
    default:
      child = must(fork(), "fork");
      if (child == 0) _exit(0);
      return child;
  }
}

void storm(Region& region, std::uint64_t count, std::uint64_t seed) {
  Random random(seed);
  for (std::uint64_t n = 0; n < count; ++n) {
    const pid_t child = start_child(region, n);
    // Written pages are not shared any more: they can be evicted again.
    for (int i = 0; i < 8; ++i) region.write(random.below(region.pages()));
    int status = 0;
    if (must(waitpid(child, &status, 0), "waitpid") != child || status != 0)
      wrong("a child failed");
    region.check_random(random, 8);
    __atomic_fetch_add(&progress, 1, __ATOMIC_RELAXED);
  }
  region.check_all();
}

}  // namespace

int main(int argc, char** argv) {
  const Options options(argc, argv);
  const std::size_t threads = options.number("threads", 4);
  const std::size_t pages = options.number("mb", 4) * 256 / threads;
  const std::uint64_t count = options.number("count", 1000);
  std::vector<Region> regions;
  for (std::size_t t = 0; t < threads; ++t) {
    regions.emplace_back(map_aligned(pages * kPage), pages, options.number("seed", 1) + t,
                         Kind::heap);
    regions.back().write_all();
  }
  watch_progress(&progress, 60);
  say("ready");
  static_cast<void>(next_command());
  std::vector<std::thread> workers;
  for (std::size_t t = 0; t < threads; ++t) {
    workers.emplace_back([&, t] { storm(regions[t], count / threads, t); });
  }
  for (auto& worker : workers) worker.join();
  say("done");
  return 0;
}
