#include "preload/fork.h"

#include <pthread.h>

#include "preload/agent.h"
#include "preload/child.h"
#include "preload/request.h"
#include "preload/state.h"

namespace foldswap::preload {
namespace {

// A child whose agent has not made it a client yet becomes one now: otherwise nobody could say
// which FORK event the grandchild is.
Control* live_or_attached() {
  if (Control* const control = live()) return control;
  Control* const control = attaching();
  if (control == nullptr) return nullptr;
  const RequestLock lock;
  if (attaching() != nullptr) (void)ask_agent(*control, AgentOp::attach);
  return live();
}

// Nothing of a request is half made in the child, no other fork runs between fork_seq and the
// event, and nothing is registered between the look at `registered` and the fork. No signal handler
// of this thread runs meanwhile: it could ask for the lock that is held.
void prepare() {
  if (live_or_attached() == nullptr) return;
  const std::uint64_t mask = SignalBlock::block(SignalBlock::Set::asynchronous);
  RequestLock::acquire();
  Control* const control = live();
  if (control == nullptr) {
    RequestLock::release();
    SignalBlock::restore(mask);
    return;
  }
  // Only under the lock: another thread's fork may have been ending.
  library.fork_locked = true;
  library.fork_mask = mask;
  Announcement::begin(*control);
  library.fork_seq = sys::add(control->mailbox->fork_seq, 1);
  library.nothing_registered = sys::load(control->mailbox->registered) == 0;
}

void parent() {
  if (!library.fork_locked) return;
  Control* const control = library.control;
  library.fork_locked = false;
  library.nothing_registered =
      false;  // holds for that child only, not for one by raw clone() later
  const std::uint64_t mask = library.fork_mask;
  sys::add(control->mailbox->fork_seq, 1);
  Announcement::end(*control);
  RequestLock::release();
  SignalBlock::restore(mask);
}

// Mailbox, transfer area, staging and Control are not mapped here: live() is null from now on.
void child() {
  sys::store(library.request_lock, 0U);
  sys::store(library.quiet_calls, 0U);
  sys::store(library.exclusions.lock, 0U);
  if (!library.fork_locked) return;  // not a client's: what its parent knew still holds
  library.fork_locked = false;
  begin_child();
  SignalBlock::restore(library.fork_mask);
}

}  // namespace

void install_fork_handlers() {
  pthread_atfork(prepare, parent, child);
}

}  // namespace foldswap::preload
