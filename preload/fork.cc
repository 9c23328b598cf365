#include "preload/fork.h"

#include <pthread.h>

#include "base/mutation.h"
#include "preload/agent.h"
#include "preload/child.h"
#include "preload/exclusions.h"
#include "preload/next.h"
#include "preload/request.h"
#include "preload/state.h"

namespace foldswap::preload {
namespace {

using Handler = void();
constinit Next<int(Handler*, Handler*, Handler*, void*)> next_register_atfork{"__register_atfork"};

std::uint64_t myself() {
  return static_cast<std::uint64_t>(pthread_self());
}

// Nothing of a request is half made in the child, no other fork runs between fork_seq and the
// event, and nothing is registered between the look at `registered` and the fork. What is noted in
// `library` belongs to the fork that holds the locks: glibc calls the handlers of forks in several
// threads side by side. No signal handler of this thread runs meanwhile: others need the locks.
void prepare() {
  if (sys::load(library.never) != 0) return;
  // A child that is still attaching becomes a client now: otherwise nobody could say which FORK
  // event the grandchild is.
  (void)live_or_attached();
  const std::uint64_t mask = SignalBlock::block(SignalBlock::Set::asynchronous);
  const bool locks = library.alive != nullptr && !mutated(Mutation::fork_serialised);
  const bool took_lock = locks && RequestLock::acquire();
  Control* const control = live();
  std::uint32_t seq = 0;
  if (control != nullptr) {
    Announcement::begin(*control);
    seq = sys::add(control->mailbox->fork_seq, 1);
    library.nothing_registered = sys::load(control->mailbox->registered) == 0;
  }
  lock_notes();
  library.fork_mask = mask;
  library.fork_took_lock = took_lock;
  library.fork_of_client = control != nullptr;
  if (control != nullptr) library.fork_seq = seq;
  sys::store(library.forker, myself());
}

// Neither of these is for a fork that began when prepare() did nothing.
void parent() {
  if (sys::load(library.forker) != myself()) return;
  sys::store(library.forker, std::uint64_t{0});
  const std::uint64_t mask = library.fork_mask;
  const bool took_lock = library.fork_took_lock, of_client = library.fork_of_client;
  unlock_notes();
  if (of_client) {
    // Holds for that child only, not for one by raw clone() later.
    library.nothing_registered = false;
    sys::add(library.control->mailbox->fork_seq, 1);
    Announcement::end(*library.control);
  }
  if (took_lock) RequestLock::release();
  SignalBlock::restore(mask);
}

// Mailbox, transfer area, staging and Control are not mapped here: live() is null from now on, and
// the request lock is free (Life).
void child() {
  if (sys::load(library.forker) != myself()) return;
  sys::store(library.forker, std::uint64_t{0});
  sys::add(library.forks, 1);
  sys::store(library.quiet_calls, 0U);
  // In a raw fork's child another thread of its parent may have been in the middle of them.
  if (library.fork_of_client || sys::load(library.alive) == nullptr) {
    notes_after_fork();
  } else {
    unlock_notes();
  }
  // If not a client's: what its parent knew still holds.
  if (library.fork_of_client) begin_child();
  SignalBlock::restore(library.fork_mask);
}

// 0: not yet; a thread id: by that thread, now; kInstalled.
std::uint32_t installing = 0;
constexpr std::uint32_t kInstalled = ~0U;

}  // namespace

void install_fork_handlers() {
  if (sys::load(installing) == kInstalled) return;
  const SignalBlock signals(SignalBlock::Set::asynchronous);
  const auto me = static_cast<std::uint32_t>(sys::call(SYS_gettid));
  sys::Backoff backoff;
  while (!sys::exchange_if(installing, 0, me)) {
    const std::uint32_t now = sys::load(installing);
    // It is ours that are being registered, and somebody's allocator registers its own for it.
    if (now == kInstalled || now == me) return;
    backoff.next();
  }
  // Of nobody: they stay while others' destructors run at the end.
  const bool done = next_register_atfork(prepare, parent, child, nullptr) == 0;
  sys::store(installing, done ? kInstalled : 0U);
}

}  // namespace foldswap::preload

using namespace foldswap::preload;

// What pthread_atfork() of every program and library calls.
// NOLINTNEXTLINE(bugprone-reserved-identifier): the C library's name, which is interposed
FOLDSWAP_EXPORT int __register_atfork(void (*before)(), void (*in_parent)(), void (*in_child)(),
                                      void* owner) noexcept {
  if (!foldswap::mutated(foldswap::Mutation::h37_innermost_handlers)) install_fork_handlers();
  return next_register_atfork(before, in_parent, in_child, owner);
}
