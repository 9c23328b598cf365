// Clients that make trouble for whoever serves them. --how=
//   starve    --threads threads discard ranges of their own over and over, which raises an event
//             each time; one thread reads the pages that are out. --apart=1: what is discarded
//             lies in other extents than what is read; 0: in the same ones
//   flood     the same without the reader, until the input ends
//   spawn     threads vfork and exec, posix_spawn and system(3) all the time, out of memory that
//             comes and goes, until the input ends
//   vmsplice  huge pages of which a pipe holds one page each
//   pinned    huge pages into which direct reads go all the while, until the input ends
//   split     huge pages that are cut, discarded in part, shared and written by a child
// --mb, --seed; --file for `pinned`. What the test says and is told: see each.
#include <fcntl.h>
#include <spawn.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <thread>

#include "tests/programs/lib/common.h"

using namespace testprog;

namespace {

constexpr std::size_t kExtentPages = 512;
constexpr int kMadvCollapse = 25;  // not in Debian's headers
std::uint64_t progress = 0;

void made_progress() {
  __atomic_fetch_add(&progress, 1, __ATOMIC_RELAXED);
}

Region make_region(const Options& options) {
  const std::size_t pages = options.number("mb", 8) * 256;
  Region region(map_aligned(pages * kPage), pages, options.number("seed", 1), Kind::mixed);
  return region;
}

// Row 5. Each extent's last 64 pages are the discarders'; or every other extent is.
bool is_for_discarding(std::size_t page, bool apart) {
  return apart ? page / kExtentPages % 2 == 1 : page % kExtentPages >= kExtentPages - 64;
}

std::vector<std::size_t> pages_for(const Region& region, bool discarding, bool apart) {
  std::vector<std::size_t> out;
  for (std::size_t i = 0; i < region.pages(); ++i) {
    if (is_for_discarding(i, apart) == discarding) out.push_back(i);
  }
  return out;
}

// Discards page after page of its own; what it has discarded must read as zeros.
void discard_for_ever(Region& region, const std::vector<std::size_t>& own, const bool& stop) {
  for (std::uint64_t n = 0; !__atomic_load_n(&stop, __ATOMIC_SEQ_CST); ++n) {
    const std::size_t i = own[n % own.size()];
    must(madvise(region.page(i), kPage, MADV_DONTNEED), "madvise");
    region.forget(i);
    if (n % 4096 == 4095) region.check(i);
  }
}

std::vector<std::thread> start_discarders(const Options& options, Region& region,
                                          const bool& stop) {
  const std::size_t threads = options.number("threads", 8);
  const auto all = pages_for(region, true, options.number("apart", 0) != 0);
  const std::size_t share = all.size() / threads;
  std::vector<std::thread> workers;
  for (std::size_t t = 0; t < threads; ++t) {
    const auto first = all.begin() + static_cast<std::ptrdiff_t>(t * share);
    std::vector<std::size_t> own(first, first + static_cast<std::ptrdiff_t>(share));
    workers.emplace_back(
        [&region, &stop, own = std::move(own)] { discard_for_ever(region, own, stop); });
  }
  return workers;
}

int starve(const Options& options) {
  static Region region = make_region(options);
  static bool stop = false;
  region.write_all();
  const auto wanted = pages_for(region, false, options.number("apart", 0) != 0);
  say("ready");
  static_cast<void>(next_command());  // everything is out by now
  watch_progress(&progress, static_cast<unsigned>(options.number("bound_s", 30)));
  auto workers = start_discarders(options, region, stop);
  const double start = seconds_now();
  double worst = 0;
  Random random(options.number("seed", 1));
  for (std::size_t n = 0; n < 200; ++n) {
    const double before = seconds_now();
    region.check(wanted[random.below(wanted.size())]);
    worst = std::max(worst, seconds_now() - before);
    made_progress();
  }
  std::fprintf(stderr, "200 reads in %.2f s, the slowest in %.3f s\n", seconds_now() - start,
               worst);
  __atomic_store_n(&stop, true, __ATOMIC_SEQ_CST);
  for (auto& worker : workers) worker.join();
  region.check_all();
  say("done");
  return 0;
}

int flood(const Options& options) {
  static Region region = make_region(options);
  static bool stop = false;
  region.write_all();
  say("ready");
  static_cast<void>(next_command());  // everything is out, and so registered, by now
  auto workers = start_discarders(options, region, stop);
  say("flooding");
  static_cast<void>(next_command());
  __atomic_store_n(&stop, true, __ATOMIC_SEQ_CST);
  for (auto& worker : workers) worker.join();
  region.check_all();
  say("done");
  return 0;
}

// Paths and arguments lie on a page of the region's kind: exec itself reads what is out.
struct Words {
  std::array<char, 32> shell{"/bin/sh"}, flag{"-c"}, code{"exit 4"}, truth{"/bin/true"};
  std::array<char*, 4> argv{};
};

void spawn_once(Words& words, std::uint64_t which) {
  int status = 0;
  if (which == 0) {
    if (std::system("exit 3") != 3 << 8) wrong("system");
    return;
  }
  pid_t child = 0;
  if (which == 1) {
    words.argv = {words.shell.data(), words.flag.data(), words.code.data(), nullptr};
    if (posix_spawn(&child, words.shell.data(), nullptr, nullptr, words.argv.data(), environ) != 0)
      wrong("posix_spawn");
    if (waitpid(child, &status, 0) != child || status != 4 << 8) wrong("what posix_spawn started");
    return;
  }
  words.argv = {words.truth.data(), nullptr};
  child = vfork();
  if (child == 0) {
    execv(words.truth.data(), words.argv.data());
    _exit(127);
  }
  if (waitpid(child, &status, 0) != child || status != 0) wrong("what vfork started");
}

int spawn(const Options& options) {
  constexpr std::size_t kThreads = 3;
  static std::vector<Region> regions;
  const std::size_t pages = options.number("mb", 12) * 256 / kThreads;
  std::vector<Words*> words;
  for (std::size_t t = 0; t < kThreads; ++t) {
    std::byte* memory = map_aligned((pages + 1) * kPage);
    regions.emplace_back(memory, pages, options.number("seed", 1) + t, Kind::mixed);
    regions.back().write_all();
    words.push_back(new (memory + pages * kPage) Words);
  }
  watch_progress(&progress, 60);
  std::vector<std::thread> threads;
  say("ready");
  for (std::size_t t = 0; t < kThreads; ++t) {
    threads.emplace_back([t, &words] {
      Random random(t);
      while (!stdin_closed()) {
        spawn_once(*words[t], random.below(3));
        regions[t].check_random(random, 64);
        for (int n = 0; n < 8; ++n) regions[t].write(random.below(regions[t].pages()));
        made_progress();
      }
      regions[t].check_all();
    });
  }
  for (auto& thread : threads) thread.join();
  say("done");
  return 0;
}

std::size_t huge_kib() {
  std::size_t total = 0;
  std::array<char, 256> line{};
  FILE* smaps = std::fopen("/proc/self/smaps", "r");
  if (smaps == nullptr) broken("smaps");
  while (std::fgets(line.data(), line.size(), smaps) != nullptr) {
    std::size_t kib = 0;
    if (std::sscanf(line.data(), "AnonHugePages: %zu kB", &kib) == 1) total += kib;
  }
  static_cast<void>(std::fclose(smaps));
  return total;
}

Region make_huge(const Options& options) {
  Region region = make_region(options);
  must(madvise(region.base(), region.bytes(), MADV_HUGEPAGE), "madvise(MADV_HUGEPAGE)");
  region.write_all();
  say("huge " + std::to_string(huge_kib()));
  return region;
}

// "held" (the test evicts) -> "released" (it evicts again) -> "done".
int vmsplice_pages(const Options& options) {
  Region region = make_huge(options);
  std::array<int, 2> fds{};
  must(pipe2(fds.data(), O_CLOEXEC), "pipe2");
  std::vector<std::size_t> held;
  for (std::size_t i = 100; i < region.pages() && held.size() < 16; i += kExtentPages) {
    const iovec part{.iov_base = region.page(i), .iov_len = kPage};
    if (must(vmsplice(fds[1], &part, 1, 0), "vmsplice") != static_cast<ssize_t>(kPage))
      wrong("vmsplice took less than a page");
    held.push_back(i);
  }
  say("held");
  static_cast<void>(next_command());
  region.check_all();
  Region copy(map_bytes(kPage), 1, 1, Kind::mixed);
  for (const std::size_t i : held) {
    if (read(fds[0], copy.base(), kPage) != static_cast<ssize_t>(kPage)) broken("read");
    if (std::memcmp(copy.base(), region.page(i), kPage) != 0) wrong("the pipe has other bytes");
  }
  say("released");
  static_cast<void>(next_command());
  region.check_all();
  say("done");
  return 0;
}

// Direct reads of single pages at random into every page of the region; each is verified. The
// file's page i holds the contents of key i + 1.
int pinned(const Options& options) {
  Region region = make_huge(options);
  const std::string path = options.text("file", "");
  const int fd = open(path.c_str(), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC | O_DIRECT, 0600);
  if (fd < 0) broken("open with O_DIRECT");
  constexpr std::size_t kFilePages = 64;
  std::byte* block = map_aligned(kFilePages * kPage);
  for (std::size_t i = 0; i < kFilePages; ++i) fill_page(block + i * kPage, i + 1, Kind::random);
  if (write(fd, block, kFilePages * kPage) != static_cast<ssize_t>(kFilePages * kPage))
    broken("write");
  watch_progress(&progress, 60);
  std::vector<std::thread> threads;
  constexpr std::size_t kThreads = 3;
  std::uint64_t reads = 0;
  say("reading");
  for (std::size_t t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      Random random(t);
      while (!stdin_closed()) {
        const std::size_t from = random.below(kFilePages);
        const std::size_t to = random.below(region.pages() / kThreads) * kThreads + t;
        if (to >= region.pages()) continue;
        if (pread(fd, region.page(to), kPage, static_cast<off_t>(from * kPage)) !=
            static_cast<ssize_t>(kPage))
          broken("a direct read");
        check_page(region.page(to), from + 1, Kind::random);
        region.write(to);
        __atomic_fetch_add(&reads, 1, __ATOMIC_RELAXED);
        made_progress();
      }
    });
  }
  for (auto& thread : threads) thread.join();
  region.check_all();
  say("reads " + std::to_string(reads));
  return 0;
}

