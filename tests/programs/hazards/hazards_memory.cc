// Clients for the hazards that lie in changes of the address space. First option --row=NN chooses
// the row of HAZARDS.md. Each says "ready" once its memory is filled, works until the test closes
// its input, verifies everything and says "done". The test reclaims and restores all the while.
// --mb, --threads, --seed.
#include <malloc.h>
#include <sys/mman.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdlib>
#include <mutex>
#include <thread>

#include "tests/programs/lib/common.h"

using namespace testprog;

namespace {

std::uint64_t progress = 0;

void made_progress() {
  __atomic_fetch_add(&progress, 1, __ATOMIC_RELAXED);
}

bool go_on() {
  made_progress();
  return !stdin_closed();
}

void move_to(Region& region, std::byte* target) {
  void* moved =
      mremap(region.base(), region.bytes(), region.bytes(), MREMAP_MAYMOVE | MREMAP_FIXED, target);
  if (moved == MAP_FAILED) broken("mremap");
  region.moved_to(target);
}

// Row 1. Free places in one arena, handed from thread to thread the moment mremap has emptied them:
// the events of several mremaps that use each other's places reach the daemon in any order.
class Places {
 public:
  Places(std::byte* arena, std::size_t count, std::size_t bytes) {
    for (std::size_t i = 0; i < count; ++i) free_.push_back(arena + i * bytes);
  }
  std::byte* take(Random& random) {
    const std::lock_guard guard(lock_);
    if (free_.empty()) return nullptr;
    std::swap(free_[random.below(free_.size())], free_.back());
    std::byte* place = free_.back();
    free_.pop_back();
    return place;
  }
  void give(std::byte* place) {
    const std::lock_guard guard(lock_);
    free_.push_back(place);
  }

