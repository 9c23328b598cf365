// What daemon and clients say to each other: the handshake messages on client.sock
// (SOCK_SEQPACKET), and the mailbox, one small shared mapping per client. Both sides may be hostile
// to the other only in one direction: the daemon trusts nothing in here. It reads every field once,
// and checks it.
//
// Handshake (DESIGN §4). The daemon speaks first, so it never has to receive from a stranger:
//   daemon -> client  Welcome + 3 descriptors (kWelcomeFds), or Refused
//   client -> daemon  Hello; received by the vetting helper. A fresh process (register_client)
//   sends
//                     its userfaultfd with it; a forked child sends none
//   daemon -> client  Ready, or Refused. For a forked child Ready comes with the userfaultfd that
//                     its FORK event brought; with client_id 0 and none when there was no such
//                     event: then the child says Hello again, as a fresh process
// Afterwards the socket is the lifeline: nothing is sent on it, HUP means "no agent".
//
// Layout of the mailbox memfd: one struct Mailbox. Transfer memfd: kHalves halves of kHalfBytes;
// slot i of half h lies at (h * kHalfPages + i) * kPageBytes and belongs to the i-th page of that
// half's command.
//
// Thread safety: words marked (shared) are accessed with std::atomic_ref or the __atomic built-ins
// on both sides; the rest of a Command belongs to the side that its `state` word names. Versioning:
// any change of layout or meaning raises kProtocolVersion; both sides refuse another version.
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/page.h"

