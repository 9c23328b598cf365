// Everything at once, seeded: threads that map, unmap, discard, move, protect, grow and fork over
// regions of their own, each with a shadow, for --seconds; every read is checked. The test reclaims
// and restores all the while.
// --threads, --seed, --seconds.
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <thread>

#include "tests/programs/common.h"

using namespace testprog;

namespace {

struct Span {
  std::size_t first;
  std::size_t count;
};

class Tormentor {
 public:
  // What is mapped into the middle of a region is a VMA of its own once the region has moved, and
  // mremap takes no two VMAs at once: so a region is either moved and resized, or has parts
  // replaced.
  Tormentor(std::uint64_t seed, std::size_t pages, bool may_replace)
      : may_replace_(may_replace),
        random_(seed),
        region_(map_bytes(pages * kPage), pages, seed, Kind::mixed) {
    region_.write_all();
  }

  void step() {
    switch (random_.below(16)) {
      case 0:
        return discard(MADV_DONTNEED);
      case 1:
      case 2:
        return may_replace_ ? replace() : move();
      case 3:
        return random_.below(8) == 0 ? rebuild() : may_replace_ ? replace() : resize();
      case 4:
        return protect();
      case 5:
        return random_.below(8) == 0 ? fork_child() : free_lazily();
      case 6:
      case 7:
      case 8:
        return rewrite();
      default:
        return region_.check_random(random_, 32);
    }
  }

  void finish() { region_.check_all(); }

 private:
  Span some(std::size_t most) {
    const std::size_t first = random_.below(region_.pages());
    return {first, 1 + random_.below(std::min(region_.pages() - first, most))};
  }

  void discard(int advice) {
    const Span span = some(200);
    must(madvise(region_.page(span.first), span.count * kPage, advice), "madvise");
    for (std::size_t i = span.first; i < span.first + span.count; ++i) region_.forget(i);
    region_.check(span.first);
  }

  // MADV_FREE leaves old bytes or zeros until the next write, so write.
  void free_lazily() {
    const Span span = some(100);
    must(madvise(region_.page(span.first), span.count * kPage, MADV_FREE), "madvise(FREE)");
    for (std::size_t i = span.first; i < span.first + span.count; ++i) region_.write(i);
  }

  void replace() {
    const Span span = some(300);
    void* memory = mmap(region_.page(span.first), span.count * kPage, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) broken("mmap");
    for (std::size_t i = span.first; i < span.first + span.count; ++i) {
      region_.forget(i);
      if (i % 3 != 0) region_.write(i);
    }
  }

  void move() {
    std::byte* target = map_bytes(region_.bytes());
    void* moved = mremap(region_.base(), region_.bytes(), region_.bytes(),
                         MREMAP_MAYMOVE | MREMAP_FIXED, target);
    if (moved == MAP_FAILED) broken("mremap");
    region_.moved_to(target);
  }

  void resize() {
    const std::size_t pages = 256 + random_.below(2048);
    void* moved = mremap(region_.base(), region_.bytes(), pages * kPage, MREMAP_MAYMOVE);
    if (moved == MAP_FAILED) broken("mremap");
    region_.moved_to(static_cast<std::byte*>(moved));
    region_.resize(pages);
  }

  void rebuild() {
    must(munmap(region_.base(), region_.bytes()), "munmap");
    region_.moved_to(map_bytes(region_.bytes()));
    for (std::size_t i = 0; i < region_.pages(); ++i) region_.forget(i);
    rewrite();
  }

  void protect() {
    const Span span = some(64);
    must(mprotect(region_.page(span.first), span.count * kPage, PROT_READ), "mprotect");
    region_.check_random(random_, 32);
    must(mprotect(region_.base(), region_.bytes(), PROT_READ | PROT_WRITE), "mprotect");
  }

  void rewrite() {
    const Span span = some(64);
    for (std::size_t i = span.first; i < span.first + span.count; ++i) region_.write(i);
  }

  void fork_child() {
    const pid_t child = must(fork(), "fork");
    if (child == 0) {
      region_.diverge(random_.next());
      for (int n = 0; n < 50; ++n) region_.write(random_.below(region_.pages()));
      region_.check_all();
      _exit(0);
    }
    rewrite();
    int status = 0;
    must(waitpid(child, &status, 0), "waitpid");
    if (status != 0) wrong("a child failed");
  }

  bool may_replace_;
  Random random_;
  Region region_;
};

}  // namespace

int main(int argc, char** argv) {
  const Options options(argc, argv);
  const std::uint64_t seed = options.number("seed", 1);
  const double end = seconds_now() + static_cast<double>(options.number("seconds", 20));
  std::uint64_t steps = 0;
  watch_progress(&steps, 60);
  std::vector<std::thread> threads;
  say("ready");
  for (std::uint64_t t = 0; t < options.number("threads", 4); ++t) {
    threads.emplace_back([seed, t, end, &steps] {
      Tormentor tormentor(seed * 1000 + t, 2048, t % 2 == 0);
      while (seconds_now() < end) {
        tormentor.step();
        __atomic_fetch_add(&steps, 1, __ATOMIC_RELAXED);
      }
      tormentor.finish();
    });
  }
  for (auto& thread : threads) thread.join();
  say("done");
  return 0;
}
