// Client: one registered process (one address space, one userfaultfd) as the daemon sees it while
// it runs.
//
// Ownership by thread. A client is served by exactly one fault thread (the *reader*: it alone reads
// the userfaultfd, issues every COPY, applies events) and watched by exactly one evict thread (the
// *evictor*: it alone plans and posts batches). Fields are grouped by who may touch them; what both
// touch is atomic or under `mutex`.
//
// The layout rule (DESIGN §5) rests on three words here and in the mailbox:
//   mailbox->epoch   bumped by the reader under the layout lock when it consumed an address-space
//   event unapplied        raised before the epoch moves, lowered when the event has been applied
//   batches          batches in flight; the evictor raises it, then looks at `unapplied`; the
//   reader raises
//                    `unapplied`, then looks at `batches` (both seq_cst): they never both go ahead
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "base/mapping.h"
#include "base/mutex.h"
#include "base/unique_fd.h"
#include "base/wire.h"
#include "daemon/client/kept_copies.h"
#include "daemon/client/starvation.h"
#include "daemon/host/proc_reader.h"
#include "daemon/state/page_map.h"
#include "daemon/state/quarantine.h"
#include "daemon/state/state.h"

namespace foldswap {

enum class ClientState : std::uint8_t { active, agentless, released, exiting };
[[nodiscard]] const char* to_string(ClientState state);

// A fault that was read and not answered yet. Never persisted: a WAKE raises it again.
struct PendingFault {
  std::uint64_t page = 0;
  std::uint64_t read_ns = 0;
  std::uint64_t retry_at_us = 0;  // 0: as soon as something changed
  std::uint32_t tid = 0;
  bool write = false;
};
inline constexpr std::size_t kMostPending = 512;
// For so long the threads of a client may be stopped at a time (HAZARDS 5).
inline constexpr std::uint64_t kMostStopUs = 500'000;

// What one eviction command took: idle -> posted (the agent's) -> settling (results are in: pages
// are published, put back or rescued one by one) -> idle. Constant while in flight but for `phase`.
struct Batch {
  enum class Phase : std::uint8_t { idle, posted, settling };
  Phase phase = Phase::idle;  // the evictor's
  std::atomic<bool> in_transfer{
      false};  // the agent is done: moved pages may be read from the transfer area
  std::atomic<std::uint64_t> generation{0};
  std::array<std::atomic<bool>, wire::kHalfPages> moved{};  // valid once in_transfer is seen
  std::atomic<std::uint32_t> pages{0};
  std::uint64_t posted_at_us = 0;
  std::uint32_t epoch = 0;  // of its command; the evictor's
  // Where its pages lie, slot by slot, from `in_transfer` on: in the transfer area, or in `taken`.
  std::atomic<const std::byte*> source{nullptr};
  Mapping taken;  // from a stopped agent (Evictor::take_over_batch); made when first needed
  std::uint64_t reserved_bytes = 0;  // of the pool
  std::uint32_t splits = 0;          // mappings that its REGISTERs may add
  std::uint32_t next_slot = 0;       // settling: slots before it have been dealt with once
  bool for_reclaim = false;
};

// What a client with an agent has, and one without has not.
struct AgentParts {
  UniqueFd pidfd, pagemap, lifeline, mailbox_fd, transfer_fd;
  // /proc/PID/mem, opened when it was proved whose address space this is. Not valid: no right to,
  // or another daemon opened it, which has died. Of staging only, see Evictor::take_over_batch().
  UniqueFd memory;
  Mapping mailbox, transfer;
  [[nodiscard]] Status map(int mailbox_file, int transfer_file);
};

struct ClientParts {
  ClientRecord* record = nullptr;
  std::unique_ptr<PageMap> map;
  UniqueFd uffd;
  std::uint64_t uffd_stamp = 0;  // NotedFd's; 0: none yet
  AgentParts agent;              // mappings not valid: a forked child, whose agent may come later
};

// The agent of a forked child has said Hello. The control thread makes the offer; the child's
// reader proves that the agent lives in the child's address space, and takes it or not.
struct AgentOffer {
  enum class State : std::uint8_t { none, made, taken, refused };
  AgentParts parts;
  std::int32_t pid = 0;
  std::uint64_t staging = 0;
  std::array<wire::Range, wire::kOwnRanges> own{};
};

// A pointer that is set once, from nothing, while others look.
template <typename T>
class Published {
 public:
  void publish(T* value) { value_.store(value, std::memory_order_release); }
  // NOLINTNEXTLINE(google-explicit-constructor): used like the pointer that it is
  operator T*() const { return value_.load(std::memory_order_acquire); }
  T* operator->() const { return *this; }

