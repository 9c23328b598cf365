// The reader of a client that is starved, and whose threads cannot be stopped (HAZARDS 39). See
// starvation.h.
#include <algorithm>
#include <cerrno>

#include "base/mutation.h"
#include "daemon/fault/fault_service.h"
#include "daemon/host/log.h"

namespace foldswap {
namespace {

constexpr std::uint64_t kMostPerSecond = 400;  // ranges
constexpr int kMostPerStep = 16;
// Interposed calls are held back for so long at most, and left alone for as long after that.
constexpr std::uint64_t kHoldUs = 20'000, kPauseUs = 40'000;
constexpr std::uint64_t kNoEvictionUs = 50'000;  // it would register all of that again
constexpr std::uint64_t kLongUs = 1'000'000, kSayEveryUs = 10'000'000;

constexpr std::uint64_t extent_ceil(std::uint64_t address) {
  return extent_floor(address + wire::kExtentBytes - 1);
}

}  // namespace

// The daemon has looked at all events that it could read: from here somebody must give way.
void FaultService::make_quiet(Client& client, std::uint64_t now_us) {
  if (mutated(Mutation::h39_unregister)) return;
  Starvation& starvation = client.starvation;
  say_starved(client, now_us);
  if (client.mailbox == nullptr) return;  // nobody there announces an mremap
  hold_callers(client, now_us);
  client.no_eviction_until_us = now_us + kNoEvictionUs;
  if (now_us - starvation.second_us >= 1'000'000) {
    starvation.second_us = now_us;
    starvation.in_second = 0;
  }
  int left = kMostPerStep;
  for (std::size_t i = 0; i < starvation.discarded.all().size() && left > 0; --left) {
    if (starvation.in_second >= kMostPerSecond || starvation.given_up.full()) return;
    const wire::Range range = starvation.discarded.all()[i];
    int error = give_up_range(client, widened(client, range));
    // Beside it lies what cannot be registered, or is being moved.
    if (error == EINVAL || error == EAGAIN) error = give_up_range(client, range);
    if (error == EBUSY) return;
    if (error == EAGAIN || error == ENOMEM) {
      ++i;  // perhaps later
    } else {
      starvation.discarded.remove(i);
    }
  }
}

// Those that are in the middle of a call finish it, those that wait for us take their request back,
// and those that come wait: then no mremap of theirs is under way.
void FaultService::hold_callers(Client& client, std::uint64_t now_us) {
  Starvation& starvation = client.starvation;
  if (starvation.hold_until_us == 0 && now_us >= starvation.next_hold_us) {
    starvation.hold_until_us = now_us + kHoldUs;
    starvation.next_hold_us = now_us + kHoldUs + kPauseUs;
  }
  if (starvation.hold_until_us == 0) return;
  if (now_us >= starvation.hold_until_us) {
    let_callers_go(client);
    return;
  }
  store_word(client.mailbox->layout_daemon, 1);
  wire::Request& request = client.mailbox->request;
  const std::uint32_t seq = load_word(request.seq);
  const auto op = static_cast<wire::RequestOp>(load_word(request.op));
  if (seq == load_word(request.served) || op == wire::RequestOp::retire) return;
  client.request_cursor = 0;
  store_word(request.status, EAGAIN);
  store_word(request.served, seq);
  os_.futex_wake(&request.served);
}

void FaultService::let_callers_go(Client& client) {
  if (client.starvation.hold_until_us == 0) return;
  client.starvation.hold_until_us = 0;
  if (client.mailbox != nullptr) store_word(client.mailbox->layout_daemon, 0);
}

// Neighbours that are not out either, in the same extents: most likely they are discarded next.
wire::Range FaultService::widened(const Client& client, const wire::Range& range) {
  const std::uint64_t first = extent_floor(range.start);
  const std::uint64_t end =
      client.map->next_out(range.start + range.bytes, extent_ceil(range.start + range.bytes));
  std::uint64_t start = range.start;
  while (start > first && client.map->load(start - kPage).state() == PageState::none)
    start -= kPage;
  return {start, end - start};
}

// HAZARDS 2: a change is under way all the time here, so PROBE cannot tell whether a move onto this
// range is unread. No announced one is, because none of those calls returns before its event has
// been read; what was read and is kept is in the inbox. 0: it is unregistered; EBUSY: not now.
int FaultService::give_up_range(Client& client, const wire::Range& range) {
  const LayoutTryLock lock(client, tunables_.incarnation);
  if (!lock.held()) return EBUSY;
  wire::Mailbox& mailbox = *client.mailbox;
  const bool held_back = client.starvation.hold_until_us != 0;
  store_word(mailbox.layout_daemon, 1);
  int error = EBUSY;
  if (load_word(mailbox.layout_busy) == 0) error = give_up_locked(client, range);
  if (!held_back) store_word(mailbox.layout_daemon, 0);
  return error;
}

int FaultService::give_up_locked(Client& client, const wire::Range& range) {
  const std::uint64_t end = range.start + range.bytes, staging = client.record.staging;
  const bool kept = std::ranges::any_of(
      std::span(client.record.inbox, client.record.inbox_count), [&](const uffd_msg& message) {
        const auto touches = [&](std::uint64_t start, std::uint64_t until) {
          return start < end && range.start < until;
        };
        const auto& move = message.arg.remap;
        const auto& gone = message.arg.remove;
        return (message.event == UFFD_EVENT_REMAP && (touches(move.from, move.from + move.len) ||
                                                      touches(move.to, move.to + move.len))) ||
               (message.event == UFFD_EVENT_UNMAP && touches(gone.start, gone.end));
      });
  const bool in_staging = range.start < staging + wire::kStagingBytes && end > staging;
  if (kept || in_staging || client.map->next_out(range.start, end) < end) return EAGAIN;
  if (client.mappings() + 2 > limit_.most()) return ENOMEM;
  if (!client.starvation.given_up.note(range)) client.splits.fetch_add(2);
  ++client.starvation.in_second;
  client.record.unregistering.note(range.start, range.bytes);
  const int error = os_.uffd_unregister(client.uffd.get(), range.start, range.bytes);
  client.record.unregistering.clear();
  return -error;
}

// A move onto what was given up, of a caller that had not asked: a system call past the C library.
// It may have been there before, and the pages that it brought along with it are zeros now.
void FaultService::check_move(Client& client, const uffd_msg& message) {
  const auto& move = message.arg.remap;
  const Starvation& starvation = client.starvation;
  if (starvation.given_up.all().empty() || !starvation.given_up.overlaps({move.to, move.len}))
    return;
  const bool asked = std::ranges::any_of(starvation.asked.all(), [&](const wire::Range& r) {
    return move.from >= r.start && move.from < r.start + r.bytes;
  });
  if (asked) return;
  client.kill(
      "it has moved memory by a system call of its own onto what was being discarded while its "
      "threads could not be stopped, because another process traces them");
}

// Its faults are answered. What was given up is safe when no change is under way any more.
void FaultService::note_quiet(Client& client) {
  Starvation& starvation = client.starvation;
  let_callers_go(client);
  starvation.discarded.clear();
  if (starvation.given_up.all().empty() ||
      os_.uffd_probe(client.uffd.get(), kPage) == Probe::changing)
    return;
  starvation.given_up.clear();
  starvation.asked.clear();
}

void FaultService::say_starved(Client& client, std::uint64_t now_us) {
  Starvation& starvation = client.starvation;
  if (now_us - client.starved_since_us < kLongUs) return;
  if (starvation.said_us != 0 && now_us - starvation.said_us < kSayEveryUs) return;
  starvation.said_us = now_us;
  log::warn(
      "{}: its faults have been waiting for {} ms: its threads change its memory without a pause, "
      "and cannot be stopped for a moment, because another process traces them (a debugger, "
      "strace). They go on when the threads pause or the tracer detaches; `foldswap restore` "
      "before a debugger is used avoids it",
      client.label(), (now_us - client.starved_since_us) / 1'000);
}

}  // namespace foldswap
