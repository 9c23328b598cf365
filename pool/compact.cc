// Compaction inside one frame: objects slide down until the holes between them have become one that
// a new object fits into. Of all runs of neighbouring holes that would do, the one with the fewest
// bytes between them is taken, so that a frame is rarely moved as a whole.
//
// HAZARDS 19: a daemon killed half-way must not lose an object. So no copy ever has a source that
// overlaps its target: an object that moves by less than its length goes through the shard's
// scratch frame. Its location word is set after each copy is complete, so at every instruction it
// names a place that holds all of the object. Readers copy under the shard's lock, which the caller
// holds: nobody sees a half move.
#include <algorithm>
#include <cstring>

#include "pool/frame_table.h"

namespace foldswap {

// Fills order_ with the frame's objects by position; returns how many.
std::size_t FrameTable::gather(std::uint32_t frame) {
  std::size_t count = 0;
  for (std::uint32_t b = meta(frame).first_block; b != kNoItem; b = block(b)[0]) {
    for (std::uint32_t i = 1; i <= block_slots_; ++i) {
      const std::uint32_t id = block(b)[i];
      if (id == 0 || count == order_.size()) continue;
      const Record& object = record(ObjectId{id});
      order_[count++] = Extent{object.where().chunk, chunks_for(object.what().length), id};
    }
  }
  std::sort(order_.begin(), order_.begin() + static_cast<std::ptrdiff_t>(count),
            [](const Extent& a, const Extent& b) { return a.chunk < b.chunk; });
  return count;
}

// Hole i lies before object i; hole `count` is the room behind the last object. Window: holes
// first..last, sum at least `need`, with the least to move between them.
FrameTable::Window FrameTable::cheapest_window(std::size_t count, std::uint32_t need) const {
  const auto end_of = [&](std::size_t i) { return i == 0 ? 0 : order_[i - 1].end(); };
  const auto start_of = [&](std::size_t i) {
    return i == count ? geometry_.frame_chunks() : order_[i].chunk;
  };
  Window best{0, count};
  std::uint32_t best_moved = ~0U, sum = 0, moved = 0;
  for (std::size_t first = 0, last = 0; last <= count; ++last) {
    sum += start_of(last) - end_of(last);
    if (last > 0) moved += order_[last - 1].chunks;
    // The sum shrinks by the hole that is left out, the work by the object behind it.
    while (first < last && sum - (start_of(first) - end_of(first)) >= need) {
      sum -= start_of(first) - end_of(first);
      moved -= order_[first].chunks;
      ++first;
    }
    if (sum >= need && moved < best_moved) {
      best = {first, last};
      best_moved = moved;
    }
  }
  return best;
}

// Afterwards the gap or the room behind the tail is at least `need` chunks; the frame has that
// much.
void FrameTable::compact(std::uint32_t frame, std::uint32_t need) {
  const std::size_t count = gather(frame);
  const Window window = cheapest_window(count, need);
  std::uint32_t to = window.first == 0 ? 0 : order_[window.first - 1].end();
  for (std::size_t i = window.first; i < window.last; ++i) {
    if (order_[i].chunk != to) move(record(ObjectId{order_[i].id}), to);
    to += order_[i].chunks;
  }
  FrameMeta& m = meta(frame);
  const bool at_end = window.last == count;
  m.gap = static_cast<std::uint16_t>(at_end ? 0 : to);
  m.gap_chunks = static_cast<std::uint16_t>(at_end ? 0 : order_[window.last].chunk - to);
  m.tail = static_cast<std::uint16_t>(at_end ? to : order_[count - 1].end());
  ++state_.compactions;
}

void FrameTable::move(Record& object, std::uint32_t to_chunk) {
  const Location from = object.where();
  const std::uint32_t bytes = object.what().length;
  const Location to{from.tier, from.frame, from.slot, to_chunk};
  Location source = from;
  if (from.chunk - to_chunk < chunks_for(bytes)) {
    source = {from.tier, scratch_frame_, from.slot, 0};
    std::memcpy(data(source), data(from), bytes);
    object.set(source);
  }
  std::memcpy(data(to), data(source), bytes);
  object.set(to);
  state_.compacted_bytes += bytes;
}

}  // namespace foldswap
