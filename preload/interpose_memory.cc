// mremap, realloc, reallocarray, madvise, shmat, ioctl: calls that go wrong over ranges which are
// partly registered, or that discard pages without an event (HAZARDS 12, 13). mlock and its
// relatives only tell that something may be locked. Each announces itself, has the daemon bring its
// range to one state, and only then calls the real function. In a process that is no client, and
// never was, none makes a system call of its own (QuietCall). None does more than the kernel itself
// would: what the kernel refuses at once is its own business, and what was never registered is left
// alone.
#include <linux/userfaultfd.h>
#include <malloc.h>
#include <stdarg.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/shm.h>
#include <sys/uio.h>

#include <algorithm>
#include <cerrno>

#include "base/mutation.h"
#include "base/uapi.h"
#include "preload/hidden.h"
#include "preload/next.h"
#include "preload/registered.h"
#include "preload/remap_fallback.h"
#include "preload/request.h"

namespace foldswap::preload {
namespace {

constinit Next<void*(void*, std::size_t, std::size_t, int, ...)> next_mremap{"mremap"};
constinit Next<void*(void*, std::size_t)> next_realloc{"realloc"};
constinit Next<int(void*, std::size_t, int)> next_madvise{"madvise"};

constinit Next<void*(int, const void*, int)> next_shmat{"shmat"};

constinit Next<int(int, unsigned long, void*)> next_ioctl{"ioctl"};

constinit Next<int(const void*, std::size_t)> next_mlock{"mlock"};
constinit Next<int(const void*, std::size_t, unsigned)> next_mlock2{"mlock2"};
constinit Next<int(int)> next_mlockall{"mlockall"};

constexpr std::uint32_t kGrowthTurns = 1'500;  // some seconds

// The kernel ages no locked page. (EINVAL means a few other things as well, none of them ours.)
bool page_locked(std::uint64_t page) {
  return sys::call(SYS_madvise, page, kPage, MADV_COLD) == -EINVAL;
}

// A range that is about to be moved or resized, brought into one state (HAZARDS 13) for as long as
// this lives. Growing locked memory is a trap: mremap fills the new part before it tells of the
// move, and while it has not told nothing can be filled. So what is locked and grows is brought
// back and unregistered. It may become locked while we wait for the daemon; so we look after that,
// and mlock waits for growth to end.
class Resizing {
 public:
  Resizing(Control& control, std::uint64_t start, std::size_t old_bytes, std::size_t new_bytes)
      : control_(control), start_(start), bytes_(old_bytes), grows_(new_bytes > old_bytes) {
    if (grows_) sys::add(control_.growing, 1);
  }
  Resizing(const Resizing&) = delete;
  Resizing& operator=(const Resizing&) = delete;
  ~Resizing() {
    if (grows_) sys::add(control_.growing, ~0U);
  }

  // False: nobody answers.
  [[nodiscard]] bool prepare(LayoutSection& section) {
    if (!section.prepare(wire::RequestOp::unify, start_, bytes_)) return false;
    return !may_be_locked() || section.prepare(wire::RequestOp::release, start_, bytes_);
  }

 private:
  [[nodiscard]] bool may_be_locked() const {
    if (!grows_ || bytes_ == 0 || sys::load(control_.mailbox->registered) == 0) return false;
    return sys::load(control_.locking) != 0 || page_locked(page_floor(start_)) ||
           page_locked(page_floor(start_ + bytes_ - 1));
  }

