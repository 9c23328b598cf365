#include "daemon/host/call_restart.h"

#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/user.h>
#include <sys/wait.h>

#include <cerrno>
#include <csignal>
#include <cstddef>

#include "base/mutation.h"

namespace foldswap {
namespace {

constexpr long kRestartUnlessHandled = -514;  // ERESTARTNOHAND, of the kernel's own
// Not in Debian's headers.
constexpr long kIoPgetevents = 333, kIoUringEnter = 426, kEpollPwait2 = 441, kFutexWaitv = 449;

// A thread that stops for this one is interrupted by it, with us or without.
bool stops(int signal) {
  return signal == SIGSTOP || signal == SIGTSTP || signal == SIGTTIN || signal == SIGTTOU;
}

}  // namespace

// signal(7) lists them. Most calls that it lists return one of the kernel's own codes, by which
// they are restarted already: poll, pause, sigsuspend, nanosleep, msgrcv and others. Not here:
// close and connect, which have done something by then; ioctl and fcntl, which can be anything;
// restart_syscall.
bool restartable(long call) {
  switch (call) {
    case SYS_epoll_wait:
    case SYS_epoll_pwait:
    case kEpollPwait2:
    case SYS_semop:
    case SYS_semtimedop:
    case SYS_rt_sigtimedwait:
    case SYS_io_getevents:
    case kIoPgetevents:
    case kIoUringEnter:
    case kFutexWaitv:
    case SYS_select:  // these when what is left of their time limit could not be written back
    case SYS_pselect6:
    case SYS_ppoll:
    case SYS_read:  // from here on: sockets with a time limit of their own, FUSE
    case SYS_readv:
    case SYS_recvfrom:
    case SYS_recvmsg:
    case SYS_recvmmsg:
    case SYS_accept:
    case SYS_accept4:
    case SYS_write:
    case SYS_writev:
    case SYS_sendto:
    case SYS_sendmsg:
    case SYS_sendmmsg:
    case SYS_fallocate:  // in memory: undoes what it has done so far
      return true;
    default:
      return false;
  }
}

void let_call_restart(pid_t tid, int status) {
  if (mutated(Mutation::stop_restarts_calls) || !WIFSTOPPED(status)) return;
  const int event = status >> 16, signal = WSTOPSIG(status);
  // Told to stop by us, or about to get a signal: whether that has a handler the kernel knows.
  if (event == PTRACE_EVENT_STOP ? signal != SIGTRAP : event != 0 || stops(signal)) return;
  user_regs_struct regs{};
  if (::ptrace(PTRACE_GETREGS, tid, nullptr, &regs) != 0) return;
  constexpr unsigned long kOf64Bits = 0x33;  // the code segment: numbers of calls depend on it
  const auto call = static_cast<long>(regs.orig_rax);
  if (regs.cs != kOf64Bits || call < 0 || static_cast<long>(regs.rax) != -EINTR ||
      !restartable(call)) {
    return;
  }
  (void)::ptrace(PTRACE_POKEUSER, tid, offsetof(user_regs_struct, rax), kRestartUnlessHandled);
}

}  // namespace foldswap
