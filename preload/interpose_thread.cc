// Threads: pthread_create and thrd_create tell the evictor that its list of threads is old, mutexes
// that the kernel itself changes (robust ones, HAZARDS 9, and those with priority inheritance) are
// kept out of eviction, and the calls that the kernel refuses to processes of several threads send
// the agent away first.
#include <fcntl.h>
#include <linux/nsfs.h>
#include <pthread.h>
#include <sched.h>
#include <sys/stat.h>
#include <threads.h>

#include <cerrno>

#include "base/mutation.h"
#include "preload/agent.h"
#include "preload/exclusions.h"
#include "preload/next.h"
#include "preload/request.h"

namespace foldswap::preload {
namespace {

#ifndef CLONE_NEWTIME
constexpr int CLONE_NEWTIME = 0x80;
#endif

constinit Next<int(pthread_t*, const pthread_attr_t*, void* (*)(void*), void*)> next_pthread_create{
    "pthread_create"};
constinit Next<int(thrd_t*, thrd_start_t, void*)> next_thrd_create{"thrd_create"};
constinit Next<int(pthread_mutex_t*, const pthread_mutexattr_t*)> next_pthread_mutex_init{
    "pthread_mutex_init"};
constinit Next<int(int)> next_unshare{"unshare"};
constinit Next<int(int, int)> next_setns{"setns"};

void exclude_mutex(const pthread_mutex_t* mutex) {
  const SignalBlock signals(SignalBlock::Set::asynchronous);
  const auto start = reinterpret_cast<std::uint64_t>(mutex);
  exclude_page(page_floor(start));
  exclude_page(page_floor(start + sizeof(*mutex) - 1));
}

// HAZARDS 9. An eviction planned without the new thread could take the pages around its thread
// block. A plan made before or while `create` runs is void by the count, which changes on both
// sides of it; one executed meanwhile is stopped by the announcement. The same goes for a page that
// is being excluded. Signals stay as they are: the new thread inherits the mask.
template <typename Create>
auto announced(Create create) {
  if (sys::load(library.alive) == nullptr) return create();
  Control* control = live();
  if (control == nullptr) {
    const QuietCall quiet;
    control = live();
    if (control == nullptr) return create();
  }
  const Announcement announcement(*control);
  sys::add(control->mailbox->threads_created, 1);
  const auto result = create();
  sys::add(control->mailbox->threads_created, 1);
  return result;
}

// The kernel changes these itself, and where it finds the page missing it does not wait for us: at
// the end of a thread it passes a robust mutex over, and FUTEX_LOCK_PI and its relatives give
// EFAULT (its fixup_user_fault may not drop the mmap lock there).
bool changed_by_kernel(const pthread_mutexattr_t* attributes) {
  if (attributes == nullptr) return false;
  int robust = PTHREAD_MUTEX_STALLED, protocol = PTHREAD_PRIO_NONE;
  return (pthread_mutexattr_getrobust(attributes, &robust) == 0 &&
          robust == PTHREAD_MUTEX_ROBUST) ||
         (pthread_mutexattr_getprotocol(attributes, &protocol) == 0 &&
          protocol == PTHREAD_PRIO_INHERIT && !mutated(Mutation::inheriting_mutexes));
}

// The program has threads of its own: the kernel will refuse the call, whatever becomes of the
// agent.
bool has_more_threads() {
  struct stat st{};
  constexpr std::uint64_t kDirectoryLinks = 2, kCallerAndAgent = 2;
  return sys::call(SYS_newfstatat, AT_FDCWD, "/proc/self/task", &st, 0) == 0 &&
         st.st_nlink > kDirectoryLinks + kCallerAndAgent;
}

// Everything comes back, the client is released for good, and the agent ends.
// A forked child that is not a client yet becomes one first: what it has inherited is registered,
// and only a client can ask for that to end.
void retire_agent() {
  Control* control = live();
  if (control == nullptr) control = attaching();
  if (control == nullptr || sys::call(SYS_getpid) != control->pid || has_more_threads()) return;
  const RequestLock lock;
  if (attaching() != nullptr) (void)ask_agent(*control, AgentOp::attach);
  const std::uint32_t tid = sys::load(control->tid);
  if (live() == nullptr || tid == 0) return;
  if (!ask_daemon(*control, wire::RequestOp::retire, 0, 0)) return;
  library.nothing_registered = true;
  sys::store(*library.alive, static_cast<std::uint32_t>(Presence::none));
  (void)ask_agent(*control, AgentOp::leave);
  await_agent_exit(*control, tid);
}

constexpr int kUnshareAlone = CLONE_NEWUSER | CLONE_VM | CLONE_SIGHAND | CLONE_THREAD;
constexpr int kSetnsAlone = CLONE_NEWUSER | CLONE_NEWTIME;

// 0 stands for "whatever the descriptor is".
int namespace_kinds(int descriptor, int kinds) {
  if (kinds != 0) return kinds;
  const long kind = sys::call(SYS_ioctl, descriptor, NS_GET_NSTYPE);
  return kind > 0 ? static_cast<int>(kind) : 0;
}

}  // namespace
}  // namespace foldswap::preload

using namespace foldswap::preload;

FOLDSWAP_EXPORT int pthread_create(pthread_t* thread, const pthread_attr_t* attributes,
                                   void* (*start)(void*), void* argument) noexcept {
  return announced([&] { return next_pthread_create(thread, attributes, start, argument); });
}

FOLDSWAP_EXPORT int thrd_create(thrd_t* thread, thrd_start_t start, void* argument) {
  return announced([&] { return next_thrd_create(thread, start, argument); });
}

FOLDSWAP_EXPORT int pthread_mutex_init(pthread_mutex_t* mutex,
                                       const pthread_mutexattr_t* attributes) noexcept {
  if (library.alive == nullptr || !changed_by_kernel(attributes)) {
    return next_pthread_mutex_init(mutex, attributes);
  }
  return announced([&] {
    exclude_mutex(mutex);
    return next_pthread_mutex_init(mutex, attributes);
  });
}

FOLDSWAP_EXPORT int unshare(int flags) noexcept {
  if ((flags & kUnshareAlone) != 0 && library.alive != nullptr) retire_agent();
  return next_unshare(flags);
}

FOLDSWAP_EXPORT int setns(int descriptor, int kinds) noexcept {
  if (library.alive != nullptr && (namespace_kinds(descriptor, kinds) & kSetnsAlone) != 0) {
    retire_agent();
  }
  return next_setns(descriptor, kinds);
}
