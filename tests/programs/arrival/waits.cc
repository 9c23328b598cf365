// Stands in one kind of system call, or runs its own code, for ever, and counts what it should not
// see while agents are sent into it.
//   waits KIND COUNTERS [restart]    KIND: nanosleep clock_nanosleep read recv poll ppoll select
//   futex futex_timed epoll
//                                    pause sigsuspend wait code
// COUNTERS is a file of these words, which is made before "ready" is said:
//   0 calls or turns begun   1 calls that ended with EINTR because of SIGUSR1   2 EINTR without a
//   signal 3 any other end          4 signals handled       5 of these in another thread    6 wrong
//   registers (code)
// `restart`: its handler has SA_RESTART.
#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <poll.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/select.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdint>
#include <ctime>
#include <map>
#include <string>

#include "tests/programs/lib/common.h"

using namespace testprog;

namespace {

enum Counter { kBegun, kSignalled, kEintr, kOdd, kHandled, kElsewhere, kWrong, kCounters };
volatile std::uint64_t* counters = nullptr;
volatile sig_atomic_t handled = 0;
pid_t main_thread = 0;

void count(Counter counter) {
  counters[counter] = counters[counter] + 1;
}

void handler(int) {
  handled = 1;
  count(kHandled);
  if (static_cast<pid_t>(syscall(SYS_gettid)) != main_thread) count(kElsewhere);
}

constexpr time_t kLong = 3600;
int pipe_end = -1, socket_end = -1, poller = -1;
pid_t child = 0;
std::uint32_t word = 0;

// All registers, the flags, the red zone and a vector register have values that are looked at
// again. 0: they were the same.
std::uint64_t run_code() {
  std::uint64_t wrong = 0;
  asm volatile(
      "pushq %%rbp\n\t"
      "subq $256, %%rsp\n\t"
      "movq $0x0101, %%rbx\n\t"
      "movq $0x0202, %%rcx\n\t"
      "movq $0x0303, %%rdx\n\t"
      "movq $0x0404, %%rsi\n\t"
      "movq $0x0505, %%rdi\n\t"
      "movq $0x0606, %%r8\n\t"
      "movq $0x0707, %%r9\n\t"
      "movq $0x0808, %%r10\n\t"
      "movq $0x0909, %%r11\n\t"
      "movq $0x0a0a, %%r12\n\t"
      "movq $0x0b0b, %%r13\n\t"
      "movq $0x0c0c, %%r14\n\t"
      "movq $0x0d0d, %%r15\n\t"
      "movq $0x0e0e, %%rbp\n\t"
      "movq %%r12, -8(%%rsp)\n\t"
      "movq %%r13, -120(%%rsp)\n\t"
      "movq %%r14, %%xmm5\n\t"
      "movl $2000000, %%eax\n\t"
      "1:\n\t"
      "stc\n\t"  // neither lea nor mov nor jrcxz changes it
      "leal -1(%%eax), %%eax\n\t"
      "jnc 8f\n\t"
      "xchgq %%rax, %%rcx\n\t"
      "jrcxz 2f\n\t"
      "xchgq %%rax, %%rcx\n\t"
      "jmp 1b\n\t"
      "2:\n\t"
      "xchgq %%rax, %%rcx\n\t"
      "cmpq $0x0101, %%rbx\n\t jne 8f\n\t"
      "cmpq $0x0202, %%rcx\n\t jne 8f\n\t"
      "cmpq $0x0303, %%rdx\n\t jne 8f\n\t"
      "cmpq $0x0404, %%rsi\n\t jne 8f\n\t"
      "cmpq $0x0505, %%rdi\n\t jne 8f\n\t"
      "cmpq $0x0606, %%r8\n\t jne 8f\n\t"
      "cmpq $0x0707, %%r9\n\t jne 8f\n\t"
      "cmpq $0x0808, %%r10\n\t jne 8f\n\t"
      "cmpq $0x0909, %%r11\n\t jne 8f\n\t"
      "cmpq $0x0a0a, %%r12\n\t jne 8f\n\t"
      "cmpq $0x0b0b, %%r13\n\t jne 8f\n\t"
      "cmpq $0x0c0c, %%r14\n\t jne 8f\n\t"
      "cmpq $0x0d0d, %%r15\n\t jne 8f\n\t"
      "cmpq $0x0e0e, %%rbp\n\t jne 8f\n\t"
      "cmpq %%r12, -8(%%rsp)\n\t jne 8f\n\t"
      "cmpq %%r13, -120(%%rsp)\n\t jne 8f\n\t"
      "movq %%xmm5, %%rax\n\t"
      "cmpq %%r14, %%rax\n\t jne 8f\n\t"
      "xorl %%eax, %%eax\n\t"
      "jmp 9f\n\t"
      "8:\n\t"
      "movl $1, %%eax\n\t"
      "9:\n\t"
      "addq $256, %%rsp\n\t"
      "popq %%rbp\n\t"
      : "=a"(wrong)
      :
      : "rbx", "rcx", "rdx", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15",
        "xmm5", "memory", "cc");
  return wrong;
}

long wait_in_nanosleep() {
  const timespec time{kLong, 0};
  return nanosleep(&time, nullptr);
}
long wait_in_clock_nanosleep() {
  const timespec time{kLong, 0};
  const int error = clock_nanosleep(CLOCK_MONOTONIC, 0, &time, nullptr);
  errno = error;
  return error == 0 ? 0 : -1;
}
long wait_in_read() {
  char c = 0;
  return read(pipe_end, &c, 1);
}
long wait_in_recv() {
  char c = 0;
  return recv(socket_end, &c, 1, 0);
}
long wait_in_poll() {
  pollfd fd{pipe_end, POLLIN, 0};
  return poll(&fd, 1, kLong * 1000);
}
long wait_in_ppoll() {
  pollfd fd{pipe_end, POLLIN, 0};
  const timespec time{kLong, 0};
  sigset_t none;
  sigemptyset(&none);
  return ppoll(&fd, 1, &time, &none);
}
long wait_in_select() {
  fd_set fds;
  FD_ZERO(&fds);
  FD_SET(pipe_end, &fds);
  timeval time{kLong, 0};
  return select(pipe_end + 1, &fds, nullptr, nullptr, &time);
}
long wait_in_futex() {
  return syscall(SYS_futex, &word, FUTEX_WAIT, 0, nullptr, nullptr, 0);
}
long wait_in_futex_timed() {
  const timespec time{kLong, 0};
  return syscall(SYS_futex, &word, FUTEX_WAIT, 0, &time, nullptr, 0);
}
long wait_in_epoll() {
  epoll_event event{};
  return epoll_wait(poller, &event, 1, kLong * 1000);
}
long wait_in_pause() {
  return pause();
}
long wait_in_sigsuspend() {
  sigset_t none;
  sigemptyset(&none);
  return sigsuspend(&none);
}
long wait_for_child() {
  int status = 0;
  return waitpid(child, &status, 0);
}

void prepare(const std::string& kind) {
  int pair[2];
  must(pipe2(pair, O_CLOEXEC), "pipe2");
  pipe_end = pair[0];
  must(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), "socketpair");
  socket_end = pair[0];
  poller = must(epoll_create1(EPOLL_CLOEXEC), "epoll_create1");
  epoll_event event{};
  event.events = EPOLLIN;
  must(epoll_ctl(poller, EPOLL_CTL_ADD, pipe_end, &event), "epoll_ctl");
  if (kind == "wait") {
    child = must(fork(), "fork");
    if (child == 0) {
      prctl(PR_SET_PDEATHSIG, SIGKILL);
      for (;;) pause();
    }
  }
  if (kind == "sigsuspend" || kind == "ppoll") {
    sigset_t blocked;
    sigemptyset(&blocked);
    sigaddset(&blocked, SIGUSR1);
    must(sigprocmask(SIG_BLOCK, &blocked, nullptr), "sigprocmask");
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 3) return 2;
  const std::string kind = argv[1];
  const std::map<std::string, long (*)()> kinds{{"nanosleep", wait_in_nanosleep},
                                                {"clock_nanosleep", wait_in_clock_nanosleep},
                                                {"read", wait_in_read},
                                                {"recv", wait_in_recv},
                                                {"poll", wait_in_poll},
                                                {"ppoll", wait_in_ppoll},
                                                {"select", wait_in_select},
                                                {"futex", wait_in_futex},
                                                {"futex_timed", wait_in_futex_timed},
                                                {"epoll", wait_in_epoll},
                                                {"pause", wait_in_pause},
                                                {"sigsuspend", wait_in_sigsuspend},
                                                {"wait", wait_for_child}};
  const auto call = kinds.find(kind);
  if (call == kinds.end() && kind != "code") return 2;
  const int file = must(open(argv[2], O_RDWR | O_CREAT | O_CLOEXEC, 0600), "open");
  must(ftruncate(file, kCounters * sizeof(std::uint64_t)), "ftruncate");
  void* const map = mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  if (map == MAP_FAILED) broken("mmap");
  counters = static_cast<volatile std::uint64_t*>(map);
  main_thread = static_cast<pid_t>(syscall(SYS_gettid));
  struct sigaction action{};
  action.sa_handler = handler;
  if (argc > 3) action.sa_flags = SA_RESTART;
  must(sigaction(SIGUSR1, &action, nullptr), "sigaction");
  prepare(kind);
  say("ready");
  for (;;) {
    count(kBegun);
    if (kind == "code") {
      if (run_code() != 0) count(kWrong);
      continue;
    }
    handled = 0;
    errno = 0;
    const long result = call->second();
    if (result >= 0 || errno != EINTR) {
      count(kOdd);
    } else {
      count(handled != 0 ? kSignalled : kEintr);
    }
  }
}
