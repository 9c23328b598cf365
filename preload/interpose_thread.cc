// Threads: pthread_create and thrd_create tell the evictor that its list of threads is old. Words
// that the kernel itself changes are kept out of eviction from the first call on (HAZARDS 9, 40):
// mutexes that are robust or have priority inheritance, and where clone() has the end of a thread
// told. The calls that the kernel refuses to processes of several threads send the agent away
// first.
#include <fcntl.h>
#include <linux/nsfs.h>
#include <pthread.h>
#include <sched.h>
#include <stdarg.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <threads.h>

#include <cerrno>

#include "base/mutation.h"
#include "preload/exclusions.h"
#include "preload/next.h"
#include "preload/request.h"
#include "preload/retire.h"

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
constinit Next<int(pthread_mutex_t*)> next_pthread_mutex_destroy{"pthread_mutex_destroy"};
constinit Next<int(const pthread_mutexattr_t*, int*)> next_getrobust{"pthread_mutexattr_getrobust"};
constinit Next<int(const pthread_mutexattr_t*, int*)> next_getprotocol{
    "pthread_mutexattr_getprotocol"};
constinit Next<int(int (*)(void*), void*, int, void*, ...)> next_clone{"clone"};
constinit Next<int(int)> next_unshare{"unshare"};
constinit Next<int(int, int)> next_setns{"setns"};

// HAZARDS 9. An eviction planned without the new thread could take the pages around its thread
// block. A plan made before or while `create` runs is void by the count, which changes on both
// sides of it; one executed meanwhile is stopped by the announcement. The same goes for a page that
// is being excluded. Signals stay as they are: the new thread inherits the mask.
template <typename Create>
auto announced(Create create) {
  if (sys::load(library.never) != 0) return create();
  const LiveCall use;
  Control* control = live();
  if (control == nullptr) {
    const QuietCall quiet;
    control = live();
    if (control == nullptr) return create();
  }
  // A signal handler may fork in here, and return in the child, which has none of this any more.
  const Life* const life = sys::load(library.alive);
  Announcement::begin(*control);
  sys::add(control->mailbox->threads_created, 1);
  const auto result = create();
  if (sys::load(library.alive) == life && live() == control) {
    sys::add(control->mailbox->threads_created, 1);
    Announcement::end(*control);
  }
  return result;
}

// The kernel changes these itself, and where it finds the page missing it does not wait for us: at
// the end of a thread it passes a robust mutex over, and FUTEX_LOCK_PI and its relatives give
// EFAULT (its fixup_user_fault may not drop the mmap lock there).
bool changed_by_kernel(const pthread_mutexattr_t* attributes) {
  if (attributes == nullptr) return false;
  int robust = PTHREAD_MUTEX_STALLED, protocol = PTHREAD_PRIO_NONE;
  // Not there: nor are such mutexes.
  auto* const get_robust = next_getrobust.get();
  auto* const get_protocol = next_getprotocol.get();
  return (get_robust != nullptr && get_robust(attributes, &robust) == 0 &&
          robust == PTHREAD_MUTEX_ROBUST) ||
         (get_protocol != nullptr && get_protocol(attributes, &protocol) == 0 &&
          protocol == PTHREAD_PRIO_INHERIT && !mutated(Mutation::inheriting_mutexes));
}

// As libc's. Twice, because whoever goes through the notes meanwhile finds no mutex there yet.
int make_noted(pthread_mutex_t* mutex, const pthread_mutexattr_t* attributes) {
  const auto address = reinterpret_cast<std::uint64_t>(mutex);
  note_mutex(address, false);
  const int result = next_pthread_mutex_init(mutex, attributes);
  if (result == 0) note_mutex(address, true);
  return result;
}

int init_mutex(pthread_mutex_t* mutex, const pthread_mutexattr_t* attributes) {
  if (!changed_by_kernel(attributes) || !notes_matter()) {
    return next_pthread_mutex_init(mutex, attributes);
  }
  const SignalBlock signals(SignalBlock::Set::asynchronous);
  return announced([&] { return make_noted(mutex, attributes); });
}

// glibc's kinds of mutexes that changed_by_kernel() speaks of; one that is destroyed has -1.
constexpr int kKindRobust = 16, kKindInherits = 32;

int destroy_mutex(pthread_mutex_t* mutex) {
  const int kind = mutex->__data.__kind;
  const int result = next_pthread_mutex_destroy(mutex);
  if (result != 0 || kind < 0 || (kind & (kKindRobust | kKindInherits)) == 0 || !notes_matter()) {
    return result;
  }
  const SignalBlock signals(SignalBlock::Set::asynchronous);
  forget_mutex(reinterpret_cast<std::uint64_t>(mutex));
  return result;
}

struct CloneCall {
  int (*function)(void*);
  void* stack;
  int flags;
  void* argument;
  void* parent_word;
  void* tls;
  void* child_word;
};

