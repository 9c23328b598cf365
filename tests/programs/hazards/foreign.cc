// Memory of other kinds at the place of ordinary memory, and beside it: huge pages, shared memory,
// memfds and files. What is not ours must not be registered: in huge pages no fault could be
// answered, in shared memory every first touch would wait for the daemon.
//   --row=huge      ordinary memory goes, a huge-page mapping comes to its place, again and again,
//                   under a budget that has everything evicted all the time
//   --row=shared    likewise with shared memory of a memfd
//   --row=moves     memfd, file and shared mappings are moved by mremap onto ordinary memory that
//   is
//                   out, beside it, and away again
// "ready" -> "go", "done". A line "registered" tells that foreign memory is registered (`um`).
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <cstdio>
#include <cstring>
#include <string>
#include <thread>

#include "tests/programs/lib/common.h"

using namespace testprog;

namespace {

constexpr std::size_t kBytes = 16U << 20;
constexpr unsigned kPatienceS = 20;

std::atomic<std::uint64_t> g_progress{0};

// Whether a userfaultfd has the mapping at `address` (VmFlags: um).
bool registered(const void* address) {
  std::FILE* const file = std::fopen("/proc/self/smaps", "r");
  if (file == nullptr) broken("smaps");
  char line[512];
  bool inside = false, found = false;
  while (std::fgets(line, sizeof(line), file) != nullptr) {
    unsigned long start = 0, end = 0;
    const auto at = reinterpret_cast<unsigned long>(address);
    if (std::sscanf(line, "%lx-%lx ", &start, &end) == 2) inside = at >= start && at < end;
    if (inside && std::strncmp(line, "VmFlags:", 8) == 0)
      found = std::strstr(line, " um") != nullptr;
  }
  std::fclose(file);
  return found;
}

void check_foreign(const void* address) {
  if (registered(address)) wrong("foreign memory is registered");
}

std::byte* ordinary_at(std::byte* at, std::uint64_t seed) {
  void* const place =
      mmap(at, kBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
  if (place != at) broken("mmap");
  Region region(at, kBytes / kPage, seed, Kind::heap);
  region.write_all();
  return at;
}

// Fills memory of its own without end, so that the budget is always exceeded.
void keep_evicting(const std::atomic<bool>& stop) {
  Region region(map_bytes(64U << 20), (64U << 20) / kPage, 3, Kind::heap);
  region.write_all();
  Random random(4);
  while (!stop) {
    const std::size_t page = random.below(region.pages());
    region.check(page);
    region.write(page);
  }
}

// The mapping's first touches, timed by the watcher of progress alone.
void use(std::byte* at, std::size_t step, std::uint8_t value) {
  for (std::size_t i = 0; i < kBytes; i += step) {
    at[i] = std::byte{value};
    g_progress.fetch_add(1);
  }
  for (std::size_t i = 0; i < kBytes; i += step) {
    if (at[i] != std::byte{value}) wrong("foreign memory lost what was written to it");
  }
}

void replaced(bool huge) {
  std::atomic<bool> stop{false};
  std::thread busy([&] { keep_evicting(stop); });
  auto* const at = reinterpret_cast<std::byte*>(0x600000000000);
  const int file = huge ? -1 : must(memfd_create("foreign", 0), "memfd_create");
  if (!huge) must(ftruncate(file, kBytes), "ftruncate");
  for (unsigned round = 0; round < 7; ++round) {
    ordinary_at(at, round + 1);
    sleep_ms(200 + round * 60);
    must(munmap(at, kBytes), "munmap");
    const int flags = huge ? MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB : MAP_SHARED;
    void* const place = mmap(at, kBytes, PROT_READ | PROT_WRITE, flags | MAP_FIXED, file, 0);
    if (place != at) broken("mmap");
    const std::size_t step = huge ? 2U << 20 : kPage;
    // The first two, and the rest when it may have been looked at and registered.
    at[0] = at[step] = std::byte{1};
    sleep_ms(300);
    use(at, step, static_cast<std::uint8_t>(round + 2));
    check_foreign(at);
    must(munmap(at, kBytes), "munmap");
  }
  stop = true;
  busy.join();
}

std::byte* map_file(int file, int flags) {
  void* const place = mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, flags, file, 0);
  if (place == MAP_FAILED) broken("mmap");
  return static_cast<std::byte*>(place);
}

std::byte* move_to(std::byte* from, std::byte* to) {
  if (mremap(from, kBytes, kBytes, MREMAP_MAYMOVE | MREMAP_FIXED, to) != to) broken("mremap");
  return to;
}

void moves() {
  std::byte* const room = map_bytes(4 * kBytes);
  must(munmap(room, 4 * kBytes), "munmap");
  Region before(ordinary_at(room, 21), kBytes / kPage, 21, Kind::mixed);
  Region behind(ordinary_at(room + 2 * kBytes, 22), kBytes / kPage, 22, Kind::mixed);
  before.write_all();
  behind.write_all();
  char name[] = "/tmp/foldswap-foreign-XXXXXX";
  const int on_disk = must(mkstemp(name), "mkstemp"),
            memory = must(memfd_create("foreign", 0), "memfd");
  must(unlink(name), "unlink");
  must(ftruncate(on_disk, kBytes), "ftruncate");
  must(ftruncate(memory, kBytes), "ftruncate");
  const struct {
    int file, flags;
  } kinds[] = {{memory, MAP_SHARED},
               {on_disk, MAP_PRIVATE},
               {on_disk, MAP_SHARED},
               {-1, MAP_SHARED | MAP_ANONYMOUS}};
  std::uint8_t value = 1;
  for (const auto& kind : kinds) {
    ordinary_at(room + kBytes, 30 + value);
    std::byte* const foreign = map_file(kind.file, kind.flags);
    use(foreign, kPage, value);
    say("ready");
    if (next_command() != "go") _exit(kExitBroken);
    // Onto what is out, between two that are; then it grows and shrinks there; then away again.
    std::byte* const there = move_to(foreign, room + kBytes);
    check_foreign(there);
    if (mremap(there, kBytes, kBytes / 2, 0) != there) broken("mremap shrinks");
    if (mremap(there, kBytes / 2, kBytes, 0) != there) broken("mremap grows");
    for (std::size_t i = 0; i < kBytes / 2; i += kPage) {
      if (there[i] != std::byte{value}) wrong("a moved foreign mapping has other bytes");
    }
    use(there, kPage, static_cast<std::uint8_t>(value + 100));
    check_foreign(there);
    std::byte* const away = move_to(there, room + 3 * kBytes);
    check_foreign(away);
    use(away, kPage, static_cast<std::uint8_t>(value + 50));
    must(munmap(away, kBytes), "munmap");
    before.check_all();
    behind.check_all();
    ++value;
  }
}

}  // namespace

int main(int argc, char** argv) {
  const Options options(argc, argv);
  const std::string row = options.text("row", "");
  if (row == "moves") {
    moves();
  } else {
    std::thread([] {
      std::uint64_t seen = 0;
      for (double since = seconds_now(); seconds_now() - since < kPatienceS; sleep_ms(100)) {
        const std::uint64_t now = g_progress.load();
        if (now != seen || !now) since = seconds_now();
        seen = now;
      }
      say("a first touch does not end");
      _exit(kExitBroken);
    }).detach();
    replaced(row == "huge");
  }
  say("done");
}
