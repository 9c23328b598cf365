#include "preload/retire.h"

#include <fcntl.h>
#include <sys/stat.h>

#include "preload/agent.h"

namespace foldswap::preload {
namespace {

bool has_more_threads() {
  struct stat st{};
  constexpr std::uint64_t kDirectoryLinks = 2, kCallerAndAgent = 2;
  return sys::call(SYS_newfstatat, AT_FDCWD, "/proc/self/task", &st, 0) == 0 &&
         st.st_nlink > kDirectoryLinks + kCallerAndAgent;
}

// A forked child that is not a client yet becomes one first: what it has inherited is registered,
// and only a client can ask for that to end.
void retire_agent(bool only_if_alone) {
  const LiveCall use;
  Control* const control = own_control();
  if (control == nullptr || (only_if_alone && has_more_threads())) return;
  const RequestLock lock;
  if (attaching() != nullptr) (void)ask_agent(*control, AgentOp::attach);
  const std::uint32_t tid = sys::load(control->tid);
  if (live() == nullptr || tid == 0) return;
  if (ask_daemon(*control, wire::RequestOp::retire, 0, 0) != 0) return;
  library.nothing_registered = true;
  sys::store(library.alive->presence, static_cast<std::uint32_t>(Presence::none));
  (void)ask_agent(*control, AgentOp::retire);  // the constructor of WithoutAgent waits for its end
}

}  // namespace

Control* own_control() {
  Control* control = live();
  if (control == nullptr) control = attaching();
  return control != nullptr && sys::call(SYS_getpid) == control->pid ? control : nullptr;
}

WithoutAgent::WithoutAgent(bool only_if_alone) {
  if (sys::load(library.alive) != nullptr) retire_agent(only_if_alone);
  // One that the daemon has sent away waits for calls like the above, and then ends by itself.
  const std::uint32_t tid = sys::load(library.leaving);
  if (tid == 0) return;
  // The kernel clears the word a little before it takes the thread out of the group. (In the child
  // of a raw fork it does not, but there it has no such thread.)
  const long pid = sys::call(SYS_getpid);
  constexpr std::uint32_t kTurns = 5'000;
  sys::Backoff backoff;
  while (sys::call(SYS_tgkill, pid, tid, 0) == 0 &&
         (sys::load(library.leaving) != 0 || backoff.turns() < kTurns)) {
    backoff.next();
  }
  (void)sys::exchange_if(library.leaving, tid, 0);
}

}  // namespace foldswap::preload
