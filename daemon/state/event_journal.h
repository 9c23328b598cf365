// What a client's record says of address-space events that are being applied, so that the next
// daemon goes on where this one died (DESIGN §10): gaps in the inbox that are being closed, and
// moves that are being made. Applying any other event again does no harm.
//
// Thread safety: the reader's; the finish_ functions before any thread is started. Each store is
// one step: a death between any two leaves something that can be finished.
#pragma once

#include <span>

#include "daemon/state/page_map.h"
#include "daemon/state/state.h"

namespace foldswap {

// It has been applied: what is left is a gap.
void clear_message(uffd_msg& message);

// Moves messages down, one by one, when there are many gaps before them. Gaps at the end go.
void close_gaps(ClientRecord& record);
void finish_closing_gaps(ClientRecord& record);

// Moves that are to be made now, in this order, are noted first. From here the set's REMAP and
// UNMAP messages mean nothing any more: whatever was unmapped has been let go.
void note_moves(ClientRecord& record, std::span<const Move> moves);
// What has not been made of them. `clear(start, end)` lets go of what the map holds there,
// `move(from, to, entry)` writes the target's entry, then clears the source's.
template <typename Clear, typename MoveEntry>
void make_moves(MovePlan& plan, const PageMap& map, Clear clear, MoveEntry move_entry) {
  for (std::uint32_t i = plan.done; i < plan.count; ++i) {
    const Move& move = plan.move[i];
    // mremap has dropped whatever was mapped at the target. Once, or what came there would go, too.
    if (plan.cleared == i) {
      clear(move.to, move.to + move.bytes);
      plan.cleared = i + 1;
    }
    const std::uint64_t end = move.from + move.bytes;
    for (std::uint64_t p = map.next_out(move.from, end); p < end; p = map.next_out(p + kPage, end))
      move_entry(p, move.to + (p - move.from), map.load(p));
    plan.done = i + 1;
  }
}
void forget_moves(ClientRecord& record);
// Of a daemon that died, before anybody counts what the map names. False: the map is full.
[[nodiscard]] bool finish_moves(ClientRecord& record, PageMap& map);

}  // namespace foldswap
