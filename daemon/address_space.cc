#include "daemon/address_space.h"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <optional>
#include <ranges>
#include <utility>

#include "base/mutation.h"

namespace foldswap {
namespace {

constexpr bool overlap(std::uint64_t a, std::uint64_t a_bytes, std::uint64_t b,
                       std::uint64_t b_bytes) {
  return a < b + b_bytes && b < a + a_bytes;
}

constexpr std::uint64_t kMostPages = 16'384;
constexpr std::uint64_t kMostFullUs = 5'000'000;
constexpr std::uint64_t kMostTakingOverUs = 10'000'000;
constexpr unsigned kMostReads = 16;    // of a child's events, per step
constexpr std::uint32_t kTaken = ~0U;  // the descriptor of a FORK whose child is being taken over

// Where a page that was there before these events has gone; nullopt: it is no more.
std::optional<std::uint64_t> place_after(std::span<const uffd_msg> events, std::uint64_t page) {
  for (const uffd_msg& m : events) {
    if (m.event == UFFD_EVENT_UNMAP && page >= m.arg.remove.start && page < m.arg.remove.end) {
      return std::nullopt;
    }
    if (m.event == UFFD_EVENT_REMAP && page - m.arg.remap.from < m.arg.remap.len) {
      page = m.arg.remap.to + (page - m.arg.remap.from);
    }
  }
  return page;
}

}  // namespace

void AddressSpace::forget_events(Client& client) {
  for (const uffd_msg& message : std::span(client.record.inbox, client.record.inbox_count)) {
    if (message.event == UFFD_EVENT_FORK && message.arg.fork.ufd != kTaken)
      host_.doom(UniqueFd(static_cast<int>(message.arg.fork.ufd)));
  }
  client.record.inbox_count = 0;
  if (client.child != nullptr) end_taking_over(client, "its parent cannot be asked any more");
}

bool AddressSpace::registered(const Client& client, std::uint64_t page) {
  const Probe probe = os_.uffd_probe(client.uffd.get(), page);
  mute_ = mute_ || probe == Probe::changing;
  return probe == Probe::registered;
}

// As PageStore::clear_range(), as far as this step may.
bool AddressSpace::clear_some(Client& client, std::uint64_t start, std::uint64_t end) {
  for (std::uint64_t p = client.map->next_out(start, end); p < end;
       p = client.map->next_out(p + kPage, end)) {
    if (left_ == 0) return false;
    --left_;
    store_.clear_range(client, p, p + kPage);
  }
  return true;
}

// REMOVE at once, unless a FORK that was read before it is kept (the child still has the pages), or
// a kept move touches it.
bool AddressSpace::apply_early_removes(Client& client, std::uint64_t now_us) {
  ClientRecord& record = client.record;
  std::uint32_t kept = 0;
  bool fork = false, all = true;
  for (std::uint32_t i = 0; i < record.inbox_count; ++i) {
    const uffd_msg message = record.inbox[i];
    fork = fork || (message.event == UFFD_EVENT_FORK && !mutated(Mutation::h01_fork_before_frees));
    if (message.event == UFFD_EVENT_REMOVE && !fork && all) {
      const auto start = message.arg.remove.start, bytes = message.arg.remove.end - start;
      const bool moving = std::any_of(record.inbox, record.inbox + kept, [&](const uffd_msg& m) {
        return m.event == UFFD_EVENT_REMAP &&
               (overlap(start, bytes, m.arg.remap.from, m.arg.remap.len) ||
                overlap(start, bytes, m.arg.remap.to, m.arg.remap.len));
      });
      if (!moving) {
        apply_remove(client, message, now_us);
        all = clear_some(client, start, start + bytes);
        if (all) continue;
      }
    }
    record.inbox[kept++] = message;
  }
  record.inbox_count = kept;
  return all;
}

std::vector<AddressSpace::Move> AddressSpace::moves_of(std::span<const uffd_msg> inbox) {
  std::vector<Move> moves;
  for (const uffd_msg& message : inbox) {
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
    moves.push_back(move);
  }
  return moves;
}

bool AddressSpace::apply(Client& client, std::uint64_t now_us) {
  ClientRecord& record = client.record;
  left_ = kMostPages;
  if (!apply_early_removes(client, now_us)) return false;
  if (record.inbox_count == 0) return true;
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
  const std::vector<std::uint64_t> occupied = occupied_by(client, inbox, moves);
  // Another change has begun meanwhile, and some answers were none: it belongs to the set.
  if (mute_) return wait_for_rest(client, now_us);
  if (!ordered) {
    client.kill("its mremap calls cannot be put in order");
    record.inbox_count = 0;
    return true;
  }
  for (const Move& move : moves) apply_move(client, move);
  // What may take more steps than this one comes last, and the moves are not done again then: with
  // moves in the set, unmapping is done in one step, and only discarding is left.
  for (uffd_msg& message : inbox) {
    if (message.event == UFFD_EVENT_REMAP) message.event = 0;
    if (message.event != UFFD_EVENT_UNMAP) continue;
    if (!apply_unmap(client, message, occupied, moves.empty())) return false;
    message.event = 0;
  }
  for (uffd_msg& message : inbox) {
    if (message.event != UFFD_EVENT_REMOVE) continue;
    apply_remove(client, message, now_us);
    if (!clear_some(client, message.arg.remove.start, message.arg.remove.end)) return false;
    message.event = 0;
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
      UniqueFd uffd(static_cast<int>(inbox[i].arg.fork.ufd));
      inbox[i].arg.fork.ufd = kTaken;
      parent.child = host_.adopt_child(parent, std::move(uffd), fork_seq);
      parent.child_since_us = now_us;
    }
    if (parent.child != nullptr) {  // else the host holds its descriptor: it waits, and is ended
      const Cloned cloned = clone_pages(parent, *parent.child, i, moves);
      if (cloned == Cloned::not_yet && now_us - parent.child_since_us < kMostTakingOverUs) {
        return false;
      }
      end_taking_over(parent, cloned == Cloned::all
                                  ? nullptr
                                  : "not every page of its parent could be taken over");
    }
    inbox[i].event = 0;
  }
  return true;
}

