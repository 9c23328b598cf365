// What the library knows. Two parts, because two kinds of thread use it:
//   Control  everything the agent touches: in the private area, locked, never evicted, absent from
//   fork children
//            (MADV_DONTFORK). HAZARDS 14: the agent must not fault on memory that the daemon
//            serves.
//   Library  the program's threads' part, in the library's own data.
//
// Being alive: Library::alive points to a word (Presence) on a MADV_WIPEONFORK page (Life). It is
// `live` while this process is a client with an agent, and the kernel makes it `none` in every kind
// of fork child, raw clone() included, where Control, mailbox, transfer area and staging are not
// mapped. So every use of them starts with live(). A child of fork() gets a Control and an agent of
// its own at once, but becomes a client only a moment later (child.h): until then it is
// `attaching`. Thread safety: words marked (atomic) through syscalls.h; the rest is constant once
// the process is live.
#pragma once

#include <sys/types.h>

#include <cstddef>
#include <cstdint>

#include "base/wire.h"
#include "preload/syscalls.h"

namespace foldswap::preload {

enum class Presence : std::uint32_t { none = 0, live = 1, attaching = 2 };

// What the program's threads ask of the agent, in process. One at a time, under the request lock.
enum class AgentOp : std::uint32_t {
  none = 0,
  credentials = 1,  // become what Control::credentials says, or exit
  leave = 2,        // exit
  rights = 4,       // give up what the leader does not have, or exit (rights.h)
  retire = 5,       // exit, and unmap what it has brought; Library::leaving says when it is gone
  attach = 3,       // of a forked child: become a client now (answered when that is settled)
};

struct Credentials {
  std::uint32_t uid[3];  // real, effective, saved
  std::uint32_t gid[3];
  std::uint32_t ngroups;
  const std::uint32_t* groups;  // the asking thread's; valid until answered
};

enum class AgentStart : std::uint32_t { pending = 0, running = 1, failed = 2 };

struct Control {
  // Constant once the process is live. `mailbox` is null until then in a forked child (atomic).
  wire::Mailbox* mailbox;
  std::byte* staging;
  std::byte* transfer;
  int uffd;      // numbers in the agent's descriptor table
  int lifeline;  // likewise
  pid_t pid;
  wire::Range own[wire::kOwnRanges];
  std::uint64_t tls[16];  // the agent's thread block: self pointer where the ABI wants it, else 0

  // (atomic) Kernel thread id of the agent; the kernel zeroes it when the agent has gone.
  std::uint32_t tid;
  std::uint32_t start;  // (atomic) AgentStart, futex
  std::uint32_t start_errno;

  // The asker writes op and its data, then asked; the agent answers by answered = asked.
  std::uint32_t op;        // AgentOp
  std::uint32_t asked;     // (atomic)
  std::uint32_t answered;  // (atomic) futex
  Credentials credentials;

  // (atomic) 1: the agent had to stop for announced calls too often. Whoever begins one lets it do
  // one command first, or loses patience and lowers this again.
  std::uint32_t agent_waits;
  std::uint32_t announced;  // (atomic) announced calls begun

  // (atomic) Calls under way that make registered memory grow, and that lock memory: a lock waits
  // for growth to end, and growth that finds a lock under way takes the careful way.
  std::uint32_t growing, locking;

