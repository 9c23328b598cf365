// A memory-eater, one of the storm's (tests/e2e/test_storm.py): wants --mb of memory, fills it and
// then, for --seconds or until the test ends our input, reads, rewrites, discards and verifies it
// at random, and maps further regions and unmaps them again.
// --mb (of all threads together), --threads, --seconds, --kind=mixed|sizes|random|..., --seed,
// --watchdog_ms: no operation may take longer.
// Says "filled" once every thread is, and at the end "longest operation N us (WHAT), O operations,
// S over 1 s".
//
// An operation is one page read, written or discarded, or one call; the time between two of them,
// with our own book-keeping, which may be out like any memory, counts as one, too. The watchdog
// ends the process with status 6 and names the operation. It lives in shared memory, stack and all,
// which nobody evicts: it barks when everything else waits for the daemon.
#include <pthread.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <cstdio>
#include <deque>
#include <memory>
#include <new>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include "tests/programs/lib/common.h"

using namespace testprog;

namespace {

constexpr int kExitTooSlow = 6;
constexpr std::size_t kMostThreads = 64;
constexpr std::uint64_t kSecondUs = 1'000'000;

std::uint64_t now_us() {
  return static_cast<std::uint64_t>(seconds_now() * 1e6);
}

// What a thread is doing.
struct Slot {
  std::atomic<const char*> what{nullptr};  // nullptr: nothing to watch
  std::atomic<const void*> where{nullptr};
  std::atomic<std::uint64_t> since_us{0};
};

struct Watch {
  std::uint64_t most_us = 0;
  std::array<Slot, kMostThreads> slots;
};

std::byte* map_shared(std::size_t bytes) {
  void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) broken("mmap");
  return static_cast<std::byte*>(memory);
}

void bark(std::size_t thread, const Slot& slot, const char* what, std::uint64_t us) {
  std::array<char, 200> text{};
  const int length = std::snprintf(
      text.data(), text.size(), "TOO SLOW: thread %zu: %s at %p has taken %llu us so far\n", thread,
      what, slot.where.load(), static_cast<unsigned long long>(us));
  (void)!::write(STDERR_FILENO, text.data(), static_cast<std::size_t>(length));
  _exit(kExitTooSlow);
}

void* watch_slots(void* argument) {
  const Watch& watch = *static_cast<const Watch*>(argument);
  while (true) {
    sleep_ms(20);
    for (std::size_t t = 0; t < watch.slots.size(); ++t) {
      const Slot& slot = watch.slots[t];
      const std::uint64_t since = slot.since_us;
      const char* what = slot.what;
      const std::uint64_t now = now_us();
      if (what == nullptr || now < since + watch.most_us) continue;
      if (slot.since_us == since) bark(t, slot, what, now - since);
    }
  }
}

Watch& start_watchdog(std::uint64_t most_ms) {
  constexpr std::size_t kStackBytes = 256 * 1024;
  auto* watch = new (map_shared(sizeof(Watch))) Watch;
  watch->most_us = most_ms * 1'000;
  pthread_attr_t attributes;
  pthread_attr_init(&attributes);
  pthread_attr_setstack(&attributes, map_shared(kStackBytes), kStackBytes);
  pthread_t thread{};
  errno = pthread_create(&thread, &attributes, watch_slots, watch);
  if (errno != 0) broken("pthread_create");
  return *watch;
}

// Times one thread's operations.
class Stopwatch {
 public:
  explicit Stopwatch(Slot& slot) : slot_(slot) { begin(kBetween, nullptr); }
  Stopwatch(const Stopwatch&) = delete;
  Stopwatch& operator=(const Stopwatch&) = delete;

  template <typename Work>
  void time(const char* what, const void* where, Work&& work) {
    end();
    begin(what, where);
    work();
    end();
    begin(kBetween, nullptr);
    ++operations;
  }
  void stop() { slot_.what = nullptr; }

  std::uint64_t operations = 0, longest_us = 0, over_a_second = 0;
  const char* longest = kBetween;

 private:
  static constexpr const char* kBetween = "something between two operations";

  void begin(const char* what, const void* where) {
    slot_.where = where;
    slot_.since_us = now_us();
    slot_.what = what;
  }
  void end() {
    const std::uint64_t us = now_us() - slot_.since_us;
    over_a_second += us > kSecondUs ? 1 : 0;
    if (us <= longest_us) return;
    longest_us = us;
    longest = slot_.what;
  }

  Slot& slot_;
};

struct Appetite {
  std::size_t pages = 0;
  Kind kind = Kind::mixed;
  std::uint64_t seed = 0;
};

// One thread and its memory.
class Eater {
 public:
  Eater(const Appetite& appetite, Slot& slot)
      : stopwatch(slot),
        appetite_(appetite),
        random_(appetite.seed),
        region_(map_region(appetite.pages)) {}

  void fill() { write(region_, 0, region_.pages()); }
  void step();
  void finish();

  Stopwatch stopwatch;

