#include "daemon/evict/evictor.h"

#include <sys/mman.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <utility>

#include "base/mutation.h"
#include "daemon/host/log.h"

namespace foldswap {
namespace {

constexpr std::uint64_t kWorstObjectBytes =
    2 * kPage;  // a raw page and the room it may leave unused in its frame

constexpr std::uint32_t kLeastBatch = 16;  // pages

// So many batches in a row of which less than a sixteenth could leave, and it is no use to hold
// faults until there is room, nor to try at full speed.
constexpr unsigned kPoorBatches = 8, kPoorPart = 16;

// Evicting starts this far below the budget, and stops twice as far below.
std::uint64_t margin_of(std::uint64_t budget) {
  return std::clamp<std::uint64_t>(budget / 64, 256 * 1024, 4ULL << 20);
}

}  // namespace

Evictor::Evictor(Os& os, State& state, PageStore& store, BudgetBook& budgets,
                 const Tunables& tunables, std::unique_ptr<PageCodec> codec, KickReader kick_reader)
    : os_(os),
      state_(state),
      counters_(state.counters()),
      store_(store),
      budgets_(budgets),
      tunables_(tunables),
      codec_(std::move(codec)),
      policy_(std::make_unique<ClockPolicy>(os)),
      kick_reader_(std::move(kick_reader)),
      page_(Mapping::anonymous(kPage).value()) {}

std::uint64_t Evictor::step(Client& client) {
  const std::uint64_t now_us = os_.now_us();
  if (client.gone()) {
    abandon_batches(client);
    return 100'000;
  }
  housekeeping(client, now_us);
  if (client.mailbox == nullptr) return 100'000;  // served, never evicted
  if (load_word(client.mailbox->request.seq) != load_word(client.mailbox->request.served)) {
    kick_reader_(client);
  }
  take_order(client);
  for (std::uint32_t h = 0; h < wire::kHalves; ++h) {
    if (client.batch[h].phase == Batch::Phase::posted) take_results(client, h, now_us);
  }
  const std::uint64_t watch_us = watch_agent(client, now_us);
  client.scanning = false;
  // The agent gets its next command before we compress what it has just delivered.
  bool fruitful = true;
  for (std::uint32_t h = 0; h < wire::kHalves && fruitful; ++h) {
    if (client.batch[h].phase != Batch::Phase::idle) continue;
    const std::uint32_t wanted = pages_wanted(client, now_us);
    fruitful = wanted != 0 && begin_batch(client, h, wanted, now_us);
  }
  bool settling = false;
  for (std::uint32_t h = 0; h < wire::kHalves; ++h) {
    if (client.batch[h].phase != Batch::Phase::settling) continue;
    publish_batch(client, h);
    settle(client, h, os_.now_us());
    settling = settling || client.batch[h].phase == Batch::Phase::settling;
  }
  finish_reclaim(client);
  if (client.state() == ClientState::agentless) resolve_lost_agent(client, now_us);
  if (settling) return 200;
  if (watch_us != 0) return watch_us;
  if (client.batches.load() != 0) return 50'000;  // the agent's futex wake comes first
  const std::uint64_t later = os_.now_us();
  const std::uint64_t due = std::max(client.rss_next_us, client.blocked_until_us);
  const bool busy = client.release_wanted || client.reclaim_running;
  const std::uint64_t most = busy ? 5'000 : 100'000;
  if (client.reclaim_running && client.blocked_until_us <= later) return 0;
  if (client.scanning) return 100;
  return due > later ? std::min(due - later, most) : 1'000;
}

// Before anything else of a step: whether an order makes progress is asked in each, also when no
// command can be posted.
void Evictor::take_order(Client& client) {
  if (!client.reclaim_fresh.exchange(false)) return;
  client.fruitless_turns = 0;
  client.moved_this_turn = 0;
  client.turn_open = false;
  client.clock_cursor = 0;
  client.reclaim_seen_us = 0;
  client.vmas_at_us = 0;
  client.blocked_until_us = 0;
}

std::uint32_t Evictor::pages_wanted(Client& client, std::uint64_t now_us) {
  const bool allowed = client.has_agent() && !client.restore_wanted && !client.release_wanted &&
                       client.pid() > 0 && now_us >= client.blocked_until_us &&
                       load_word(client.mailbox->agent_tid) != 0;
  if (now_us >= client.rss_next_us) {
    const std::uint64_t old_rss = client.rss_bytes;
    const std::uint64_t budget = budgets_.sample(client, now_us);
    const bool suspended = now_us < client.hold_until_us.load();
    client.budget_bytes = suspended ? wire::kNoLimit : budget;
    const std::uint64_t rss = client.rss_bytes;
    if (client.budget_bytes == wire::kNoLimit) {
      client.rss_next_us = now_us + 500'000;
      client.hold_above_bytes = wire::kNoLimit;
    } else {
      // The nearer and the faster, the sooner we look again: nothing fills memory faster than some
      // 2 GB/s.
      const std::uint64_t start = budget - std::min(budget, margin_of(budget));
      const std::uint64_t headroom = start > rss ? start - rss : 0;
      const bool still = rss <= old_rss + 64 * kPage && headroom < (16ULL << 20);
      client.rss_still = still ? std::min(client.rss_still + 1, 8U) : 0;
      client.rss_next_us =
          now_us +
          std::clamp<std::uint64_t>(headroom / 2'000, 1'000ULL << (client.rss_still / 3), 100'000);
      client.hold_above_bytes =
          client.poor_batches < kPoorBatches ? budget + budget / 50 + (1ULL << 20) : wire::kNoLimit;
    }
  }
  if (!allowed) {
    client.hold_above_bytes = wire::kNoLimit;
    return 0;
  }
  if (client.reclaim_running) {
    const std::uint64_t asked = client.reclaim_pages.load(), got = client.reclaimed_pages.load();
    const std::uint64_t left = asked > got ? asked - got : 0;
    const std::uint64_t flying = client.pages_in_flight();
    return left > flying ? static_cast<std::uint32_t>(
                               std::min<std::uint64_t>(left - flying, wire::kHalfPages))
                         : 0;
  }
  if (client.budget_bytes == wire::kNoLimit) return 0;
  const std::uint64_t flying = client.pages_in_flight() * kPage;
  const std::uint64_t resident = client.rss_bytes + client.copied_pages * kPage;
  const std::uint64_t expected = resident > flying ? resident - flying : 0;
  const std::uint64_t margin = margin_of(client.budget_bytes);
  if (expected + margin <= client.budget_bytes) return 0;
  const std::uint64_t over = expected + 2 * margin - client.budget_bytes;
  return static_cast<std::uint32_t>(std::clamp<std::uint64_t>(over / kPage, 64, wire::kHalfPages));
}

bool Evictor::begin_batch(Client& client, std::uint32_t half, std::uint32_t wanted,
                          std::uint64_t now_us) {
  wire::Command& command = client.mailbox->commands[half];
  if (is_posted(command)) return false;
  if (now_us < client.no_eviction_until_us) {
    client.blocked_until_us = std::max(client.blocked_until_us, client.no_eviction_until_us.load());
    return false;
  }
  if (client.turn_open) {
    if (client.batches.load() != 0) return false;
    end_turn(client, now_us);
    if (client.reclaim_stuck || now_us < client.blocked_until_us) return false;
  }
  // Less, when there is not room for so many: the last part of a pool is good for something, too.
  while (wanted > kLeastBatch && !store_.pool().can_reserve(wanted * kWorstObjectBytes)) {
    wanted /= 2;
  }
  const std::uint64_t reserve = wanted * kWorstObjectBytes;
  if (!store_.pool().reserve(reserve)) {
    note_pool_full(client, now_us);
    return false;
  }
  client.no_room_since_us = 0;
  client.batches.fetch_add(1);
  const auto give_up = [&] {
    client.batches.fetch_sub(1);
    store_.pool().release_reservation(reserve);
    return false;
  };
  if (client.unapplied || client.gone()) return give_up();  // after raising `batches`: see client.h
  // The epoch and the thread count come before anything is looked at: whatever changes later makes
  // the agent stop.
  const std::uint32_t epoch = load_word(client.mailbox->epoch);
  if (client.revoked) return give_up();  // after the epoch was read: see FaultService::revoke
  const std::uint32_t threads = load_word(client.mailbox->threads_created);
  const std::uint32_t advised = load_word(client.mailbox->advised);
  if (client.unapplied) return give_up();
  if (advised != client.vmas_advised) client.vmas_at_us = 0;
  // What it has seen of them only serves planning: the agent looks again. So it may be a little old
  // even when it is known to be, or a program that unmaps without a pause would never be evicted.
  constexpr std::uint64_t kOldUs = 1'000'000, kChangedUs = 100'000;
  refresh_vmas(client, now_us, client.mappings_changed ? kChangedUs : kOldUs);
  if (client.vmas_at_us == 0) return give_up();  // it could not look: most likely the process ends
  client.vmas_advised = advised;
  const auto* never =
      guards_.try_emplace(client.id, os_).first->second.never_evict(client, threads, now_us);
  if (never == nullptr) {
    client.blocked_until_us = now_us + 500'000;
    client.reclaim_stuck = client.reclaim_running.load();
    return give_up();
  }
  const EvictionWish wish{wanted, client.reclaim_running, client.fruitless_turns != 0};
  EvictionPlan plan = policy_->choose(client, wish, *never);
  client.scanning = plan.unfinished;
  client.clock_steps += plan.unfinished || plan.turn_ended ? 1 : 0;
  client.clock_turns += plan.turn_ended ? 1 : 0;
  if (plan.turn_ended) {
    // Nothing else in flight, or a page has moved: the turn's result is known.
    client.turn_open = client.batches.load() != 1 && client.moved_this_turn == 0;
    if (!client.turn_open) end_turn(client, now_us);
  }
  Batch& batch = client.batch[half];
  batch.generation = ++client.batch_generation;
  batch.epoch = epoch;
  note_closed(client, plan, client.mailbox->commands[half]);
  if (plan.pages == 0 || mark_out(client, half, plan) == 0) return give_up();
  batch.reserved_bytes = reserve;
  batch.splits = plan.splits;
  client.splits.fetch_add(plan.splits);
  batch.posted_at_us = now_us;
  batch.for_reclaim = client.reclaim_running;
  batch.phase = Batch::Phase::posted;
  post(client, half, plan, epoch, threads);
  return true;
}

// Cold objects may be on their way out of the pool: then it is a matter of a moment.
void Evictor::note_pool_full(Client& client, std::uint64_t now_us) {
  constexpr std::uint64_t kPatienceUs = 5'000'000, kMomentUs = 1'000, kLongUs = 100'000;
  if (client.no_room_since_us == 0) client.no_room_since_us = now_us;
  if (traffic_ != nullptr && traffic_->relief.load(std::memory_order_relaxed) &&
      now_us - client.no_room_since_us < kPatienceUs) {
    traffic_->want_room();
    client.blocked_until_us = now_us + kMomentUs;
    return;
  }
  if (now_us - pool_full_said_us_ > 10'000'000 || pool_full_said_us_ == 0) {
    log::warn("the pool is full ({} bytes): eviction stops until there is room",
              store_.pool().stats().limit_bytes);
    pool_full_said_us_ = now_us;
  }
  client.blocked_until_us = now_us + kLongUs;
  client.hold_above_bytes = wire::kNoLimit;  // nobody gains by waiting
  client.reclaim_stuck = client.reclaim_running.load();
}

void Evictor::end_turn(Client& client, std::uint64_t now_us) {
  client.turn_open = false;
  client.fruitless_turns = client.moved_this_turn == 0 ? client.fruitless_turns + 1 : 0;
  bump(counters_.evict_shared, client.shared_this_turn);
  const std::uint32_t forks = client.forks.load();
  if (client.shared_this_turn == 0 && forks == client.forks_seen && client.may_share) {
    client.may_share = false;
    if (client.forks.load() != forks) client.may_share = true;
  }
  client.forks_seen = forks;
  client.moved_this_turn = 0;
  client.shared_this_turn = 0;
  if (client.fruitless_turns < 2) return;
  client.vmas_at_us = 0;  // look again before believing it
  client.reclaim_stuck = client.reclaim_running && client.fruitless_turns >= 3;
  // Pinned, shared, locked: the longer there is nothing to take, the more rarely we look.
  constexpr std::uint64_t kFirstUs = 50'000, kMostDoublings = 4;
  if (!client.reclaim_running) {
    client.blocked_until_us =
        now_us + (kFirstUs << std::min(client.fruitless_turns - 2, kMostDoublings));
  }
}

// HAZARDS 30. A range is cut to what lies around its runs without a page that is out, those of the
// other half's command too; and closed, when there is one between its runs.
void Evictor::note_closed(const Client& client, EvictionPlan& plan, wire::Command& command) {
  std::array<wire::Range, wire::kMaxRegs> used{};  // from the first run of a range to the last one
  for (const wire::Run& run : plan.runs) {
    wire::Range& range = used[run.reg];
    const std::uint64_t end = run.start + run.pages * kPage;
    if (range.bytes == 0) range.start = run.start;
    range.bytes = std::max(range.start + range.bytes, end) - range.start;
  }
  std::uint64_t closed = 0;
  for (std::size_t i = 0; i < plan.regs.size() && i < wire::kClosedRegs; ++i) {
    const std::uint64_t from = used[i].start, to = from + used[i].bytes;
    if (client.map->next_out(from, to) < to) closed |= std::uint64_t{1} << i;
    wire::Range& reg = plan.regs[i];
    const std::uint64_t start = client.map->end_of_out(reg.start, from);
    reg = {start, client.map->next_out(to, reg.start + reg.bytes) - start};
  }
  command.regs[wire::kClosedRegs] = {closed, 0};
}

// none -> OUT for every page of the plan, noted in the client's batch record first. Pages that
// changed meanwhile end runs.
std::uint32_t Evictor::mark_out(Client& client, std::uint32_t half, EvictionPlan& plan) {
  Batch& batch = client.batch[half];
  BatchRecord& noted = client.record.batch[half];
  std::vector<wire::Run> runs;
  std::uint32_t slot = 0;
  // Noted before a page can be seen to be OUT, with results that say that nothing has moved: that
  // is what whoever comes after us finds until the command is posted.
  std::memset(client.mailbox->commands[half].result, 0, sizeof(wire::Command::result));
  noted.batch = batch.generation;
  for (const wire::Run& run : plan.runs) {
    wire::Run kept{run.start, 0, run.reg};
    for (std::uint32_t i = 0; i < run.pages; ++i) {
      const std::uint64_t page = run.start + i * kPage;
      bool marked = false;
      if (slot < wire::kHalfPages) {
        bool room = false;
        {
          const RankedLock lock(client.mutex);
          room = client.map->ensure(page) != nullptr;
        }
        const Entry was = client.map->load(page);
        __atomic_store_n(&noted.page[slot], page, __ATOMIC_RELAXED);
        __atomic_store_n(&noted.pages, slot + 1, __ATOMIC_RELEASE);
        marked = room && was.state() == PageState::none &&
                 client.map->replace(page, was, Entry::out(half, slot, batch.generation));
      }
      if (marked) {
        ++slot;
        ++kept.pages;
        continue;
      }
      if (kept.pages != 0) runs.push_back(kept);
      kept = {page + kPage, 0, run.reg};
    }
    if (kept.pages != 0) runs.push_back(kept);
  }
  plan.runs = std::move(runs);
  if (plan.runs.size() > wire::kMaxRuns) plan.runs.resize(wire::kMaxRuns);
  plan.pages = slot;
  batch.pages = slot;
  noted.pages = slot;
  return slot;
}

void Evictor::post(Client& client, std::uint32_t half, const EvictionPlan& plan,
                   std::uint32_t epoch, std::uint32_t threads_created) {
  wire::Mailbox& mailbox = *client.mailbox;
  wire::Command& command = mailbox.commands[half];
  command.epoch = epoch;
  command.threads_created = threads_created;
  command.nruns = static_cast<std::uint32_t>(plan.runs.size());
  command.nregs = static_cast<std::uint32_t>(plan.regs.size());
  command.pages = plan.pages;
  command.cpu = client.cpu;
  command.aborted = wire::kAbortNone;
  std::ranges::copy(plan.regs, command.regs);
  std::ranges::copy(plan.runs, command.runs);
  client.transfer_in_use = true;
  // The first command of several: from here it is waited for.
  if (client.batches.load() == 1) client.results_at_us = client.batch[half].posted_at_us;
  client.last_evict_us = client.batch[half].posted_at_us;
  store_word(command.state, static_cast<std::uint32_t>(wire::CommandState::posted));
  add_word(mailbox.to_agent);
  os_.futex_wake(&mailbox.to_agent);
}

// Read once; a client that lies about its own pages gets its own lies back.
std::uint32_t Evictor::note_results(Client& client, std::uint32_t half) {
  const wire::Command& command = client.mailbox->commands[half];
  Batch& batch = client.batch[half];
  std::uint32_t moved = 0;
  for (std::uint32_t slot = 0; slot < batch.pages; ++slot) {
    const auto result =
        static_cast<wire::PageResult>(__atomic_load_n(&command.result[slot], __ATOMIC_RELAXED));
    batch.moved[slot] = result == wire::PageResult::moved;
    moved += batch.moved[slot] ? 1 : 0;
    if (result == wire::PageResult::pinned) bump(counters_.evict_pinned);
    if (result == wire::PageResult::shared) bump(counters_.evict_shared);
  }
  batch.source = client.transfer + std::size_t{half} * wire::kHalfBytes;
  batch.phase = Batch::Phase::settling;
  batch.next_slot = 0;
  batch.in_transfer.store(true, std::memory_order_release);
  return moved;
}

void Evictor::take_results(Client& client, std::uint32_t half, std::uint64_t now_us) {
  wire::Command& command = client.mailbox->commands[half];
  if (load_word(command.state) != static_cast<std::uint32_t>(wire::CommandState::done)) return;
  const std::uint32_t pages = client.batch[half].pages, moved = note_results(client, half);
  const std::uint32_t aborted = load_word(command.aborted);
  store_word(command.state, static_cast<std::uint32_t>(wire::CommandState::idle));
  if (aborted != wire::kAbortNone) {
    bump(counters_.evict_aborted);
    client.fruitless_turns = 0;  // the clock's turn proves nothing when the agent had to stop
    if (aborted == wire::kAbortRegister) client.vmas_at_us = 0;
    if (aborted == wire::kAbortLocked || aborted == wire::kAbortRegister)
      client.blocked_until_us = now_us + 20'000;
    if (aborted == wire::kAbortBusy) client.blocked_until_us = now_us + 1'000;
  }
  client.moved_this_turn += moved;
  if (moved != 0) client.results_at_us = now_us;
  if (aborted == wire::kAbortNone) {
    client.poor_batches = moved * kPoorPart < pages ? client.poor_batches + 1 : 0;
    if (client.poor_batches >= kPoorBatches && !client.reclaim_running) {
      client.hold_above_bytes = wire::kNoLimit;
      const std::uint64_t pause_ms = std::min(client.poor_batches - kPoorBatches + 1, 20U);
      client.blocked_until_us = std::max(client.blocked_until_us, now_us + pause_ms * 1'000);
    }
  }
  client.aborts_in_row = moved == 0 && aborted != wire::kAbortNone ? client.aborts_in_row + 1 : 0;
  if (client.aborts_in_row > 8)
    client.blocked_until_us = std::max(client.blocked_until_us, now_us + 5'000);
  // Rescue comes first: from here the reader helps itself (DESIGN §5, 3).
  if (client.faults_parked) kick_reader_(client);
}

void Evictor::publish_batch(Client& client, std::uint32_t half) {
  Batch& batch = client.batch[half];
  const bool too_soon = mutated(Mutation::staging_before_publish);
  if (too_soon) client.record.batch[half].pages = 0;
  for (; batch.next_slot < batch.pages; ++batch.next_slot) {
    if (too_soon) (void)os_.now_ns();  // the simulator's daemon dies in calls only
    const std::uint32_t slot = batch.next_slot;
    const std::uint64_t page = client.record.batch[half].page[slot];
    const Entry out = Entry::out(half, slot, batch.generation);
    const Entry now = client.map->load(page);
    if (now == out) {
      publish_page(client, half, slot, out);
    } else if (now == out.with_wanted() && !batch.moved[slot]) {
      // It never left; whoever waits for it finds it there (HAZARDS 18).
      if (client.map->replace(page, now, Entry::none(1))) kick_reader_(client);
    }
  }
}

void Evictor::publish_page(Client& client, std::uint32_t half, std::uint32_t slot, Entry out) {
  const std::uint64_t page = client.record.batch[half].page[slot];
  if (!client.batch[half].moved[slot]) {
    if (!client.map->replace(page, out, Entry::none()) &&
        client.map->replace(page, out.with_wanted(), Entry::none())) {
      kick_reader_(client);
    }
    return;
  }
  // A hostile client may still write to the transfer area: what is checksummed and compressed is a
  // private copy.
  std::memcpy(page_.data(), client.batch[half].source + std::size_t{slot} * kPage, kPage);
  const std::span<const std::byte, kPage> bytes(page_.data(), kPage);
  Result<Entry> entry;
  if (const auto unchanged = store_.reuse(client, page, bytes)) {
    entry = *unchanged;
    bump(counters_.evict_unchanged);
  } else {
    entry = store_.put(bytes, tunables_.codec_spec(), *codec_);
  }
  if (!entry) {
    log::warn("{}: a page finds no room ({}): it goes back", client.label(), entry.error().text());
    (void)client.map->replace(page, out, out.with_wanted());
    client.give_back = true;
    client.blocked_until_us = os_.now_us() + 100'000;
    kick_reader_(client);
    return;
  }
  const bool published = store_.publish(client, page, out, *entry);
  if (mutated(Mutation::entry_before_checksum)) {
    (void)os_.now_ns();  // the simulator's daemon dies in calls only
    store_.complete(*entry, bytes, tunables_.codec_spec(), *codec_);
  }
  if (published) {
    bump(counters_.evict_pages);
    if (client.batch[half].for_reclaim) ++client.reclaimed_pages;
  }
}

// A batch ends when no page of it is OUT any more. Wanted pages are the reader's to rescue, except
// while address-space events wait: those wait for the batch, and a COPY to an old address could
// lose the page. Then they take the way through the pool.
void Evictor::settle(Client& client, std::uint32_t half, std::uint64_t now_us) {
  Batch& batch = client.batch[half];
  bool left = false;
  for (std::uint32_t slot = 0; slot < batch.pages; ++slot) {
    const std::uint64_t page = client.record.batch[half].page[slot];
    const Entry wanted = Entry::out(half, slot, batch.generation).with_wanted();
    const Entry now = client.map->load(page);
    if (now == wanted.without_wanted()) {
      publish_page(client, half, slot, now);
    } else if (now == wanted && client.unapplied && batch.moved[slot]) {
      publish_page(client, half, slot, wanted);
    } else if (now == wanted && !batch.moved[slot]) {
      (void)client.map->replace(page, now, Entry::none(1));
    }
    left = left || client.map->load(page) == wanted;
  }
  if (!left) {
    end_batch(client, half);
    return;
  }
  if (now_us - batch.posted_at_us > 5'000) client.give_back = true;
  kick_reader_(client);
}

void Evictor::end_batch(Client& client, std::uint32_t half) {
  Batch& batch = client.batch[half];
  batch.in_transfer.store(false, std::memory_order_release);
  // Not unmapped: a reader may be looking at it, and will find that its entry has changed.
  if (batch.source == batch.taken.data() && batch.taken.valid())
    (void)::madvise(batch.taken.data(), batch.taken.size(), uapi::kMadvDontneedLocked);
  store_.pool().release_reservation(batch.reserved_bytes);
  client.record.batch[half].pages = 0;
  batch.pages = 0;
  batch.phase = Batch::Phase::idle;
  client.batches.fetch_sub(1);
  if (client.unapplied || client.faults_parked || client.restore_wanted || client.gone())
    kick_reader_(client);
}

// The address space is gone: nothing of it is anybody's any more.
void Evictor::abandon_batches(Client& client) {
  for (std::uint32_t h = 0; h < wire::kHalves; ++h) {
    Batch& batch = client.batch[h];
    if (batch.phase == Batch::Phase::idle) continue;
    if (client.mailbox != nullptr) {
      // A child may be waiting for exactly these pages (its FORK may be read, and not be seen here
      // yet): what came as far as the transfer area is published.
      if (batch.phase == Batch::Phase::posted) {
        // What lies in its staging is gone with it, and was a child's, too (HAZARDS 4).
        if (client.fork_over_batch) client.batch_lost = true;
        note_results(client, h);
      }
      publish_batch(client, h);
      for (int tries = 0; tries < 1'000 && batch.phase != Batch::Phase::idle; ++tries)
        settle(client, h, os_.now_us());
    }
    if (batch.phase != Batch::Phase::idle) end_batch(client, h);
  }
  if (client.reclaim_running) client.reclaim_running = false;
  kick_reader_(client);
}

// The agent died alone, in the middle of a command (HAZARDS 7). For each page: it came through
// (transfer), it never left (still mapped), or it was in staging, where nobody may fetch it: then
// the client cannot be proved whole.
void Evictor::resolve_lost_agent(Client& client, std::uint64_t now_us) {
  if (client.agentless_since_us == 0) client.agentless_since_us = now_us;
  if (now_us - client.agentless_since_us < 1'000'000)
    return;  // most likely the whole process is on its way out
  for (std::uint32_t h = 0; h < wire::kHalves; ++h) {
    if (client.batch[h].phase != Batch::Phase::posted) continue;
    for (std::uint32_t slot = 0; slot < client.batch[h].pages; ++slot) {
      const auto result = static_cast<wire::PageResult>(client.mailbox->commands[h].result[slot]);
      const std::uint64_t page = client.record.batch[h].page[slot];
      if (result == wire::PageResult::moved || client.map->load(page).state() != PageState::out)
        continue;
      std::uint64_t word = 0;
      const int n =
          os_.read_at(client.pagemap_fd(), &word, sizeof(word), page / kPage * sizeof(word));
      constexpr std::uint64_t kPresentOrSwapped = 3ULL << 62;
      if (n != sizeof(word) || (word & kPresentOrSwapped) == 0) {
        client.kill("its agent died with pages in staging");
        return;
      }
    }
    store_word(client.mailbox->commands[h].state,
               static_cast<std::uint32_t>(wire::CommandState::done));
    take_results(client, h, now_us);
  }
}

}  // namespace foldswap
