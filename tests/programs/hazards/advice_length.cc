// Calls over ranges that are much larger than what is in them, or that make no sense: each gives
// what the kernel gives, soon. The test evicts when asked ("evict", answered with "go"). --op=
// names the case.
#include <setjmp.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/shm.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstdio>
#include <string>

#include "base/uapi.h"
#include "tests/programs/lib/common.h"

using namespace testprog;

namespace {

constexpr std::size_t kRegionPages = 2048;
constexpr unsigned kMostSeconds = 30;
std::uint64_t progress = 0;

void made_progress() {
  __atomic_fetch_add(&progress, 1, __ATOMIC_RELAXED);
}

void evict() {
  say("evict");
  static_cast<void>(next_command());
  made_progress();
}

struct Outcome {
  long result;
  int error;
};

template <typename Call>
Outcome outcome_of(Call call) {
  errno = 0;
  const long result = call();
  made_progress();
  return {result, errno};
}

// Through the library and by the kernel alone: no difference.
void same_advice(std::byte* start, std::size_t bytes, int advice) {
  const Outcome ours = outcome_of([&] { return madvise(start, bytes, advice); });
  const Outcome kernel = outcome_of([&] { return syscall(SYS_madvise, start, bytes, advice); });
  if (ours.result == kernel.result && ours.error == kernel.error) return;
  std::fprintf(stderr, "madvise(%p, %#zx, %d): %ld, errno %d; by the kernel %ld, errno %d\n",
               static_cast<void*>(start), bytes, advice, ours.result, ours.error, kernel.result,
               kernel.error);
  wrong("advice");
}

constexpr std::array kAdvice{MADV_DONTFORK, MADV_WIPEONFORK, foldswap::uapi::kMadvGuardInstall,
                             foldswap::uapi::kMadvGuardRemove};

// Of no effect at all: refused, or about nothing.
void refused(Region& region) {
  constexpr std::size_t kAll = ~std::size_t{0};
  evict();
  for (const int advice : kAdvice) {
    same_advice(region.base() + 1, kPage, advice);
    same_advice(region.base() + 8, kAll - 7, advice);
    for (const std::size_t bytes : {std::size_t{0}, kAll, kAll - kPage + 1, kAll - 2 * kPage + 1}) {
      same_advice(region.base(), bytes, advice);
    }
  }
  same_advice(nullptr, kAll, MADV_DONTFORK);
}

// Everything behind the region, to the end of the address space and beyond: ENOMEM, because of the
// holes, but the advice is given.
void beyond_the_end(Region& region) {
  evict();
  for (const unsigned shift : {40U, 46U, 47U, 48U, 62U}) {
    same_advice(region.base(), std::size_t{1} << shift, MADV_DONTFORK);
    evict();
  }
  region.check_all();
  same_advice(region.base(), std::size_t{1} << 48, MADV_DOFORK);
}

// -- a reservation of which next to nothing is used

constexpr std::size_t kReservedBytes = std::size_t{1} << 42, kUsedPages = 64;

std::byte* used_page(std::byte* reserved, std::size_t i) {
  return reserved + i * (kReservedBytes / kUsedPages);
}

std::byte* reserve() {
  std::byte* const reserved = map_bytes(kReservedBytes);
  must(madvise(reserved, kReservedBytes, MADV_NOHUGEPAGE), "madvise");
  for (std::size_t i = 0; i < kUsedPages; ++i) {
    fill_page(used_page(reserved, i), i + 1, Kind::heap);
  }
  return reserved;
}

void check_used(std::byte* reserved) {
  for (std::size_t i = 0; i < kUsedPages; ++i) {
    check_page(used_page(reserved, i), i + 1, Kind::heap);
  }
  check_zero(used_page(reserved, 1) - kPage);
}

void advise_reservation(std::byte* reserved, const Region& region) {
  const double begun = seconds_now();
  must(madvise(reserved, kReservedBytes, MADV_DONTFORK), "madvise");
  must(madvise(region.base(), region.bytes(), MADV_WIPEONFORK), "madvise");
  if (seconds_now() - begun > kMostSeconds) wrong("advice that took for ever");
  check_used(reserved);
  region.check_all();
}

void wait_for(pid_t child) {
  int status = -1;
  for (unsigned ms = 0; must(waitpid(child, &status, WNOHANG), "waitpid") == 0; ms += 10) {
    if (ms > kMostSeconds * 1000) {
      kill(child, SIGKILL);
      wrong("a call that never ends");
    }
    sleep_ms(10);
    made_progress();
  }
  if (status != 0) wrong("the child failed");
}

// In a child that nobody serves requests of: of a system call that the library does not see.
void raw_child(Region& region) {
  evict();
  std::byte* const reserved = reserve();
  const auto child = static_cast<pid_t>(must(syscall(SYS_fork), "fork"));
  if (child == 0) {
    advise_reservation(reserved, region);
    _exit(0);
  }
  wait_for(child);
  check_used(reserved);
}

void reservation(Region& region) {
  evict();
  std::byte* const reserved = reserve();
  advise_reservation(reserved, region);
  must(munmap(reserved, kReservedBytes), "munmap");
}

// -- signals

volatile sig_atomic_t handled = 0;
bool jumps = false;
sigjmp_buf out;

void on_alarm(int) {
  handled = handled + 1;
  if (jumps && handled % 64 == 0) siglongjmp(out, 1);
}

void ring_every(long us) {
  const itimerval timer{.it_interval = {.tv_sec = 0, .tv_usec = us},
                        .it_value = {.tv_sec = 0, .tv_usec = us}};
  must(setitimer(ITIMER_REAL, &timer, nullptr), "setitimer");
}

// A timer that never leaves it in peace, and a handler that jumps out of it now and then.
void signals(Region& region) {
  struct sigaction action{};
  action.sa_handler = on_alarm;
  action.sa_flags = SA_RESTART;
  must(sigaction(SIGALRM, &action, nullptr), "sigaction");
  for (int round = 0; round < 6; ++round) {
    evict();
    jumps = round % 2 == 1;
    if (sigsetjmp(out, 1) == 0) {
      ring_every(500);
      const int result = madvise(region.base(), std::size_t{1} << 46, MADV_DONTFORK);
      if (result != -1 || errno != ENOMEM) wrong("advice among signals");
    }
    ring_every(0);
    made_progress();
    region.check_all();
    must(madvise(region.base(), region.bytes(), MADV_DOFORK), "madvise");
  }
}

// -- other calls

void same_remap(const Region& region, std::byte* plain, std::size_t old_bytes,
                std::size_t new_bytes, int flags) {
  const Outcome ours = outcome_of(
      [&] { return reinterpret_cast<long>(mremap(region.base(), old_bytes, new_bytes, flags)); });
  const Outcome kernel =
      outcome_of([&] { return syscall(SYS_mremap, plain, old_bytes, new_bytes, flags); });
  const auto same = [](const Outcome& outcome, const std::byte* start) {
    return outcome.result == reinterpret_cast<long>(start);
  };
  const bool both_failed = ours.result == -1 && kernel.result == -1 && ours.error == kernel.error;
  // Nothing to do is no failure.
  const bool both_did_nothing = same(ours, region.base()) && same(kernel, plain);
  if (!both_failed && !both_did_nothing) {
    std::fprintf(stderr, "mremap(%#zx -> %#zx, %d): %ld, errno %d; by the kernel %ld, errno %d\n",
                 old_bytes, new_bytes, flags, ours.result, ours.error, kernel.result, kernel.error);
    wrong("mremap");
  }
}

void absurd_mremap(Region& region) {
  std::byte* const plain = map_aligned(region.bytes() + kPage) + kPage;  // never registered
  evict();
  for (const unsigned shift : {40U, 46U, 47U, 48U, 62U}) {
    const std::size_t bytes = std::size_t{1} << shift;
    same_remap(region, plain, bytes, bytes, MREMAP_MAYMOVE);
    same_remap(region, plain, bytes, bytes + kPage, MREMAP_MAYMOVE);
    same_remap(region, plain, kPage, std::size_t{1} << 62, MREMAP_MAYMOVE);
  }
  same_remap(region, plain, ~std::size_t{0}, kPage, MREMAP_MAYMOVE);
  same_remap(region, plain, kPage, 0, MREMAP_MAYMOVE);
}

// Since Linux 6.17 one call moves several mappings, and holes between and behind them. With pages
// out it does what it does without; before, it fails, and everything is where it was.
void moved_with_holes(Region&) {
  constexpr std::size_t kBytes = 8U << 20, kUsed = 7U << 20, kPart = 2U << 20;
  const auto make = [](std::byte* at) {
    Region made(at, kUsed / kPage, 11, Kind::mixed);
    made.write_all();
    must(madvise(at + kUsed - kPart, kPart, MADV_NOHUGEPAGE), "madvise");
    must(mprotect(made.page(512), kPage, PROT_READ), "mprotect");
    must(munmap(at + kUsed, kBytes - kUsed), "munmap");
    return made;
  };
  Region there = make(map_aligned(kBytes));
  evict();
  std::byte* const target = map_aligned(kBytes);
  must(munmap(target, kBytes), "munmap");
  // What the kernel says of memory that is not registered.
  std::byte* const plain = map_aligned(kBytes);
  (void)make(plain);
  std::byte* const other = map_aligned(kBytes);
  must(munmap(other, kBytes), "munmap");
  const auto move = [](std::byte* from, std::byte* to) {
    return mremap(from, kBytes, kBytes, MREMAP_MAYMOVE | MREMAP_FIXED, to) == to;
  };
  const bool known =
      reinterpret_cast<std::byte*>(syscall(SYS_mremap, plain, kBytes, kBytes,
                                           MREMAP_MAYMOVE | MREMAP_FIXED, other)) == other;
  if (move(there.base(), target) != known) wrong("a move of several mappings with a hole");
  if (known) there.moved_to(target);
  there.check_all();
}

// In a child that nobody serves requests of, with a little of a large range out: what is out and
// what is there moves, and nothing else is even looked at.
void raw_child_remaps(Region&) {
  constexpr std::size_t kBytes = std::size_t{1} << 38, kStep = kBytes / kUsedPages;
  std::byte* const reserved = map_bytes(kBytes + kPage);
  must(madvise(reserved, kBytes, MADV_NOHUGEPAGE), "madvise");
  must(mprotect(reserved + kBytes, kPage, PROT_NONE), "mprotect");  // no room to grow in place
  for (std::size_t i = 0; i < kUsedPages; i += 2)
    fill_page(reserved + i * kStep, i + 1, Kind::heap);
  evict();
  for (std::size_t i = 1; i < kUsedPages; i += 2)
    fill_page(reserved + i * kStep, i + 1, Kind::heap);
  const auto child = static_cast<pid_t>(must(syscall(SYS_fork), "fork"));
  if (child == 0) {
    void* const moved = mremap(reserved, kBytes, kBytes + kPage, MREMAP_MAYMOVE);
    if (moved == MAP_FAILED) broken("mremap");
    auto* const base = static_cast<std::byte*>(moved);
    for (std::size_t i = 0; i < kUsedPages; ++i) {
      check_page(base + i * kStep, i + 1, Kind::heap);
      check_zero(base + i * kStep + kStep / 2);
    }
    _exit(0);
  }
  wait_for(child);
  for (std::size_t i = 0; i < kUsedPages; ++i) check_page(reserved + i * kStep, i + 1, Kind::heap);
}

// A segment of System V shared memory takes the place of pages that are out, and an ordinary
// mapping that of the segment and of what lies behind it. What was never written there is new.
void attach_over(Region& region) {
  constexpr std::size_t kPages = 2048, kSegmentPages = 1024, kFirst = kPages - kSegmentPages;
  Region area(map_aligned(2 * kPages * kPage), 2 * kPages, region.key(0), Kind::heap);
  must(munmap(area.page(kPages), kPages * kPage), "munmap");
  const int segment = shmget(IPC_PRIVATE, kSegmentPages * kPage - 100, IPC_CREAT | 0600);
  if (segment < 0) broken("shmget");
  for (int round = 0; round < 3; ++round) {
    for (std::size_t i = 0; i < kPages; ++i) area.write(i);
    evict();
    std::byte* const place = area.page(kFirst) + (round == 1 ? 123 : 0);
    const int flags = SHM_REMAP | (round == 1 ? SHM_RND : 0);
    if (shmat(segment, place, flags) != area.page(kFirst)) broken("shmat");
    for (std::size_t i = kFirst; i < kPages; ++i) {
      check_zero(area.page(i));
      area.forget(i);
    }
    must(shmdt(area.page(kFirst)), "shmdt");
    if (mmap(area.page(kFirst), 2 * kSegmentPages * kPage, PROT_READ | PROT_WRITE,
             MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == MAP_FAILED) {
      broken("mmap");
    }
    for (std::size_t i = kFirst; i < kFirst + 2 * kSegmentPages; i += i < kPages ? 2 : 1) {
      area.write(i);
    }
    evict();
    for (std::size_t i = 0; i < kFirst + 2 * kSegmentPages; ++i) area.check(i);
    must(munmap(area.page(kPages), kSegmentPages * kPage), "munmap");
  }
  errno = 0;
  if (shmat(segment, region.base() + 1, SHM_REMAP) != reinterpret_cast<void*>(-1) ||
      errno != EINVAL) {
    wrong("shmat at no page");
  }
  must(shmctl(segment, IPC_RMID, nullptr), "shmctl");
}

void run(const std::string& op, Region& region) {
  if (op == "refused") return refused(region);
  if (op == "beyond_the_end") return beyond_the_end(region);
  if (op == "raw_child") return raw_child(region);
  if (op == "reservation") return reservation(region);
  if (op == "signals") return signals(region);
  if (op == "raw_child_remaps") return raw_child_remaps(region);
  if (op == "moved_with_holes") return moved_with_holes(region);
  if (op == "absurd_mremap") return absurd_mremap(region);
  if (op == "attach_over") return attach_over(region);
  errno = EINVAL;
  broken("--op");
}

}  // namespace

int main(int argc, char** argv) {
  const Options options(argc, argv);
  Region region(map_aligned(kRegionPages * kPage), kRegionPages, options.number("seed", 1),
                Kind::mixed);
  region.write_all();
  // The timer's signal is the main thread's alone: its handler jumps.
  sigset_t alarm;
  sigemptyset(&alarm);
  sigaddset(&alarm, SIGALRM);
  must(pthread_sigmask(SIG_BLOCK, &alarm, nullptr), "pthread_sigmask");
  watch_progress(&progress, 2 * kMostSeconds);
  must(pthread_sigmask(SIG_UNBLOCK, &alarm, nullptr), "pthread_sigmask");
  run(options.text("op", ""), region);
  region.check_all();
  say("done");
  return 0;
}
