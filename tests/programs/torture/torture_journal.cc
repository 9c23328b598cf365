#include "tests/programs/torture/torture_journal.h"

#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "tests/programs/lib/common.h"
#include "tests/programs/torture/torture_contents.h"

namespace testprog::torture {
namespace {

constexpr std::size_t kSlots = 128;
constexpr std::size_t kStack = 256 * 1024;

struct Journal {
  std::atomic<std::int64_t> strays;
  std::atomic<int> reporting;  // one story at a time
  unsigned hang_s;
  std::array<char, 512> replay;
  std::array<Slot, kSlots> slots;
};

Journal* journal = nullptr;
thread_local Slot* my_slot = nullptr;

void* map_shared(std::size_t bytes) {
  void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) broken("mmap of shared memory");
  return memory;
}

// No stdio: what it allocates may be out for good when this is needed.
[[gnu::format(printf, 1, 2)]] void print(const char* format, ...) {
  std::array<char, 600> text{};
  va_list rest;
  va_start(rest, format);
  const int length = std::vsnprintf(text.data(), text.size(), format, rest);
  va_end(rest);
  const auto bytes = std::min<std::size_t>(static_cast<std::size_t>(std::max(length, 0)), 599);
  if (write(STDERR_FILENO, text.data(), bytes) < 0) _exit(kExitBroken);
}

void print_operation(const Operation& operation, std::uint64_t number) {
  print("    %8llu %-22s %012llx %6llu pages  %llx\n", static_cast<unsigned long long>(number),
        operation.name == nullptr ? "?" : operation.name,
        static_cast<unsigned long long>(operation.address),
        static_cast<unsigned long long>(operation.pages),
        static_cast<unsigned long long>(operation.detail));
}

void print_slot(const Slot& slot, std::uint64_t most) {
  const std::uint64_t count = slot.count.load();
  print("  pid %d tid %d owner %llx seed %llx\n", slot.pid.load(), slot.tid.load(),
        static_cast<unsigned long long>(slot.owner), static_cast<unsigned long long>(slot.seed));
  for (std::uint64_t n = count - std::min({count, most, std::uint64_t{100}}); n < count; ++n) {
    print_operation(slot.kept[n % Slot::kKept], n);
  }
}

void print_file(pid_t pid, pid_t tid, const char* name) {
  std::array<char, 64> path{};
  std::array<char, 512> text{};
  std::snprintf(path.data(), path.size(), "/proc/%d/task/%d/%s", pid, tid, name);
  const int fd = open(path.data(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) return;
  const ssize_t got = read(fd, text.data(), text.size() - 1);
  close(fd);
  if (got > 0) print("    %s: %.*s\n", name, static_cast<int>(got), text.data());
}

// Where the kernel has every thread of a process, the agent of foldswap included.
void print_threads(pid_t pid) {
  std::array<char, 64> path{};
  std::snprintf(path.data(), path.size(), "/proc/%d/task", pid);
  const int fd = open(path.data(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0) return;
  alignas(8) std::array<char, 2048> entries{};
  for (long bytes = 0; (bytes = syscall(SYS_getdents64, fd, entries.data(), entries.size())) > 0;) {
    for (long at = 0; at < bytes;) {
      std::uint16_t length = 0;
      std::memcpy(&length, entries.data() + at + 16, sizeof(length));
      const pid_t tid = std::atoi(entries.data() + at + 19);
      if (tid > 0) {
        print("   thread %d\n", tid);
        for (const char* name : {"comm", "syscall", "wchan", "stack"}) print_file(pid, tid, name);
      }
      at += length;
    }
  }
  close(fd);
}

void print_children(pid_t pid, pid_t tid) {
  std::array<char, 64> path{};
  std::array<char, 512> text{};
  std::snprintf(path.data(), path.size(), "/proc/%d/task/%d/children", pid, tid);
  const int fd = open(path.data(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) return;
  (void)!read(fd, text.data(), text.size() - 1);
  close(fd);
  char* next = text.data();
  for (pid_t child = 0; (child = static_cast<pid_t>(std::strtol(next, &next, 10))) > 0;) {
    print("  child %d of thread %d\n", child, tid);
    print_threads(child);
  }
}

void print_family(std::uint64_t most, bool with_kernel) {
  pid_t last = 0;
  for (const Slot& slot : journal->slots) {
    if (slot.pid.load() == 0) continue;
    print_slot(slot, most);
    if (with_kernel && slot.pid != last) print_threads(slot.pid);
    if (with_kernel) print_children(slot.pid, slot.tid);
    last = slot.pid;
  }
}

// The first to report tells its story whole; others wait for the end that it brings.
void begin_report() {
  for (int nobody = 0; !journal->reporting.compare_exchange_strong(nobody, gettid()); nobody = 0)
    sleep_ms(100);
}

[[noreturn]] void end_report(const Slot* slot, int status) {
  if (slot != nullptr) {
    print("what this one did last:\n");
    print_slot(*slot, Slot::kKept);
  }
  print("what everybody does now:\n");
  print_family(3, false);
  print("replay: %s\n", journal->replay.data());
  journal->reporting.store(0);
  _exit(status);
}

void crashed(int signal, siginfo_t* info, void*) {
  begin_report();
  print("WRONG: signal %d (code %d) at %p\n", signal, info->si_code, info->si_addr);
  end_report(my_slot, kExitCrash);
}

struct Watch {
  std::uint64_t count = 0;
  pid_t pid = 0;
  double since = 0;
};

bool stands_still(const Slot& slot, Watch& watch, double now) {
  const pid_t pid = slot.pid.load();
  const std::uint64_t count = slot.count.load();
  if (pid == 0 || pid != watch.pid || count != watch.count) {
    watch = {count, pid, now};
    return false;
  }
  return now - watch.since > journal->hang_s;
}

void* watch_all(void*) {
  std::array<Watch, kSlots> watches;
  while (true) {
    sleep_ms(500);
    const double now = seconds_now();
    for (std::size_t i = 0; i < kSlots; ++i) {
      if (!stands_still(journal->slots[i], watches[i], now)) continue;
      print("HANG: no progress of pid %d tid %d for %u s\n", journal->slots[i].pid.load(),
            journal->slots[i].tid.load(), journal->hang_s);
      if (journal->reporting != 0)
        print("thread %d reports something\n", journal->reporting.load());
      print_family(12, true);
      print("replay: %s\n", journal->replay.data());
      _exit(kExitHang);
    }
  }
}

}  // namespace

void Slot::note(const char* name, std::uint64_t address, std::uint64_t pages,
                std::uint64_t detail) {
  const std::uint64_t n = count.load(std::memory_order_relaxed);
  kept[n % kKept] = {name, address, pages, detail};
  count.store(n + 1, std::memory_order_release);
}

void open_journal(std::string replay, unsigned hang_s) {
  journal = static_cast<Journal*>(map_shared(sizeof(Journal)));
  journal->hang_s = hang_s;
  std::snprintf(journal->replay.data(), journal->replay.size(), "%s", replay.c_str());
}

Slot& claim_slot(std::uint64_t owner, std::uint64_t seed) {
  for (Slot& slot : journal->slots) {
    pid_t free = 0;
    if (!slot.pid.compare_exchange_strong(free, getpid())) continue;
    slot.tid = 0;
    slot.owner = owner;
    slot.seed = seed;
    slot.count = 0;
    return slot;
  }
  broken("no free slot in the journal");
}

void enter_slot(Slot& slot) {
  my_slot = &slot;
  slot.pid = getpid();
  slot.tid = gettid();
}

void release_slot(Slot& slot) {
  slot.pid = 0;
}

std::atomic<std::int64_t>& strays() {
  return journal->strays;
}

void start_watchdog() {
  pthread_attr_t attributes;
  pthread_attr_init(&attributes);
  pthread_attr_setstack(&attributes, map_shared(kStack), kStack);
  pthread_t thread{};
  if (pthread_create(&thread, &attributes, watch_all, nullptr) != 0) broken("pthread_create");
  pthread_attr_destroy(&attributes);
}

void set_child_alarm() {
  alarm(journal->hang_s);
}

void catch_crashes() {
  struct sigaction action{};
  action.sa_sigaction = crashed;
  action.sa_flags = SA_SIGINFO | SA_ONSTACK;
  must(sigaction(SIGSEGV, &action, nullptr), "sigaction");
  must(sigaction(SIGBUS, &action, nullptr), "sigaction");
}

void use_alternative_stack() {
  stack_t stack{};
  stack.ss_sp = map_shared(kStack);
  stack.ss_size = kStack;
  must(sigaltstack(&stack, nullptr), "sigaltstack");
}

void fail(const Slot& slot, const std::string& what) {
  begin_report();
  print("WRONG BYTES: pid %d tid %d: %s\n", slot.pid.load(), slot.tid.load(), what.c_str());
  end_report(&slot, kExitWrongBytes);
}

void fail_call(const Slot& slot, const char* call, int error) {
  begin_report();
  print("BROKEN: pid %d tid %d: %s: %s\n", slot.pid.load(), slot.tid.load(), call,
        std::strerror(error));
  end_report(&slot, kExitBroken);
}

}  // namespace testprog::torture
