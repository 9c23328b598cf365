#include "preload/fork.h"

#include <pthread.h>

#include <cerrno>

#include "preload/handshake.h"
#include "preload/request.h"
#include "preload/state.h"

namespace foldswap::preload {
namespace {

constexpr long kChildLimitMs = 250;

// Nothing of a request is half made in the child, and no other fork runs between fork_seq and the
// event. What is noted in `library` belongs to the fork that holds the lock: glibc calls the
// handlers of forks in several threads side by side.
void prepare() {
  RequestLock::acquire();
  Control* const control = live();
  library.fork_of_client = control != nullptr;
  if (control == nullptr) return;
  library.fork_seq = sys::add(control->mailbox->fork_seq, 1);
  library.nothing_registered = sys::load(control->mailbox->registered) == 0;
}

void parent() {
  if (library.fork_of_client) {
    library.fork_of_client = false;
    // Holds for that child only, not for one by raw clone() later.
    library.nothing_registered = false;
  }
  RequestLock::release();
}

// Errors change nothing: the child is served all the same, the daemon only knows less about it.
// Waiting for the answer keeps the child from becoming another program before the daemon has looked
// at it.
void introduce_child() {
  Reason unused;
  Greeting greeting;
  if (!greet(library.socket_path, kChildLimitMs, greeting, unused)) return;
  for (UniqueFd& fd : greeting.fds) fd.reset();
  wire::Hello hello = make_hello(wire::HelloKind::child);
  hello.fork_seq = library.fork_seq;
  hello.parent_id = library.client_id;
  (void)introduce(greeting, hello, -1, kChildLimitMs, unused);
}

// Mailbox, transfer area, staging and Control are not mapped here: live() is null from now on.
void child() {
  sys::store(library.request_lock, 0U);
  if (!library.fork_of_client) return;  // a client's grandchild: what its parent knew still holds
  library.fork_of_client = false;
  if (library.nothing_registered) return;
  const int saved = errno;
  introduce_child();
  errno = saved;
}

}  // namespace

void install_fork_handlers() {
  pthread_atfork(prepare, parent, child);
}

}  // namespace foldswap::preload