 private:
  std::atomic<T*> value_{nullptr};
};

class Client {
 public:
  explicit Client(ClientParts parts, Os& os);
  Client(const Client&) = delete;
  Client& operator=(const Client&) = delete;
  ~Client() = default;

  // -- constant
  Os& os;
  ClientRecord& record;
  const std::uint64_t id;
  const std::uint32_t uid;
  const std::unique_ptr<PageMap> map;
  const UniqueFd uffd;

  // -- nothing while there is no agent; constant from the moment that `mailbox` is something
  Published<wire::Mailbox> mailbox;
  Published<const std::byte> transfer;
  // The control thread's, like the one that takes it away when the client has gone.
  [[nodiscard]] int lifeline() const { return agent_.lifeline.get(); }
  [[nodiscard]] UniqueFd release_lifeline();
  [[nodiscard]] int transfer_fd() const { return agent_.transfer_fd.get(); }
  [[nodiscard]] int memory_fd() const { return agent_.memory.get(); }  // the evictor's

  // -- a forked child's agent, on its way: see AgentOffer
  AgentOffer offer;  // the control thread's until `made`, the reader's from there
  std::atomic<AgentOffer::State> offer_state{AgentOffer::State::none};
  // The reader, with nothing in flight and no event unapplied: from here the client is like any
  // other.
  void take_agent();

  [[nodiscard]] pid_t pid() const { return record.pid.load(std::memory_order_relaxed); }
  [[nodiscard]] std::string name() const { return record.name; }
  // "client 7 (redis, pid 812)", for log lines.
  [[nodiscard]] std::string label() const;
  [[nodiscard]] ClientState state() const { return state_.load(); }
  void set_state(ClientState state);  // also tells the library, by Mailbox::mode
  // Never comes back: the address space is gone, or the client was killed by us.
  [[nodiscard]] bool gone() const { return state() == ClientState::exiting; }
  [[nodiscard]] bool has_agent() const {
    return state() == ClientState::active && mailbox != nullptr;
  }
  // SIGKILL with a log line: its state cannot be proved whole. From here nothing is answered any
  // more: it waits until it is dead, and when its pid is not known yet it is killed as soon as it
  // is.
  void kill(const std::string& why);
  [[nodiscard]] bool doomed() const { return doomed_.load(); }
  [[nodiscard]] std::uint64_t evicted_pages() const {
    return record.pool_pages.load(std::memory_order_relaxed) +
           record.same_filled_pages.load(std::memory_order_relaxed);
  }
  [[nodiscard]] bool in_staging(std::uint64_t address) const {
    return record.staging != 0 && address - record.staging < wire::kStagingBytes;
  }
  // Pages of posted commands: on their way out, still counted as resident. Evictor only.
  [[nodiscard]] std::uint64_t pages_in_flight() const {
    std::uint64_t pages = 0;
    for (const Batch& b : batch) pages += b.phase == Batch::Phase::posted ? b.pages.load() : 0U;
    return pages;
  }
  // Opens what needs the pid (a forked child's is learnt later). Any thread; harmless when called
  // again.
  void learn_pid(pid_t pid);
  [[nodiscard]] int pidfd() const { return pidfd_.load(); }
  [[nodiscard]] int pagemap_fd() const { return pagemap_fd_.load(); }
  // How many mappings its address space has at most, as far as we know: those of the last look, and
  // what we may have split since (HAZARDS 32). Any thread.
  [[nodiscard]] std::uint64_t mappings() const { return mappings_seen_.load() + splits.load(); }
  // The evictor has seen `seen` of them; `splits` was `before` when it began to look.
  void mappings_counted(std::uint64_t seen, std::uint64_t before);

  KeptCopies kept;  // has locks of its own

  RankedMutex<LockRank::client> mutex;
  QuarantineList quarantine FS_GUARDED_BY(mutex);
  // Ranges to be unregistered by the reader because nothing of them is out (evictor fills, reader
  // empties).
  std::vector<wire::Range> unregister_requests FS_GUARDED_BY(mutex);
  // Ranges that were found unregistered with pages out in them: the reader drops what is stale
  // (HAZARDS 30). Likewise.
  std::vector<wire::Range> stale_requests FS_GUARDED_BY(mutex);

