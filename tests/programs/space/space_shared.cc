// Threads that change the same memory, while the test takes everything out: page by page beside
// each other, or all of it in turns. --op=NAME, --seed, --ms. The talk is that of space.h.
#include <sys/mman.h>

#include <algorithm>
#include <array>
#include <mutex>
#include <thread>

#include "base/uapi.h"
#include "tests/programs/space/space.h"

using namespace testprog;

namespace {

// Threads own every fourth page of the same extents, and discard, replace, protect, lock and guard
// these alone: their borders run through everything that is registered, out, and read ahead.
class Owner {
 public:
  Owner(Region& region, std::size_t me, std::uint64_t seed)
      : region_(region), me_(me), random_(seed) {}

  void step() {
    const std::size_t i = mine();
    std::byte* page = region_.page(i);
    switch (random_.below(9)) {
      case 0:
        must(madvise(page, kPage, MADV_DONTNEED), "madvise(DONTNEED)");
        region_.forget(i);
        break;
      case 1:
        map_over(page, 1);
        region_.forget(i);
        break;
      case 2:
        must(madvise(page, kPage, MADV_FREE), "madvise(FREE)");
        region_.write(i);
        break;
      case 3:
        must(mprotect(page, kPage, PROT_NONE), "mprotect");
        must_fault(page);
        must(mprotect(page, kPage, PROT_READ | PROT_WRITE), "mprotect");
        break;
      case 4:
        must(mlock(page, kPage), "mlock");
        region_.check(i);
        must(munlock(page, kPage), "munlock");
        break;
      case 5:
        must(madvise(page, kPage, random_.below(2) == 0 ? MADV_POPULATE_READ : MADV_POPULATE_WRITE),
             "madvise(POPULATE)");
        break;
      case 6:
        must(munmap(page, kPage), "munmap");
        must_fault(page);
        map_over(page, 1);
        region_.forget(i);
        break;
      default:
        region_.write(i);
    }
    region_.check(i);
    for (int n = 0; n < 8; ++n) region_.check(mine());
    made_progress();
  }
  void finish() {
    for (std::size_t i = me_; i < region_.pages(); i += kOwners) region_.check(i);
  }

  static constexpr std::size_t kOwners = 4;

 private:
  std::size_t mine() { return random_.below(region_.pages() / kOwners) * kOwners + me_; }
  Region& region_;
  std::size_t me_;
  Random random_;
};

void neighbours(const Options& options, std::uint64_t seed) {
  Region region(map_aligned(1536 * kPage), 1536, seed, Kind::mixed);
  region.write_all();
  ask("evict");
  ask("churn");
  const Timed timed(options);
  std::array<std::thread, Owner::kOwners> threads;
  for (std::size_t t = 0; t < threads.size(); ++t) {
    threads[t] = std::thread([&, t] {
      Owner owner(region, t, seed * 10 + t);
      while (!timed.over()) owner.step();
      owner.finish();
    });
  }
  for (auto& thread : threads) thread.join();
  ask("calm");
  region.check_all();
}

// All threads change the same region, each operation under one lock; that orders the shadow, and
// nothing else: faults, eviction and read-ahead of one meet the next operation of another.
class Shared {
 public:
  explicit Shared(std::uint64_t seed)
      : region_(map_bytes(kPages * kPage), kPages, seed, Kind::mixed) {
    region_.write_all();
  }

  void step(Random& random) {
    const std::lock_guard guard(lock_);
    const std::size_t first = random.below(region_.pages());
    const std::size_t count = 1 + random.below(std::min<std::size_t>(region_.pages() - first, 200));
    std::byte* start = region_.page(first);
    switch (random.below(7)) {
      case 0:
        must(madvise(start, count * kPage, MADV_DONTNEED), "madvise(DONTNEED)");
        for (std::size_t i = first; i < first + count; ++i) region_.forget(i);
        break;
      case 1:
        remap(kPages / 2 + random.below(kPages), MREMAP_MAYMOVE);
        break;
      case 2:
        must(mlock(start, count * kPage), "mlock");
        if (present_pages(start, count) != count) wrong("a locked page is out");
        must(munlock(region_.base(), region_.bytes()), "munlock");
        break;
      case 3:
        guard_and_free(first, count);
        break;
      case 4:
        must(mprotect(start, count * kPage, PROT_READ), "mprotect(READ)");
        region_.check_random(random, 30);
        must(mprotect(region_.base(), region_.bytes(), PROT_READ | PROT_WRITE), "mprotect");
        break;
      default:
        for (std::size_t i = first; i < first + count; ++i) region_.write(i);
    }
    region_.check_random(random, 60);
    made_progress();
  }
  void finish() { region_.check_all(); }

 private:
  static constexpr std::size_t kPages = 1200;

  void remap(std::size_t pages, int flags) {
    void* moved = mremap(region_.base(), region_.bytes(), pages * kPage, flags);
    if (moved == MAP_FAILED) broken("mremap");
    region_.moved_to(static_cast<std::byte*>(moved));
    region_.resize(pages);
  }
  void guard_and_free(std::size_t first, std::size_t count) {
    if (madvise(region_.page(first), count * kPage, foldswap::uapi::kMadvGuardInstall) != 0) return;
    must_fault(region_.page(first + count / 2));
    must(madvise(region_.page(first), count * kPage, foldswap::uapi::kMadvGuardRemove),
         "madvise(GUARD_REMOVE)");
    for (std::size_t i = first; i < first + count; ++i) region_.forget(i);
  }

  std::mutex lock_;
  Region region_;
};

void same_range(const Options& options, std::uint64_t seed) {
  Shared shared(seed);
  ask("evict");
  ask("churn");
  const Timed timed(options);
  std::array<std::thread, 4> threads;
  for (std::size_t t = 0; t < threads.size(); ++t) {
    threads[t] = std::thread([&, t] {
      Random random(seed * 10 + t);
      while (!timed.over()) shared.step(random);
    });
  }
  for (auto& thread : threads) thread.join();
  ask("calm");
  shared.finish();
}

constexpr std::array<Work, 2> kWork{{{"neighbours", neighbours}, {"same_range", same_range}}};

}  // namespace

int main(int argc, char** argv) {
  return run_work(kWork, Options(argc, argv));
}
