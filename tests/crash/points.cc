// The table of points, and which memory is shared. Not instrumented itself.
#include "tests/crash/points.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdlib>
#include <cstring>

extern "C" {
extern const char __executable_start, etext;
void* __real_mmap(void* address, std::size_t bytes, int protection, int flags, int fd,
                  off_t offset);
int __real_munmap(void* address, std::size_t bytes);
}

namespace foldswap::crash {
namespace {

constexpr std::uint64_t kMagic = 0x53544e494f504346;  // "FCPOINTS"
constexpr std::size_t kSlots = 1 << 14;               // many times more than there are points
constexpr std::uint64_t kAnyNew = ~0ULL;              // armed: where none has died

struct Slot {
  std::atomic<std::uint64_t> point, times, died;  // died: the how manieth death there was; 0: none
};

// tests/e2e/lib/crash_points.py knows this layout.
struct Control {
  std::uint64_t magic;
  std::atomic<std::uint64_t> armed, countdown;   // 0: none; dies when it has come there so often
  std::atomic<std::uint64_t> died_at, died_pid;  // the last one that did
  std::atomic<std::uint64_t> lost;               // no slot was left
  std::atomic<std::uint64_t> deaths;
  std::uint64_t reserved;
  Slot slots[kSlots];
};

Control* g_control = nullptr;
pid_t g_keeper = 0;

// Which memory is shared: for 2 MiB blocks none, all or some of it; then a bit for each page.
constexpr std::uintptr_t kEnd = 1ULL << 47, kPage = 4096, kBlock = 2 << 20;
enum Block : std::uint8_t { kNone, kAll, kSome };
std::atomic<std::uint8_t>* g_blocks = nullptr;
std::atomic<std::uint8_t>* g_pages = nullptr;

void* reserve(std::size_t bytes) {
  void* const p = __real_mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                              MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (p == MAP_FAILED) std::abort();
  return p;
}

void mark(std::uintptr_t begin, std::uintptr_t end, bool on) {
  for (std::uintptr_t at = begin; at < end;) {
    auto& block = g_blocks[at / kBlock];
    if (at % kBlock == 0 && end - at >= kBlock) {
      block = on ? kAll : kNone;
      at += kBlock;
      continue;
    }
    const auto bit = static_cast<std::uint8_t>(1U << (at / kPage % 8));
    auto& bits = g_pages[at / kPage / 8];
    if (on) {
      bits |= bit;
      block = kSome;
    } else {
      bits &= static_cast<std::uint8_t>(~bit);
    }
    at += kPage;
  }
}

[[nodiscard]] bool page_is_shared(std::uintptr_t at) {
  if (at >= kEnd || g_blocks == nullptr) return false;
  const auto block = g_blocks[at / kBlock].load(std::memory_order_relaxed);
  if (block != kSome) return block == kAll;
  return (g_pages[at / kPage / 8].load(std::memory_order_relaxed) >> (at / kPage % 8) & 1) != 0;
}

// 0: not in the image, but in a library that has called back, or begun a thread.
[[nodiscard]] std::uint64_t offset(const void* code) {
  const auto at = reinterpret_cast<std::uintptr_t>(code);
  const auto begin = reinterpret_cast<std::uintptr_t>(&__executable_start);
  return at < begin || at >= reinterpret_cast<std::uintptr_t>(&etext) ? 0 : at - begin;
}

[[nodiscard]] Slot* slot_of(std::uint64_t point) {
  std::size_t at = point * 0x9E3779B97F4A7C15ULL >> 50;
  for (std::size_t tried = 0; tried < kSlots; ++tried, at = (at + 1) % kSlots) {
    std::uint64_t there = g_control->slots[at].point.load(std::memory_order_relaxed);
    if (there == point) return &g_control->slots[at];
    if (there == 0 &&
        (g_control->slots[at].point.compare_exchange_strong(there, point) || there == point))
      return &g_control->slots[at];
  }
  return nullptr;
}

[[noreturn]] void die(Slot& slot, std::uint64_t point) {
  slot.died = ++g_control->deaths;  // first of all: another thread's death may be under way
  slot.times.fetch_add(1, std::memory_order_relaxed);
  const auto self = ::syscall(SYS_getpid);
  g_control->died_pid = static_cast<std::uint64_t>(self);
  g_control->died_at = point;
  ::syscall(SYS_kill, self, SIGKILL);
  for (;;) ::syscall(SYS_pause);
}

// Before anything else of the program runs.
[[gnu::constructor(101)]] void begin() {
  g_pages = static_cast<std::atomic<std::uint8_t>*>(reserve(kEnd / kPage / 8));
  g_blocks = static_cast<std::atomic<std::uint8_t>*>(reserve(kEnd / kBlock));
  g_keeper = ::getpid();
  const char* const path = std::getenv("FOLDSWAP_CRASH_CONTROL");
  if (path == nullptr) return;
  const int fd = ::open(path, O_RDWR | O_CLOEXEC);
  if (fd < 0) std::abort();
  void* const p = __real_mmap(nullptr, sizeof(Control), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  ::close(fd);
  if (p == MAP_FAILED || static_cast<Control*>(p)->magic != kMagic) std::abort();
  g_control = static_cast<Control*>(p);
}

}  // namespace

bool shared(const void* begin, std::size_t bytes) {
  const auto at = reinterpret_cast<std::uintptr_t>(begin);
  return page_is_shared(at) || page_is_shared(at + bytes - 1);
}

void come_to(Site site, Kind kind) {
  if (g_control == nullptr || ::syscall(SYS_getppid) != g_keeper) return;
  const std::uint64_t point =
      offset(site.at) << 32 | offset(site.caller) << 2 | static_cast<std::uint64_t>(kind);
  Slot* const slot = slot_of(point);
  if (slot == nullptr) {
    ++g_control->lost;
    return;
  }
  const std::uint64_t armed = g_control->armed.load(std::memory_order_relaxed);
  if (armed == kAnyNew && slot->died.load(std::memory_order_relaxed) == 0) die(*slot, point);
  if (armed != point || g_control->countdown.fetch_sub(1) != 1) {
    slot->times.fetch_add(1, std::memory_order_relaxed);
    return;
  }
  g_control->armed = 0;
  die(*slot, point);
}

}  // namespace foldswap::crash

extern "C" {

void* __wrap_mmap(void* address, std::size_t bytes, int protection, int flags, int fd,
                  off_t offset) {
  void* const p = __real_mmap(address, bytes, protection, flags, fd, offset);
  if (p == MAP_FAILED || fd < 0 || (flags & MAP_SHARED) == 0) return p;
  const auto begin = reinterpret_cast<std::uintptr_t>(p);
  foldswap::crash::mark(begin, begin + bytes, true);
  return p;
}

int __wrap_munmap(void* address, std::size_t bytes) {
  const auto begin = reinterpret_cast<std::uintptr_t>(address);
  foldswap::crash::mark(begin, begin + bytes, false);
  return __real_munmap(address, bytes);
}

}  // extern "C"
