// What leak checkers do: a relative that shares the memory stops every thread of the process with
// ptrace (the agent, too), reads the heap, and lets them go on.
//   --rounds=N       how often at least; it goes on until its input ends
//   --what=read      it reads every page; and writes to some of the stack that is its own
//   --what=remap     it moves what it has by mremap, and grows it, while all are stopped
//   --what=fork      it forks, and the child verifies everything
//   --what=agent     only the agent is stopped, by the test program itself: what threads read, move
//                    and discard meanwhile
//   --what=announce  only the agent is stopped, until the program has moved memory that is not out,
//   and
//                    made a thread
//   --what=vfork     the test stops the process while a vfork child that shares its memory reads
// "ready" when the memory is filled, "done" after the last round.
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <string>
#include <thread>
#include <vector>

#include "tests/programs/lib/common.h"

using namespace testprog;

namespace {

constexpr std::size_t kPages = 4096, kStackBytes = 1U << 20;
constexpr unsigned kPatienceS = 30;

Region* g_region = nullptr;
std::string g_what;
std::uint64_t g_progress = 0;
pid_t g_pid = 0;

// Bounded room: nobody may allocate while all others are stopped.
struct Threads {
  pid_t tid[256];
  int count = 0;
};

void list_threads(Threads& threads) {
  char path[64];
  std::snprintf(path, sizeof(path), "/proc/%d/task", g_pid);
  const int directory = open(path, O_RDONLY | O_DIRECTORY);
  char buffer[8192];
  long got = 0;
  while ((got = syscall(SYS_getdents64, directory, buffer, sizeof(buffer))) > 0) {
    for (long at = 0; at < got;) {
      unsigned short length = 0;
      std::memcpy(&length, buffer + at + 16, sizeof(length));
      const char* const name = buffer + at + 19;
      if (*name != '.' && threads.count < 256) threads.tid[threads.count++] = atoi(name);
      at += length;
    }
  }
  close(directory);
}

bool is_agent(pid_t tid) {
  char path[64], name[32] = {};
  std::snprintf(path, sizeof(path), "/proc/%d/task/%d/comm", g_pid, tid);
  const int file = open(path, O_RDONLY);
  const long got = read(file, name, sizeof(name) - 1);
  close(file);
  return got > 0 && std::strncmp(name, "foldswap-agent", 14) == 0;
}

bool stop_one(pid_t tid) {
  if (syscall(SYS_ptrace, PTRACE_SEIZE, tid, 0, 0) != 0) return false;
  syscall(SYS_ptrace, PTRACE_INTERRUPT, tid, 0, 0);
  int status = 0;
  syscall(SYS_wait4, tid, &status, __WALL, nullptr);
  return true;
}

pid_t stop_the_agent() {
  Threads threads;
  list_threads(threads);
  for (int i = 0; i < threads.count; ++i) {
    if (is_agent(threads.tid[i]) && stop_one(threads.tid[i])) return threads.tid[i];
  }
  syscall(SYS_exit, 1);
  return 0;
}

void look_around() {
  Region& region = *g_region;
  if (g_what == "remap") {
    void* const target = mmap(nullptr, (kPages + 512) * kPage, PROT_NONE,
                              MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    void* const moved = mremap(region.base(), kPages * kPage, kPages * kPage,
                               MREMAP_MAYMOVE | MREMAP_FIXED, target);
    if (moved != target) broken("mremap");
    region.moved_to(static_cast<std::byte*>(moved));
  }
  if (g_what == "fork") {
    const long child = syscall(SYS_fork);
    if (child == 0) {
      region.check_all();
      syscall(SYS_exit_group, 0);
    }
    int status = 0;
    if (child < 0 || syscall(SYS_wait4, child, &status, __WALL, nullptr) != child || status != 0)
      wrong("a child of the relative found wrong bytes");
  }
  for (std::size_t i = 0; i < region.pages(); ++i) {
    region.check(i);
    ++g_progress;
  }
}

int stop_everybody(void*) {
  Threads threads;
  list_threads(threads);
  int stopped = 0;
  for (int i = 0; i < threads.count; ++i) {
    if (stop_one(threads.tid[i])) threads.tid[stopped++] = threads.tid[i];
  }
  look_around();
  for (int i = 0; i < stopped; ++i) syscall(SYS_ptrace, PTRACE_DETACH, threads.tid[i], 0, 0);
  syscall(SYS_exit, 0);
  return 0;
}

// The agent alone is stopped, for as long as `work` takes.
int stop_agent(void*) {
  const pid_t agent = stop_the_agent();
  Region& region = *g_region;
  for (std::size_t i = 0; i < region.pages(); i += 3) region.check(i);
  // Discards, a move and growth beside a command that may be half done.
  for (std::size_t i = 0; i < 64; ++i) {
    if (madvise(region.page(i), kPage, MADV_DONTNEED) != 0) broken("madvise");
    region.forget(i);
    region.check(i);
    region.write(i);
  }
  ++g_progress;
  region.check_all();
  syscall(SYS_ptrace, PTRACE_DETACH, agent, 0, 0);
  syscall(SYS_exit, 0);
  return 0;
}

std::atomic<int> g_announced{0};  // 1: the agent is stopped; 2: the calls have returned

int stop_agent_for_calls(void*) {
  const pid_t agent = stop_the_agent();
  g_announced = 1;
  const double begun = seconds_now();
  while (g_announced != 2 && seconds_now() - begun < kPatienceS / 3) {
    const timespec moment{0, 500'000};
    syscall(SYS_nanosleep, &moment, nullptr);
  }
  const bool returned = g_announced == 2;
  syscall(SYS_ptrace, PTRACE_DETACH, agent, 0, 0);
  syscall(SYS_exit, returned ? 0 : 1);
  return 0;
}

void call_while_the_agent_is_stopped() {
  while (g_announced != 1) sleep_ms(1);
  std::byte* const fresh = map_bytes(4 * kPage);
  fill_page(fresh, 7, Kind::heap);
  void* const moved = mremap(fresh, 4 * kPage, 1024 * kPage, MREMAP_MAYMOVE);
  if (moved == MAP_FAILED) broken("mremap");
  check_page(static_cast<std::byte*>(moved), 7, Kind::heap);
  must(munmap(moved, 1024 * kPage), "munmap");
  std::thread([] {}).join();
  g_announced = 2;
  ++g_progress;
}

void run_relative(int (*work)(void*), std::byte* stack) {
  const pid_t relative =
      must(clone(work, stack + kStackBytes - 64,
                 CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_UNTRACED | SIGCHLD, nullptr),
           "clone");
  if (work == stop_agent_for_calls) call_while_the_agent_is_stopped();
  int status = 0;
  must(waitpid(relative, &status, __WALL), "waitpid");
  if (WIFEXITED(status) && WEXITSTATUS(status) == kExitWrongBytes) _exit(kExitWrongBytes);
  if (status != 0) broken("the relative ended badly");
}

// The process is stopped by its child's signal while the child, which shares its memory, reads all.
void in_a_vfork_child() {
  const pid_t child = vfork();
  if (child == 0) {
    syscall(SYS_kill, g_pid, SIGSTOP);
    Region& region = *g_region;
    for (std::size_t i = 0; i < region.pages(); ++i) region.check(i);
    ++g_progress;
    syscall(SYS_kill, g_pid, SIGCONT);
    _exit(0);
  }
  int status = 0;
  must(waitpid(child, &status, 0), "waitpid");
  if (status != 0) broken("the vfork child ended badly");
}

void keep_busy(const std::atomic<bool>& stop) {
  Region region(map_bytes(512 * kPage), 512, 8, Kind::heap);
  region.write_all();
  Random random(9);
  while (!stop) {
    const std::size_t page = random.below(region.pages());
    region.check(page);
    region.write(page);
  }
}

}  // namespace

int main(int argc, char** argv) {
  const Options options(argc, argv);
  g_what = options.text("what", "read");
  g_pid = getpid();
  Region region(map_bytes(kPages * kPage), kPages, options.number("seed", 1), Kind::mixed);
  region.write_all();
  g_region = &region;
  std::byte* const stack = map_bytes(kStackBytes);
  std::memset(stack, 0, kStackBytes);
  watch_progress(&g_progress, kPatienceS);
  std::atomic<bool> stop{false};
  std::thread busy([&] { keep_busy(stop); });
  say("ready");
  const std::uint64_t rounds = options.number("rounds", 20);
  for (std::uint64_t round = 0; round < rounds || !stdin_closed(); ++round) {
    if (g_what == "vfork") {
      in_a_vfork_child();
    } else {
      g_announced = 0;
      run_relative(g_what == "agent"      ? stop_agent
                   : g_what == "announce" ? stop_agent_for_calls
                                          : stop_everybody,
                   stack);
    }
    if (g_what == "announce" && round % 16 != 0) continue;
    sleep_ms(10);
    region.check_all();
    for (std::size_t i = round % 5; i < region.pages(); i += 5) region.write(i);
  }
  stop = true;
  busy.join();
  region.check_all();
  say("done");
}
