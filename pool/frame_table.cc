#include "pool/frame_table.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cassert>

namespace foldswap {

FrameTable::FrameTable(const PoolLayout& layout, std::uint32_t shard, Arena& records,
                       Budget& budget)
    : geometry_(layout.geometry()),
      scratch_frame_(PoolLayout::scratch_frame(shard)),
      frames_end_(layout.frames_end()),
      frames_(layout.frames()),
      state_(layout.shard_state(shard)),
      budget_(budget),
      records_(records),
      frame_arena_(layout.arena(PoolLayout::Table::frames, shard)),
      order_(std::min(geometry_.buddies, geometry_.frame_chunks())),
      leaving_(order_.size()) {}

std::uint32_t FrameTable::class_of(const FrameMeta& m) const {
  if (m.objects == 0) return kClassEmpty;
  if (m.objects >= geometry_.buddies || m.damaged != 0) return kClassFull;
  if (m.free_chunks <= kObjectChunksMax) return m.free_chunks;
  return kObjectChunksMax +
         (m.free_chunks - kObjectChunksMax + kObjectChunksMax - 1) / kObjectChunksMax;
}

std::int64_t FrameTable::places_of(const FrameMeta& m) const {
  if (m.objects == 0) return geometry_.frame_room();
  if (m.damaged != 0) return 0;
  return std::min(geometry_.buddies - m.objects, m.free_chunks / kObjectChunksMax);
}

void FrameTable::link(std::uint32_t frame, std::uint32_t list) {
  FrameMeta& m = meta(frame);
  std::uint32_t& head = state_.list_head[list];
  m.list = static_cast<std::uint16_t>(list);
  m.next = head;
  m.prev = kNoFrame;
  if (head != kNoFrame) meta(head).prev = frame;
  head = frame;
  state_.list_bits[list / 64] |= std::uint64_t{1} << (list % 64);
  if (list == kClassEmpty) {
    ++state_.empty_frames;
    budget_.empty_frames_changed(1);
  } else {
    ++state_.used_frames;
  }
}

void FrameTable::unlink(std::uint32_t frame) {
  FrameMeta& m = meta(frame);
  if (m.prev != kNoFrame) {
    meta(m.prev).next = m.next;
  } else {
    state_.list_head[m.list] = m.next;
    if (m.next == kNoFrame) state_.list_bits[m.list / 64] &= ~(std::uint64_t{1} << (m.list % 64));
  }
  if (m.next != kNoFrame) meta(m.next).prev = m.prev;
  if (m.list == kClassEmpty) {
    --state_.empty_frames;
    budget_.empty_frames_changed(-1);
  } else {
    --state_.used_frames;
  }
  m.list = kDetached;
}

void FrameTable::relist(std::uint32_t frame) {
  note_piece(frame);
  const std::uint32_t want = class_of(meta(frame));
  if (want == meta(frame).list) return;
  unlink(frame);
  link(frame, want);
}

void FrameTable::note_piece(std::uint32_t frame) {
  const FrameMeta& m = meta(frame);
  if (m.objects == 0) return;
  hints_.note(std::max<std::uint32_t>(m.gap_chunks, geometry_.frame_chunks() - m.tail), frame);
}

// Any number may be asked: a frame that was given back since then is not live, and its meta has no
// memory.
bool FrameTable::takes(std::uint32_t frame, std::uint32_t chunks) const {
  if (!frame_arena_.live(frame)) return false;
  const FrameMeta& m = meta(frame);
  return m.list != kDetached && m.list != kClassEmpty && m.list != kClassFull &&
         in_one_piece(m, chunks);
}

// The lists are in order of free chunks, with the empty frames last: the first that is not empty
// fits best.
std::uint32_t FrameTable::best_fit(std::uint32_t chunks) const {
  std::uint64_t mask = ~std::uint64_t{0} << (chunks % 64);
  for (std::uint32_t word = chunks / 64; word < kClassWords; ++word, mask = ~std::uint64_t{0}) {
    const std::uint64_t bits = state_.list_bits[word] & mask;
    if (bits == 0) continue;
    return state_.list_head[word * 64 + static_cast<std::uint32_t>(std::countr_zero(bits))];
  }
  return kNoFrame;
}

// Of frames with objects.
std::uint32_t FrameTable::sparsest() const {
  for (std::uint32_t word = kClassWords; word-- > 0;) {
    std::uint64_t bits = state_.list_bits[word];
    if (word == kClassEmpty / 64) bits &= ~(std::uint64_t{1} << (kClassEmpty % 64));
    if (bits == 0) continue;
    return state_.list_head[word * 64 + 63 - static_cast<std::uint32_t>(std::countl_zero(bits))];
  }
  return kNoFrame;
}

// A frame with a piece that is hardly too large. Else the best fit, unless its room is in pieces
// and another frame nearly as full has it in one: making it one means to read and to move what lies
// between. Frames with more and more room are looked at, a few only, and no empty one.
std::uint32_t FrameTable::easy_fit(std::uint32_t chunks) {
  constexpr std::uint32_t kRest = 16;  // what may be left over of a piece
  const std::uint32_t hinted = hints_.take(
      chunks, chunks + kRest, [&](std::uint32_t frame) { return takes(frame, chunks); });
  if (hinted != kNoFrame) return hinted;
  constexpr std::array<std::uint32_t, 5> kMore{8, 24, 56, 120, 248};
  const std::uint32_t best = best_fit(chunks);
  std::uint32_t frame = best;
  for (std::size_t i = 0; frame != kNoFrame && meta(frame).list != kClassEmpty; ++i) {
    if (in_one_piece(meta(frame), chunks)) return frame;
    if (i == kMore.size()) break;
    frame = best_fit(chunks + kMore[i]);
  }
  return best;
}

bool FrameTable::place(ObjectId id, std::uint32_t bytes, Location& where) {
  const std::uint32_t chunks = geometry_.chunks_for(bytes);
  std::uint32_t frame = easy_fit(chunks);
  while (frame != kNoFrame && !make_room(frame, chunks)) frame = easy_fit(chunks);
  if (frame == kNoFrame) return false;
  FrameMeta& m = meta(frame);
  const std::int64_t places = places_of(m);
  where = enter(frame, id, bytes);
  relist(frame);
  budget_.room_changed(places_of(m) - places);
  return true;
}

bool FrameTable::make_room(std::uint32_t frame, std::uint32_t chunks) {
  return in_one_piece(meta(frame), chunks) || compact(frame, chunks);
}

// Its objects can still be loaded and freed: their records say where they are.
void FrameTable::set_damaged(std::uint32_t frame) {
  FrameMeta& m = meta(frame);
  if (m.damaged != 0) return;
  const std::int64_t places = places_of(m);
  m.damaged = 1;
  ++state_.damages;
  if (m.list != kDetached) relist(frame);
  budget_.room_changed(places_of(m) - places);
}

// The frame has that much room in one piece. It is for the caller to relist it, and to tell the
// budget.
Location FrameTable::enter(std::uint32_t frame, ObjectId id, std::uint32_t bytes) {
  FrameMeta& m = meta(frame);
  const std::uint32_t chunk = carve(frame, geometry_.chunks_for(bytes));
  if (geometry_.header_bytes(bytes) == 0) {
    m.sole = static_cast<std::uint32_t>(id);
  } else {
    mark(frame, chunk).id = static_cast<std::uint32_t>(id);
  }
  ++m.objects;
  return {.tier = Tier::frame, .frame = frame, .chunk = chunk};
}

void FrameTable::remove(const Location& where, std::uint32_t bytes) {
  FrameMeta& m = meta(where.frame);
  const std::int64_t places = places_of(m);
  --m.objects;
  m.sole = kNoItem;
  uncarve(where.frame, where.chunk, geometry_.chunks_for(bytes));
  relist(where.frame);
  budget_.room_changed(places_of(m) - places);
}

void FrameTable::mark_hole(std::uint32_t frame, std::uint32_t chunk, std::uint32_t chunks) const {
  if (chunks != 0) mark(frame, chunk) = {0, chunks};
}

// Takes `chunks` out of the frame's room and says where; the frame has that much in one piece.
std::uint32_t FrameTable::carve(std::uint32_t frame, std::uint32_t chunks) {
  FrameMeta& m = meta(frame);
  assert(m.free_chunks >= chunks && in_one_piece(m, chunks));
  const bool in_gap = m.gap_chunks >= chunks;
  const auto taken = static_cast<std::uint16_t>(chunks);
  m.free_chunks = static_cast<std::uint16_t>(m.free_chunks - taken);
  state_.used_chunks += taken;
  std::uint16_t& at = in_gap ? m.gap : m.tail;
  const std::uint32_t chunk = at;
  at = static_cast<std::uint16_t>(at + taken);
  if (in_gap) {
    m.gap_chunks = static_cast<std::uint16_t>(m.gap_chunks - taken);
    mark_hole(frame, m.gap, m.gap_chunks);
  }
  return chunk;
}

// Gives room back. What touches the tail or the known gap joins it; else the larger hole is
// remembered, and the other is found again by the next compaction.
void FrameTable::uncarve(std::uint32_t frame, std::uint32_t chunk, std::uint32_t chunks) {
  FrameMeta& m = meta(frame);
  m.free_chunks = static_cast<std::uint16_t>(m.free_chunks + chunks);
  state_.used_chunks -= chunks;
  std::uint32_t start = chunk, end = chunk + chunks;
  const std::uint32_t gap_end = m.gap + std::uint32_t{m.gap_chunks};
  const bool joins = m.gap_chunks != 0 && (gap_end == start || end == m.gap);
  if (joins) {
    start = std::min<std::uint32_t>(start, m.gap);
    end = std::max(end, gap_end);
  }
  if (m.objects == 0) {
    m.tail = m.gap = m.gap_chunks = m.damaged = 0;
  } else if (end == m.tail) {
    m.tail = static_cast<std::uint16_t>(start);
    if (joins) m.gap_chunks = 0;  // swallowed
  } else {
    mark_hole(frame, start, end - start);
    if (joins || end - start > m.gap_chunks) {
      m.gap = static_cast<std::uint16_t>(start);
      m.gap_chunks = static_cast<std::uint16_t>(end - start);
    }
  }
}

std::uint32_t FrameTable::take_frame() {
  const std::uint32_t frame = frame_arena_.take();
  if (frame == kNoItem) return kNoFrame;
  FrameMeta& m = meta(frame);
  m = FrameMeta{};
  m.free_chunks = static_cast<std::uint16_t>(geometry_.frame_chunks());
  m.list = kDetached;
  return frame;
}

void FrameTable::drop_frame(std::uint32_t frame) {
  frame_arena_.give(frame);
}

void FrameTable::add(std::uint32_t frame) {
  link(frame, kClassEmpty);
}

std::uint32_t FrameTable::detach_empty() {
  const std::uint32_t frame = state_.list_head[kClassEmpty];
  if (frame == kNoFrame || !budget_.begin_shrink()) return kNoFrame;
  unlink(frame);
  return frame;
}

}  // namespace foldswap