  // -- reader and evictor
  std::atomic<bool> unapplied{false};
  std::atomic<std::uint32_t> batches{0};
  std::atomic<std::uint32_t> copied_pages{0};  // since the last RSS sample; the evictor resets it
  std::atomic<std::uint64_t> rss_bytes{0};     // last sample of RssAnon
  std::atomic<std::uint64_t> hold_above_bytes{
      wire::kNoLimit};  // faults wait while resident is above it
  std::atomic<std::uint32_t> last_fault_tid{0};
  std::atomic<bool> kicked{false};         // the reader should look at this client again
  std::atomic<bool> faults_parked{false};  // the evictor must hurry
  std::atomic<bool> trim_map{false};       // nothing is out: the reader frees empty leaves
  std::atomic<bool> give_back{false};  // the pool had no room: the reader brings pages back unasked
  // It has forked, or was: pages may be shared with relatives, so the evictor looks before it
  // tries, until a whole turn finds none and there was no further fork.
  std::atomic<bool> may_share{false};
  std::atomic<std::uint32_t> forks{0};
  std::atomic<std::uint64_t> splits{0};  // see mappings(); raised before what may split
  // Changes of the address space follow each other so fast that no COPY gets through (HAZARDS 5):
  // its threads are to be stopped until the reader has caught up. The reader raises and lowers it.
  std::atomic<bool> stop_wanted{false};
  // Every thread has been told to: each raises at most the event that it is waiting with. Until
  // then the reader of a crowded inbox had better not let them go on.
  std::atomic<bool> stop_armed{false};
  // A stopped agent (HAZARDS 38). The evictor raises `overdue` when somebody waits for a command
  // that is not answered; the reader then revokes: a command of an epoch before `void_before` (0:
  // none) can move nothing any more. While `revoked` is up the agent has the layout lock, the
  // reader goes on without, and nothing is posted; whoever gets the lock lowers it.
  std::atomic<bool> agent_overdue{false}, revoked{false};
  std::atomic<std::uint64_t> void_before{0};  // an epoch, and kEpochKnown
  static constexpr std::uint64_t kEpochKnown = 1ULL << 32;
  [[nodiscard]] bool is_void(std::uint32_t epoch) const {
    const std::uint64_t before = void_before.load();
    return before != 0 && static_cast<std::int32_t>(static_cast<std::uint32_t>(before) - epoch) > 0;
  }
  // A FORK was read while the only copy of a page may have been in staging: if the client ends
  // before that is settled, so do those children.
  std::atomic<bool> fork_over_batch{false}, batch_lost{false};
  // An UNMAP or REMAP was read: what the evictor has seen of the mappings is old (HAZARDS 31).
  std::atomic<bool> mappings_changed{false};
  std::atomic<std::uint64_t> results_at_us{0};  // when a command was last answered
  // Some could not be stopped, because somebody else traces them (HAZARDS 39). The stopper's to
  // say.
  std::atomic<bool> unstoppable{false};
  std::atomic<std::uint64_t> no_eviction_until_us{0};  // the reader is making it quiet
  // Who asks raises `wanted`; the reader copies it to `passed` when every event that had been read
  // by then, FORKs above all, has been applied.
  std::atomic<std::uint32_t> barrier_wanted{0}, barrier_passed{0};
  std::array<Batch, wire::kHalves> batch;

  // -- restore and drain (admin -> reader, evictor)
  std::atomic<bool> restore_wanted{false};  // reader brings everything back
  std::atomic<std::uint64_t> hold_until_us{
      0};  // budgets suspended until then (~0: until limit or reclaim)
  std::atomic<bool> release_wanted{false};  // drain: unregister everything, then state released
  std::atomic<bool> retire_wanted{false};   // the library asked: released for good
  // What an administrator has told it would be forgotten if its agent left: it stays.
  std::atomic<bool> stays{false};
  std::atomic<bool> leaving{
      false};  // likewise, but it was us: there is nothing to do for its agent
  std::atomic<std::uint64_t> reclaim_pages{
      0};  // an admin's reclaim: pages still to take out (~0: everything)
  std::atomic<std::uint64_t> reclaimed_pages{0};
  std::atomic<bool> reclaim_claimed{false};  // one order at a time
  std::atomic<bool> reclaim_running{false};
  std::atomic<bool> reclaim_fresh{
      false};  // it has just been asked for: the evictor looks at everything anew
  std::atomic<bool> reclaim_stalled{false};  // given up: its agent does not answer
  std::atomic<bool> reclaim_stuck{false};    // there is nothing more to take

  // -- reader only
  std::vector<PendingFault> pending;
  std::shared_ptr<Client> child;  // of a FORK in the inbox that is being taken over
  std::uint64_t child_since_us = 0, child_cursor = 0;
  std::uint64_t window_next = 0;  // page where the last read-ahead window ended
  std::uint32_t window_pages = 1;
  std::uint64_t restore_cursor = 0;
  unsigned busy_streak = 0;         // trylocks in a row that failed
  std::uint64_t busy_since_us = 0;  // since when; 0: the last one did not
  std::uint64_t held_window_us = 0,
                held_us = 0;  // how long faults were held back, and in which second
  std::uint64_t held_seen_us = 0;
  bool fill_waits = false;             // a fault on a new page waits for the layout lock
  std::uint64_t starved_since_us = 0;  // a fault has been waiting for events to end; 0: none
  std::uint64_t stopped_at_us = 0;     // when the threads were last asked to stop
  Starvation starvation;               // it cannot be helped by stopping its threads
  std::uint64_t inbox_full_since_us = 0;
  unsigned pid_tries = 0;                // faults that did not tell whose address space it is
  std::uint64_t retry_at_us = 0;         // 0: nothing to retry
  std::uint64_t request_cursor = 0;      // of the release request being served
  std::atomic<bool> reader_done{false};  // the reader has let go of a gone client