 private:
  std::mutex lock_;
  std::vector<std::byte*>
      free_;  // never grows past its first size: no allocation while places are holes
};

void map_over(std::byte* place, std::size_t bytes) {
  void* memory = mmap(place, bytes, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) broken("mmap");
}

void wander(Region& region, Places& places, std::uint64_t seed) {
  Random random(seed);
  while (go_on()) {
    std::byte* old = region.base();
    std::byte* place = places.take(random);
    if (place == nullptr) continue;
    if (random.below(4) == 0) {  // the contents end here and something new begins there
      must(munmap(old, region.bytes()), "munmap");
      places.give(old);
      map_over(place, region.bytes());
      region.moved_to(place);
      for (std::size_t i = 0; i < region.pages(); ++i) region.forget(i);
      region.check_random(random, 4);
      region.write_all();
    } else {
      move_to(region, place);
      places.give(old);
    }
    region.check_random(random, 8);
    region.write(random.below(region.pages()));
  }
  region.check_all();
}

void event_order(const Options& options, std::uint64_t seed) {
  const std::size_t threads = options.number("threads", 4);
  constexpr std::size_t kChunkPages = 256;
  const std::size_t count = threads + 3;
  std::byte* arena = map_aligned(count * kChunkPages * kPage);
  Places places(arena, count, kChunkPages * kPage);
  Random random(seed);
  std::vector<Region> regions;
  for (std::size_t t = 0; t < threads; ++t) {
    regions.emplace_back(places.take(random), kChunkPages, seed + t, Kind::mixed);
    regions.back().write_all();
  }
  std::vector<std::thread> workers;
  say("ready");
  for (std::size_t t = 0; t < threads; ++t) {
    workers.emplace_back([&, t] { wander(regions[t], places, seed * 100 + t); });
  }
  for (auto& worker : workers) worker.join();
}

// Row 2. One region is moved to and fro between two places, while the test brings everything back
// and in again: ranges are unregistered while a move onto them is on its way.
void unregister(const Options& options, std::uint64_t seed) {
  const std::size_t pages = options.number("mb", 16) * 256;
  Region region(map_aligned(pages * kPage), pages, seed, Kind::mixed);
  region.write_all();
  std::byte* other = map_aligned(pages * kPage);
  Region resident(map_bytes(pages * kPage), pages, seed + 1, Kind::heap);
  resident.write_all();
  Random random(seed);
  say("ready");
  while (go_on()) {
    std::byte* old = region.base();
    move_to(region, other);
    region.check_random(random, 20);
    map_over(old, region.bytes());
    other = old;
    region.write(random.below(pages));
    resident.check_random(random, 20);
    if (random.below(8) == 0) region.check_all();
  }
  region.check_all();
  resident.check_all();
}

// Row 3. Holes are cut into populated extents and mapped anew at once: the new pages are in no
// registered range.
void move_unregistered(const Options& options, std::uint64_t seed) {
  const std::size_t pages = options.number("mb", 16) * 256;
  Region region(map_aligned(pages * kPage), pages, seed, Kind::mixed);
  region.write_all();
  Random random(seed);
  say("ready");
  while (go_on()) {
    const std::size_t first = random.below(pages);
    const std::size_t count = 1 + random.below(std::min<std::size_t>(pages - first, 64));
    if (random.below(2) == 0) must(munmap(region.page(first), count * kPage), "munmap");
    map_over(region.page(first), count * kPage);
    for (std::size_t i = first; i < first + count; ++i) {
      region.forget(i);
      if (random.below(4) == 0) region.check(i);
      region.write(i);
    }
    for (std::size_t i = first; i < first + count; ++i) region.check(i);
    region.check_random(random, 16);
  }
  region.check_all();
}

// Row 10. Borders of protection run through what is out: windows of read-ahead meet them.
void window_enoent(const Options& options, std::uint64_t seed) {
  const std::size_t pages = options.number("mb", 16) * 256;
  Region region(map_aligned(pages * kPage), pages, seed, Kind::mixed);
  region.write_all();
  Random random(seed);
  say("ready");
  while (go_on()) {
    for (int n = 0; n < 64; ++n) {
      const std::size_t first = random.below(pages);
      const std::size_t count = 1 + random.below(std::min<std::size_t>(pages - first, 32));
      const int protection = random.below(2) == 0 ? PROT_READ : PROT_READ | PROT_WRITE;
      must(mprotect(region.page(first), count * kPage, protection), "mprotect");
    }
    region.check_all();
    must(mprotect(region.base(), region.bytes(), PROT_READ | PROT_WRITE), "mprotect");
    region.write(random.below(pages));
  }
  region.check_all();
}

// Row 13. A sparse mapping, some extents populated, some of these out, grows, shrinks and moves by
// mremap.
void mremap_round(Region& region, Random& random) {
  const std::size_t pages = 512 + random.below(8192);
  const std::size_t before = region.pages();
  void* moved = mremap(region.base(), region.bytes(), pages * kPage, MREMAP_MAYMOVE);
  if (moved == MAP_FAILED) broken("mremap");
  region.moved_to(static_cast<std::byte*>(moved));
  region.resize(pages);
  region.check_random(random, 64);
  if (pages > before) region.check(before);
  for (int n = 0; n < 4; ++n) {
    const std::size_t start = random.below(pages);
    for (std::size_t i = start; i < std::min(start + 256, pages); ++i) region.write(i);
  }
}

// glibc grows such blocks with an mremap of its own.
void realloc_round(unsigned char*& block, std::size_t& bytes, unsigned char tag, Random& random) {
  const std::size_t next = (1U << 20) + random.below(24U << 20);
  const std::size_t kept = std::min(bytes, next);
  auto* grown = static_cast<unsigned char*>(std::realloc(block, next));
  if (grown == nullptr) broken("realloc");
  for (std::size_t at = 0; at < kept; at += 1 + random.below(3 * kPage)) {
    if (grown[at] != static_cast<unsigned char>(tag + at / kPage)) wrong("realloc lost bytes");
  }
  for (std::size_t at = kept; at < next; ++at)
    grown[at] = static_cast<unsigned char>(tag + at / kPage);
  block = grown;
  bytes = next;
}

void split_mremap(const Options&, std::uint64_t seed) {
  mallopt(M_MMAP_THRESHOLD, 256 * 1024);
  Random random(seed);
  Region region(map_aligned(4096 * kPage), 4096, seed, Kind::mixed);
  for (std::size_t i = 512; i < 2048; ++i) region.write(i);
  unsigned char* block = nullptr;
  std::size_t bytes = 0;
  say("ready");
  while (go_on()) {
    mremap_round(region, random);
    realloc_round(block, bytes, 17, random);
    if (random.below(8) == 0) region.check_all();
  }
  region.check_all();
  std::free(block);
}

// Row 16. Threads discard ranges all the time; what was discarded must read as zeros, now and
// later.
void discard_work(Region& region, std::uint64_t seed, std::mutex& lock) {
  Random random(seed);
  while (go_on()) {
    const std::size_t first = random.below(region.pages());
    const std::size_t count = 1 + random.below(std::min<std::size_t>(region.pages() - first, 128));
    must(madvise(region.page(first), count * kPage, MADV_DONTNEED), "madvise");
    const std::lock_guard guard(lock);
    for (std::size_t i = first; i < first + count; ++i) region.forget(i);
    region.check_random(random, 64);
    for (std::size_t i = first; i < first + count; i += 2) region.write(i);
    region.check_random(random, 64);
  }
  region.check_all();
}

void quarantine(const Options& options, std::uint64_t seed) {
  const std::size_t threads = options.number("threads", 3);
  const std::size_t pages = options.number("mb", 24) * 256 / threads;
  std::vector<Region> regions;
  for (std::size_t t = 0; t < threads; ++t) {
    regions.emplace_back(map_aligned(pages * kPage), pages, seed + t, Kind::mixed);
    regions.back().write_all();
  }
  say("ready");
  std::vector<std::mutex> locks(threads);
  std::vector<std::thread> workers;
  for (std::size_t t = 0; t < threads; ++t) {
    workers.emplace_back([&, t] { discard_work(regions[t], seed * 100 + t, locks[t]); });
  }
  for (auto& worker : workers) worker.join();
}

// Row 18. Many threads ask for pages that are on their way out, and for holes; nobody may wait for
// ever.
void lost_wakeups(const Options& options, std::uint64_t seed) {
  const std::size_t pages = options.number("mb", 4) * 256;
  const std::size_t threads = options.number("threads", 8);
  Region region(map_aligned(pages * kPage), pages, seed, Kind::mixed);
  for (std::size_t i = 0; i < pages; ++i) {
    if (i % 16 != 5) region.write(i);  // the others stay holes
  }
  std::vector<std::uint64_t> reads(threads, 0);
  for (auto& count : reads) watch_progress(&count, 30);
  std::vector<std::thread> workers;
  say("ready");
  for (std::size_t t = 0; t < threads; ++t) {
    workers.emplace_back([&, t] {
      Random random(seed * 100 + t);
      while (go_on()) {
        region.check_random(random, 16);
        __atomic_fetch_add(&reads[t], 1, __ATOMIC_RELAXED);
      }
    });
  }
  for (auto& worker : workers) worker.join();
  region.check_all();
}

// Row 12. Discards that raise no event: guards, and wipe-on-fork set late, over what is out.
void discards_without_event(const Options& options, std::uint64_t seed) {
  constexpr int kGuardInstall = 102;
  constexpr int kGuardRemove = 103;
  const std::size_t pages = options.number("mb", 8) * 256;
  Region region(map_aligned(pages * kPage), pages, seed, Kind::mixed);
  region.write_all();
  Random random(seed);
  say("ready");
  while (go_on()) {
    const std::size_t first = random.below(pages);
    const std::size_t count = 1 + random.below(std::min<std::size_t>(pages - first, 32));
    must(madvise(region.page(first), count * kPage, kGuardInstall), "madvise(GUARD_INSTALL)");
    if (first > 0) region.check(first - 1);
    if (first + count < pages) region.check(first + count);
    must(madvise(region.page(first), count * kPage, kGuardRemove), "madvise(GUARD_REMOVE)");
    for (std::size_t i = first; i < first + count; ++i) region.forget(i);
    region.check(first);
    region.check(first + count - 1);
    region.check_random(random, 64);
    for (std::size_t i = first; i < first + count; i += 2) region.write(i);
  }
  region.check_all();
}

using Body = void (*)(const Options&, std::uint64_t);
struct Row {
  std::uint64_t number;
  Body body;
};
constexpr std::array<Row, 8> kRows{{{1, event_order},
                                    {2, unregister},
                                    {3, move_unregistered},
                                    {10, window_enoent},
                                    {12, discards_without_event},
                                    {13, split_mremap},
                                    {16, quarantine},
                                    {18, lost_wakeups}}};

}  // namespace

int main(int argc, char** argv) {
  const Options options(argc, argv);
  const std::uint64_t number = options.number("row", 0);
  for (const Row& row : kRows) {
    if (row.number != number) continue;
    watch_progress(&progress, 60);
    row.body(options, options.number("seed", 1));
    say("done");
    return 0;
  }
  errno = EINVAL;
  broken("--row");
}
