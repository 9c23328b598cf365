// The evictor's housekeeping: what happens to a client between evictions. See evictor.h.
#include <algorithm>

#include "daemon/evict/evictor.h"
#include "daemon/host/log.h"

namespace foldswap {
namespace {

constexpr std::uint64_t kEveryUs = 100'000, kEveryAgentlessUs = 20'000;
constexpr std::uint64_t kQuietUs =
    5'000'000;  // without an eviction: unregister what has nothing out
constexpr std::uint64_t kLeaveUs = 60'000'000;          // likewise: its agent goes
constexpr std::uint64_t kTransferQuietUs = 10'000'000;  // likewise: the transfer area is given back

}  // namespace

void Evictor::housekeeping(Client& client, std::uint64_t now_us) {
  const bool hurry = client.state() == ClientState::agentless || client.release_wanted;
  if (now_us - client.housekeeping_at_us < (hurry ? kEveryAgentlessUs : kEveryUs)) return;
  client.housekeeping_at_us = now_us;
  // Gone only when the kernel says so (HAZARDS 7).
  if (os_.uffd_probe(client.uffd.get(), kPage) == Probe::gone) {
    client.set_state(ClientState::exiting);
    abandon_batches(client);
    return;
  }
  // A forked child is not evicted and has no call of ours to unregister it: restored is all that it
  // can be.
  if (client.mailbox == nullptr && !client.restore_wanted) client.release_wanted = false;
  if (client.kept.size() != 0 && !store_.keeps_copies()) store_.forget_copies(client);
  if (client.pid() <= 0) return;
  if (client.state() == ClientState::agentless || client.state() == ClientState::released) {
    (void)budgets_.sample(client, now_us);
  }
  if (client.mailbox == nullptr) return;
  guards_.try_emplace(client.id, os_)
      .first->second.watch_quarantine(client, now_us, tunables_.quarantine_us);
  const auto tid = static_cast<pid_t>(client.last_fault_tid.load(std::memory_order_relaxed));
  if (tid != 0) {
    // The agent works best on the CPU of the thread that faults (KERNEL.md).
    ThreadInfo thread;
    const auto stat = os_.read_file("/proc/" + std::to_string(client.pid()) + "/task/" +
                                    std::to_string(tid) + "/stat");
    if (stat && parse_stat(*stat, thread) && thread.cpu >= 0)
      client.cpu = static_cast<std::uint32_t>(thread.cpu);
  }
  if (client.map->out_total() == 0 && client.batches.load() == 0) client.trim_map = true;
  if (may_leave(client, now_us)) {
    log::debug("{}: nothing has left it for long, so its agent goes", client.label());
    client.leaving = true;
    client.retire_wanted = true;
    client.release_wanted = true;
  }
  release_when_empty(client, now_us);
  if (client.release_wanted || client.state() != ClientState::active) return;
  if (client.last_evict_us == 0 || now_us - client.last_evict_us < kQuietUs) return;
  if (now_us - client.quiet_at_us > kQuietUs && load_word(client.mailbox->registered) != 0) {
    client.quiet_at_us = now_us;
    const std::uint32_t served = load_word(client.mailbox->request.served);
    client.vmas_at_us = 0;
    refresh_vmas(client, now_us, 0);
    if (client.vmas_at_us != 0 && !list_registered(client, false))
      (void)note_unregistered(client, served);
  }
  if (client.transfer_in_use && now_us - client.last_evict_us > kTransferQuietUs &&
      client.batches.load() == 0) {
    free_transfer(client);
  }
}

// smaps walks the page tables, so the larger the client, the more rarely it is read; and however
// often somebody wants it fresh, it takes no more than a fifth of this thread's time.
void Evictor::refresh_vmas(Client& client, std::uint64_t now_us, std::uint64_t max_age_us) {
  if (client.vmas_at_us != 0 &&
      now_us - client.vmas_at_us < std::max(max_age_us, 20 * client.vmas_cost_us))
    return;
  constexpr std::uint64_t kCheapUs = 2'000;
  if (client.vmas_cost_us > kCheapUs && now_us - client.vmas_read_us < 5 * client.vmas_cost_us)
    return;
  const std::uint32_t posted = static_cast<std::uint32_t>(client.batch_generation);
  const std::uint64_t begun_us = os_.now_us(), splits = client.splits.load();
  client.mappings_changed = false;  // what comes after this is not seen, perhaps
  auto vmas = read_vmas(os_, client.pid());
  client.vmas_read_us = os_.now_us();
  client.vmas_cost_us = client.vmas_read_us - begun_us;
  if (!vmas) return;
  client.vmas = std::move(*vmas);
  client.mappings_counted(client.vmas.size(), splits);
  // The process may be another program by now, while a relative keeps the address space.
  const std::uint64_t staging = client.record.staging;
  const bool ours =
      std::ranges::any_of(client.vmas, [&](const VmaInfo& v) { return v.start == staging; });
  if (!ours) client.vmas.clear();
  client.vmas_at_us = now_us;
  client.vmas_generation = posted;
  if (ours) list_stale(client);
}

// HAZARDS 30. Where something is out nothing else than a registered mapping can be; what the look
// missed, because it is older than a command, the reader sees.
void Evictor::list_stale(Client& client) {
  std::vector<wire::Range> stale;
  std::uint64_t at = 0;
  const auto look = [&](std::uint64_t end) {
    if (at < end && client.map->next_out(at, end) < end) stale.push_back({at, end - at});
  };
  for (const VmaInfo& vma : client.vmas) {
    if (!vma.registered) continue;
    look(vma.start);
    at = vma.end;
  }
  look(kAddressEnd);
  if (stale.empty()) return;
  {
    const RankedLock lock(client.mutex);
    client.stale_requests = std::move(stale);
  }
  kick_reader_(client);
}

// True: there are some.
bool Evictor::list_registered(Client& client, bool everything) {
  std::vector<wire::Range> ranges;
  bool kept = false;
  const std::uint64_t staging = client.record.staging;
  for (const VmaInfo& vma : client.vmas) {
    if (!vma.registered ||
        (!everything && vma.start < staging + wire::kStagingBytes && vma.end > staging))
      continue;
    if (client.map->next_out(vma.start, vma.end) < vma.end && !everything) {
      kept = true;
      continue;
    }
    if (!is_ours(client, vma)) continue;
    ranges.push_back({vma.start, vma.end - vma.start});
  }
  if (ranges.empty()) return kept;
  {
    const RankedLock lock(client.mutex);
    client.unregister_requests = std::move(ranges);
  }
  kick_reader_(client);
  return true;
}

// Tells the interposed calls that nothing but staging is registered, if that is sure: nobody has
// registered since `served` was looked at and, after that, smaps read. Only batches and requests
// register.
bool Evictor::note_unregistered(Client& client, std::uint32_t served) {
  const LayoutTryLock lock(client, tunables_.incarnation, LayoutTryLock::Side::evictor);
  // One that was taken over from a stopped agent is posted still, and may register.
  if (std::ranges::any_of(client.mailbox->commands, is_posted)) return false;
  if (!lock.held() || client.batches.load() != 0 ||
      load_word(client.mailbox->request.served) != served ||
      client.vmas_generation != static_cast<std::uint32_t>(client.batch_generation)) {
    return false;
  }
  store_word(client.mailbox->registered, 0);
  return true;
}

// PROBE and smaps tell that a range is registered, not with whom. REGISTER does: nothing changes
// when it is ours, EBUSY when not.
bool Evictor::is_ours(Client& client, const VmaInfo& vma) {
  const LayoutTryLock lock(client, tunables_.incarnation, LayoutTryLock::Side::evictor);
  if (!lock.held()) return true;  // not known now: asked again before anything rests on it
  // It may have become something else since smaps was read (HAZARDS 31).
  const int fd = client.uffd.get();
  if (os_.uffd_probe(fd, vma.start) == Probe::unregistered &&
      os_.uffd_probe(fd, vma.end - kPage) == Probe::unregistered)
    return false;
  return os_.uffd_register(client.uffd.get(), vma.start, vma.end - vma.start) != -EBUSY;
}

// Nothing of it is out, nothing has left it for a minute, and no budget presses.
bool Evictor::may_leave(Client& client, std::uint64_t now_us) {
  if (client.seen_first_us == 0) client.seen_first_us = now_us;
  const std::uint64_t since_us = std::max(client.seen_first_us, client.last_evict_us);
  if (now_us - since_us < kLeaveUs || client.state() != ClientState::active ||
      load_word(client.mailbox->can_leave) == 0 || client.stays || client.release_wanted ||
      client.restore_wanted || client.reclaim_claimed || client.unapplied ||
      client.batches.load() != 0 || client.revoked || client.map->out_total() != 0) {
    return false;
  }
  const std::uint64_t budget = client.budget_bytes;
  return budget == wire::kNoLimit || client.rss_bytes < budget / 4 * 3;
}

// drain, or a library that retires: restore (the reader does it), unregister everything, then
// `released`.
void Evictor::release_when_empty(Client& client, std::uint64_t now_us) {
  if (!client.release_wanted || client.restore_wanted || client.batches.load() != 0) return;
  if (client.state() == ClientState::agentless) {
    client.release_wanted = false;  // it has nobody to evict for it; restored is all it can be
    return;
  }
  const std::uint32_t served = load_word(client.mailbox->request.served);
  client.vmas_at_us = 0;
  refresh_vmas(client, now_us, 0);
  if (client.vmas_at_us == 0) return;  // smaps could not be read: try again
  bool any = false;
  for (const VmaInfo& vma : client.vmas) {
    any = any || (vma.registered && is_ours(client, vma));
  }
  if (any) {
    (void)list_registered(client, true);
    return;
  }
  if (!note_unregistered(client, served)) return;
  free_transfer(client);
  client.release_wanted = false;
  client.set_state(ClientState::released);
  if (client.leaving) {
    store_word(client.mailbox->leave, 1);
    add_word(client.mailbox->to_agent);
    os_.futex_wake(&client.mailbox->to_agent);
  }
  kick_reader_(client);
}

void Evictor::free_transfer(Client& client) {
  (void)os_.punch(client.transfer_fd(), 0, wire::kTransferBytes);
  client.transfer_in_use = false;
}

void Evictor::finish_reclaim(Client& client) {
  // An order that came since this step began is the next step's (take_order): what is noted here is
  // of the one before.
  if (!client.reclaim_running || client.reclaim_fresh) return;
  // A client that is stopped, or holds its own layout lock, delays itself alone, and not whoever
  // gave the order.
  constexpr std::uint64_t kPatienceUs = 2'000'000;
  const bool stalled = std::ranges::any_of(client.batch, [&](const Batch& b) {
    return b.phase == Batch::Phase::posted && os_.now_us() - b.posted_at_us > kPatienceUs;
  });
  const std::uint64_t now_us = os_.now_us(), taken = client.reclaimed_pages.load();
  if (taken != client.reclaim_seen_pages || client.reclaim_seen_us == 0) {
    client.reclaim_seen_pages = taken;
    client.reclaim_seen_us = now_us;
    client.reclaim_seen_turns = client.clock_turns;
  }
  // The way to the next page may be long, and is progress, too. But when the clock has been all
  // around without one, what there is does not come, because its agent does not let it.
  constexpr std::uint64_t kMostTurns = 4;
  if (client.clock_steps != client.reclaim_seen_steps &&
      client.clock_turns - client.reclaim_seen_turns < kMostTurns) {
    client.reclaim_seen_steps = client.clock_steps;
    client.reclaim_seen_us = now_us;
  }
  if (stalled || now_us - client.reclaim_seen_us > kPatienceUs) {
    client.reclaim_stalled = true;
    client.reclaim_running = false;
    return;
  }
  if (client.batches.load() != 0) return;
  const bool impossible = !client.has_agent() || client.release_wanted;
  if (client.reclaimed_pages.load() < client.reclaim_pages.load() && !client.reclaim_stuck &&
      !impossible)
    return;
  client.rss_next_us = 0;
  client.reclaim_running = false;
}

}  // namespace foldswap