  Control& control_;
  const std::uint64_t start_;
  const std::size_t bytes_;
  const bool grows_;
};

// mlock and its relatives, in a client: not while something grows. The wait has an end in case who
// raised the count is no more (a vfork child killed half-way).
template <typename Call>
int lock_memory(Call call) {
  const LiveCall use;
  if (live() == nullptr) {
    const QuietCall quiet;
    if (live() == nullptr) return call(nullptr);
  }
  const SignalBlock signals(SignalBlock::Set::asynchronous);
  Control* const control = library.control;
  sys::add(control->locking, 1);
  sys::Backoff backoff;
  while (sys::load(control->growing) != 0 && backoff.turns() < kGrowthTurns) backoff.next();
  const int result = call(control);
  sys::add(control->locking, ~0U);
  return result;
}

// As the program asked.
void* remap_asked(Control* control, const RemapCall& call, void* target) {
  void* const moved = next_mremap(call.address, call.old_bytes, call.new_bytes, call.flags, target);
  if (moved != MAP_FAILED) {
    follow_hidden(control, reinterpret_cast<std::uint64_t>(call.address), call.old_bytes,
                  reinterpret_cast<std::uint64_t>(moved), call.new_bytes);
  }
  return moved;
}

// By copying where the kernel would fail half-way, else as the program asked.
void* remap_orphan(Control* control, const RemapCall& call, void* target) {
  void* moved = nullptr;
  int error = 0;
  if (!remap_by_copy(call, target, moved, error)) return remap_asked(control, call, target);
  if (error != 0) errno = error;
  return moved;
}

// as_client() in a process that was no client a moment ago.
template <typename With, typename Without>
auto quietly(With with, Without without) {
  Control* control = nullptr;
  {
    const QuietCall quiet;
    control = live();
    if (control == nullptr) return without();
  }
  return with(*control);
}

// Runs `with(control)` in a client, `without()` in a process that is none (any more, or yet).
template <typename With, typename Without>
auto as_client(With with, Without without) {
  const LiveCall use;
  Control* control = live();
  if (control != nullptr) return with(*control);
  if (orphaned()) {
    // What it has inherited is registered, and only a client can ask for that to change.
    const SignalBlock signals(SignalBlock::Set::asynchronous);
    control = live_or_attached();
    return control != nullptr ? with(*control) : quietly(with, without);
  }
  return quietly(with, without);
}

void* remap_plain(const RemapCall& call, void* target) {
  return orphaned() ? remap_orphan(nullptr, call, target) : remap_asked(nullptr, call, target);
}

// What the kernel refuses at once, or by a look at the end of the range: nobody needs to do
// anything for it.
bool remap_refused(const RemapCall& call) {
  const auto start = reinterpret_cast<std::uint64_t>(call.address);
  const std::uint64_t bytes = page_ceil(call.old_bytes);
  if (start % kPage != 0 || call.new_bytes == 0 || bytes < call.old_bytes || start >= kAddressEnd ||
      bytes > kAddressEnd - start) {
    return true;
  }
  // Since 6.17 a move of several mappings passes over holes.
  const bool plain_move = (call.flags & MREMAP_FIXED) != 0 && call.old_bytes == call.new_bytes;
  constexpr std::uint64_t kAbsurd = 64ULL << 30;
  unsigned char unused = 0;
  return bytes >= kAbsurd && !plain_move && call.new_bytes >= call.old_bytes &&
         sys::call(SYS_mincore, start + bytes - kPage, kPage, &unused) == -ENOMEM;
}

void* remap_client(Control& control, const RemapCall& call, void* target) {
  LayoutSection section(control);
  if (mutated(Mutation::h13_unify_first)) return remap_asked(&control, call, target);
  const auto start = reinterpret_cast<std::uint64_t>(call.address);
  Resizing resizing(control, start, call.old_bytes, call.new_bytes);
  if (!resizing.prepare(section)) return remap_orphan(&control, call, target);
  // Since 6.17 several mappings can be moved as they are with one call, but not registered ones: of
  // those the first would move, and then the call fails.
  const bool plain_move = (call.flags & MREMAP_FIXED) != 0 && call.old_bytes == call.new_bytes;
  if (plain_move && sys::load(control.mailbox->registered) != 0 &&
      several_vmas(start, call.old_bytes)) {
    (void)section.prepare(wire::RequestOp::release, start, call.old_bytes);
  }
  return remap_asked(&control, call, target);
}

// glibc's malloc chunk: two words before the pointer, {previous size, size | flags}. A chunk that
// was mapped by itself begins `previous size` before that, and realloc mremaps it by a call that
// cannot be interposed.
struct Chunk {
  std::size_t previous;
  std::size_t size;
};
constexpr std::size_t kChunkFlags = 7;
constexpr std::size_t kChunkMapped = 2;

const Chunk& chunk_of(const void* pointer) {
  return static_cast<const Chunk*>(pointer)[-1];
}

void* realloc_by_copy(void* pointer, std::size_t bytes) {
  const std::size_t usable = (chunk_of(pointer).size & ~kChunkFlags) - sizeof(Chunk);
  void* const moved = malloc(bytes);
  if (moved == nullptr) return nullptr;
  sys::copy_bytes(moved, pointer, usable < bytes ? usable : bytes);
  free(pointer);
  return moved;
}

// A chunk that was mapped by itself: the whole of it.
wire::Range mapping_of(const void* pointer) {
  const Chunk& chunk = chunk_of(pointer);
  return {reinterpret_cast<std::uint64_t>(&chunk) - chunk.previous,
          chunk.previous + (chunk.size & ~kChunkFlags)};
}

// As the program asked.
void* realloc_asked(Control* control, void* pointer, std::size_t bytes) {
  const wire::Range before = mapping_of(pointer);
  void* const moved = next_realloc(pointer, bytes);
  if (moved != nullptr && (chunk_of(moved).size & kChunkMapped) != 0) {
    const wire::Range after = mapping_of(moved);
    follow_hidden(control, before.start, before.bytes, after.start, after.bytes);
  }
  return moved;
}

void* realloc_orphan(Control* control, void* pointer, std::size_t bytes) {
  const wire::Range chunk = mapping_of(pointer);
  int protection = 0;
  return spans_vmas(chunk.start, chunk.bytes, protection) ? realloc_by_copy(pointer, bytes)
                                                          : realloc_asked(control, pointer, bytes);
}

void* realloc_mapped(void* pointer, std::size_t bytes) {
  const wire::Range chunk = mapping_of(pointer);
  return as_client(
      [&](Control& control) {
        LayoutSection section(control);
        Resizing resizing(control, chunk.start, chunk.bytes, bytes + sizeof(Chunk));
        return resizing.prepare(section) ? realloc_asked(&control, pointer, bytes)
                                         : realloc_orphan(&control, pointer, bytes);
      },
      [&] {
        return orphaned() ? realloc_orphan(nullptr, pointer, bytes)
                          : realloc_asked(nullptr, pointer, bytes);
      });
}

bool hides(int advice) {
  return advice == MADV_DONTFORK || advice == MADV_WIPEONFORK;
}

// Advice that takes pages away, or hides them from us, without an event.
bool silent_advice(int advice) {
  return hides(advice) || advice == uapi::kMadvGuardInstall || advice == uapi::kMadvGuardRemove;
}

// The pages that the kernel would apply advice to; none: it refuses at once, or does nothing.
wire::Range advised_range(std::uint64_t start, std::uint64_t asked) {
  const std::uint64_t bytes = page_ceil(asked);
  const bool refused = start % kPage != 0 || bytes < asked || start + bytes < start;
  if (refused || start >= kAddressEnd) return {};
  return {start, std::min(bytes, kAddressEnd - start)};
}

constexpr long kPatienceMs = 20, kMostPatienceMs = 1'000'000;

// Calls `call(control)`, with the control page of a client or null, when nothing of the range is
// out or registered: it takes pages away, or hides them, without an event. Signals are blocked
// during the call, but come through while a long range is on its way back; each such interruption
// is given more time than the one before, so that there is an end. Where nobody serves requests any
// more faults are still served: what may be out is read in.
template <typename FindRange, typename Call>
auto with_released(FindRange find_range, Call call) {
  const LiveCall use;
  if (live() == nullptr && !orphaned()) {
    const QuietCall quiet;
    if (live() == nullptr) return call(nullptr);
  }
  const wire::Range range = find_range();
  if (range.bytes == 0) return call(nullptr);
  bool read_in = false;
  for (long patience_ms = kPatienceMs;; patience_ms = std::min(2 * patience_ms, kMostPatienceMs)) {
    {
      const SignalBlock signals(SignalBlock::Set::asynchronous);
      Control* control = live();
      // What it has inherited is registered, and only a client can ask for that to change.
      if (control == nullptr && orphaned()) control = live_or_attached();
      if (control != nullptr) {
        LayoutSection section(*control);
        const Released released =
            mutated(Mutation::h12_release_first)
                ? Released::all
                : section.release(range.start, range.bytes, signals, patience_ms);
        if (released == Released::given_up) continue;
        if (released == Released::all || read_in) return call(control);
      } else {
        const QuietCall quiet;
        if (live() != nullptr) continue;
        if (read_in || !orphaned()) return call(nullptr);
      }
    }
    bring_in(range.start, range.start + range.bytes);
    read_in = true;
  }
}

int advise_silently(void* address, std::size_t bytes, int advice) {
  const wire::Range range = advised_range(reinterpret_cast<std::uint64_t>(address), bytes);
  if (range.bytes == 0) return next_madvise(address, bytes, advice);
  if (hides(advice)) note_hidden(range.start, range.bytes);
  const auto found = [&] { return range; };
  return with_released(found, [&](Control* control) {
    const int result = next_madvise(address, bytes, advice);
    if (control != nullptr && hides(advice) && !mutated(Mutation::h12_fresh_mappings)) {
      look_anew(*control);
    }
    return result;
  });
}

// Where a segment of System V shared memory will replace other mappings, of which no event tells.
// None: it will not, or the kernel refuses.
wire::Range attached_range(int segment, const void* address, int flags) {
  auto start = reinterpret_cast<std::uint64_t>(address);
  if ((flags & SHM_RND) != 0) start = page_floor(start);
  shmid_ds about{};
  if (start == 0 || sys::call(SYS_shmctl, segment, IPC_STAT, &about) != 0) return {};
  // Of huge pages the kernel maps whole ones.
  const std::uint64_t bytes = about.shm_segsz + wire::kExtentBytes - 1;
  return advised_range(start, bytes - bytes % wire::kExtentBytes);
}

void* attach_over(int segment, const void* address, int flags) {
  const auto find_range = [&] { return attached_range(segment, address, flags); };
  return with_released(find_range, [&](Control* control) {
    void* const attached = next_shmat(segment, address, flags);
    if (control != nullptr) look_anew(*control);
    return attached;
  });
}

// What the program wants to register. Read by a call that fails where its own would: then, none.
wire::Range wanted_range(void* argument) {
  uffdio_register wanted{};
  const iovec to{&wanted, sizeof(wanted)};
  const iovec from{argument, sizeof(wanted)};
  const long got = sys::call(SYS_process_vm_readv, sys::call(SYS_getpid), &to, 1, &from, 1, 0);
  if (got != static_cast<long>(sizeof(wanted))) return {};
  return advised_range(wanted.range.start, wanted.range.len);
}

// The program registers memory with a userfaultfd of its own, which the kernel refuses while it is
// registered with ours.
int register_own(int descriptor, void* argument) {
  const auto find_range = [&] { return wanted_range(argument); };
  return with_released(find_range, [&](Control* control) {
    const int result = next_ioctl(descriptor, UFFDIO_REGISTER, argument);
    if (control != nullptr) look_anew(*control);
    return result;
  });
}

// HAZARDS 21: it locks staging along with everything else, and between locked ranges MOVE moves. So
// it must not come between the agent's look at staging and its MOVE.
int lock_everything(Control* control, int flags) {
  if (control == nullptr || mutated(Mutation::h21_announce)) return next_mlockall(flags);
  const LayoutSection section(*control);
  return next_mlockall(flags);
}

}  // namespace

void find_all_of_memory() {
  find_all(next_mremap, next_realloc, next_madvise, next_shmat, next_ioctl, next_mlock, next_mlock2,
           next_mlockall);
}

}  // namespace foldswap::preload

