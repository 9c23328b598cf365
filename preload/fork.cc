#include "preload/fork.h"

#include <pthread.h>

#include "base/mutation.h"
#include "preload/agent.h"
#include "preload/child.h"
#include "preload/request.h"
#include "preload/state.h"

namespace foldswap::preload {
namespace {

// Nothing of a request is half made in the child, no other fork runs between fork_seq and the
// event, and nothing is registered between the look at `registered` and the fork. What is noted in
// `library` belongs to the fork that holds the lock: glibc calls the handlers of forks in several
// threads side by side. No signal handler of this thread runs meanwhile: it could ask for the lock
// that is held.
void prepare() {
  // A child that is still attaching becomes a client now: otherwise nobody could say which FORK
  // event the grandchild is.
  (void)live_or_attached();
  const std::uint64_t mask = SignalBlock::block(SignalBlock::Set::asynchronous);
  if (!mutated(Mutation::fork_serialised)) RequestLock::acquire();
  library.fork_mask = mask;
  Control* const control = live();
  library.fork_of_client = control != nullptr;
  if (control == nullptr) return;
  Announcement::begin(*control);
  library.fork_seq = sys::add(control->mailbox->fork_seq, 1);
  library.nothing_registered = sys::load(control->mailbox->registered) == 0;
}

void parent() {
  const std::uint64_t mask = library.fork_mask;
  if (library.fork_of_client) {
    library.fork_of_client = false;
    // Holds for that child only, not for one by raw clone() later.
    library.nothing_registered = false;
    sys::add(library.control->mailbox->fork_seq, 1);
    Announcement::end(*library.control);
  }
  if (!mutated(Mutation::fork_serialised)) RequestLock::release();
  SignalBlock::restore(mask);
}

// Mailbox, transfer area, staging and Control are not mapped here: live() is null from now on.
void child() {
  sys::store(library.request_lock, 0U);
  sys::store(library.quiet_calls, 0U);
  sys::store(library.exclusions.lock, 0U);
  // If not a client's: what its parent knew still holds.
  if (library.fork_of_client) begin_child();
  library.fork_of_client = false;
  SignalBlock::restore(library.fork_mask);
}

}  // namespace

void install_fork_handlers() {
  pthread_atfork(prepare, parent, child);
}

}  // namespace foldswap::preload