void AddressSpace::end_taking_over(Client& parent, const char* failure) {
  if (failure != nullptr) parent.child->kill(failure);
  host_.child_ready(std::exchange(parent.child, nullptr));
}

// Only what is registered in the child is the child's: DONTFORK ranges are not, nor what was
// unmapped first. Without moves and unmaps in the set one probe speaks for the pages of an extent
// when its first and last page out are both there.
// The child may be running: its fork() ended when the event was read. While it changes its memory,
// PROBE says nothing. Then it has what its parent has here, but for the places that this set
// changes, before the fork or after it: those wait. May be called again for what waited. `fork`:
// its index in the inbox.
AddressSpace::Cloned AddressSpace::clone_pages(Client& parent, Client& child, std::size_t fork,
                                               std::span<const Move> moves) {
  const std::span<const uffd_msg> inbox(parent.record.inbox, parent.record.inbox_count);
  const auto changes = [](const uffd_msg& m) {
    return m.event == UFFD_EVENT_UNMAP || m.event == UFFD_EVENT_REMAP;
  };
  const bool settled_places = std::ranges::none_of(inbox, changes);
  const auto in_doubt = [&](std::uint64_t page) {
    return std::ranges::any_of(
               moves,
               [&](const Move& m) { return page - m.from < m.bytes || page - m.to < m.bytes; }) ||
           std::ranges::any_of(inbox, [&](const uffd_msg& m) {
             return m.event == UFFD_EVENT_UNMAP && page >= m.arg.remove.start &&
                    page < m.arg.remove.end;
           });
  };
  // What was discarded before the fork, or at the same time.
  const auto discarded = [&](std::uint64_t page) {
    for (std::size_t i = 0; i < fork; ++i) {
      if (inbox[i].event != UFFD_EVENT_REMOVE) continue;
      const auto place = place_after(inbox.first(i), page);
      if (place && *place >= inbox[i].arg.remove.start && *place < inbox[i].arg.remove.end) {
        return !mutated(Mutation::h01_fork_order);
      }
    }
    return false;
  };
  bool mute = false;
  const auto in_child = [&](std::uint64_t page) {
    for (unsigned reads = 0; !mute; ++reads) {
      const auto place = place_after({child.record.inbox, child.record.inbox_count}, page);
      if (!place) return false;
      const Probe probe = os_.uffd_probe(child.uffd.get(), *place);
      if (probe != Probe::changing) return probe == Probe::registered;
      if (mutated(Mutation::fork_running_child)) return false;
      mute = reads == kMostReads || !read_more_(child);
    }
    return false;
  };
  const auto moved_here = [&](std::uint64_t page) {
    // The page's place at the fork, when a move of the same set has brought or will bring something
    // else there.
    return std::ranges::any_of(moves, [&](const Move& m) {
      return page - m.to < m.bytes && !in_child(m.from + (page - m.to));
    });
  };
  Cloned result = Cloned::all;
  std::uint64_t at = parent.map->next_out(0, kAddressEnd);
  while (at < kAddressEnd) {
    const std::uint64_t end = extent_floor(at) + wire::kExtentBytes;
    std::uint64_t last = at;
    for (std::uint64_t p = at; p < end; p = parent.map->next_out(p + kPage, end)) last = p;
    const bool all_in = settled_places && in_child(at) && in_child(last);
    for (std::uint64_t p = at; p < end; p = parent.map->next_out(p + kPage, end)) {
      std::uint64_t target = p;
      bool in = all_in || (in_child(p) && !moved_here(p));
      for (const Move& m : moves) {  // the fork may have come after a move of the same set
        if (in || p - m.from >= m.bytes || !in_child(m.to + (p - m.from))) continue;
        target = m.to + (p - m.from);
        in = true;
      }
      if (mute && !all_in) {
        target = p;
        in = !in_doubt(p);
        if (!in) result = Cloned::not_yet;
      }
      if (!in || discarded(p) || child.map->load(target).state() != PageState::none) continue;
      const Entry entry = parent.map->load(p);
      // What is still in flight cannot be given to the child (its parent died under the batch).
      if (entry.state() == PageState::out || !store_.share(child, target, entry)) {
        return Cloned::never;
      }
    }
    at = parent.map->next_out(end, kAddressEnd);
  }
  return result;
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

void AddressSpace::apply_move(Client& client, const Move& move) {
  // mremap has dropped whatever was mapped at the target; what is left of it in the map went with
  // it.
  store_.clear_range(client, move.to, move.to + move.bytes);
  const std::uint64_t end = move.from + move.bytes;
  for (std::uint64_t p = client.map->next_out(move.from, end); p < end;
       p = client.map->next_out(p + kPage, end)) {
    const Entry entry = client.map->load(p);
    if (entry.state() != PageState::none) store_.move(client, p, move.to + (p - move.from), entry);
  }
}

// Pages of unmapped ranges where a move of the same set has brought something since (HAZARDS 1), in
// order.
std::vector<std::uint64_t> AddressSpace::occupied_by(const Client& client,
                                                     std::span<const uffd_msg> inbox,
                                                     std::span<const Move> moves) {
  std::vector<std::uint64_t> pages;
  const auto origin = [&](std::uint64_t page) {
    for (const Move& m : std::views::reverse(moves)) {
      if (page - m.to < m.bytes) page = m.from + (page - m.to);
    }
    return page;
  };
  for (const uffd_msg& message : inbox) {
    if (message.event != UFFD_EVENT_UNMAP) continue;
    for (const Move& m : moves) {
      const std::uint64_t end = std::min<std::uint64_t>(message.arg.remove.end, m.to + m.bytes);
      for (std::uint64_t p = std::max<std::uint64_t>(message.arg.remove.start, m.to); p < end;
           p += kPage) {
        if (client.map->load(origin(p)).state() != PageState::none && registered(client, p))
          pages.push_back(p);
      }
    }
  }
  std::ranges::sort(pages);
  return pages;
}

bool AddressSpace::apply_unmap(Client& client, const uffd_msg& message,
                               std::span<const std::uint64_t> occupied, bool in_slices) {
  const std::uint64_t start = message.arg.remove.start, end = message.arg.remove.end;
  if (in_slices) return clear_some(client, start, end);
  for (std::uint64_t p = client.map->next_out(start, end); p < end;
       p = client.map->next_out(p + kPage, end)) {
    if (!std::ranges::binary_search(occupied, p)) store_.clear_range(client, p, p + kPage);
  }
  return true;
}

}  // namespace foldswap