using namespace foldswap::preload;

FOLDSWAP_EXPORT void* mremap(void* address, size_t old_bytes, size_t new_bytes, int flags,
                             ...) noexcept {
  void* target = nullptr;
  if ((flags & (MREMAP_FIXED | MREMAP_DONTUNMAP)) != 0) {
    va_list rest;
    va_start(rest, flags);
    target = va_arg(rest, void*);
    va_end(rest);
  }
  if (inert()) return next_mremap(address, old_bytes, new_bytes, flags, target);
  const RemapCall call{address, old_bytes, new_bytes, flags};
  if (library.alive != nullptr && remap_refused(call))
    return next_mremap(address, old_bytes, new_bytes, flags, target);
  return as_client([&](Control& control) { return remap_client(control, call, target); },
                   [&] { return remap_plain(call, target); });
}

FOLDSWAP_EXPORT void* realloc(void* pointer, size_t bytes) noexcept {
  if (!library.glibc_realloc || pointer == nullptr || bytes == 0 ||
      (chunk_of(pointer).size & kChunkMapped) == 0) {
    return next_realloc(pointer, bytes);
  }
  return realloc_mapped(pointer, bytes);
}

FOLDSWAP_EXPORT void* reallocarray(void* pointer, size_t count, size_t bytes) noexcept {
  std::size_t total = 0;
  if (__builtin_mul_overflow(count, bytes, &total)) {
    errno = ENOMEM;
    return nullptr;
  }
  return realloc(pointer, total);
}

