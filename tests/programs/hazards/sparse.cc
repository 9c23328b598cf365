// Memory of which little is used, beside a heap that is dense. --shape=
//   pages    --count pages, one in every --step_kb of one reservation (a hash table of mappings,
//            a heap in arenas)
//   islands  the same with --island pages side by side
//   apart    --count mappings of --step_kb each, a page in each of their halves, with a mapping
//            that cannot be touched between two of them
//   first    reservations of --gib altogether below the heap, touched at both ends and nowhere else
//   last     above it
//   around   below and above it, and islands in both
//   none     nothing but the heap
// --heap_mb: the heap's size (0). --own: so many mappings of the program itself besides; --slack:
// as many as leave that many free. --seed. Says "ready", then does what it is told: "maps" counts
// its mappings, "more" has the kernel make some, and a thread, "work" reads the heap and maps one
// page at a time, "check" verifies every byte, "touch" writes to new pages between the old ones.
#include <sys/mman.h>

#include <algorithm>
#include <cstdio>
#include <string>
#include <thread>
#include <vector>

#include "tests/programs/lib/common.h"

using namespace testprog;

namespace {

constexpr std::size_t kGib = 1ULL << 30;
constexpr std::size_t kBelow = 0x1000'0000'0000, kHeap = 0x6000'0000'0000,
                      kAbove = 0x6100'0000'0000;

std::size_t count_mappings() {
  std::FILE* const file = std::fopen("/proc/self/maps", "r");
  if (file == nullptr) broken("/proc/self/maps");
  std::size_t lines = 0;
  for (int c = 0; (c = std::fgetc(file)) != EOF;) lines += c == '\n' ? 1 : 0;
  static_cast<void>(std::fclose(file));
  return lines;
}

// Pages here and there, each with the key of what it holds.
class Pages {
 public:
  explicit Pages(std::uint64_t seed) : seed_(seed) {}
  void write(std::byte* page) {
    pages_.push_back(page);
    fill_page(page, key_of(pages_.size() - 1), Kind::mixed);
  }
  void check() const {
    for (std::size_t i = 0; i < pages_.size(); ++i) check_page(pages_[i], key_of(i), Kind::mixed);
  }
  // In some of the gaps.
  void touch_between() {
    constexpr std::ptrdiff_t kWide = 64 * kPage;
    for (std::size_t i = 0, before = pages_.size(); i + 1 < before; i += 7) {
      const std::ptrdiff_t gap = pages_[i + 1] - pages_[i];
      if (gap >= kWide && gap <= (8 << 20)) write(pages_[i] + kWide / 4);
    }
  }

