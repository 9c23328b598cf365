#include "preload/agent.h"

#include <fcntl.h>
#include <linux/sched.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <iterator>

#include "preload/arrival.h"
#include "preload/child.h"
#include "preload/exclusions.h"
#include "preload/mover.h"
#include "preload/rights.h"
#include "preload/signals.h"

namespace foldswap::preload {
namespace {

constexpr long kIdleMs = 2000;            // how often an idle agent looks whether it is alone
constexpr std::uint32_t kBusyWakes = 64;  // and a busy one, in wake-ups
constexpr long kSliceMs = 100;

[[noreturn]] void leave(int status = 0) {
  for (;;) sys::call(SYS_exit, status);
}

void close_all_but(int a, int b) {
  const int low = std::min(a, b);
  const int high = std::max(a, b);
  if (low > 0) sys::call(SYS_close_range, 0, low - 1, 0);
  if (high - low > 1) sys::call(SYS_close_range, low + 1, high - 1, 0);
  sys::call(SYS_close_range, high + 1, ~0U, 0);
}

std::uint64_t leader_robust_list(const Control& c) {
  std::uint64_t head = 0;
  std::uint64_t bytes = 0;
  return sys::call(SYS_get_robust_list, c.pid, &head, &bytes) == 0 ? head : 0;
}

// The leader's exit status, the last field of its stat: "... exit_code\n", as wait(2) would tell
// it.
int leader_status() {
  const long fd = sys::call(SYS_openat, AT_FDCWD, "/proc/self/stat", O_RDONLY | O_CLOEXEC);
  if (fd < 0) return 0;
  char text[1024];
  const long got = sys::call(SYS_read, fd, text, sizeof(text));
  sys::call(SYS_close, fd);
  long start = got;
  while (start > 0 && text[start - 1] != ' ') --start;
  unsigned status = 0;
  // NOLINTNEXTLINE(clang-analyzer-core.UndefinedBinaryOperatorResult): the call has filled it
  for (long i = start; i < got && text[i] >= '0' && text[i] <= '9'; ++i) {
    status = status * 10 + static_cast<unsigned>(text[i] - '0');
  }
  return static_cast<int>((status >> 8) & 0xff);
}

// When the last thread of the program ends by a raw exit(2), libc does not end the process, and the
// agent would keep it alive for ever. The kernel clears the leader's robust list when it exits;
// only then is it worth counting threads. Leader (a zombie) and agent left: the process ends, with
// the leader's status, because the kernel takes the last thread's. (Had another thread been the
// last, its status is lost; libc's threads exit with 0.)
void leave_if_alone(const Control& c) {
  if (c.leader_robust_list == 0 || leader_robust_list(c) != 0) return;
  struct stat st{};
  if (sys::call(SYS_newfstatat, AT_FDCWD, "/proc/self/task", &st, 0) != 0) return;
  constexpr std::uint64_t kDirectoryLinks = 2;
  if (st.st_nlink == kDirectoryLinks + 2) leave(leader_status());
}

struct Ids {
  std::uint32_t id[3];
};

bool become(long get, long set, const std::uint32_t (&want)[3]) {
  Ids now{};
  sys::call(get, &now.id[0], &now.id[1], &now.id[2]);
  if (std::equal(std::begin(want), std::end(want), std::begin(now.id))) return true;
  return sys::call(set, want[0], want[1], want[2]) == 0;
}

bool become_groups(const Credentials& want) {
  constexpr std::uint32_t kSmall = 64;
  std::uint32_t now[kSmall];
  const long count = sys::call(SYS_getgroups, kSmall, now);
  if (count == static_cast<long>(want.ngroups) &&
      std::equal(now, now + want.ngroups, want.groups)) {
    return true;
  }
  return sys::call(SYS_setgroups, want.ngroups, want.groups) == 0;
}

// Groups before users, because a plain user may set neither; and once more after, because a program
// may become root again.
bool follow_credentials(const Credentials& want) {
  bool same = false;
  for (int round = 0; round < 2 && !same; ++round) {
    same = become_groups(want);
    same = become(SYS_getresgid, SYS_setresgid, want.gid) && same;
    same = become(SYS_getresuid, SYS_setresuid, want.uid) && same;
  }
  return same;
}

void answered(Control& c, std::uint32_t asked) {
  sys::store(c.answered, asked);
  sys::futex_wake(c.answered, sys::Scope::own);
}

[[noreturn]] void leave_for_now(Control& c);

// Once the process is live, `attach` is answered by itself.
void answer(Control& c) {
  const std::uint32_t asked = sys::load(c.asked);
  if (asked == c.answered) return;
  const auto op = static_cast<AgentOp>(c.op);
  if (op == AgentOp::retire) {
    sys::store(library.leaving, static_cast<std::uint32_t>(sys::call(SYS_gettid)));
    answered(c, asked);
    leave_for_now(c);
  }
  const bool go = op == AgentOp::leave ||
                  // An agent with other rights than the program must not live on in its memory.
                  (op == AgentOp::credentials && !follow_credentials(c.credentials)) ||
                  (op == AgentOp::rights && !give_up_rights());
  answered(c, asked);
  if (go) leave();
}

// Ends this thread, whose stack goes before it does. The kernel clears `tid` then (null: nothing),
// which must not lie there: that may belong to the program by then.
[[noreturn]] void leave_without_stack(std::uint64_t start, std::uint64_t bytes,
                                      std::uint32_t* tid) {
  sys::call(SYS_set_tid_address, tid);
  for (;;) {
    asm volatile(
        "movl %0, %%eax\n\t"
        "syscall\n\t"
        "movl %1, %%eax\n\t"
        "xorl %%edi, %%edi\n\t"
        "syscall\n\t"
        "hlt"
        :
        : "i"(SYS_munmap), "i"(SYS_exit), "D"(start), "S"(bytes)
        : "rax", "rcx", "r11", "memory");
  }
}

// The program may be in the middle of a change, and ask for it to be followed in a moment.
bool settle_rights(Control& c) {
  constexpr int kTurns = 200;
  for (int turn = 0; !give_up_rights(); ++turn) {
    if (turn == kTurns) return false;
    answer(c);
    sys::sleep_us(1'000);
  }
  return true;
}

// The daemon has nothing of this process any more, and nothing of it is registered. From here on it
// is none of its clients; what calls still use that began before is unmapped when they are over.
[[noreturn]] void leave_for_now(Control& c) {
  constexpr int kTurns = 25'000;
  sys::store(library.leaving, static_cast<std::uint32_t>(sys::call(SYS_gettid)));
  library.nothing_registered = true;
  sys::store(library.alive->presence, static_cast<std::uint32_t>(Presence::none));
  for (int turn = 0; sys::load(library.live_calls) != 0; ++turn) {
    answer(c);
    if (turn == kTurns) {  // one was left for good by a signal handler: what is mapped stays
      sys::call(SYS_set_tid_address, &library.leaving);
      leave();
    }
    sys::sleep_us(200);
  }
  library.nothing_registered = true;  // a fork that was under way may have thought otherwise
  sys::call(SYS_munmap, c.staging, wire::kStagingBytes);
  sys::call(SYS_munmap, c.transfer, wire::kTransferBytes);
  sys::call(SYS_munmap, c.mailbox, wire::kMailboxBytes);
  const wire::Range own = c.own[1];
  // The first page is the process's, if it was the first agent that brought it.
  const std::uint64_t kept =
      reinterpret_cast<std::uint64_t>(library.alive) == own.start ? kPage : 0;
  leave_without_stack(own.start + kept, own.bytes - kept, &library.leaving);
}

void serve(Control& c) {
  std::uint32_t wakes = 0;
  for (;;) {
    const std::uint32_t seen = sys::load(c.mailbox->to_agent);
    answer(c);
    for (std::uint32_t half = 0; half < wire::kHalves; ++half) {
      if (sys::load(c.mailbox->commands[half].state) ==
          static_cast<std::uint32_t>(wire::CommandState::posted)) {
        // By a system call of its own the program may have given something up since.
        if (!settle_rights(c)) leave();
        execute_command(c, half);
      }
    }
    if (sys::load(c.mailbox->leave) != 0) leave_for_now(c);
    if (sys::load(c.mailbox->to_agent) != seen) continue;
    const long why = sys::futex_wait(c.mailbox->to_agent, seen, sys::Scope::shared, kIdleMs);
    if (why == -ETIMEDOUT || ++wakes % kBusyWakes == 0) {
      leave_if_alone(c);
      look_over_exclusions();
    }
  }
}

void started(Control& c, AgentStart how, long error) {
  c.start_errno = static_cast<std::uint32_t>(-error);
  sys::store(c.start, static_cast<std::uint32_t>(how));
  sys::futex_wake(c.start, sys::Scope::own);
}

void settle_in(Control& c) {
  sys::call(SYS_prctl, PR_SET_NAME, "foldswap-agent");
  const long mask = sys::call(SYS_sched_getaffinity, 0, sizeof(c.affinity), c.affinity);
  c.affinity_bytes = mask > 0 ? static_cast<std::uint32_t>(mask) : 0;
  c.leader_robust_list = leader_robust_list(c);
}

// The descriptor table is a copy already (no CLONE_FILES), and so is the working directory, which
// must not keep a file system busy that the program leaves.
[[noreturn]] void serving_main(Control* control) {
  Control& c = *control;
  settle_in(c);
  close_all_but(c.uffd, c.lifeline);
  sys::call(SYS_chdir, "/");
  if (const long error = arm_staging(c); error != 0) {
    started(c, AgentStart::failed, error);
    leave();
  }
  started(c, AgentStart::running, 0);
  serve(c);
  __builtin_unreachable();
}

std::uint64_t now_ms() {
  timespec now{};
  sys::call(SYS_clock_gettime, CLOCK_MONOTONIC, &now);
  return static_cast<std::uint64_t>(now.tv_sec) * 1000 +
         static_cast<std::uint64_t>(now.tv_nsec) / 1'000'000;
}

// Until it is time, or somebody asks for it.
void wait_to_attach(Control& c, long ms) {
  const std::uint64_t end = now_ms() + static_cast<std::uint64_t>(ms);
  for (std::uint64_t now = now_ms(); now < end; now = now_ms()) {
    const std::uint32_t asked = sys::load(c.asked);
    if (asked == c.answered) {
      sys::futex_wait(c.asked, asked, sys::Scope::own, static_cast<long>(end - now));
    } else if (static_cast<AgentOp>(c.op) == AgentOp::attach) {
      return;  // answered when that is done
    } else {
      answer(c);
    }
  }
}

// An attempt to attach has come to nothing. Who asked for that knows by the presence; anything else
// is done first.
void answer_in_vain(Control& c) {
  const std::uint32_t asked = sys::load(c.asked);
  if (asked != c.answered && static_cast<AgentOp>(c.op) != AgentOp::attach) {
    answer(c);
  } else {
    answered(c, asked);
  }
}

[[noreturn]] void attaching_main(Control* control) {
  Control& c = *control;
  settle_in(c);
  sys::call(SYS_close_range, 0, ~0U, 0);
  started(c, AgentStart::running, 0);
  // A daemon that is busy, or just starting, gets a second chance.
  wait_to_attach(c, kChildDelayMs);
  bool attached = attach_child(c);
  if (!attached) {
    answer_in_vain(c);
    wait_to_attach(c, kChildAgainMs);
    attached = attach_child(c);
  }
  if (!attached) {
    sys::store(library.alive->presence, static_cast<std::uint32_t>(Presence::none));
    sys::store(library.arriving, 0U);
    answer_in_vain(c);
    leave();
  }
  sys::store(library.arriving, 0U);
  sys::call(SYS_chdir, "/");
  serve(c);
  __builtin_unreachable();
}

// clone(2) with a function to run on the new stack, which must not return. The kernel keeps all
// registers but rax, rcx and r11, so function and argument travel in callee-saved ones.
long clone_thread(unsigned long flags, std::byte* stack_top, std::uint32_t* tid, void* tls,
                  void (*function)(Control*), Control* argument) {
  long result = SYS_clone;
  register std::uint32_t* r10 asm("r10") = tid;
  register void* r8 asm("r8") = tls;
  register void (*r12)(Control*) asm("r12") = function;
  register Control* r13 asm("r13") = argument;
  asm volatile(
      "syscall\n\t"
      "testq %%rax, %%rax\n\t"
      "jnz 1f\n\t"
      "xorl %%ebp, %%ebp\n\t"
      "movq %%r13, %%rdi\n\t"
      "callq *%%r12\n\t"
      "hlt\n"
      "1:"
      : "+a"(result)
      : "D"(flags), "S"(stack_top), "d"(tid), "r"(r10), "r"(r8), "r"(r12), "r"(r13)
      : "rcx", "r11", "memory");
  return result;
}

}  // namespace

void run_arrived_agent(Control& c) {
  settle_in(c);
  if (!attach_arrived(c)) {
    const wire::Range own = c.own[1];
    sys::store(library.leaving, static_cast<std::uint32_t>(sys::call(SYS_gettid)));
    sys::store(library.arriving, 0U);
    leave_without_stack(own.start, own.bytes, &library.leaving);
  }
  answer(c);
  // Its rights were those of a moment before; the calls that may have changed the program's are
  // over.
  if (!settle_rights(c)) leave();
  tell_of_agent(c);
  serve(c);
  __builtin_unreachable();
}

void answer_requests(Control& control) {
  answer(control);
}

bool start_agent(Control& control, AgentDuty duty) {
  control.cpu = ~0U;
  // The System V ABI's thread control block begins with its own address.
  control.tls[0] = reinterpret_cast<std::uint64_t>(control.tls);
  // Neither CLONE_FILES nor CLONE_FS: with a shared fs_struct the kernel refuses setns() into a
  // mount namespace.
  constexpr unsigned long kFlags = CLONE_VM | CLONE_SIGHAND | CLONE_THREAD | CLONE_SETTLS |
                                   CLONE_PARENT_SETTID | CLONE_CHILD_CLEARTID;
  auto* const stack_top = reinterpret_cast<std::byte*>(&control);
  {
    const SignalBlock all(SignalBlock::Set::everything);  // inherited by the agent
    const long tid =
        clone_thread(kFlags, stack_top, &control.tid, control.tls,
                     duty == AgentDuty::serve ? serving_main : attaching_main, &control);
    if (tid < 0) {
      control.start_errno = static_cast<std::uint32_t>(-tid);
      return false;
    }
  }
  constexpr auto kPending = static_cast<std::uint32_t>(AgentStart::pending);
  while (sys::load(control.start) == kPending && sys::load(control.tid) != 0) {
    sys::futex_wait(control.start, kPending, sys::Scope::own, kSliceMs);
  }
  if (sys::load(control.start) == static_cast<std::uint32_t>(AgentStart::running)) return true;
  while (sys::load(control.tid) != 0) sys::sleep_us(50);  // before its stack is unmapped
  return false;
}

bool ask_agent(Control& control, AgentOp op) {
  control.op = static_cast<std::uint32_t>(op);
  const std::uint32_t asked = sys::add(control.asked, 1);
  sys::futex_wake(control.asked, sys::Scope::own);
  if (wire::Mailbox* const box = sys::load(control.mailbox); box != nullptr) {
    sys::add(box->to_agent, 1);
    sys::futex_wake(box->to_agent, sys::Scope::shared);
  }
  for (;;) {
    const std::uint32_t answered = sys::load(control.answered);
    if (answered == asked) return true;
    if (sys::load(control.tid) == 0) return false;
    sys::futex_wait(control.answered, answered, sys::Scope::own, kSliceMs);
  }
}

}  // namespace foldswap::preload
