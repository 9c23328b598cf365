// A thread that is stopped in a system call, by ptrace and for a moment, must not see that. Most
// calls go on by themselves when the thread does; some have given up by then and return EINTR,
// which a program that gets no signals may not expect. Those are told to the kernel as calls to be
// restarted unless a signal handler runs (ERESTARTNOHAND): it decides, together with the signals
// that wait by then, so that none is lost and whoever gets one sees EINTR as ever. (Setting the
// program counter back instead would lose those.) What has a time limit counts it anew.
//
// Thread safety: free functions; let_call_restart() from the thread that traces.
#pragma once

#include <sys/types.h>

namespace foldswap {

// Whether a call may end with EINTR of its own accord, having done nothing, so that it can as well
// be made again.
[[nodiscard]] bool restartable(long call);

// `status`: what waitpid() told of the stop. Just before PTRACE_DETACH.
void let_call_restart(pid_t tid, int status);

}  // namespace foldswap
