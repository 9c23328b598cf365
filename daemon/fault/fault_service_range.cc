// The reader's work on ranges: requests of interposed calls, restore, unregistering. See
// fault_service.h.
#include <algorithm>

#include "base/mutation.h"

#include "daemon/fault/fault_service.h"
#include "daemon/host/log.h"

namespace foldswap {
namespace {

constexpr std::uint64_t kRetrySoonUs = 20;
constexpr int kWindowsPerStep = 8;      // between two looks at the client's faults
constexpr unsigned kForgetRounds = 16;  // likewise

}  // namespace

bool FaultService::nothing_out(const Client& client, std::uint64_t start, std::uint64_t end) {
  std::uint64_t first = client.map->next_out(start, end);
  while (first < end && client.map->load(first).state() == PageState::bad) {
    first = client.map->next_out(first + kPage, end);
  }
  return first >= end;
}

bool FaultService::bring_back(Client& client, std::uint64_t start, std::uint64_t end,
                              std::uint64_t& cursor, StepResult& result) {
  for (int i = 0; i < kWindowsPerStep; ++i) {
    cursor = client.map->next_out(std::max(cursor, start), end);
    if (cursor >= end) {
      // One more look from the start: what was in flight may have been published behind the cursor.
      cursor = start;
      if (nothing_out(client, start, end)) return true;
      result.retry_us = 200;
      return false;
    }
    const Entry entry = client.map->load(cursor);
    if (!entry.evicted()) {  // in flight (the evictor ends it) or poisoned
      cursor += kPage;
      continue;
    }
    const std::uint32_t room = clear_way(client, cursor, kMostWindow);
    if (room == 0) {
      // Advised away by a raw system call, which raises no event: what was there is gone.
      (void)store_.clear(client, cursor, entry);
      continue;
    }
    const std::uint32_t pages = fill_window(client, cursor, entry, room);
    if (pages == 0 && window_on_disk_) {
      if (!order_back(client, cursor, result)) return false;
      continue;
    }
    if (pages == 0) {
      // Poisoned first, noted then: until the kernel has it, this page must not count as dealt
      // with.
      const int error = os_.uffd_poison(client.uffd.get(), cursor);
      if (error == -EAGAIN) {
        result.retry_us = kRetrySoonUs;
        return false;
      }
      if (store_.poison(client, cursor, entry)) {
        bump(counters_.lost_pages);
        log::error("{}: the object of page {:#x} does not verify: the page is poisoned",
                   client.label(), cursor);
      }
      continue;
    }
    std::uint32_t done = 0;
    Outcome outcome = copy_in(client, cursor, pages, false, done);
    if (done == 0 && pages > 1 && outcome == Outcome::later)
      outcome = copy_in(client, cursor, 1, false, done);
    if (outcome == Outcome::gone) {
      client.set_state(ClientState::exiting);
      return false;
    }
    if (outcome == Outcome::changing || (done == 0 && outcome == Outcome::later)) {
      result.retry_us = outcome == Outcome::changing ? kRetrySoonUs : 5'000;
      return false;
    }
    if (done == 0) {
      // Woken for a mapping that is gone: the event that says so is on its way; do not spin on this
      // page.
      cursor += kPage;
      result.retry_us = 200;
    } else {
      cursor += std::uint64_t{done} * kPage;
    }
    result.worked = true;
  }
  result.again = true;
  return false;
}

// Calls `each` with every bad page of the range, until it says false.
bool FaultService::for_bad_pages(const Client& client, std::uint64_t start, std::uint64_t end,
                                 const std::function<bool(std::uint64_t page, Entry bad)>& each) {
  for (std::uint64_t p = client.map->next_out(start, end); p < end;
       p = client.map->next_out(p + kPage, end)) {
    const Entry entry = client.map->load(p);
    if (entry.state() == PageState::bad && !each(p, entry)) return false;
  }
  return true;
}

// HAZARDS 2: obeys the layout rule; a change under way during it is seen by PROBE under the same
// lock and undone.
bool FaultService::unregister(Client& client, std::uint64_t start, std::uint64_t bytes,
                              bool for_request) {
  const LayoutTryLock lock(client, tunables_.incarnation);
  if (!lock.held()) return false;
  if (client.mailbox != nullptr) {
    store_word(client.mailbox->layout_daemon, 1);
    // A caller that asked for this holds layout_busy itself; any other may be in the middle of an
    // mremap.
    if (!for_request && load_word(client.mailbox->layout_busy) != 0) {
      store_word(client.mailbox->layout_daemon, 0);
      return false;
    }
  }
  bool done = true;
  // Looked at under the lock: the evictor notes a page as out before it asks for it, and the agent
  // takes it under the lock.
  if (!nothing_out(client, start, start + bytes) ||
      (os_.uffd_probe(client.uffd.get(), start) == Probe::changing &&
       !mutated(Mutation::h02_probe_unregister))) {
    done = false;
  } else if (!for_bad_pages(client, start, start + bytes, [&](std::uint64_t page, Entry) {
               return os_.uffd_poison(client.uffd.get(), page) != -EAGAIN;
             })) {
    done = false;  // whoever accesses one when nobody serves it must find the marker
  } else {
    client.splits.fetch_add(2);
    client.record.unregistering.note(start, bytes);
    if (os_.uffd_unregister(client.uffd.get(), start, bytes) == 0 &&
        os_.uffd_probe(client.uffd.get(), start) == Probe::changing &&
        !mutated(Mutation::h02_probe_unregister)) {
      (void)os_.uffd_register(client.uffd.get(), start, bytes);
      done = false;
    }
    client.record.unregistering.clear();
    // The marker is enough; and no event tells any more when the page goes and another one comes.
    if (done) {
      for_bad_pages(client, start, start + bytes, [&](std::uint64_t page, Entry bad) {
        (void)store_.clear(client, page, bad);
        return true;
      });
    }
  }
  if (client.mailbox != nullptr) store_word(client.mailbox->layout_daemon, 0);
  return done;
}

void FaultService::serve_request(Client& client, StepResult& result) {
  if (client.mailbox == nullptr || client.gone()) return;
  wire::Request& request = client.mailbox->request;
  const std::uint32_t seq = load_word(request.seq);
  if (seq == load_word(request.served)) return;
  const auto op = static_cast<wire::RequestOp>(load_word(request.op));
  const std::uint64_t start = page_floor(__atomic_load_n(&request.start, __ATOMIC_RELAXED));
  const std::uint64_t asked = __atomic_load_n(&request.bytes, __ATOMIC_RELAXED);
  std::uint32_t status = 0;
  bool done = true;
  // Staging stays as it is, whatever range the program asks for: it is the agent's.
  const auto unregister_asked = [&](std::uint64_t from, std::uint64_t to) {
    const std::uint64_t staging = client.record.staging, behind = staging + wire::kStagingBytes;
    if (to <= staging || from >= behind) return unregister(client, from, to - from, true);
    return (from >= staging || unregister(client, from, staging - from, true)) &&
           (to <= behind || unregister(client, behind, to - behind, true));
  };
  if (op != wire::RequestOp::retire &&
      (start >= kAddressEnd || asked == 0 || asked > kAddressEnd - start)) {
    status = EINVAL;
  } else {
    const std::uint64_t bytes = (asked + kPage - 1) & ~(kPage - 1);
    switch (op) {
      case wire::RequestOp::unify:
        done = unify(client, start, bytes);
        if (done && !client.starvation.given_up.all().empty())
          client.starvation.asked.note({start, bytes});
        break;
      case wire::RequestOp::release:
        done = client.batches.load() == 0 &&
               bring_back(client, start, start + bytes, client.request_cursor, result) &&
               unregister_asked(start, start + bytes);
        break;
      case wire::RequestOp::retire:
        client.retire_wanted = true;  // the evictor stops and lists what is registered
        client.restore_wanted = true;
        client.release_wanted = true;
        done = client.state() == ClientState::released;
        break;
      default:
        status = ENOSYS;
        break;
    }
  }
  if (!done) {
    if (result.retry_us == 0) result.retry_us = 50;
    return;
  }
  client.request_cursor = 0;
  store_word(request.status, status);
  store_word(request.served, seq);
  os_.futex_wake(&request.served);
}

// Pages that left the client but found no room in the pool: back from the transfer area, though no
// fault waits.
void FaultService::run_give_back(Client& client) {
  if (!client.give_back.exchange(false)) return;
  for (std::uint32_t h = 0; h < wire::kHalves; ++h) {
    const Batch& batch = client.batch[h];
    if (!batch.in_transfer.load(std::memory_order_acquire)) continue;
    for (std::uint32_t slot = 0; slot < batch.pages; ++slot) {
      const std::uint64_t page =
          __atomic_load_n(&client.record.batch[h].page[slot], __ATOMIC_RELAXED);
      const Entry claimed = Entry::out(h, slot, batch.generation).with_wanted();
      if (!batch.moved[slot] || client.map->load(page) != claimed) continue;
      if (rescue(client, page, claimed) != Outcome::done) client.give_back = true;
    }
  }
}

void FaultService::run_trim(Client& client) {
  if (!client.trim_map.exchange(false)) return;
  std::vector<std::uint32_t> leaves;
  {
    const RankedLock lock(client.mutex);
    // The evictor raises `batches` before it asks for leaves, under this mutex.
    if (client.batches.load() != 0) return;
    leaves = client.map->unlink_empty_leaves();
  }
  client.map->punch_leaves(leaves);
  const RankedLock lock(client.mutex);
  client.map->recycle_leaves(leaves);
}

void FaultService::run_restore(Client& client, StepResult& result) {
  if (!client.restore_wanted || client.gone()) return;
  if (bring_back(client, 0, kAddressEnd, client.restore_cursor, result) &&
      client.batches.load() == 0) {
    if (!store_.forget_copies(client, 0, kAddressEnd, kForgetRounds)) {
      result.again = true;
      return;
    }
    client.restore_cursor = 0;
    client.restore_wanted = false;
  } else if (result.retry_us == 0) {
    result.retry_us = 200;
  }
}

void FaultService::run_unregister(Client& client, StepResult& result) {
  std::vector<wire::Range> ranges;
  {
    const RankedLock lock(client.mutex);
    if (client.unregister_requests.empty()) return;
    ranges.swap(client.unregister_requests);
  }
  std::vector<wire::Range> left;
  for (const wire::Range& range : ranges) {
    if (!nothing_out(client, range.start, range.start + range.bytes)) continue;  // in use again
    if (!unregister(client, range.start, range.bytes, false)) left.push_back(range);
  }
  if (left.empty()) return;
  result.retry_us = result.retry_us == 0 ? 500 : std::min<std::uint64_t>(result.retry_us, 500);
  const RankedLock lock(client.mutex);
  client.unregister_requests.insert(client.unregister_requests.end(), left.begin(), left.end());
}

}  // namespace foldswap
