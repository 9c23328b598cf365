#include "preload/arrival.h"

#include <linux/close_range.h>
#include <sched.h>
#include <sys/mman.h>

#include "preload/agent.h"
#include "preload/areas.h"
#include "preload/fork.h"

// gadget.cc has them.
extern "C" {
// (atomic) Calls under way during which no agent may come.
extern std::uint32_t foldswap_alone __attribute__((visibility("hidden")));
// (atomic) The thread on the boot stack, which begins the agent's life; the kernel clears it when
// that ends.
extern std::uint32_t foldswap_boot_tid __attribute__((visibility("hidden")));
}

namespace foldswap::preload {
namespace {

constexpr long kArchSetFs = 0x1002;
constexpr std::uint32_t kMostTurns = 20'000;

// Whoever waits for it knows it by Library::leaving, which the kernel clears at its end.
[[noreturn]] void leave() {
  sys::store(library.leaving, static_cast<std::uint32_t>(sys::call(SYS_gettid)));
  sys::call(SYS_set_tid_address, &library.leaving);
  sys::store(foldswap_boot_tid, 0U);
  for (;;) sys::call(SYS_exit, 0);
}

// What it has of the thread that was sent through the gadget, and should have of the program: its
// CPUs, no real-time class, and nothing of its folder or descriptors.
void settle(pid_t me) {
  const int priority = 0;
  sys::call(SYS_sched_setscheduler, 0, SCHED_OTHER, &priority);
  std::uint64_t cpus[16];
  const long bytes = sys::call(SYS_sched_getaffinity, me, sizeof(cpus), cpus);
  if (bytes > 0) sys::call(SYS_sched_setaffinity, 0, bytes, cpus);
  sys::call(SYS_chdir, "/");
}

// Both may be left over from a process that this one was forked from.
bool is_booting() {
  const std::uint32_t tid = sys::load(foldswap_boot_tid);
  return tid != 0 && sys::call(SYS_tgkill, sys::call(SYS_getpid), tid, 0) == 0;
}

bool is_arriving() {
  const std::uint32_t pid = sys::load(library.arriving);
  return pid != 0 && presence() == Presence::none &&
         pid == static_cast<std::uint32_t>(sys::call(SYS_getpid));
}

[[noreturn]] void go_on_on_own_stack(Control& control) {
  asm volatile(
      "movq %0, %%rsp\n\t"
      "xorl %%ebp, %%ebp\n\t"
      "callq *%1\n\t"
      "hlt"
      :
      : "r"(&control), "r"(&run_arrived_agent), "D"(&control)
      : "memory");
  __builtin_unreachable();
}

}  // namespace

void await_arrival(const Settings& settings, const wire::Hello& hello) {
  library.own_data = own_data();
  library.identity = hello;
  sys::copy_bytes(library.socket_path, settings.socket_path, sizeof(library.socket_path));
  library.nothing_registered = true;
  library.comes_late = true;
  install_fork_handlers();
  sys::store(library.ready, 1U);
}

bool nobody_may_arrive() {
  return sys::load(foldswap_alone) != 0;
}

void forget_arrival() {
  sys::store(foldswap_alone, 0U);
  sys::store(foldswap_boot_tid, 0U);
  sys::store(library.arriving, 0U);
  sys::store(library.leaving, 0U);
}

Alone::Alone() : CountedCall(foldswap_alone) {
  sys::Backoff backoff;
  while (backoff.turns() < kMostTurns && (is_booting() || is_arriving())) backoff.next();
}

// Where the gadget's thread begins, on the boot stack. Nobody waits for it but the daemon, which
// hears nothing if this comes to nothing.
extern "C" [[noreturn, gnu::used, gnu::visibility("hidden")]] void foldswap_arrive() {
  if (sys::call(SYS_close_range, 0, ~0U, CLOSE_RANGE_UNSHARE) != 0) leave();
  const auto me = static_cast<pid_t>(sys::call(SYS_getpid));
  const std::uint32_t before = sys::load(library.arriving);
  // What an orphan has inherited is registered with a userfaultfd that the daemon has for it: with
  // one more it would be two clients, and one of them would undo what the other needs.
  if (before == static_cast<std::uint32_t>(me) || presence() != Presence::none || orphaned() ||
      sys::load(library.ready) == 0 || sys::load(library.never) != 0 || nobody_may_arrive() ||
      !sys::exchange_if(library.arriving, before, static_cast<std::uint32_t>(me))) {
    leave();
  }
  settle(me);
  Areas areas;
  Reason unused;
  if (!map_private(areas, Locked::no, unused)) {
    sys::store(library.leaving, static_cast<std::uint32_t>(sys::call(SYS_gettid)));
    sys::store(library.arriving, 0U);
    leave();
  }
  Control& control = *areas.control();
  control.pid = me;
  control.own[0] = library.own_data;
  control.own[1] = areas.own.range();
  control.cpu = ~0U;
  control.tls[0] = reinterpret_cast<std::uint64_t>(control.tls);
  control.tid = static_cast<std::uint32_t>(sys::call(SYS_set_tid_address, &control.tid));
  sys::call(SYS_arch_prctl, kArchSetFs, control.tls);
  sys::store(foldswap_boot_tid, 0U);
  areas.keep();
  go_on_on_own_stack(control);
}

}  // namespace foldswap::preload
