#include "daemon/fault/address_space.h"

#include <algorithm>
#include <ranges>
#include <utility>

#include "base/mutation.h"
#include "daemon/host/log.h"
#include "daemon/state/event_journal.h"

namespace foldswap {
namespace {

constexpr bool overlap(std::uint64_t a, std::uint64_t a_bytes, std::uint64_t b,
                       std::uint64_t b_bytes) {
  return a < b + b_bytes && b < a + a_bytes;
}

constexpr std::uint64_t kMostPages = 16'384;
constexpr std::uint64_t kMostFullUs = 5'000'000;
constexpr std::uint64_t kMostTakingOverUs = 10'000'000;

}  // namespace

void AddressSpace::forget_events(Client& client) {
  for (uffd_msg& message : std::span(client.record.inbox, client.record.inbox_count)) {
    if (message.event == UFFD_EVENT_FORK && message.arg.fork.ufd != kForkTaken) {
      host_.doom(ForkedUffd(message));
      clear_message(message);
    }
  }
  if (client.child != nullptr) end_taking_over(client, false);
  client.record.inbox_count = 0;
}

bool AddressSpace::registered(const Client& client, std::uint64_t page) {
  const Probe probe = os_.uffd_probe(client.uffd.get(), page);
  mute_ = mute_ || probe == Probe::changing;
  return probe == Probe::registered;
}

// As PageStore::clear_range(), as far as this step may.
bool AddressSpace::clear_some(Client& client, std::uint64_t start, std::uint64_t end) {
  if (!store_.forget_copies(client, start, end, kMostPages / KeptCopies::kMostTaken)) return false;
  for (std::uint64_t p = client.map->next_out(start, end); p < end;
       p = client.map->next_out(p + kPage, end)) {
    if (left_ == 0) return false;
    --left_;
    store_.clear_range(client, p, p + kPage);
  }
  return true;
}

// Nothing but for a mutation: a message goes when it has been applied.
void AddressSpace::clear_too_soon(uffd_msg& message) {
  if (!mutated(Mutation::inbox_before_applied)) return;
  clear_message(message);
  for (int i = 0; i < 4; ++i) (void)os_.now_ns();  // the simulator's daemon dies in calls only
}

// REMOVE at once, unless a FORK that was read before it is kept (the child still has the pages), or
// a kept move touches it.
bool AddressSpace::apply_early_removes(Client& client, std::uint64_t now_us) {
  ClientRecord& record = client.record;
  bool fork = false, all = true;
  for (std::uint32_t i = 0; i < record.inbox_count; ++i) {
    const uffd_msg message = record.inbox[i];
    fork = fork || (message.event == UFFD_EVENT_FORK && !mutated(Mutation::h01_fork_before_frees));
    if (message.event == UFFD_EVENT_REMOVE && !fork && all) {
      const auto start = message.arg.remove.start, bytes = message.arg.remove.end - start;
      const bool moving = std::any_of(record.inbox, record.inbox + i, [&](const uffd_msg& m) {
        return m.event == UFFD_EVENT_REMAP &&
               (overlap(start, bytes, m.arg.remap.from, m.arg.remap.len) ||
                overlap(start, bytes, m.arg.remap.to, m.arg.remap.len));
      });
      if (!moving) {
        clear_too_soon(record.inbox[i]);
        apply_remove(client, message, now_us);
        all = clear_some(client, start, start + bytes);
        if (all) clear_message(record.inbox[i]);
      }
    }
  }
  close_gaps(record);
  return all;
}

std::vector<Move> AddressSpace::moves_of(std::span<const uffd_msg> inbox) {
  std::vector<Move> moves;
  for (std::size_t i = 0; i < inbox.size(); ++i) {
    const uffd_msg& message = inbox[i];
    if (message.event != UFFD_EVENT_REMAP) continue;
    Move move{message.arg.remap.from, message.arg.remap.to, message.arg.remap.len};
    // Before Linux 6.15 an mremap that shrinks and moves reports the old length; the tail it cut
    // off was unmapped.
    for (const uffd_msg& cut : inbox) {
      if (cut.event == UFFD_EVENT_UNMAP && cut.arg.remove.end == move.from + move.bytes &&
          cut.arg.remove.start > move.from && cut.arg.remove.start < cut.arg.remove.end) {
        move.bytes = cut.arg.remove.start - move.from;
      }
    }
    // What was at the target was unmapped by the same call, and told of before, at the new length.
    move.target_bytes = move.bytes;
    for (const uffd_msg& before : inbox.first(i)) {
      if (before.event == UFFD_EVENT_UNMAP && before.arg.remove.start == move.to)
        move.target_bytes =
            std::max<std::uint64_t>(move.target_bytes, before.arg.remove.end - move.to);
    }
    moves.push_back(move);
  }
  return moves;
}

bool AddressSpace::apply(Client& client, std::uint64_t now_us) {
  ClientRecord& record = client.record;
  left_ = kMostPages;
  if (!apply_early_removes(client, now_us)) return false;
  if (record.inbox_count == 0) return true;
  // A child that cannot be asked must not let its parent's inbox run full.
  if (client.child != nullptr && record.inbox_count > kInboxMessages / 2) {
    end_taking_over(client, false);
  }
  // Any page will do: the kernel looks for changes under way before it looks at the address.
  const Probe probe = os_.uffd_probe(client.uffd.get(), kPage);
  if (probe == Probe::changing) return wait_for_rest(client, now_us);
  client.inbox_full_since_us = 0;
  const bool needs_rest = std::ranges::any_of(
      std::span(record.inbox, record.inbox_count),
      [](const uffd_msg& m) { return m.event == UFFD_EVENT_FORK || m.event == UFFD_EVENT_REMAP; });
  if (needs_rest && client.batches.load() != 0) return false;

  std::vector<Move> moves = moves_of({record.inbox, record.inbox_count});
  if (!apply_forks(client, moves, now_us)) return false;
  if (probe == Probe::gone) {
    record.inbox_count = 0;  // only its children still needed anything of it (HAZARDS 4)
    return true;
  }
  // What the forks held up. A REMOVE that was read before a REMAP came before it; one that was read
  // after it, and touches it, stays behind it.
  if (!apply_early_removes(client, now_us)) return false;
  const std::span inbox(record.inbox, record.inbox_count);
  mute_ = false;
  const bool ordered = order_moves(client, inbox, moves);
  const std::vector<std::uint64_t> unmapped = unmapped_by(client, inbox, moves);
  // Another change has begun meanwhile, and some answers were none: it belongs to the set.
  if (mute_) return wait_for_rest(client, now_us);
  if (!ordered) {
    client.kill("its mremap calls cannot be put in order");
    record.inbox_count = 0;
    return true;
  }
  if (!moves.empty()) apply_moves(client, moves, unmapped);
  // What may take more steps than this one: applying it again does no harm.
  for (uffd_msg& message : inbox) {
    const auto start = message.arg.remove.start, end = message.arg.remove.end;
    if (message.event != UFFD_EVENT_UNMAP && message.event != UFFD_EVENT_REMOVE) continue;
    if (message.event == UFFD_EVENT_REMOVE) apply_remove(client, message, now_us);
    clear_too_soon(message);
    if (!clear_some(client, start, end)) return false;
    clear_message(message);
  }
  record.inbox_count = 0;
  return true;
}

bool AddressSpace::wait_for_rest(Client& client, std::uint64_t now_us) {
  if (client.record.inbox_count + kInboxReserve <= kInboxMessages) return false;
  if (client.inbox_full_since_us == 0) client.inbox_full_since_us = now_us;
  if (now_us - client.inbox_full_since_us < kMostFullUs) return false;
  client.kill("more changes of its address space at once than can be kept");
  forget_events(client);
  return true;
}

void AddressSpace::apply_remove(Client& client, const uffd_msg& message, std::uint64_t now_us) {
  const RankedLock lock(client.mutex);
  client.quarantine.add(message.arg.remove.start, message.arg.remove.end, now_us);
}

bool AddressSpace::apply_forks(Client& parent, std::span<const Move> moves, std::uint64_t now_us) {
  const std::span inbox(parent.record.inbox, parent.record.inbox_count);
  for (std::size_t i = 0; i < inbox.size(); ++i) {
    if (inbox[i].event != UFFD_EVENT_FORK) continue;
    if (parent.child == nullptr) {
      const auto fork_seq = static_cast<std::uint32_t>(inbox[i].arg.reserved.reserved2);
      parent.child = host_.adopt_child(parent, ForkedUffd(inbox[i]), fork_seq);
      inbox[i].arg.fork.ufd = kForkTaken;  // its number is noted elsewhere by now
      parent.child_since_us = now_us;
      parent.child_cursor = 0;
    }
    if (parent.child == nullptr) {  // the host holds its descriptor: it waits, and is ended
      clear_message(inbox[i]);
      continue;
    }
    ForkClone clone(os_, store_, read_more_, parent, *parent.child, i, moves, parent.child_cursor);
    const auto result = clone.run(left_);
    const bool asked_in_vain = now_us - parent.child_since_us > kMostTakingOverUs;
    if (result == ForkClone::Result::more || (result == ForkClone::Result::ask && !asked_in_vain)) {
      return false;
    }
    end_taking_over(parent, result == ForkClone::Result::all);
  }
  return true;
}

// Killed before the FORK goes: from there whoever finds its record takes it for whole.
void AddressSpace::end_taking_over(Client& parent, bool whole) {
  if (!whole) parent.child->kill("not every page of its parent could be taken over");
  for (uffd_msg& message : std::span(parent.record.inbox, parent.record.inbox_count)) {
    if (message.event == UFFD_EVENT_FORK && message.arg.fork.ufd == kForkTaken)
      clear_message(message);
  }
  host_.child_ready(std::exchange(parent.child, nullptr));
}

// Whether the places that moves vacated and occupied end as they would if the moves came in the
// order of arrival.
bool AddressSpace::arrival_order_fits(const Client& client, std::span<const uffd_msg> inbox,
                                      std::span<const Move> moves) {
  const auto unmapped = [&](std::uint64_t page) {
    return std::ranges::any_of(inbox, [&](const uffd_msg& m) {
      return m.event == UFFD_EVENT_UNMAP && page >= m.arg.remove.start && page < m.arg.remove.end;
    });
  };
  const auto expected = [&](std::uint64_t page) {
    bool there = false;
    for (const Move& m : moves) {
      if (page - m.from < m.bytes)
        there = !unmapped(m.from);  // MREMAP_DONTUNMAP leaves it registered
      if (page - m.to < m.bytes) there = true;
    }
    return there;
  };
  return std::ranges::all_of(moves, [&](const Move& m) {
    return registered(client, m.from) == expected(m.from) &&
           registered(client, m.to) == expected(m.to);
  });
}

bool AddressSpace::order_moves(Client& client, std::span<const uffd_msg> inbox,
                               std::vector<Move>& moves) {
  if (moves.size() < 2 || mutated(Mutation::h01_order_of_moves) ||
      arrival_order_fits(client, inbox, moves)) {
    return true;
  }
  // A place that more than two moves touch has more than one history that ends like this.
  for (const Move& m : moves) {
    for (const std::uint64_t place : {m.from, m.to}) {
      const auto touches = std::count_if(moves.begin(), moves.end(), [&](const Move& other) {
        return place - other.from < other.bytes || place - other.to < other.bytes;
      });
      if (touches > 2) return false;
    }
  }
  // a before b. When one occupies what the other vacates: if that place is registered now, the
  // occupant is there still, so the vacating came first; if not, what moved in moved on.
  const auto before = [&](const Move& a, const Move& b) {
    if (overlap(a.from, a.bytes, b.to, b.bytes)) {  // a vacates what b occupies
      return registered(client, std::max(a.from, b.to));
    }
    if (overlap(a.to, a.bytes, b.from, b.bytes)) {  // a occupies what b vacates
      return !registered(client, std::max(a.to, b.from));
    }
    return false;
  };
  std::vector<Move> ordered;
  std::vector<Move> rest = std::move(moves);
  while (!rest.empty()) {
    const auto first = std::ranges::find_if(rest, [&](const Move& candidate) {
      return std::ranges::none_of(rest, [&](const Move& other) {
        return &other != &candidate && before(other, candidate);
      });
    });
    if (first == rest.end()) return false;
    ordered.push_back(*first);
    rest.erase(first);
  }
  moves = std::move(ordered);
  return true;
}

// What was unmapped goes first, and then stays gone whoever looks again. Then the moves are made,
// whatever the address space has become meanwhile.
void AddressSpace::apply_moves(Client& client, std::span<const Move> moves,
                               std::span<const std::uint64_t> unmapped) {
  ClientRecord& record = client.record;
  for (const uffd_msg& message : std::span(record.inbox, record.inbox_count)) {
    if (message.event == UFFD_EVENT_UNMAP)
      (void)store_.forget_copies(client, message.arg.remove.start, message.arg.remove.end);
  }
  for (const std::uint64_t page : unmapped) store_.clear_range(client, page, page + kPage);
  note_moves(record, moves);
  make_moves(
      record.plan, *client.map,
      [&](std::uint64_t start, std::uint64_t end) { store_.clear_range(client, start, end); },
      [&](std::uint64_t from, std::uint64_t to, Entry entry) {
        store_.move(client, from, to, entry);
      });
  forget_moves(record);
}

// Of a set with moves, the pages that are gone when all has been done, and where they are now: what
// stayed in an unmapped range, or ends there and is not registered any more (HAZARDS 1).
std::vector<std::uint64_t> AddressSpace::unmapped_by(const Client& client,
                                                     std::span<const uffd_msg> inbox,
                                                     std::span<const Move> moves) {
  std::vector<std::uint64_t> pages;
  if (moves.empty()) return pages;
  const auto look_at = [&](std::uint64_t page) {
    std::uint64_t place = page;
    bool moved = false;
    for (const Move& m : moves) {
      if (place - m.from < m.bytes) {
        place = m.to + (place - m.from);
        moved = true;
      } else if (place - m.to < m.bytes) {
        return;  // it goes when the move is made
      } else if (place - m.to < m.target_bytes && !moved) {
        pages.push_back(page);  // what the mapping has grown over
        return;
      }
    }
    const bool unmapped = std::ranges::any_of(inbox, [&](const uffd_msg& m) {
      return m.event == UFFD_EVENT_UNMAP && place >= m.arg.remove.start && place < m.arg.remove.end;
    });
    if (unmapped && !(moved && registered(client, place))) pages.push_back(page);
  };
  const auto look_at_all = [&](std::uint64_t start, std::uint64_t end) {
    for (std::uint64_t p = client.map->next_out(start, end); p < end;
         p = client.map->next_out(p + kPage, end))
      look_at(p);
  };
  for (const Move& m : moves) look_at_all(m.from, m.from + m.bytes);
  for (const uffd_msg& m : inbox) {
    if (m.event == UFFD_EVENT_UNMAP) look_at_all(m.arg.remove.start, m.arg.remove.end);
  }
  return pages;
}

}  // namespace foldswap
