// Holds memory and does what the test says, one word a line, each answered by one line:
//   verify   check every page                     -> ok
//   sample   check 1000 random pages              -> ok
//   dirty    rewrite every third page             -> ok
//   discard  MADV_DONTNEED on the first quarter, check that it reads as zeros, fill it again -> ok
//   move     mremap everything elsewhere          -> ok
//   fork     a child checks every page, we too    -> ok
//   quit, or the end of the input                 -> bye, exit 0
// --mb, --kind, --seed.
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tests/programs/lib/common.h"

using namespace testprog;

namespace {

void discard(Region& region) {
  const std::size_t quarter = region.pages() / 4;
  must(madvise(region.base(), quarter * kPage, MADV_DONTNEED), "madvise");
  for (std::size_t i = 0; i < quarter; ++i) {
    region.forget(i);
    if (i % 64 == 0) region.check(i);
  }
  for (std::size_t i = 0; i < quarter; ++i) region.write(i);
}

void move(Region& region) {
  const std::size_t bytes = region.pages() * kPage;
  std::byte* target = map_bytes(bytes);
  void* moved = mremap(region.base(), bytes, bytes, MREMAP_MAYMOVE | MREMAP_FIXED, target);
  if (moved == MAP_FAILED) broken("mremap");
  region.moved_to(target);
}

void check_in_child(const Region& region) {
  const pid_t child = must(fork(), "fork");
  if (child == 0) {
    region.check_all();
    _exit(0);
  }
  region.check_all();
  int status = 0;
  must(waitpid(child, &status, 0), "waitpid");
  if (status != 0) wrong("the child found wrong bytes");
}

bool obey(const std::string& command, Region& region, Random& random) {
  if (command == "verify") {
    region.check_all();
  } else if (command == "sample") {
    region.check_random(random, 1000);
  } else if (command == "dirty") {
    for (std::size_t i = 0; i < region.pages(); i += 3) region.write(i);
  } else if (command == "discard") {
    discard(region);
  } else if (command == "move") {
    move(region);
  } else if (command == "fork") {
    check_in_child(region);
  } else {
    return false;
  }
  say("ok");
  return true;
}

}  // namespace

int main(int argc, char** argv) {
  const Options options(argc, argv);
  const std::size_t pages = options.number("mb", 64) * 256;
  const std::uint64_t seed = options.number("seed", 1);
  Region region(map_bytes(pages * kPage), pages, seed, parse_kind(options.text("kind", "heap")));
  region.write_all();
  Random random(seed);
  say("ready");
  while (obey(next_command(), region, random)) {
  }
  say("bye");
  return 0;
}