 private:
  Region map_region(std::size_t pages) {
    std::byte* base = nullptr;
    stopwatch.time("mmap", nullptr, [&] { base = map_bytes(pages * kPage); });
    return {base, pages, random_.next(), appetite_.kind};
  }
  void unmap(const Region& region) {
    stopwatch.time("munmap", region.base(),
                   [&] { must(munmap(region.base(), region.bytes()), "munmap"); });
  }
  // Of a part of a region.
  void read(const Region& region, std::size_t first, std::size_t count) {
    for (std::size_t i = first; i < first + count; ++i)
      stopwatch.time("reading a page", region.page(i), [&] { region.check(i); });
  }
  void write(Region& region, std::size_t first, std::size_t count) {
    for (std::size_t i = first; i < first + count; ++i)
      stopwatch.time("writing a page", region.page(i), [&] { region.write(i); });
  }
  void discard(Region& region, std::size_t first, std::size_t count) {
    stopwatch.time("a discard", region.page(first), [&] {
      must(madvise(region.page(first), count * kPage, MADV_DONTNEED), "MADV_DONTNEED");
    });
    for (std::size_t i = first; i < first + count; ++i) region.forget(i);
  }
  [[nodiscard]] std::size_t choose(std::size_t count);
  void take_more();

  const Appetite appetite_;
  Random random_;
  Region region_;
  std::deque<Region> more_;  // further regions, oldest first
  std::uint64_t steps_ = 0;
  std::size_t haunt_ = 0;
};

// Like most programs it is at one place for a while, and looks elsewhere now and then.
std::size_t Eater::choose(std::size_t count) {
  constexpr std::size_t kHaunts = 8, kStay = 4'000;
  const std::size_t places = region_.pages() - count + 1;
  if (++steps_ % kStay == 0) haunt_ = random_.below(kHaunts);
  if (random_.below(8) == 0) return random_.below(places);
  return std::min(places * haunt_ / kHaunts + random_.below(places / kHaunts + 1), places - 1);
}

void Eater::step() {
  const std::size_t count = std::min(1 + random_.below(64), region_.pages());
  const std::size_t first = choose(count);
  const std::uint64_t draw = random_.below(100);
  if (draw < 45) return read(region_, first, 1);
  if (draw < 57) return read(region_, first, count);
  if (draw < 80) return write(region_, first, 1);
  if (draw < 88) return write(region_, first, count);
  if (draw < 92) return discard(region_, first, count);
  if (draw < 98) {
    discard(region_, first, count);
    return write(region_, first, count);
  }
  take_more();
}

void Eater::take_more() {
  constexpr std::size_t kMost = 3;
  if (more_.size() == kMost) {
    read(more_.front(), 0, more_.front().pages());
    unmap(more_.front());
    more_.pop_front();
    return;
  }
  more_.push_back(map_region(16 + random_.below(512)));
  write(more_.back(), 0, more_.back().pages());
}

void Eater::finish() {
  read(region_, 0, region_.pages());
  for (const Region& region : more_) read(region, 0, region.pages());
  stopwatch.stop();
}

void report(std::span<const std::unique_ptr<Eater>> eaters) {
  const Stopwatch* slowest = &eaters.front()->stopwatch;
  std::uint64_t operations = 0, over = 0;
  for (const auto& eater : eaters) {
    const Stopwatch& stopwatch = eater->stopwatch;
    operations += stopwatch.operations;
    over += stopwatch.over_a_second;
    if (stopwatch.longest_us > slowest->longest_us) slowest = &stopwatch;
  }
  say("longest operation " + std::to_string(slowest->longest_us) + " us (" + slowest->longest +
      "), " + std::to_string(operations) + " operations, " + std::to_string(over) + " over 1 s");
}

}  // namespace

int main(int argc, char** argv) {
  const Options options(argc, argv);
  const std::size_t threads =
      std::clamp<std::size_t>(options.number("threads", 2), 1, kMostThreads);
  const auto seconds = static_cast<double>(options.number("seconds", 10));
  Appetite appetite{.pages = options.number("mb", 64) * 256 / threads,
                    .kind = parse_kind(options.text("kind", "mixed")),
                    .seed = options.number("seed", 1)};

  Watch& watch = start_watchdog(options.number("watchdog_ms", 1'000));
  std::atomic<std::size_t> filled{0};
  std::atomic<bool> over{false};
  std::vector<std::unique_ptr<Eater>> eaters(threads);
  {
    std::vector<std::jthread> all;
    for (std::size_t t = 0; t < threads; ++t) {
      all.emplace_back([&, t, mine = appetite] {
        auto& eater = eaters[t];
        eater = std::make_unique<Eater>(mine, watch.slots[t]);
        eater->fill();
        if (++filled == threads) say("filled");
        while (!over) eater->step();
        eater->finish();
      });
      appetite.seed = Random(appetite.seed).next();
    }
    const double end = seconds_now() + seconds;
    while (seconds_now() < end && !stdin_closed()) sleep_ms(100);
    over = true;
  }
  report(eaters);
  return 0;
}