 private:
  [[nodiscard]] std::uint64_t key_of(std::size_t i) const { return Random(seed_ + i).next() | 1; }
  const std::uint64_t seed_;
  std::vector<std::byte*> pages_;
};

std::byte* reserve(std::size_t bytes, std::size_t at = 0) {
  constexpr int kFlags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
  void* const place = reinterpret_cast<void*>(at);  // NOLINT(performance-no-int-to-ptr)
  void* const got = mmap(place, bytes, PROT_READ | PROT_WRITE,
                         kFlags | (at == 0 ? 0 : MAP_FIXED_NOREPLACE), -1, 0);
  if (got == MAP_FAILED) broken("mmap");
  must(madvise(got, bytes, MADV_NOHUGEPAGE), "madvise");
  return static_cast<std::byte*>(got);
}

void write_islands(Pages& pages, std::byte* start, std::size_t count, std::size_t step,
                   std::size_t island) {
  for (std::size_t i = 0; i < count; ++i) {
    for (std::size_t p = 0; p < island; ++p) pages.write(start + i * step + p * kPage);
  }
}

void write_ends(Pages& pages, std::byte* start, std::size_t bytes) {
  pages.write(start);
  pages.write(start + bytes - kPage);
}

void write_apart(Pages& pages, std::size_t count, std::size_t bytes) {
  for (std::size_t i = 0; i < count; ++i) {
    std::byte* const start = reserve(bytes + kPage);
    must(mprotect(start + bytes, kPage, PROT_NONE), "mprotect");
    pages.write(start + kPage);
    pages.write(start + bytes / 2 + kPage);
  }
}

void make(Pages& pages, const Options& options) {
  const std::string shape = options.text("shape", "pages");
  const std::size_t count = options.number("count", 1000), step = options.number("step_kb", 4096)
                                                                  << 10;
  const std::size_t bytes = options.number("gib", 0) * kGib;
  if (shape == "pages" || shape == "islands") {
    const std::size_t island = shape == "pages" ? 1 : options.number("island", 64);
    write_islands(pages, reserve(count * step), count, step, island);
  } else if (shape == "apart") {
    write_apart(pages, count, step);
  } else if (shape == "first") {
    write_ends(pages, reserve(bytes / 2, kBelow), bytes / 2);
    write_ends(pages, reserve(bytes / 2, kBelow + bytes / 2 + kPage), bytes / 2);
  } else if (shape == "last") {
    write_ends(pages, reserve(bytes, kAbove), bytes);
  } else if (shape == "around") {
    for (const std::size_t at : {kBelow, kAbove}) {
      write_islands(pages, reserve(bytes / 2, at), 8, bytes / 16, 1024);
    }
  } else if (shape != "none") {
    broken("--shape");
  }
}

// Readable and not in turn, so that each page is a mapping.
void make_own(std::size_t mappings) {
  if (mappings == 0) return;
  std::byte* const start = reserve(mappings * kPage);
  for (std::size_t i = 0; i < mappings; i += 2)
    must(mprotect(start + i * kPage, kPage, PROT_READ), "mprotect");
}

// All that the kernel allows, but for `slack`.
std::size_t nearly_all(std::size_t slack) {
  std::FILE* const file = std::fopen("/proc/sys/vm/max_map_count", "r");
  std::size_t most = 0;
  if (file == nullptr || std::fscanf(file, "%zu", &most) != 1) broken("max_map_count");
  static_cast<void>(std::fclose(file));
  return most - slack - count_mappings();
}

// Reads in every other extent of the heap, and has one mapping more at a time.
void work(const Region& heap, std::uint64_t seed) {
  Random random(seed);
  for (int round = 0; round < 1'000; ++round) {
    for (int i = 0; i < 20; ++i) {
      const std::size_t page = random.below(heap.pages());
      if (page / 512 % 2 == 0) heap.check(page);
    }
    void* const one = mmap(nullptr, kPage, PROT_READ, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (one == MAP_FAILED) broken("mmap");
    must(munmap(one, kPage), "munmap");
  }
}

void make_more() {
  std::vector<void*> made;
  for (int i = 0; i < 100; ++i) {
    void* const two = mmap(nullptr, 2 * kPage, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (two == MAP_FAILED) broken("mmap");
    must(mprotect(two, kPage, PROT_NONE), "mprotect");
    made.push_back(two);
  }
  for (void* const two : made) must(munmap(two, 2 * kPage), "munmap");
  std::thread([] { static_cast<void>(count_mappings()); }).join();
}

}  // namespace

int main(int argc, char** argv) {
  const Options options(argc, argv);
  const std::uint64_t seed = options.number("seed", 1);
  make_own(options.has("slack") ? nearly_all(options.number("slack", 0))
                                : options.number("own", 0));
  Pages pages(seed);
  make(pages, options);
  const std::size_t heap_bytes = options.number("heap_mb", 0) << 20;
  Region heap(heap_bytes == 0 ? nullptr : reserve(heap_bytes, kHeap), heap_bytes / kPage, seed + 1,
              Kind::mixed);
  heap.write_all();
  say("ready");
  for (std::string order = next_command(); !order.empty(); order = next_command()) {
    if (order == "maps") {
      say(std::to_string(count_mappings()));
      continue;
    }
    if (order == "more") make_more();
    if (order == "work") work(heap, seed);
    if (order == "touch") pages.touch_between();
    if (order == "check") {
      pages.check();
      heap.check_all();
    }
    say("ok");
  }
  pages.check();
  heap.check_all();
  say("done");
  return 0;
}