// Each extent in one of five ways, so that its huge page is cut, or still whole but referred to
// more than once.
void cut(Region& region, std::size_t extent) {
  const std::size_t first = extent * kExtentPages;
  switch (extent % 5) {
    case 0:  // whole
      return;
    case 1:
      must(mprotect(region.page(first + 100), 50 * kPage, PROT_READ), "mprotect");
      return;
    case 2:
      must(madvise(region.page(first + 7), kPage, MADV_DONTNEED), "madvise");
      region.forget(first + 7);
      return;
    case 3:
      must(munmap(region.page(first + 200), 3 * kPage), "munmap");
      if (mmap(region.page(first + 200), 3 * kPage, PROT_READ | PROT_WRITE,
               MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == MAP_FAILED)
        broken("mmap");
      for (std::size_t i = first + 200; i < first + 203; ++i) region.forget(i);
      return;
    default:
      must(madvise(region.page(first), kExtentPages * kPage / 2, MADV_COLD), "madvise");
  }
}

// "cut" (the test evicts) -> "shared" (a child has the pages too; it evicts) -> "alone" -> "done".
int split(const Options& options) {
  Region region = make_huge(options);
  for (std::size_t e = 0; e < region.pages() / kExtentPages; ++e) cut(region, e);
  say("cut");
  static_cast<void>(next_command());
  region.check_all();
  std::array<int, 2> fds{};
  must(pipe2(fds.data(), O_CLOEXEC), "pipe2");
  const pid_t child = must(fork(), "fork");
  if (child == 0) {
    char byte = 0;
    must(close(fds[1]), "close");
    must(read(fds[0], &byte, 1), "read");
    region.check_all();
    must(mprotect(region.base(), region.bytes(), PROT_READ | PROT_WRITE), "mprotect");
    region.diverge(1);
    region.write_all();
    region.check_all();
    _exit(0);
  }
  say("shared");
  static_cast<void>(next_command());
  must(close(fds[1]), "close");
  int status = 0;
  must(waitpid(child, &status, 0), "waitpid");
  if (status != 0) wrong("the child failed");
  must(mprotect(region.base(), region.bytes(), PROT_READ | PROT_WRITE), "mprotect");
  for (std::size_t i = 0; i < region.pages(); i += 3) region.write(i);
  static_cast<void>(madvise(region.base(), region.bytes(), kMadvCollapse));
  say("alone");
  static_cast<void>(next_command());
  region.check_all();
  say("done");
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  const Options options(argc, argv);
  const std::string how = options.text("how", "");
  if (how == "starve") return starve(options);
  if (how == "flood") return flood(options);
  if (how == "spawn") return spawn(options);
  if (how == "vmsplice") return vmsplice_pages(options);
  if (how == "pinned") return pinned(options);
  if (how == "split") return split(options);
  errno = EINVAL;
  broken("--how");
}