  // The agent's own.
  std::uint64_t leader_robust_list;        // of the thread group leader at start; 0: unknown
  std::uint32_t cpu;                       // pinned to, ~0: not pinned
  std::uint32_t affinity_bytes;            // of `affinity`, 0: unknown
  std::uint64_t affinity[16];              // CPUs the agent may use when a command names none
  std::uint32_t in_vain;                   // commands in a row that calls kept from moving anything
  std::uint32_t announced_seen;            // Control::announced at the end of the last command
  int pagemap;                             // descriptor of the page map, plus 1; 0: not open
  bool half_armed[wire::kHalves];          // staging half is registered
  std::uint8_t results[wire::kHalfPages];  // of the command being executed (wire::PageResult)
};

// The private area: [alive page][guard page][agent's stack][Control].
inline constexpr std::size_t kPage = wire::kPageBytes;
inline constexpr std::uint64_t kAddressEnd = 1ULL << 47;  // no client has anything registered above
inline constexpr std::size_t kStackBytes = 4 * kPage;
inline constexpr std::size_t kPrivateBytes = 2 * kPage + kStackBytes + kPage;
static_assert(sizeof(Control) <= kPage);

// On the MADV_WIPEONFORK page: what the kernel itself takes from every kind of fork child, so that
// none waits for a lock that a thread of its parent held. (A vfork child shares it, and waits.)
struct Life {
  std::uint32_t presence;      // (atomic) Presence
  std::uint32_t request_lock;  // (atomic) see request.h
  std::uint32_t notes_lock;    // (atomic) see exclusions.h
};

struct Library {
  Life* alive;          // (atomic) null: never was a client
  std::uint32_t never;  // (atomic) 1: the constructor has decided that this will be no client
  Control* control;     // may be touched only while live() or attaching() answers it
  std::uint64_t client_id;
  std::uint32_t quiet_calls;  // (atomic) see QuietCall in request.h
  std::uint32_t ready;        // (atomic) 1: what an agent needs to know is here
  std::uint32_t live_calls;   // (atomic) see LiveCall in request.h
  std::uint32_t leaving;      // (atomic) thread id of an agent that is about to end; 0: none
  std::uint32_t
      arriving;         // (atomic) process id for which an agent is on its way (arrival.h); 0: none
  std::uint32_t forks;  // (atomic) from the first process of all to this one
  // Of the fork under way; written by the thread that holds the lock of the notes (exclusions.h).
  std::uint64_t forker;     // (atomic) pthread_self() of that thread, which its child inherits
  std::uint64_t fork_mask;  // its signal mask before the fork
  std::uint32_t fork_seq;   // Mailbox::fork_seq, for the child
  bool fork_of_client;
  bool fork_took_lock;      // the request lock was not its own already
  bool nothing_registered;  // in a process that is no client (any more): no userfaultfd range can
                            // be left
  bool comes_late;          // its agent comes when the daemon wants one, and so do its children's
  bool glibc_realloc;       // the next realloc is glibc's: chunk headers can be read
  wire::Range own_data;     // the library's own, never to be evicted
  std::uint64_t hidden_from = ~0ULL, hidden_to = 0;  // (atomic) see hidden.h
  wire::Hello identity;  // what the process said when it registered, for its children to repeat
  char socket_path[108];
};

// NOLINTNEXTLINE(bugprone-dynamic-static-initializers): constinit says that it is not
extern constinit Library library;

[[nodiscard]] inline Presence presence() {
  const Life* const alive = sys::load(library.alive);
  return alive == nullptr ? Presence::none : static_cast<Presence>(sys::load(alive->presence));
}

// The control page while this process is a client with an agent, else null.
[[nodiscard]] inline Control* live() {
  return presence() == Presence::live ? library.control : nullptr;
}

// The control page while this process is a forked child whose agent has not made it a client yet,
// else null.
[[nodiscard]] inline Control* attaching() {
  return presence() == Presence::attaching ? library.control : nullptr;
}

// This will never be a client, and was none.
[[nodiscard]] inline bool inert() {
  return sys::load(library.never) != 0 && sys::load(library.alive) == nullptr;
}

// This process descends from a client (or its client was retired) and may have ranges registered
// that nobody can unify any more.
[[nodiscard]] inline bool orphaned() {
  return sys::load(library.alive) != nullptr && live() == nullptr && !library.nothing_registered;
}

[[nodiscard]] inline std::uint64_t page_floor(std::uint64_t address) {
  return address & ~(wire::kPageBytes - 1);
}
[[nodiscard]] inline std::uint64_t page_ceil(std::uint64_t address) {
  return page_floor(address + wire::kPageBytes - 1);
}

}  // namespace foldswap::preload
