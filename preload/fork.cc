#include "preload/fork.h"

#include <pthread.h>

#include "base/mutation.h"
#include "preload/arrival.h"
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

// In a process that is no client, and has nothing registered, only the notes may matter; and an
// agent that arrives waits until this fork is over. Nothing else of it concerns anybody, and no
// system call is made for it.
bool nothing_to_serialise() {
  return presence() == Presence::none && !orphaned() && !notes_in_use();
}

bool began_quietly() {
  if (!nothing_to_serialise()) return false;
  sys::add(library.quiet_calls, 1);
  if (nothing_to_serialise()) return true;
  sys::add(library.quiet_calls, ~0U);
  return false;
}

// In the child of such a fork.
void end_quietly_in_child() {
  sys::store(library.quiet_calls, 0U);
  sys::store(library.live_calls, 0U);
  sys::add(library.forks, 1);
  library.nothing_registered = true;  // an agent that has come meanwhile waits until this is over
  forget_arrival();
  // Another thread of its parent may have begun to note something.
  if (notes_in_use()) drop_all_notes();
}

// Nothing of a request is half made in the child, no other fork runs between fork_seq and the
// event, and nothing is registered between the look at `registered` and the fork. What is noted in
// `library` belongs to the fork that holds the locks: glibc calls the handlers of forks in several
// threads side by side. No signal handler of this thread runs meanwhile: others need the locks.
void prepare() {
  if (sys::load(library.never) != 0 || began_quietly()) return;
  // A child that is still attaching becomes a client now: otherwise nobody could say which FORK
  // event the grandchild is.
  (void)live_or_attached();
  const std::uint64_t mask = SignalBlock::block(SignalBlock::Set::asynchronous);
  sys::add(library.live_calls, 1);
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

void parent() {
  if (sys::load(library.forker) != myself()) {
    if (sys::load(library.never) == 0) sys::add(library.quiet_calls, ~0U);
    return;
  }
  sys::store(library.forker, std::uint64_t{0});
  const std::uint64_t mask = library.fork_mask;
  const bool took_lock = library.fork_took_lock, of_client = library.fork_of_client;
  unlock_notes();
  if (of_client) {
    // Holds for that child only, not for one by raw clone() later. An agent that is leaving says it
    // again.
    if (live() != nullptr) library.nothing_registered = false;
    // NOLINTNEXTLINE(clang-analyzer-core.NullDereference): of_client says that it is there
    sys::add(library.control->mailbox->fork_seq, 1);
    Announcement::end(*library.control);
  }
  if (took_lock) RequestLock::release();
  sys::add(library.live_calls, ~0U);
  SignalBlock::restore(mask);
}

// Mailbox, transfer area, staging and Control are not mapped here: live() is null from now on, and
// the request lock is free (Life).
void child() {
  const bool quietly = sys::load(library.forker) != myself();
  sys::store(library.forker, std::uint64_t{0});
  if (quietly) {
    if (sys::load(library.never) == 0) end_quietly_in_child();
    return;
  }
  sys::add(library.forks, 1);
  sys::store(library.quiet_calls, 0U);
  sys::store(library.live_calls, 0U);
  forget_arrival();
  // In a raw fork's child another thread of its parent may have been in the middle of them.
  if (library.fork_of_client || sys::load(library.alive) == nullptr) {
    notes_after_fork();
  } else {
    unlock_notes();
  }
  // If not a client's: what its parent knew still holds. And with nothing registered there is no
  // event, and nothing that an agent would be needed for now.
  if (library.fork_of_client && !(library.comes_late && library.nothing_registered)) begin_child();
  SignalBlock::restore(library.fork_mask);
}

// 0: not yet; myself(): by that thread, now; kInstalled.
std::uint64_t installing = 0;
constexpr std::uint64_t kInstalled = ~std::uint64_t{0};

}  // namespace

void install_fork_handlers() {
  if (sys::load(installing) == kInstalled) return;
  const std::uint64_t me = myself();
  sys::Backoff backoff;
  while (!sys::exchange_if(installing, 0, me)) {
    const std::uint64_t now = sys::load(installing);
    // It is ours that are being registered, and somebody's allocator registers its own for it, or a
    // signal handler.
    if (now == kInstalled || now == me) return;
    backoff.next();
  }
  // Of nobody: they stay while others' destructors run at the end.
  const bool done = next_register_atfork(prepare, parent, child, nullptr) == 0;
  sys::store(installing, done ? kInstalled : std::uint64_t{0});
}

void find_all_of_fork() {
  find_all(next_register_atfork);
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