namespace foldswap::wire {

inline constexpr std::uint32_t kMagic = 0x50575346;  // "FSWP"
inline constexpr std::uint32_t kProtocolVersion = 2;

using foldswap::kPageBytes;
inline constexpr std::uint64_t kExtentBytes = 2ULL << 20;
inline constexpr std::uint64_t kExtentPages = kExtentBytes / kPageBytes;  // 512

// Staging and transfer area: two halves of one extent each.
inline constexpr std::uint32_t kHalves = 2;
inline constexpr std::uint32_t kHalfPages = 512;
inline constexpr std::uint64_t kHalfBytes = kHalfPages * kPageBytes;
inline constexpr std::uint64_t kStagingBytes = kHalves * kHalfBytes;
inline constexpr std::uint64_t kTransferBytes = kStagingBytes;

inline constexpr std::size_t kNameBytes = 64;     // with the terminating NUL
inline constexpr std::size_t kReasonBytes = 160;  // likewise
inline constexpr std::uint32_t kOwnRanges = 4;

// ---- handshake
// -------------------------------------------------------------------------------------------

enum class MessageType : std::uint32_t { welcome = 1, refused = 2, hello = 3, ready = 4 };

struct MessageHeader {
  std::uint32_t magic;    // kMagic
  std::uint32_t version;  // kProtocolVersion
  std::uint32_t type;     // MessageType
  std::uint32_t bytes;    // of the whole message, header included
};
static_assert(sizeof(MessageHeader) == 16);

// Capability words: bits that a side understands beyond the base protocol. None is defined yet;
// unknown bits are ignored.
inline constexpr std::uint64_t kCapabilities = 0;

// Order of the descriptors that come with Welcome.
inline constexpr std::uint32_t kWelcomeFds = 3;
enum WelcomeFd : std::uint32_t { kFdUserfaultDevice = 0, kFdMailbox = 1, kFdTransfer = 2 };

struct Welcome {
  MessageHeader header;
  std::uint64_t client_id;
  std::uint64_t capabilities;
  std::uint64_t mailbox_bytes;
  std::uint64_t transfer_bytes;
};
static_assert(sizeof(Welcome) == 48);

struct Refused {
  MessageHeader header;
  char reason[kReasonBytes];  // NUL-terminated, one sentence
};
static_assert(sizeof(Refused) == 176);

enum class HelloKind : std::uint32_t {
  register_client = 1,  // a fresh process; one descriptor: its userfaultfd
  child = 2,            // the agent of a forked child: which FORK event was it? No descriptor
  reconnect = 3,        // an agent that lost its daemon; reserved, refused in version 2
};

struct Range {
  std::uint64_t start;
  std::uint64_t bytes;
};
static_assert(sizeof(Range) == 16);

inline constexpr std::uint64_t kNoLimit = ~std::uint64_t{0};

struct Hello {
  MessageHeader header;
  std::uint32_t kind;       // HelloKind
  std::uint32_t fork_seq;   // child: Mailbox::fork_seq while it was forked (odd)
  std::uint64_t parent_id;  // child: the parent's client_id. register_client: whose child this is,
                            // when its budget is to be the parent's; else 0
  std::uint64_t capabilities;
  std::uint64_t staging;             // address, kExtentBytes-aligned, kStagingBytes long
  std::uint64_t resident_max_bytes;  // kNoLimit: none
  std::uint64_t group_max_bytes;     // kNoLimit: none
  Range own[kOwnRanges];  // never to be evicted: the library's data, the agent's stack (0: unused)
  char name[kNameBytes];
  char group[kNameBytes];  // who shares group_max_bytes; empty: nobody
};
static_assert(sizeof(Hello) == 16 + 8 + 5 * 8 + kOwnRanges * 16 + 2 * kNameBytes);

struct Ready {
  MessageHeader header;
  std::uint64_t client_id;  // 0: a forked child of which there was no event
};
static_assert(sizeof(Ready) == 24);

// ---- mailbox
// ---------------------------------------------------------------------------------------------

// The layout lock (rank 0): a word that is 0 when free, else (incarnation << 2) | side.
// Whoever reads the userfaultfd (daemon) and whoever changes pages (agent) holds it. See DESIGN §5.
enum LayoutSide : std::uint32_t { kLayoutFree = 0, kLayoutDaemon = 1, kLayoutAgent = 2 };

enum class CommandState : std::uint32_t {
  idle = 0,    // belongs to the daemon
  posted = 1,  // belongs to the agent
  done = 2,  // belongs to the daemon again; results are valid, moved pages lie in the transfer area
};

struct Run {
  std::uint64_t start;  // page-aligned address
  std::uint32_t pages;
  std::uint32_t reg;  // index into Command::regs of the range to REGISTER before this run moves
};
static_assert(sizeof(Run) == 16);

inline constexpr std::uint32_t kMaxRuns = kHalfPages;
inline constexpr std::uint32_t kMaxRegs = 64;

// Why a page of a command stayed where it was (Command::result, one byte a page).
enum class PageResult : std::uint8_t {
  not_tried = 0,  // the command was aborted before its turn
  moved = 1,
  pinned = 2,   // EBUSY, and nobody else maps it: something holds a reference
  hole = 3,     // ENOENT: nothing there (any more)
  refused = 4,  // any other error: locked, not registrable, ...
  shared = 5,   // EBUSY: a relative maps it, too
  renewed =
      6,  // EBUSY: it had been shared by a fork, and no longer is; MOVE will take it next time
};

// Evict: move the pages of all runs, in order, through staging half h into transfer half h (h =
// index of the command).
struct Command {
  std::uint32_t state;            // (shared) CommandState
  std::uint32_t epoch;            // Mailbox::epoch that the plan was made against
  std::uint32_t threads_created;  // Mailbox::threads_created likewise (HAZARDS 9)
  std::uint32_t nruns;
  std::uint32_t nregs;
  std::uint32_t pages;    // sum over runs, <= kHalfPages
  std::uint32_t cpu;      // CPU to run on while executing; ~0: any
  std::uint32_t aborted;  // result: 0, or AbortReason
  Range regs[kMaxRegs];   // the last one is no range: see closed_regs()
  Run runs[kMaxRuns];
  std::uint8_t result[kHalfPages];  // PageResult, by page number within the command
};

// A command names at most kMaxRegs - 1 ranges. In the place of the last one, `start` has a bit for
// each range with pages out in it: the agent does not register anything there (HAZARDS 30). A
// daemon that knows nothing of that leaves it zero, an agent that does not registers everything.
inline constexpr std::uint32_t kClosedRegs = kMaxRegs - 1;
[[nodiscard]] inline std::uint64_t closed_regs(const Range* regs, std::uint32_t nregs) {
  return nregs > kClosedRegs ? ~std::uint64_t{0}
                             : __atomic_load_n(&regs[kClosedRegs].start, __ATOMIC_SEQ_CST);
}

enum AbortReason : std::uint32_t {
  kAbortNone = 0,
  kAbortEpoch = 1,  // the address space changed since the plan
  kAbortBusy = 2,  // a call that must not see the layout change is under way (Mailbox::layout_busy)
  kAbortThreads = 3,   // a thread was created since the plan
  kAbortLocked = 4,    // staging is locked (mlockall): evict nothing (HAZARDS 21)
  kAbortRegister = 5,  // UFFDIO_REGISTER refused a range
  kAbortOther = 6,
};

enum class RequestOp : std::uint32_t {
  none = 0,
  unify = 1,    // bring [start, start+bytes) to one state, all registered or none (before mremap;
                // HAZARDS 13)
  release = 2,  // bring every page of it back, unregister it (before madvise that raises no event;
                // HAZARDS 12)
  retire = 3,   // bring everything back, unregister everything, release the client for good
                // (unshare(NEWUSER))
};

// One request of an interposed call to the daemon; the library serialises its own callers with a
// process-local lock. The caller writes op, start, bytes, then stores seq + 1 (release),
// bumps to_daemon and futex-wakes it; then waits (futex on `served`) until served == seq. status: 0
// or an errno value.
struct Request {
  std::uint32_t seq;     // (shared) written by the client
  std::uint32_t served;  // (shared) written by the daemon
  std::uint32_t op;      // RequestOp
  std::uint32_t status;
  std::uint64_t start;
  std::uint64_t bytes;
};

enum class ClientMode : std::uint32_t {
  active = 0,     // evictions may happen
  released = 1,   // after drain: nothing registered, nothing evicted
  agentless = 2,  // the daemon has lost the agent: interposed calls must not wait for it
};

inline constexpr std::uint32_t kExclusions = 128;

struct Mailbox {
  std::uint32_t magic;    // kMagic, set by the daemon
  std::uint32_t version;  // kProtocolVersion
  std::uint64_t client_id;
  std::uint32_t incarnation;  // of the daemon; part of the layout word
  std::uint32_t
      mode;  // (shared) ClientMode; daemon writes, futex-wakes to_agent and request.served
  // Futex words, bumped by one and woken with FUTEX_WAKE (shared futexes).
  std::uint32_t to_agent;   // (shared) a command was posted, or an in-process request for the agent
  std::uint32_t to_daemon;  // (shared) a command is done, or a request was made
  // The layout rule.
  std::uint32_t layout;  // (shared) the layout lock word
  std::uint32_t epoch;   // (shared) bumped by the reader, under the lock, when it consumed an event
  std::uint32_t
      reader_waits;  // (shared) the reader failed a trylock: release soon, small lock holds please
  std::uint32_t faults_wait;  // (shared) faults are parked: lock holds of at most 64 pages
  // mremap versus (un)registering: both sides announce themselves first, then look at the other
  // (seq_cst).
  std::uint32_t layout_busy;    // (shared) interposed calls in flight that must see one layout
  std::uint32_t layout_agent;   // (shared) 1: the agent is registering or moving
  std::uint32_t layout_daemon;  // (shared) 1: the daemon is registering or unregistering
  std::uint32_t
      registered;  // (shared) 0: nothing but staging is registered. Changed under the layout lock
  std::uint32_t
      threads_created;    // (shared) bumped by interposed pthread_create, before the thread is made
  std::uint32_t advised;  // (shared) bumped by interposed madvise, after advice that raises no
                          // event, and by mremap of such memory: what was seen of the mappings
                          // before is void
  std::uint32_t fork_seq;         // (shared) odd while fork() is under way: bumped before and after
  std::uint32_t agent_tid;        // (shared) kernel thread id of the agent, once it takes commands
  std::uint32_t exclusion_count;  // (shared) number of valid exclusions; > kExclusions: too many,
                                  // evict nothing
  std::uint64_t exclusions[kExclusions];  // (shared) pages that hold robust mutexes (HAZARDS 9)
  Request request;
  Command commands[kHalves];
  // Zero with a library, or a daemon, that does not know them.
  std::uint32_t can_leave;  // (shared) the library's: its agent can go, and come again
  std::uint32_t leave;      // (shared) the daemon's: nothing is registered, the agent is to go
};
static_assert(offsetof(Mailbox, exclusions) == 88);
inline constexpr std::uint64_t kMailboxBytes = 32 * 1024;
static_assert(sizeof(Mailbox) <= kMailboxBytes);

}  // namespace foldswap::wire
