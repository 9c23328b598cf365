#include "daemon/fault/fault_service.h"

#include <fcntl.h>
#include <sys/eventfd.h>
#include <sys/stat.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <optional>
#include <utility>

#include "base/mutation.h"
#include "daemon/host/log.h"
#include "daemon/host/proof.h"

namespace foldswap {
namespace {

constexpr std::uint64_t kRetrySoonUs = 20;      // someone else is a few instructions from done
constexpr std::uint64_t kRetryChildUs = 200;    // a forked child is being taken over
constexpr std::uint64_t kRetryStuckUs = 1'000;  // someone else seems to be stopped
constexpr unsigned kSoonTurns = 50;
constexpr std::uint64_t kRetryMemoryUs = 5'000;  // ENOMEM, or over the hard line of a budget
constexpr std::uint64_t kMostHoldNs = 200'000'000;
constexpr std::uint32_t kCrowded = kInboxMessages / 4;

// Of a process that belongs to `uid`; not valid: it does not, or is gone.
UniqueFd open_pagemap(pid_t pid, std::uint32_t uid) {
  const std::string directory = "/proc/" + std::to_string(pid);
  struct stat st{};
  if (::stat(directory.c_str(), &st) != 0 || st.st_uid != uid) return {};
  return UniqueFd(::open((directory + "/pagemap").c_str(), O_RDONLY | O_CLOEXEC));
}

}  // namespace

FaultService::FaultService(Os& os, State& state, PageStore& store, ForkHost& host,
                           const Tunables& tunables, std::unique_ptr<PageCodec> codec,
                           StopThreads stop_threads)
    : os_(os),
      state_(state),
      counters_(state.counters()),
      store_(store),
      host_(host),
      address_space_(os, store, host,
                     [this](Client& c) { return read_messages(c) == ReadResult::some; }),
      tunables_(tunables),
      codec_(std::move(codec)),
      stop_threads_(std::move(stop_threads)),
      limit_(os),
      buffer_(Mapping::anonymous(kMostWindow * kPage).value()),
      window_(kMostWindow) {
  keep_reserve();
}

StepResult FaultService::step(Client& client) {
  StepResult result;
  client.kicked = false;
  const std::uint32_t barrier = client.barrier_wanted.load();  // before anything is read
  if (client.gone()) {
    let_go(client, result);
    return result;
  }
  if (client.doomed()) return step_doomed(client);
  if (client.batches.load() == 0) client.fork_over_batch = false;
  if (client.agent_overdue.exchange(false)) revoke(client);
  constexpr int kMostRounds = 8;
  for (int round = 0; round < kMostRounds; ++round) {
    const ReadResult read = read_messages(client);
    if (read == ReadResult::busy) {
      // The holder is a few microseconds from done - or stopped: then looking every moment helps
      // nobody.
      client.busy_streak = std::min(client.busy_streak + 1, 100U);
      result.retry_us = client.busy_streak < kSoonTurns ? kRetrySoonUs : kRetryStuckUs;
    } else {
      client.busy_streak = 0;
    }
    result.worked = result.worked || read == ReadResult::some;
    if (!address_space_.apply(client, os_.now_us())) {
      note_starved(client);
      result.retry_us = client.child == nullptr ? kRetrySoonUs : kRetryChildUs;
      return result;  // what was read is not applied: nothing may be copied
    }
    client.unapplied = false;
    if (client.doomed()) {
      result.again = true;  // what has faulted already gets its SIGBUS
      return result;
    }
    if (read != ReadResult::busy) client.barrier_passed = barrier;
    if (deliver(client, result) && answer_faults(client, result)) {
      note_fed(client);
      break;
    }
    result.retry_us = kRetrySoonUs;  // EAGAIN: drain and try again
    if (client.gone()) return result;
    note_starved(client);
  }
  try_agent(client, result);
  run_give_back(client);
  serve_request(client, result);
  run_restore(client, result);
  run_unregister(client, result);
  run_forget_stale(client, result);
  run_trim(client);
  return result;
}

// Its state is not whole: nothing is answered but with SIGBUS, in case it cannot be killed (its pid
// is not known).
StepResult FaultService::step_doomed(Client& client) {
  StepResult result;
  result.retry_us = 10'000;
  (void)read_messages(client);
  address_space_.forget_events(client);
  client.unapplied = false;
  client.kill("");
  for (const PendingFault& fault : client.pending) {
    if (os_.uffd_poison(client.uffd.get(), fault.page) != 0)
      (void)os_.uffd_wake(client.uffd.get(), fault.page, kPage);  // raised again in a moment
  }
  client.pending.clear();
  if (reader_ != nullptr) reader_->forget(client);
  return result;
}

// The agent of a forked child: taken when it is proved to live in this client's address space.
void FaultService::try_agent(Client& client, StepResult& result) {
  if (client.offer_state.load() != AgentOffer::State::made) return;
  const AgentOffer& offer = client.offer;
  const bool nothing_there =
      client.map->next_out(offer.staging, offer.staging + wire::kStagingBytes) >=
      offer.staging + wire::kStagingBytes;
  const Proof proof =
      !nothing_there
          ? Proof::refuted
          : prove_address_space(os_, client.uffd.get(), offer.parts.pagemap.get(), offer.staging);
  if (proof == Proof::later) {
    result.retry_us = kRetrySoonUs;
    return;
  }
  if (proof == Proof::proved) client.take_agent();
  client.offer_state =
      proof == Proof::proved ? AgentOffer::State::taken : AgentOffer::State::refused;
}

// Somebody waits, and what must be applied or copied first does not come to rest (HAZARDS 5).
void FaultService::note_starved(Client& client) {
  constexpr std::uint64_t kPatienceUs = 20'000, kLessPatienceUs = 2'000, kStorminess = 1'000'000;
  constexpr std::uint64_t kAgainUs = kMostStopUs + 100'000;
  const bool crowded = client.record.inbox_count > kCrowded;
  const std::uint64_t now_us = os_.now_us();
  if (client.pending.empty() && !crowded) {
    client.starved_since_us = 0;
    let_callers_go(client);
    return;
  }
  if (client.starved_since_us == 0) client.starved_since_us = now_us;
  const bool stormy = client.stopped_at_us != 0 && now_us - client.stopped_at_us < kStorminess;
  const std::uint64_t patience = stormy ? kLessPatienceUs : kPatienceUs;
  if (!crowded && now_us - client.starved_since_us < patience) return;
  if (client.stop_wanted && client.unstoppable) make_quiet(client, now_us);
  if (client.stop_wanted && now_us - client.stopped_at_us < kAgainUs) return;
  if (!stop_threads_ || mutated(Mutation::h05_stop_threads) ||
      os_.uffd_probe(client.uffd.get(), kPage) != Probe::changing)
    return;
  client.stop_wanted = true;
  client.stopped_at_us = now_us;
  stop_threads_(client);
}

void FaultService::note_fed(Client& client) {
  client.starved_since_us = 0;
  note_quiet(client);
  if (!client.stop_wanted || client.record.inbox_count != 0) return;
  client.stop_wanted = false;
  client.stop_armed = false;
}

// Reading lets the threads go on that wait with an event. A crowded inbox must first know that they
// will not come back with another.
bool FaultService::hold_back(const Client& client) const {
  constexpr std::uint64_t kMostWaitUs = 1'000'000;
  return client.record.inbox_count > 2 * kCrowded && client.stop_wanted && !client.stop_armed &&
         os_.now_us() - client.stopped_at_us < kMostWaitUs;
}

void FaultService::keep_reserve() {
  while (reserve_.size() < 4) {
    UniqueFd spare(::eventfd(0, EFD_CLOEXEC));
    if (!spare.valid()) return;
    reserve_.push_back(std::move(spare));
  }
}

// An entry whose mapping went without an event (shmat over it raises none). Sure only when no event
// waits.
void FaultService::forget_unmapped(Client& client, std::uint64_t page) {
  if (client.record.inbox_count != 0) return;
  if (os_.uffd_probe(client.uffd.get(), page) == Probe::unregistered)
    store_.clear_range(client, page, page + kPage);
}

FaultService::ReadResult FaultService::read_messages(Client& client) {
  ClientRecord& record = client.record;
  if (record.inbox_count + kInboxReserve > kInboxMessages || hold_back(client))
    return ReadResult::nothing;
  uffd_msg* tail = record.inbox + record.inbox_count;
  const std::span inbox(tail, kInboxReserve);
  int count = 0;
  std::uint32_t fork_seq = 0;
  {
    const LayoutTryLock lock(client, tunables_.incarnation);
    if (!lock.held()) {
      store_word(client.mailbox->reader_waits, 1);
      note_busy(client);
      return ReadResult::busy;
    }
    client.busy_since_us = 0;
    if (client.revoked && !lock.past_agent()) end_revocation(client);
    std::memset(static_cast<void*>(tail), 0,
                inbox.size_bytes());  // HAZARDS 19: entries validate themselves
    // Which fork it is that may be read now; the child will say the same number. The atfork
    // handlers let one through at a time, and the number is odd meanwhile. Looked at before
    // reading, because that lets the parent go on to its next fork. (A raw clone() gets a number
    // that is not its own: whoever claims it must prove it.)
    if (client.mailbox != nullptr) fork_seq = load_word(client.mailbox->fork_seq) | 1U;
    record.reading_fork_seq = fork_seq;
    count = os_.uffd_read(client.uffd.get(), inbox);
    if (count > 0 && std::any_of(tail, tail + count, is_address_event)) {
      client.unapplied = true;  // before the epoch moves: see client.h
      if (client.mailbox != nullptr) add_word(client.mailbox->epoch);
      note_events(client, {tail, static_cast<std::size_t>(count)}, lock.past_agent());
    }
    if (client.mailbox != nullptr && load_word(client.mailbox->reader_waits) != 0 &&
        !client.fill_waits) {
      store_word(client.mailbox->reader_waits, 0);
    }
  }
  if (count == 0) return ReadResult::nothing;
  if (count < 0) {
    // Never a sign of death (that is ESRCH from PROBE): most likely a FORK for which there is no
    // descriptor (HAZARDS 6).
    if (os_.now_us() - read_error_said_us_ > 1'000'000) {
      log::error("{}: its events cannot be read ({}): it waits", client.label(),
                 std::strerror(-count));
      read_error_said_us_ = os_.now_us();
    }
    reserve_.clear();  // what is kept for this moment; taken again when there is room
    return ReadResult::busy;
  }
  keep_reserve();
  const std::uint64_t now_ns = os_.now_ns();
  bool events = false;
  for (int i = 0; i < count; ++i)
    events = take_message(client, tail[i], fork_seq, now_ns) || events;
  // Where they are, they are kept until they are applied; what lies between them is zeros by now.
  if (events) record.inbox_count += static_cast<std::uint32_t>(count);
  return ReadResult::some;
}

// Before the lock is let go, and before whoever waits with an event goes on for long.
void FaultService::note_events(Client& client, std::span<const uffd_msg> messages,
                               bool past_agent) {
  for (const uffd_msg& m : messages) {
    if (m.event == UFFD_EVENT_UNMAP || m.event == UFFD_EVENT_REMAP) client.mappings_changed = true;
    if (m.event == UFFD_EVENT_FORK && past_agent && client.batches.load() != 0)
      client.fork_over_batch = true;
  }
}

// The agent has the lock. It is some microseconds from letting go; or stopped, and then the evictor
// notices (Evictor::watch_agent). A client that has no command and holds its lock all the same
// delays nobody but itself, and not for long.
void FaultService::note_busy(Client& client) {
  constexpr std::uint64_t kMostBusyUs = 1'000'000;
  const std::uint64_t now_us = os_.now_us();
  if (client.busy_since_us == 0) client.busy_since_us = now_us;
  if (now_us - client.busy_since_us > kMostBusyUs) revoke(client);
}

// HAZARDS 38. From here no command of an older epoch moves anything. If the agent does not have the
// lock it compares epochs before it moves. If it has, it may have done so: then staging is
// unregistered, and MOVE fails; and whenever it registers staging again it compares them after
// that. What it has moved already it may copy out.
void FaultService::revoke(Client& client) {
  if (client.mailbox == nullptr || mutated(Mutation::h38_take_over)) return;
  wire::Mailbox& mailbox = *client.mailbox;
  // Before the epoch moves: what the evictor posts without having seen it is of an older epoch.
  const bool had = client.revoked.exchange(true);
  const LayoutTryLock lock(client, tunables_.incarnation);
  const std::uint32_t epoch = __atomic_add_fetch(&mailbox.epoch, 1U, __ATOMIC_SEQ_CST);
  if (!lock.held()) {  // the evictor has it for a moment
    client.revoked = had;
    return;
  }
  if (lock.past_agent() && !mutated(Mutation::h38_staging_stays) &&
      os_.uffd_unregister(client.uffd.get(), client.record.staging, wire::kStagingBytes) != 0) {
    client.revoked = had;
    return;
  }
  client.void_before = epoch | Client::kEpochKnown;
  // Callers wait for it, and nothing moves any more. It may still register something: so they ask
  // us first, and we register all that they are about to move (unify).
  if (lock.past_agent()) store_word(mailbox.registered, 1);
  store_word(mailbox.layout_agent, 0);
  // What the agent had to do without, when its commands were revoked before, it gets back.
  if (!lock.past_agent() && had) end_revocation(client);
  if (!lock.past_agent() && !had) client.revoked = false;
  if (lock.past_agent() && !had)
    log::debug("{}: its agent does not go on: nobody waits for it", client.label());
}

// Under the lock, which the agent has let go of. An agent of an older library would not notice that
// its staging is registered no more.
void FaultService::end_revocation(Client& client) {
  if (os_.uffd_register(client.uffd.get(), client.record.staging, wire::kStagingBytes) == 0)
    client.revoked = false;
}

// Whether it is an event that stays in the inbox. Faults leave it: they can be raised again.
bool FaultService::take_message(Client& client, uffd_msg& message, std::uint32_t fork_seq,
                                std::uint64_t now_ns) {
  if (is_address_event(message)) {
    if (message.event == UFFD_EVENT_REMOVE && client.starved_since_us != 0)
      client.starvation.discarded.note(
          {message.arg.remove.start, message.arg.remove.end - message.arg.remove.start});
    if (message.event == UFFD_EVENT_REMAP) check_move(client, message);
    if (message.event == UFFD_EVENT_FORK) {
      client.forks.fetch_add(1);
      client.may_share = true;
      message.arg.reserved.reserved2 = fork_seq;
      host_.fork_read(message);
    }
    return true;
  }
  const uffd_msg taken = std::exchange(message, uffd_msg{});
  if (taken.event == UFFD_EVENT_PAGEFAULT) take_fault(client, taken, now_ns);
  return false;
}

void FaultService::take_fault(Client& client, const uffd_msg& message, std::uint64_t now_ns) {
  PendingFault fault;
  fault.page = page_floor(message.arg.pagefault.address);
  fault.read_ns = now_ns;
  fault.tid = message.arg.pagefault.feat.ptid;
  fault.write = (message.arg.pagefault.flags & UFFD_PAGEFAULT_FLAG_WRITE) != 0;
  client.last_fault_tid.store(fault.tid, std::memory_order_relaxed);
  if (client.pending.size() == kMostPending) {
    (void)os_.uffd_wake(client.uffd.get(), fault.page, kPage);  // raised again in a moment
    return;
  }
  client.pending.push_back(fault);
}

// False: the descriptor has events to read first.
bool FaultService::answer_faults(Client& client, StepResult& result) {
  const std::uint64_t now_us = os_.now_us();
  std::size_t kept = 0;
  bool changing = false, parked = false;
  client.fill_waits = false;
  for (std::size_t i = 0; i < client.pending.size(); ++i) {
    PendingFault& fault = client.pending[i];
    Outcome outcome = Outcome::later;
    if (changing) {
      outcome = Outcome::changing;
    } else if (fault.retry_at_us <= now_us) {
      outcome = client.pid() == 0 ? answer_and_learn_pid(client, fault) : answer(client, fault);
    }
    if (outcome == Outcome::gone) {
      client.set_state(ClientState::exiting);
      return false;
    }
    if (outcome == Outcome::done) {
      result.worked = true;
      continue;
    }
    changing = changing || outcome == Outcome::changing;
    if (outcome == Outcome::later) {
      parked = true;
      const std::uint64_t wait =
          fault.retry_at_us > now_us ? fault.retry_at_us - now_us : kRetryMemoryUs;
      result.retry_us = result.retry_us == 0 ? wait : std::min(result.retry_us, wait);
    }
    client.pending[kept++] = fault;
  }
  client.pending.resize(kept);
  client.faults_parked = parked;
  if (client.mailbox != nullptr && (load_word(client.mailbox->faults_wait) != 0) != parked) {
    store_word(client.mailbox->faults_wait, parked ? 1 : 0);
  }
  return !changing;
}

// The thread number in a message is that of the faulting thread's pid namespace, which need not be
// ours: there it may be somebody else's. So it is believed only when this page appears in the page
// map of the process that has that number here.
FaultService::Outcome FaultService::answer_and_learn_pid(Client& client, PendingFault& fault) {
  constexpr unsigned kMostTries = 16;
  const pid_t pid =
      client.pid_tries < kMostTries && client.offer_state.load() == AgentOffer::State::none
          ? read_tgid(os_, static_cast<pid_t>(fault.tid))
          : 0;
  const UniqueFd pagemap = pid > 0 ? open_pagemap(pid, client.uid) : UniqueFd();
  const bool absent = pagemap.valid() && !page_there(os_, pagemap.get(), fault.page);
  const std::uint64_t page = fault.page;
  const Outcome outcome = answer(client, fault);
  if (outcome == Outcome::done) {
    ++client.pid_tries;
    if (absent && page_there(os_, pagemap.get(), page)) client.learn_pid(pid);
  }
  return outcome;
}

FaultService::Outcome FaultService::answer(Client& client, PendingFault& fault) {
  fault.retry_at_us = 0;
  const Entry entry = client.map->load(fault.page);
  switch (entry.state()) {
    case PageState::none:
      if (!client.in_staging(fault.page) && must_hold(client, fault)) return Outcome::later;
      return answer_none(client, fault);
    case PageState::same:
    case PageState::same_record:
    case PageState::object:
      if (must_hold(client, fault)) return Outcome::later;
      return answer_evicted(client, fault, entry);
    case PageState::out:
      return answer_out(client, fault, entry);
    case PageState::bad:
      return answer_bad(client, fault);
  }
  return Outcome::later;
}

// A fault waits while its client is far over its budget and eviction is getting somewhere (also
// what keeps a COPY from hitting a memory cgroup's limit: HAZARDS 15). Never for long: the budget
// is soft, progress is not. An agent that is stopped gets nowhere (HAZARDS 38).
bool FaultService::must_hold(Client& client, PendingFault& fault) const {
  constexpr std::uint64_t kResultsUs = 150'000, kWindowUs = 1'000'000, kMostHeldUs = 900'000;
  constexpr std::uint64_t kLookAgainUs = 100, kSameHoldUs = 20 * kLookAgainUs;
  const std::uint64_t line = client.hold_above_bytes.load(std::memory_order_relaxed);
  if (line == wire::kNoLimit || client.batches.load(std::memory_order_relaxed) == 0) return false;
  const std::uint64_t resident = client.rss_bytes.load(std::memory_order_relaxed) +
                                 client.copied_pages.load(std::memory_order_relaxed) * kPage;
  if (resident <= line) return false;
  const std::uint64_t now_ns = os_.now_ns(), now_us = now_ns / 1'000;
  if (now_ns - fault.read_ns > kMostHoldNs) return false;
  if (!mutated(Mutation::h38_bounded_hold)) {
    if (now_us - client.results_at_us.load(std::memory_order_relaxed) > kResultsUs) return false;
    if (now_us - client.held_window_us >= kWindowUs) {
      client.held_window_us = now_us;
      client.held_us = 0;
    }
    if (now_us - client.held_seen_us < kSameHoldUs) client.held_us += now_us - client.held_seen_us;
    client.held_seen_us = now_us;
    if (client.held_us > kMostHeldUs) return false;
  }
  fault.retry_at_us = now_us + kLookAgainUs;
  return true;
}

FaultService::Outcome FaultService::answer_none(Client& client, PendingFault& fault) {
  // The fault may be old: of two threads that wait for one page the first has woken both, and what
  // they have written since may be on its way out. So nothing may be taken out between the look at
  // the entry and the answer.
  const bool locked = !mutated(Mutation::zero_under_lock);
  std::optional<LayoutTryLock> lock;
  if (locked) lock.emplace(client, tunables_.incarnation);
  if (locked && !lock->held()) {
    fault.retry_at_us =
        os_.now_us() + (client.busy_streak < kSoonTurns ? kRetrySoonUs : kRetryStuckUs);
    client.fill_waits = true;
    store_word(client.mailbox->reader_waits, 1);
    return Outcome::later;
  }
  if (locked && client.map->load(fault.page).state() != PageState::none) {
    lock.reset();
    return answer(client, fault);
  }
  UffdProgress progress;
  // Staging faults come from mlockall (HAZARDS 21): a zero page costs nothing and is thrown away
  // again.
  if (fault.write && !client.in_staging(fault.page)) {
    std::memset(buffer_.data(), 0, kPage);
    progress = os_.uffd_copy(client.uffd.get(), fault.page, buffer_.data(), kPage);
  } else {
    progress = os_.uffd_zeropage(client.uffd.get(), fault.page, kPage);
  }
  if (progress.done == 0) {
    lock.reset();  // which settle_error() may take
    return settle_error(client, fault.page, progress.error);
  }
  client.copied_pages.fetch_add(1, std::memory_order_relaxed);
  finish_fault(client, fault, counters_.faults_zero);
  return Outcome::done;
}

FaultService::Outcome FaultService::answer_evicted(Client& client, PendingFault& fault,
                                                   Entry entry) {
  if (entry.state() == PageState::same && entry.pattern() == 0 && !fault.write) {
    const auto progress = os_.uffd_zeropage(client.uffd.get(), fault.page, kPage);
    if (progress.done == 0) return settle_error(client, fault.page, progress.error);
    (void)store_.clear(client, fault.page, entry, 1);
    finish_fault(client, fault, counters_.faults_same_filled);
    return Outcome::done;
  }
  // A fault where the last window ended, or on the first page after it that is out, doubles the
  // window; anything else is one page again.
  const std::uint32_t most = std::clamp<std::uint32_t>(
      tunables_.readahead_max.load(std::memory_order_relaxed), 1, kMostWindow);
  const std::uint32_t want = skip_resident(client, client.window_next) == fault.page
                                 ? std::min(client.window_pages * 2, most)
                                 : 1;
  const std::uint32_t room = want == 1 ? 1 : std::max(1U, clear_way(client, fault.page, want));
  std::uint32_t pages = fill_window(client, fault.page, entry, room);
  if (pages == 0 && window_on_disk_) return order_read(client, fault, want);
  if (pages == 0) {
    if (store_.poison(client, fault.page, entry)) {
      bump(counters_.lost_pages);
      log::error("{}: the object of page {:#x} does not verify: the page is poisoned",
                 client.label(), fault.page);
    }
    return answer_bad(client, fault);
  }
  std::uint32_t done = 0;
  Outcome outcome = copy_in(client, fault.page, pages, true, done);
  if (done == 0 && pages > 1 && outcome == Outcome::later && !mutated(Mutation::h10_single_pages)) {
    // HAZARDS 10: a window over a border fails as a whole though its first page can be had.
    outcome = copy_in(client, fault.page, 1, true, done);
  }
  if (done == 0) return outcome;
  client.window_pages = want;
  client.window_next = fault.page + done * kPage;
  bump(counters_.readahead_pages, done - 1);
  finish_fault(
      client, fault,
      entry.state() == PageState::object ? counters_.faults_pool : counters_.faults_same_filled);
  return Outcome::done;
}

std::uint64_t FaultService::skip_resident(const Client& client, std::uint64_t page) {
  constexpr std::uint64_t kMostSkipped = 16;
  const std::uint64_t end = page + kMostSkipped * kPage;
  for (std::uint64_t at = page; at < end; at += kPage) {
    if (client.map->load(at).state() != PageState::none) return at;
  }
  return page;
}

// HAZARDS 12: a window must not run over a guard that the program has put where a page was.
std::uint32_t FaultService::clear_way(Client& client, std::uint64_t start, std::uint32_t pages) {
  constexpr std::uint64_t kAnything = (1ULL << 63) | (1ULL << 62) | uapi::kPagemapGuard;
  std::array<std::uint64_t, kMostWindow> words{};
  if (mutated(Mutation::h12_guards)) return pages;
  if (client.pagemap_fd() < 0) return 1;
  const int n = os_.read_at(client.pagemap_fd(), words.data(), pages * sizeof(words[0]),
                            start / kPage * sizeof(words[0]));
  const auto known =
      n <= 0 ? 0U : static_cast<std::uint32_t>(static_cast<unsigned>(n) / sizeof(words[0]));
  if (known != 0 && (words[0] & uapi::kPagemapGuard) != 0) return 0;
  std::uint32_t clear = 1;  // whether the page itself is there, COPY says
  while (clear < known && (words[clear] & kAnything) == 0) ++clear;
  return clear;
}

std::uint32_t FaultService::fill_window(Client& client, std::uint64_t start, Entry first,
                                        std::uint32_t most) {
  std::uint32_t pages = 0;
  window_on_disk_ = false;
  window_kept_ = 0;
  for (Entry entry = first; pages < most; entry = client.map->load(start + pages * kPage)) {
    if (!entry.evicted()) break;
    const std::span<std::byte, kPage> page(buffer_.data() + pages * kPage, kPage);
    const auto fetched = store_.fetch(entry, *codec_, page);
    window_on_disk_ = fetched && *fetched == PageStore::Fetched::on_disk;
    if (!fetched || window_on_disk_) break;
    window_[pages++] = entry;
  }
  return pages;
}

FaultService::Outcome FaultService::copy_in(Client& client, std::uint64_t start,
                                            std::uint32_t pages, bool demanded,
                                            std::uint32_t& done_pages) {
  for (std::uint32_t i = 0; i < pages && mutated(Mutation::free_before_copy); ++i)
    (void)store_.clear(client, start + i * kPage, window_[i]);
  const auto progress = os_.uffd_copy(client.uffd.get(), start, buffer_.data(), pages * kPage);
  done_pages = static_cast<std::uint32_t>(progress.done / kPage);
  // COPY first, then the entry, then the object (DESIGN §10). One hot page is worth a heat bit; a
  // run read in sequence stays cold, so that it can leave again as a run.
  const unsigned heat = demanded && pages == 1 ? 1 : 0;
  for (std::uint32_t i = 0; i < done_pages; ++i) {
    const std::uint64_t page = start + i * kPage;
    const std::span<const std::byte, kPage> bytes(buffer_.data() + i * kPage, kPage);
    if ((window_kept_ >> i & 1) != 0) {
      (void)store_.clear_keeping(client, page, window_[i], bytes, heat);
    } else {
      (void)store_.clear(client, page, window_[i], heat);
    }
  }
  client.copied_pages.fetch_add(done_pages, std::memory_order_relaxed);
  if (done_pages != 0) return Outcome::done;
  if (progress.error == ENOENT && pages > 1) return Outcome::later;  // caller tries one page
  if (progress.error == EEXIST) {
    // The page is there although the map says out: the page won (DESIGN §10).
    (void)store_.clear(client, start, window_[0]);
  }
  return settle_error(client, start, progress.error);
}

// No fault ends without COPY, ZEROPAGE, POISON or WAKE (HAZARDS 10).
FaultService::Outcome FaultService::settle_error(Client& client, std::uint64_t page, int error) {
  switch (error) {
    case EAGAIN:
      return Outcome::changing;
    case ESRCH:
      return Outcome::gone;
    case ENOMEM:
      return Outcome::later;  // evict, retry later, and wake only then
    case EINVAL:              // its mapping is no longer ours
      return let_go_of_mapping(client, page);
    case ENOENT:  // its mapping is gone
      forget_unmapped(client, page);
      [[fallthrough]];
    case EEXIST:  // it came by another way
    default:
      return wake(client, page);
  }
}

FaultService::Outcome FaultService::wake(Client& client, std::uint64_t page) {
  if (mutated(Mutation::h10_wake)) return Outcome::done;
  const int woken = os_.uffd_wake(client.uffd.get(), page, kPage);
  return woken == -ESRCH ? Outcome::gone : Outcome::done;
}

FaultService::Outcome FaultService::answer_out(Client& client, PendingFault& fault, Entry entry) {
  if (!entry.wanted() && !client.map->replace(fault.page, entry, entry.with_wanted())) {
    return answer(client, fault);  // it was published or put back meanwhile: look again
  }
  const Entry claimed = entry.with_wanted();
  Batch& batch = client.batch[entry.half()];
  if (!batch.in_transfer.load(std::memory_order_acquire) || batch.source == nullptr ||
      !batch.moved[entry.slot()]) {
    return Outcome::later;  // the evictor kicks us when the agent has let go of it
  }
  const Outcome outcome = rescue(client, fault.page, claimed);
  if (outcome == Outcome::done) finish_fault(client, fault, counters_.faults_rescued);
  return outcome;
}

// Straight back, never through the pool. The transfer area is the client's memory too: copied out
// once, trusted never.
FaultService::Outcome FaultService::rescue(Client& client, std::uint64_t page, Entry claimed) {
  const std::byte* const source = client.batch[claimed.half()].source.load();
  std::memcpy(buffer_.data(), source + std::size_t{claimed.slot()} * kPage, kPage);
  // The slot is this page's for as long as its entry says so. Looked at after the copy: while
  // events wait the evictor publishes wanted pages, too, and may have begun to use the slot again.
  if (client.map->load(page) != claimed) return Outcome::later;
  const auto progress = os_.uffd_copy(client.uffd.get(), page, buffer_.data(), kPage);
  if (progress.done == 0 && progress.error != EEXIST)
    return settle_error(client, page, progress.error);
  // While events wait the evictor may publish even a wanted page; it is back now, so that has to go
  // again.
  if (!client.map->replace(page, claimed, Entry::none(2)))
    store_.clear_range(client, page, page + kPage);
  if (progress.done == 0) return settle_error(client, page, progress.error);
  client.copied_pages.fetch_add(1, std::memory_order_relaxed);
  return Outcome::done;
}

FaultService::Outcome FaultService::answer_bad(Client& client, const PendingFault& fault) {
  const int error = os_.uffd_poison(client.uffd.get(), fault.page);
  if (error != 0 && error != -EEXIST) return settle_error(client, fault.page, -error);
  if (error == -EEXIST) return settle_error(client, fault.page, EEXIST);
  finish_fault(client, fault, counters_.faults_poisoned);
  return Outcome::done;
}

void FaultService::finish_fault(Client& client, const PendingFault& fault, Counter& kind) {
  record_latency(counters_, os_.now_ns() - fault.read_ns);
  bump(kind);
  bump(counters_.faults_total);
  bump(client.record.faults);
}

void FaultService::let_go(Client& client, StepResult& result) {
  if (reader_ != nullptr) reader_->forget(client);
  // A FORK that was read and not yet applied: the child outlives its parent, with all of the
  // parent's pages (HAZARDS 4). The evictor publishes what is in flight first. But what a doomed
  // one has is not whole, and nor would be what its child gets.
  if (client.doomed() || client.batch_lost) {
    address_space_.forget_events(client);
  } else if (!address_space_.apply(client, os_.now_us())) {
    result.retry_us = 200;
    return;
  }
  client.unapplied = false;
  if (client.reader_done || client.batches.load() != 0) return;  // the evictor ends its batch first
  // A bounded amount of work, so that nobody else's faults wait for a large client's end.
  constexpr int kMostPages = 8'192;
  std::uint64_t page = client.map->next_out(0, kAddressEnd);
  for (int i = 0; i < kMostPages && page < kAddressEnd; ++i) {
    store_.clear_range(client, page, page + kPage);
    page = client.map->next_out(page + kPage, kAddressEnd);
  }
  if (page < kAddressEnd || !store_.forget_copies(client, 0, kAddressEnd, 1)) {
    result.again = true;
    return;
  }
  client.pending.clear();
  client.reader_done = true;
}

}  // namespace foldswap
