// Signals whose frame the kernel writes to a stack that is out, and reads back from one.
#include <pthread.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <ucontext.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <utility>

#include "tests/programs/kernel_access/kernel_access.h"

namespace kernel_access {
namespace {

constexpr std::uint64_t kMark = 0x5ca1ab1e0ddba11ULL;

const Memory* alternate = nullptr;
volatile std::uint64_t handled = 0;
volatile bool evict_frame = false;
volatile std::uint64_t spin_until = 0;

bool on_alternate(const void* address) {
  const auto* at = static_cast<const std::byte*>(address);
  return at >= alternate->base() && at < alternate->base() + alternate->bytes();
}

[[gnu::noinline]] void evict_page_of(std::uintptr_t address) {
  evict({Bytes(reinterpret_cast<const std::byte*>(address / kPage * kPage), kPage)});
}

// Keeps several pages between the frame and all that is in use while it goes out.
[[gnu::noinline]] void far_below(std::uintptr_t frame) {
  std::array<volatile std::byte, 6 * kPage> between;
  between[0] = std::byte{1};
  if (evict_frame) evict_page_of(frame);
  between[between.size() - 1] = std::byte{1};
}

void on_signal(int, siginfo_t*, void* context) {
  if (!on_alternate(context) || !on_alternate(__builtin_frame_address(0))) {
    wrong("the handler is not on the alternate stack");
  }
  // Whatever was in the registers comes back from the frame.
  const std::uint64_t other = 1;
  asm volatile("movq %0, %%xmm15" : : "r"(other) : "xmm15");
  far_below(reinterpret_cast<std::uintptr_t>(context));
  handled = handled + 1;
  spin_until = handled;
}

void handle(int signal) {
  struct sigaction action{};
  action.sa_sigaction = on_signal;
  action.sa_flags = SA_SIGINFO | SA_ONSTACK;
  must(sigaction(signal, &action, nullptr), "sigaction");
}

// tgkill of ourselves with kMark in a vector register; gives what is there afterwards.
std::uint64_t raise_with_mark(int signal) {
  std::uint64_t after = 0;
  long result = SYS_tgkill;
  asm volatile(
      "movq %[mark], %%xmm15\n\t"
      "syscall\n\t"
      "movq %%xmm15, %[after]"
      : [after] "=&r"(after), "+a"(result)
      : [mark] "r"(kMark), "D"(static_cast<long>(getpid())), "S"(static_cast<long>(gettid())),
        "d"(static_cast<long>(signal))
      : "rcx", "r11", "memory", "xmm15");
  if (result != 0) wrong("tgkill");
  return after;
}

// A handler's frame on an alternate stack that is out: for a signal that comes with a system call,
// one that comes out of the blue, one from a fault; and a frame that goes out while its handler
// runs.
void alternate_stack() {
  const Memory stack(64);
  alternate = &stack;
  const stack_t given{.ss_sp = stack.base(), .ss_flags = 0, .ss_size = stack.bytes()};
  must(sigaltstack(&given, nullptr), "sigaltstack");
  for (const int signal : {SIGUSR1, SIGVTALRM, SIGSEGV}) handle(signal);

  for (const bool frame_too : {false, true}) {
    for (int n = 0; n < 3; ++n) {
      evict({stack.span()});
      evict_frame = frame_too;
      if (raise_with_mark(SIGUSR1) != kMark) wrong("a register is not what it was");
      evict_frame = false;
    }
  }
  if (handled != 6) wrong("signals were lost");

  evict({stack.span()});
  const itimerval soon{.it_interval = {.tv_sec = 0, .tv_usec = 0},
                       .it_value = {.tv_sec = 0, .tv_usec = 1000}};
  must(setitimer(ITIMER_VIRTUAL, &soon, nullptr), "setitimer");
  while (handled != 7) {  // in user mode until it comes
  }

  // A fault of the program's own; the handler's return runs into it again until the page can be
  // read. What it reads then must be right.
  const Memory closed(1);
  must(mprotect(closed.base(), kPage, PROT_NONE), "mprotect");
  struct sigaction action{};
  action.sa_sigaction = [](int, siginfo_t* info, void* context) {
    if (!on_alternate(context)) wrong("the handler is not on the alternate stack");
    void* page =
        reinterpret_cast<void*>(reinterpret_cast<std::uintptr_t>(info->si_addr) / kPage * kPage);
    must(mprotect(page, kPage, PROT_READ | PROT_WRITE), "mprotect");
    handled = handled + 1;
  };
  action.sa_flags = SA_SIGINFO | SA_ONSTACK;
  must(sigaction(SIGSEGV, &action, nullptr), "sigaction");
  evict({stack.span()});
  closed.check_all();
  if (handled != 8) wrong("no SIGSEGV");
  const stack_t none{.ss_sp = nullptr, .ss_flags = SS_DISABLE, .ss_size = 0};
  must(sigaltstack(&none, nullptr), "sigaltstack");
}

// -- a thread's own stack

struct Deep {
  int fd;
  const std::byte* top = nullptr;     // of what may be out
  const std::byte* bottom = nullptr;  // where the thread waits
};
volatile sig_atomic_t deep_signals = 0;

void on_deep_signal(int) {
  std::array<volatile std::byte, 2 * kPage> below;  // and further down than the frame
  for (std::size_t i = 0; i < below.size(); i += 512) below[i] = std::byte{0xff};
  deep_signals = deep_signals + 1;
}

[[gnu::noinline]] void descend(Deep& deep, std::uint64_t level) {
  std::array<std::byte, kPage> local;
  fill_page(local.data(), kMark + level, Kind::random);
  asm volatile("" : : "r"(local.data()) : "memory");
  if (level == 4) deep.top = local.data();  // the control block above is never taken out
  if (level < 24) {
    descend(deep, level + 1);
  } else {
    deep.bottom = static_cast<const std::byte*>(__builtin_frame_address(0)) - kPage;
    char c = 0;
    if (must(read(deep.fd, &c, 1), "read") != 1) wrong("the pipe ended");
  }
  check_page(local.data(), kMark + level, Kind::random);
}

// The frame goes to the thread's stack itself, which is out, while the thread waits in a call; the
// call is restarted, and all the callers' locals are what they were.
void thread_stack() {
  struct sigaction action{};
  action.sa_handler = on_deep_signal;
  action.sa_flags = SA_RESTART;
  must(sigaction(SIGUSR1, &action, nullptr), "sigaction");
  const Pipe pipe;
  Deep deep{.fd = pipe.out};
  InCall thread(SYS_read, [&] { descend(deep, 1); });
  const auto bottom = reinterpret_cast<std::uintptr_t>(deep.bottom) / kPage * kPage - 3 * kPage;
  const Bytes stack(
      reinterpret_cast<const std::byte*>(bottom),
      static_cast<std::size_t>(deep.top - reinterpret_cast<const std::byte*>(bottom)));
  for (int n = 1; n <= 4; ++n) {
    evict({stack});
    thread.must_be_inside();
    if (pthread_kill(thread.handle(), SIGUSR1) != 0) broken("pthread_kill");
    for (int tries = 0; tries < 3000 && deep_signals != n; ++tries) sleep_ms(10);
    if (deep_signals != n) wrong("the signal did not come");
  }
  evict({stack});
  whole(write(pipe.in, "x", 1), 1, "write");
  thread.join();
}

constexpr Case kCases[] = {{"alternate_stack", alternate_stack}, {"thread_stack", thread_stack}};

}  // namespace

std::span<const Case> signal_cases() {
  return kCases;
}

}  // namespace kernel_access
