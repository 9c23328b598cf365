// Forks workers over data that is (partly) evicted: each worker verifies what it inherited,
// rewrites some of it, has a child of its own that verifies that, and checks once more; the parent
// rewrites other pages meanwhile, so that every copy-on-write direction happens. --mb, --workers,
// --rounds, --seed.
#include <sys/wait.h>
#include <unistd.h>

#include "tests/programs/lib/common.h"

using namespace testprog;

namespace {

void rewrite_some(Region& region, Random& random) {
  for (std::size_t n = 0; n < region.pages() / 8; ++n) region.write(random.below(region.pages()));
}

[[noreturn]] void grandchild(Region& region, Random& random) {
  region.diverge(2);
  region.check_random(random, region.pages() / 2);
  rewrite_some(region, random);
  region.check_all();
  _exit(0);
}

void wait_for(pid_t child) {
  int status = 0;
  must(waitpid(child, &status, 0), "waitpid");
  if (status != 0) wrong("a child failed");
}

[[noreturn]] void worker(Region& region, std::uint64_t seed) {
  Random random(seed);
  region.diverge(seed);
  region.check_random(random, region.pages() / 2);
  rewrite_some(region, random);
  const pid_t child = must(fork(), "fork of a grandchild");
  if (child == 0) grandchild(region, random);
  rewrite_some(region, random);
  region.check_all();
  wait_for(child);
  region.check_all();
  _exit(0);
}

}  // namespace

int main(int argc, char** argv) {
  const Options options(argc, argv);
  const std::size_t pages = options.number("mb", 48) * 256;
  const std::uint64_t seed = options.number("seed", 1);
  Region region(map_bytes(pages * kPage), pages, seed, Kind::mixed);
  region.write_all();
  say("populated");
  if (options.number("wait", 0) != 0) static_cast<void>(next_command());
  Random random(seed);
  for (std::uint64_t round = 0; round < options.number("rounds", 3); ++round) {
    std::vector<pid_t> children;
    for (std::uint64_t w = 0; w < options.number("workers", 3); ++w) {
      const pid_t child = must(fork(), "fork");
      if (child == 0) worker(region, seed + round * 100 + w);
      children.push_back(child);
      rewrite_some(region, random);
    }
    region.check_all();
    for (const pid_t child : children) wait_for(child);
    region.check_all();
    say("round " + std::to_string(round));
  }
  say("done");
  return 0;
}
