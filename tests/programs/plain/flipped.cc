// Holds memory that somebody damages while it is out, and tells what of it can still be read. One
// word a line, each answered by one line:
//   touch    read and check every page; pages whose read raises SIGBUS are counted
//                                                    -> ok READABLE poisoned N
//   again    the same from the last page to the first, which nothing reads ahead of -> likewise
//   random   the same in a random order              -> likewise
//   child    a forked child does it                  -> likewise
//   move     mremap everything elsewhere             -> ok
//   dirty    new contents for every third page that can be read -> ok
//   renew    new contents for every page that can be read       -> ok
//   heal     discard the pages that raised SIGBUS in the last touch and fill them again -> ok
//   quit, or the end of the input                    -> bye, exit 0
// Its other memory is locked, so that what is damaged is the region's. A wrong byte ends it with
// status 3, a SIGBUS anywhere else with status 4. --mb, --kind, --seed.
#include <malloc.h>
#include <setjmp.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <cstring>
#include <fstream>
#include <numeric>

#include "tests/programs/lib/common.h"

using namespace testprog;

namespace {

sigjmp_buf g_back;
const std::byte* volatile g_reading = nullptr;  // the page that may raise SIGBUS

void on_sigbus(int /*signal*/, siginfo_t* info, void* /*context*/) {
  const auto* const at = static_cast<const std::byte*>(info->si_addr);
  const std::byte* const page = g_reading;
  if (page == nullptr || at < page || at >= page + kPage) {
    constexpr char kWhat[] = "BROKEN: SIGBUS at an address that nobody was reading\n";
    (void)!::write(STDERR_FILENO, kWhat, sizeof(kWhat) - 1);
    _exit(kExitBroken);
  }
  siglongjmp(g_back, 1);
}

void catch_sigbus() {
  struct sigaction action{};
  action.sa_sigaction = on_sigbus;
  action.sa_flags = SA_SIGINFO;
  must(sigaction(SIGBUS, &action, nullptr), "sigaction");
}

// False: it cannot be read.
bool read_page(const std::byte* page, std::byte* copy) {
  if (sigsetjmp(g_back, 1) != 0) {
    g_reading = nullptr;
    return false;
  }
  g_reading = page;
  std::memcpy(copy, page, kPage);
  g_reading = nullptr;
  return true;
}

// All private mappings but large ones: the region, and where the library keeps what is on its way.
void lock_everything_else() {
  std::ifstream maps("/proc/self/maps");
  for (std::string line; std::getline(maps, line);) {
    unsigned long start = 0, end = 0;
    char how[5] = "";
    if (std::sscanf(line.c_str(), "%lx-%lx %4s", &start, &end, how) != 3) continue;
    if (how[0] != 'r' || how[3] != 'p' || end - start >= 1U << 20) continue;
    if (line.find("[v") != std::string::npos) continue;
    must(mlock(reinterpret_cast<void*>(start), end - start), "mlock");
  }
}

struct Held {
  Region region;
  std::vector<bool> poisoned;
  std::vector<std::size_t> order;
  Random random;

  bool look_at(std::size_t i) {
    alignas(kPage) static std::byte copy[kPage];
    if (!read_page(region.page(i), copy)) return false;
    check_page(copy, region.key(i), region.kind());
    region.check(i);  // and it stays readable
    return true;
  }

  std::string touch() {
    std::size_t bad = 0;
    for (const std::size_t i : order) {
      poisoned[i] = !look_at(i);
      bad += poisoned[i] ? 1U : 0U;
    }
    return "ok " + std::to_string(order.size() - bad) + " poisoned " + std::to_string(bad);
  }

  void forward() { std::iota(order.begin(), order.end(), std::size_t{0}); }
  void backward() { std::iota(order.rbegin(), order.rend(), std::size_t{0}); }
  void shuffle() {
    forward();
    for (std::size_t i = order.size(); i > 1; --i) std::swap(order[i - 1], order[random.below(i)]);
  }

  void touch_in_child() {
    const pid_t child = must(fork(), "fork");
    if (child == 0) {
      forward();
      say(touch());
      _exit(0);
    }
    int status = 0;
    must(waitpid(child, &status, 0), "waitpid");
    if (status != 0) wrong("the child found wrong bytes");
  }

  void move() {
    std::byte* const target = map_bytes(region.bytes());
    if (mremap(region.base(), region.bytes(), region.bytes(), MREMAP_MAYMOVE | MREMAP_FIXED,
               target) == MAP_FAILED)
      broken("mremap");
    region.moved_to(target);
  }

  void dirty(std::size_t step) {
    for (std::size_t i = 0; i < region.pages(); i += step) {
      if (look_at(i)) region.write(i);
    }
  }

  void heal() {
    for (std::size_t i = 0; i < region.pages(); ++i) {
      if (!poisoned[i]) continue;
      must(madvise(region.page(i), kPage, MADV_DONTNEED), "madvise");
      check_zero(region.page(i));
      region.write(i);
    }
  }
};

bool obey(const std::string& command, Held& held) {
  std::string answer = "ok";
  if (command == "touch") {
    held.forward();
    answer = held.touch();
  } else if (command == "again") {
    held.backward();
    answer = held.touch();
  } else if (command == "random") {
    held.shuffle();
    answer = held.touch();
  } else if (command == "child") {
    held.touch_in_child();
    return true;
  } else if (command == "move") {
    held.move();
  } else if (command == "dirty") {
    held.dirty(3);
  } else if (command == "renew") {
    held.dirty(1);
  } else if (command == "heal") {
    held.heal();
  } else {
    return false;
  }
  say(answer);
  return true;
}

}  // namespace

int main(int argc, char** argv) {
  const Options options(argc, argv);
  const std::size_t pages = options.number("mb", 64) * 256;
  const std::uint64_t seed = options.number("seed", 1);
  catch_sigbus();
  mallopt(M_MMAP_THRESHOLD, 1 << 30);  // all tables lie in one piece
  Held held{Region(map_bytes(pages * kPage), pages, seed, parse_kind(options.text("kind", "heap"))),
            std::vector<bool>(pages, false), std::vector<std::size_t>(pages), Random(seed)};
  held.region.write_all();
  lock_everything_else();
  say("ready");
  while (obey(next_command(), held)) {
  }
  say("bye");
  return 0;
}