int clone_asked(const CloneCall& call) {
  return next_clone(call.function, call.stack, call.flags, call.argument, call.parent_word,
                    call.tls, call.child_word);
}

// The kernel clears the word when the thread ends, and does not wait for us then: so it stays, and
// if it is out it comes back before the thread is there.
void bring_word_in(const void* word) {
  const auto address = reinterpret_cast<std::uint64_t>(word);
  const std::uint64_t first = page_floor(address);
  const std::uint64_t end = page_ceil(address + sizeof(std::uint32_t));
  sys::call(SYS_madvise, first, end - first, MADV_POPULATE_READ);
}

std::uint32_t keep_word(const void* word) {
  const SignalBlock signals(SignalBlock::Set::asynchronous);
  const std::uint32_t note = note_word(reinterpret_cast<std::uint64_t>(word));
  bring_word_in(word);
  return note;
}

void settle_word(std::uint32_t note, int result) {
  const SignalBlock signals(SignalBlock::Set::asynchronous);
  if (result > 0) {
    word_owned_by(note, static_cast<std::uint32_t>(result));
  } else {
    forget_word(note);
  }
}

// With CLONE_VFORK the caller stands still until the new one has ended or is another program, and
// nothing may be announced for so long; by then its word is settled, too.
int clone_and_stand_still(const CloneCall& call) {
  const std::uint32_t note = announced([&] { return keep_word(call.child_word); });
  const int result = clone_asked(call);
  settle_word(note, 0);
  return result;
}

int clone_noted(const CloneCall& call) {
  constexpr int kKernelWrites = CLONE_VM | CLONE_CHILD_CLEARTID;
  if ((call.flags & kKernelWrites) != kKernelWrites || call.child_word == nullptr) {
    return clone_asked(call);
  }
  if (!notes_matter()) {
    // Nothing of an orphan is taken out, but what it has inherited may be out.
    if (orphaned()) bring_word_in(call.child_word);
    return clone_asked(call);
  }
  if ((call.flags & CLONE_VFORK) != 0) return clone_and_stand_still(call);
  return announced([&] {
    const std::uint32_t note = keep_word(call.child_word);
    const int result = clone_asked(call);
    settle_word(note, result);
    return result;
  });
}

// libc's takes whatever lies where the last three would be, too.
int clone_listed(int (*function)(void*), void* stack, int flags, void* argument, va_list rest) {
  void* const parent_word = va_arg(rest, void*);
  void* const tls = va_arg(rest, void*);
  void* const child_word = va_arg(rest, void*);
  return clone_noted({function, stack, flags, argument, parent_word, tls, child_word});
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

void find_all_of_thread() {
  find_all(next_pthread_create, next_thrd_create, next_pthread_mutex_init,
           next_pthread_mutex_destroy, next_getrobust, next_getprotocol, next_clone, next_unshare,
           next_setns);
}

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
  return init_mutex(mutex, attributes);
}

// NOLINTNEXTLINE(bugprone-reserved-identifier): the C library's name, which is interposed
FOLDSWAP_EXPORT int __pthread_mutex_init(pthread_mutex_t* mutex,
                                         const pthread_mutexattr_t* attributes) noexcept {
  return init_mutex(mutex, attributes);
}

FOLDSWAP_EXPORT int pthread_mutex_destroy(pthread_mutex_t* mutex) noexcept {
  return destroy_mutex(mutex);
}

// NOLINTNEXTLINE(bugprone-reserved-identifier): the C library's name, which is interposed
FOLDSWAP_EXPORT int __pthread_mutex_destroy(pthread_mutex_t* mutex) noexcept {
  return destroy_mutex(mutex);
}

FOLDSWAP_EXPORT int clone(int (*function)(void*), void* stack, int flags, void* argument,
                          ...) noexcept {
  va_list rest;
  va_start(rest, argument);
  const int result = clone_listed(function, stack, flags, argument, rest);
  va_end(rest);
  return result;
}

// NOLINTNEXTLINE(bugprone-reserved-identifier): the C library's name, which is interposed
FOLDSWAP_EXPORT int __clone(int (*function)(void*), void* stack, int flags, void* argument,
                            ...) noexcept {
  va_list rest;
  va_start(rest, argument);
  const int result = clone_listed(function, stack, flags, argument, rest);
  va_end(rest);
  return result;
}

FOLDSWAP_EXPORT int unshare(int flags) noexcept {
  if (inert() || flags == 0) return next_unshare(flags);
  const WithoutAgent without((flags & kUnshareAlone) != 0);
  return next_unshare(flags);
}

FOLDSWAP_EXPORT int setns(int descriptor, int kinds) noexcept {
  if (inert()) return next_setns(descriptor, kinds);
  const WithoutAgent without(live() != nullptr &&
                             (namespace_kinds(descriptor, kinds) & kSetnsAlone) != 0);
  return next_setns(descriptor, kinds);
}
