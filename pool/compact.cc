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

// Only an id whose record says that it lies here is believed, and only if all of them together are
// what the frame is known to hold.
//
// Where the next mark lies only the record tells, which is a cache miss of its own: what lies ahead
// in the frame is fetched meanwhile.
bool FrameTable::gather(std::uint32_t frame, std::size_t& count) {
  constexpr std::uint32_t kNear = 32, kFar = 128, kLine = 64 / kChunkBytes;
  const FrameMeta& m = meta(frame);
  count = 0;
  if (m.sole != kNoItem) {
    order_[count++] = {0, geometry_.frame_chunks(), m.sole};
    return true;
  }
  std::uint32_t chunk = 0;
  while (chunk < m.tail) {
    for (std::uint32_t ahead = kNear; ahead < kFar && chunk + ahead < m.tail; ahead += kLine) {
      __builtin_prefetch(chunk_at(frame, chunk + ahead));  // gcc drops it when in its own function
    }
    const Mark at = mark(frame, chunk);
    std::uint32_t chunks = at.hole;
    if (at.id != 0) {
      if (count == order_.size() || !records_.live(at.id)) break;
      const Record& object = record(ObjectId{at.id});
      const Location where = object.where();
      if (where.tier != Tier::frame || where.frame != frame || where.chunk != chunk) break;
      chunks = geometry_.chunks_for(object.what().length);
      order_[count++] = {chunk, chunks, at.id};
    }
    if (chunks == 0 || chunks > m.tail - chunk) break;
    chunk += chunks;
  }
  if (chunk == m.tail && count == m.objects) return true;
  set_damaged(frame);
  return false;
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
// much. False: it is damaged.
bool FrameTable::compact(std::uint32_t frame, std::uint32_t need) {
  std::size_t count = 0;
  if (!gather(frame, count)) return false;
  const Window window = cheapest_window(count, need);
  std::uint32_t to = window.first == 0 ? 0 : order_[window.first - 1].end();
  for (std::size_t i = window.first; i < window.last; ++i) {
    if (order_[i].chunk != to) move(record(ObjectId{order_[i].id}), to);
    to += order_[i].chunks;
  }
  FrameMeta& m = meta(frame);
  const bool at_end = window.last == count;
  if (!at_end) mark_hole(frame, to, order_[window.last].chunk - to);
  m.gap = static_cast<std::uint16_t>(at_end ? 0 : to);
  m.gap_chunks = static_cast<std::uint16_t>(at_end ? 0 : order_[window.last].chunk - to);
  m.tail = static_cast<std::uint16_t>(at_end ? to : order_[count - 1].end());
  ++state_.compactions;
  return true;
}

// Header and bytes together.
void FrameTable::move(Record& object, std::uint32_t to_chunk) {
  const Location from = object.where();
  const std::uint32_t bytes = kHeaderBytes + object.what().length;
  Location to = from, source = from;
  to.chunk = to_chunk;
  if (from.chunk - to_chunk < geometry_.chunks_for(object.what().length)) {
    source.frame = scratch_frame_;
    source.chunk = 0;
    std::memcpy(chunk_at(source.frame, 0), chunk_at(from.frame, from.chunk), bytes);
    object.set(source);
  }
  std::memcpy(chunk_at(to.frame, to.chunk), chunk_at(source.frame, source.chunk), bytes);
  object.set(to);
  state_.compacted_bytes += bytes;
}

}  // namespace foldswap