  // -- evictor only
  std::vector<VmaInfo> vmas;
  std::uint64_t vmas_at_us = 0;  // 0: they are to be read again before they are used
  std::uint64_t vmas_read_us = 0, vmas_cost_us = 0;
  std::uint32_t vmas_generation = 0;  // batch_generation when they were read
  std::uint32_t vmas_advised = 0;     // Mailbox::advised, likewise
  std::uint64_t quiet_at_us = 0;
  std::uint64_t rss_at_us = 0, rss_next_us = 0;
  std::uint64_t budget_bytes = wire::kNoLimit;  // what it may have resident now
  unsigned rss_still = 0;                       // samples in a row that found nothing new
  std::uint64_t clock_cursor = 0;               // address where the eviction clock stands
  bool scanning = false;               // the clock has found nothing yet, and should soon go on
  std::uint64_t moved_this_turn = 0;   // pages taken since the clock last passed its end
  std::uint64_t shared_this_turn = 0;  // pages passed over because a relative has them, too
  std::uint32_t forks_seen = 0;        // Client::forks at the start of the turn
  bool turn_open = false;  // it passed its end, what is in flight tells whether that was in vain
  std::uint64_t batch_generation = 0;
  std::uint64_t reclaim_seen_pages = 0, reclaim_seen_us = 0;  // an order's progress
  std::uint64_t clock_steps = 0, clock_turns = 0;  // plans that found nothing yet; turns that ended
  std::uint64_t reclaim_seen_steps = 0, reclaim_seen_turns = 0;  // likewise an order's progress
  unsigned aborts_in_row = 0;
  unsigned poor_batches = 0;  // in a row of which hardly a page could leave: pinned or shared
  std::uint64_t fruitless_turns = 0;
  std::uint64_t agentless_since_us = 0;
  std::uint64_t last_evict_us = 0;
  std::uint64_t seen_first_us = 0;
  std::uint64_t housekeeping_at_us = 0;
  std::uint64_t no_room_since_us = 0;  // the pool had no room for what is to leave; 0: it has
  std::uint64_t blocked_until_us = 0;  // after an abort that will not pass at once
  std::uint32_t cpu = ~0U;
  bool transfer_in_use = false;

 private:
  void note_fds();

  std::atomic<ClientState> state_{ClientState::active};
  std::atomic<bool> doomed_{false};
  AgentParts agent_;
  std::atomic<int> pidfd_{-1}, pagemap_fd_{-1};
  std::atomic<std::uint64_t> mappings_seen_{0};
};

// The daemon's side of the layout lock. Only ever tries (DESIGN §5). A client without a mailbox has
// no agent, so there is nobody to exclude and the lock is always had. Nor can an agent do anything
// whose commands are revoked: its reader, and nobody else, goes on without the word.
class LayoutTryLock {
 public:
  enum class Side : std::uint8_t { reader, evictor };
  LayoutTryLock(Client& client, std::uint32_t incarnation, Side side = Side::reader);
  ~LayoutTryLock();
  LayoutTryLock(const LayoutTryLock&) = delete;
  LayoutTryLock& operator=(const LayoutTryLock&) = delete;
  [[nodiscard]] bool held() const { return held_; }
  // An agent has the word, and can do nothing with it.
  [[nodiscard]] bool past_agent() const { return past_agent_; }

 private:
  wire::Mailbox* mailbox_;
  bool held_ = false, past_agent_ = false;
};

// Shared-memory words of a mailbox.
[[nodiscard]] inline std::uint32_t load_word(const std::uint32_t& word) {
  return __atomic_load_n(&word, __ATOMIC_SEQ_CST);
}
inline void store_word(std::uint32_t& word, std::uint32_t value) {
  __atomic_store_n(&word, value, __ATOMIC_SEQ_CST);
}
inline void add_word(std::uint32_t& word) {
  __atomic_fetch_add(&word, 1U, __ATOMIC_SEQ_CST);
}
// The command is the agent's.
[[nodiscard]] inline bool is_posted(const wire::Command& command) {
  return load_word(command.state) == static_cast<std::uint32_t>(wire::CommandState::posted);
}

}  // namespace foldswap