FOLDSWAP_EXPORT int mlock(const void* address, size_t bytes) noexcept {
  return lock_memory([&](Control*) { return next_mlock(address, bytes); });
}

FOLDSWAP_EXPORT int mlock2(const void* address, size_t bytes, unsigned flags) noexcept {
  return lock_memory([&](Control*) { return next_mlock2(address, bytes, flags); });
}

FOLDSWAP_EXPORT int mlockall(int flags) noexcept {
  return lock_memory([&](Control* control) { return lock_everything(control, flags); });
}

FOLDSWAP_EXPORT int madvise(void* address, size_t bytes, int advice) noexcept {
  return silent_advice(advice) ? advise_silently(address, bytes, advice)
                               : next_madvise(address, bytes, advice);
}

FOLDSWAP_EXPORT int ioctl(int descriptor, unsigned long request, ...) noexcept {
  va_list rest;
  va_start(rest, request);
  void* const argument = va_arg(rest, void*);
  va_end(rest);
  if (request != UFFDIO_REGISTER || inert()) return next_ioctl(descriptor, request, argument);
  return register_own(descriptor, argument);
}

FOLDSWAP_EXPORT void* shmat(int segment, const void* address, int flags) noexcept {
  if (inert() || (flags & SHM_REMAP) == 0) {
    return next_shmat(segment, address, flags);
  }
  return attach_over(segment, address, flags);
}
