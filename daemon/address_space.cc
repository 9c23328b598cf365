#include "daemon/address_space.h"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <utility>

namespace foldswap {
namespace {

constexpr bool overlap(std::uint64_t a, std::uint64_t a_bytes, std::uint64_t b,
                       std::uint64_t b_bytes) {
  return a < b + b_bytes && b < a + a_bytes;
}

}  // namespace

bool AddressSpace::registered(const Client& client, std::uint64_t page) const {
  return os_.uffd_probe(client.uffd.get(), page) == Probe::registered;
}

bool AddressSpace::apply(Client& client, std::uint64_t now_us) {
  ClientRecord& record = client.record;
  if (record.inbox_count == 0) return true;
  const std::span inbox(record.inbox, record.inbox_count);

  std::vector<Move> moves;
  bool kept = false;
  for (uffd_msg& message : inbox) {
    if (message.event == UFFD_EVENT_REMAP) {
      moves.push_back({message.arg.remap.from, message.arg.remap.to, message.arg.remap.len});
    }
    if (message.event == UFFD_EVENT_REMOVE) {
      const auto start = message.arg.remove.start, bytes = message.arg.remove.end - start;
      const bool moving = std::ranges::any_of(moves, [&](const Move& m) {
        return overlap(start, bytes, m.from, m.bytes) || overlap(start, bytes, m.to, m.bytes);
      });
      if (!moving) {
        apply_remove(client, message, now_us);
        message.event = 0;
      }
    }
    kept = kept || message.event != 0;
  }
  if (!kept) {
    record.inbox_count = 0;
    return true;
  }
  // Any page will do: the kernel looks for changes under way before it looks at the address.
  const bool full = record.inbox_count == kInboxMessages;
  const Probe probe = os_.uffd_probe(client.uffd.get(), kPage);
  if (probe == Probe::changing && !full) return false;
  if (probe == Probe::gone) {
    record.inbox_count = 0;
    return true;
  }
  const bool needs_rest = std::ranges::any_of(inbox, [](const uffd_msg& m) {
    return m.event == UFFD_EVENT_FORK || m.event == UFFD_EVENT_REMAP;
  });
  if (needs_rest && client.batches.load() != 0) return false;

  for (const uffd_msg& message : inbox) {
    if (message.event == UFFD_EVENT_FORK && !apply_fork(client, message, moves)) return true;
  }
  if (!order_moves(client, moves)) {
    client.kill("its mremap calls cannot be put in order");
    record.inbox_count = 0;
    return true;
  }
  for (const Move& move : moves) apply_move(client, move);
  for (const uffd_msg& message : inbox) {
    if (message.event == UFFD_EVENT_UNMAP) {
      apply_unmap(client, message.arg.remove.start, message.arg.remove.end, !moves.empty());
    } else if (message.event == UFFD_EVENT_REMOVE) {
      apply_remove(client, message, now_us);
    }
  }
  record.inbox_count = 0;
  return true;
}

void AddressSpace::apply_remove(Client& client, const uffd_msg& message, std::uint64_t now_us) {
  const std::uint64_t start = message.arg.remove.start, end = message.arg.remove.end;
  {
    const RankedLock lock(client.mutex);
    client.quarantine.add(start, end, now_us);
  }
  store_.clear_range(client, start, end);
}

bool AddressSpace::apply_fork(Client& parent, const uffd_msg& message,
                              std::span<const Move> moves) {
  UniqueFd uffd(static_cast<int>(message.arg.fork.ufd));
  const auto child = host_.adopt_child(parent, std::move(uffd));
  bool whole = child != nullptr;
  if (whole) clone_pages(parent, *child, moves, whole);
  if (!whole) {
    // Without its pages the child would read zeros, and its pid is not known yet: end the parent
    // while it is still inside fork(2), which ends with it.
    parent.kill("its child could not be taken over (client table or reference counts full)");
    return false;
  }
  host_.child_ready(child);
  return true;
}

void AddressSpace::clone_pages(Client& parent, Client& child, std::span<const Move> moves,
                               bool& whole) {
  // Only what is registered in the child is the child's: DONTFORK ranges are not. One probe speaks
  // for the pages of an extent when its first and last page out agree; else every page is asked.
  std::uint64_t at = parent.map->next_out(0, kAddressEnd);
  while (at < kAddressEnd) {
    const std::uint64_t end = extent_floor(at) + wire::kExtentBytes;
    std::uint64_t last = at;
    for (std::uint64_t p = at; p < end; p = parent.map->next_out(p + kPage, end)) last = p;
    const bool first_in = registered(child, at), last_in = registered(child, last);
    for (std::uint64_t p = at; p < end; p = parent.map->next_out(p + kPage, end)) {
      std::uint64_t target = p;
      bool in = first_in == last_in ? first_in : registered(child, p);
      if (!in) {
        // The fork may have come after a move of the same set.
        for (const Move& m : moves) {
          if (p - m.from < m.bytes && registered(child, m.to + (p - m.from))) {
            target = m.to + (p - m.from);
            in = true;
          }
        }
      }
      const Entry entry = parent.map->load(p);
      if (in && !store_.share(child, target, entry)) whole = false;
    }
    at = parent.map->next_out(end, kAddressEnd);
  }
}

bool AddressSpace::order_moves(Client& client, std::vector<Move>& moves) const {
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

void AddressSpace::apply_unmap(Client& client, std::uint64_t start, std::uint64_t end, bool moved) {
  // A page that is registered now belongs to what was moved there by the same set (HAZARDS 1).
  // Without a move in the set nothing can have been: whoever unmapped held PROBE at "changing"
  // until its event was read.
  if (!moved) {
    store_.clear_range(client, start, end);
    return;
  }
  for (std::uint64_t p = client.map->next_out(start, end); p < end;
       p = client.map->next_out(p + kPage, end)) {
    if (!registered(client, p)) store_.clear_range(client, p, p + kPage);
  }
}

}  // namespace foldswap
