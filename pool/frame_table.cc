#include "pool/frame_table.h"

#include <algorithm>
#include <bit>
#include <cassert>

namespace foldswap {

FrameTable::FrameTable(const PoolLayout& layout, std::uint32_t shard, Arena& records,
                       Budget& budget)
    : geometry_(layout.geometry()),
      block_slots_(layout.block_slots()),
      scratch_frame_(PoolLayout::scratch_frame(shard)),
      frames_end_(layout.frames_end()),
      frames_(layout.frames()),
      state_(layout.shard_state(shard)),
      budget_(budget),
      records_(records),
      frame_arena_(layout.arena(PoolLayout::Table::frames, shard)),
      block_arena_(layout.arena(PoolLayout::Table::blocks, shard)),
      order_(layout.geometry().buddies) {}

std::uint32_t FrameTable::class_of(const FrameMeta& m) const {
  if (m.objects == 0) return kClassEmpty;
  if (m.objects >= geometry_.buddies) return kClassFull;
  if (m.free_chunks <= kObjectChunksMax) return m.free_chunks;
  return kObjectChunksMax +
         (m.free_chunks - kObjectChunksMax + kObjectChunksMax - 1) / kObjectChunksMax;
}

std::int64_t FrameTable::places_of(const FrameMeta& m) const {
  const std::uint32_t slots = geometry_.buddies - m.objects;
  return std::min(slots, m.free_chunks / kObjectChunksMax);
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
  }
  m.list = kDetached;
}

void FrameTable::relist(std::uint32_t frame) {
  const std::uint32_t want = class_of(meta(frame));
  if (want == meta(frame).list) return;
  unlink(frame);
  link(frame, want);
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

FrameTable::Placed FrameTable::place(ObjectId id, std::uint32_t bytes, Location& where) {
  const std::uint32_t chunks = chunks_for(bytes);
  const std::uint32_t frame = best_fit(chunks);
  if (frame == kNoFrame) return Placed::no_frame;
  FrameMeta& m = meta(frame);
  std::uint32_t slot = 0;
  std::uint32_t* const word = free_slot(m, slot);
  if (word == nullptr) return Placed::no_block;
  const std::int64_t places = places_of(m);
  where = {Tier::frame, frame, slot, carve(frame, chunks)};
  *word = static_cast<std::uint32_t>(id);
  ++m.objects;
  budget_.room_changed(places_of(m) - places);
  relist(frame);
  return Placed::done;
}

void FrameTable::remove(const Location& where, std::uint32_t bytes) {
  FrameMeta& m = meta(where.frame);
  const std::int64_t places = places_of(m);
  *slot_word(m, where.slot) = 0;
  --m.objects;
  uncarve(m, where.chunk, chunks_for(bytes));
  if (m.objects == 0) free_blocks(m);
  relist(where.frame);
  budget_.room_changed(places_of(m) - places);
}

// The lowest free slot: slot numbers stay below the number of buddies. Adds a block at the chain's
// end when all are taken; nullptr when there is none to add.
std::uint32_t* FrameTable::free_slot(FrameMeta& m, std::uint32_t& slot) {
  std::uint32_t* link = &m.first_block;
  for (std::uint32_t base = 0; *link != kNoItem; base += block_slots_) {
    std::uint32_t* const words = block(*link);
    for (std::uint32_t i = 1; i <= block_slots_; ++i) {
      if (words[i] != 0) continue;
      slot = base + i - 1;
      return &words[i];
    }
    link = words;
  }
  const std::uint32_t added = block_arena_.take();
  if (added == kNoItem) return nullptr;
  std::fill_n(block(added), block_slots_ + 1, 0U);
  *link = added;
  slot = m.blocks * block_slots_;
  ++m.blocks;
  return block(added) + 1;
}

std::uint32_t* FrameTable::slot_word(const FrameMeta& m, std::uint32_t slot) const {
  std::uint32_t number = m.first_block;
  for (std::uint32_t hops = slot / block_slots_; hops > 0; --hops) number = block(number)[0];
  return block(number) + 1 + slot % block_slots_;
}

void FrameTable::free_blocks(FrameMeta& m) {
  while (m.first_block != kNoItem) {
    const std::uint32_t next = block(m.first_block)[0];
    block_arena_.give(m.first_block);
    m.first_block = next;
  }
  m.blocks = 0;
}

// Takes `chunks` out of the frame's room and says where; the frame has that much.
std::uint32_t FrameTable::carve(std::uint32_t frame, std::uint32_t chunks) {
  FrameMeta& m = meta(frame);
  assert(m.free_chunks >= chunks);
  if (m.gap_chunks < chunks && geometry_.frame_chunks() - m.tail < chunks) compact(frame, chunks);
  const bool in_gap = m.gap_chunks >= chunks;
  const auto taken = static_cast<std::uint16_t>(chunks);
  m.free_chunks = static_cast<std::uint16_t>(m.free_chunks - taken);
  std::uint16_t& at = in_gap ? m.gap : m.tail;
  const std::uint32_t chunk = at;
  at = static_cast<std::uint16_t>(at + taken);
  if (in_gap) m.gap_chunks = static_cast<std::uint16_t>(m.gap_chunks - taken);
  return chunk;
}

// Gives room back. What touches the tail or the known gap joins it; else the larger hole is
// remembered, and the other is found again by the next compaction.
void FrameTable::uncarve(FrameMeta& m, std::uint32_t chunk, std::uint32_t chunks) const {
  m.free_chunks = static_cast<std::uint16_t>(m.free_chunks + chunks);
  std::uint32_t start = chunk, end = chunk + chunks;
  const std::uint32_t gap_end = m.gap + std::uint32_t{m.gap_chunks};
  const bool joins = m.gap_chunks != 0 && (gap_end == start || end == m.gap);
  if (joins) {
    start = std::min<std::uint32_t>(start, m.gap);
    end = std::max(end, gap_end);
  }
  if (m.objects == 0) {
    m.tail = m.gap = m.gap_chunks = 0;
  } else if (end == m.tail) {
    m.tail = static_cast<std::uint16_t>(start);
    if (joins) m.gap_chunks = 0;  // swallowed
  } else if (joins || end - start > m.gap_chunks) {
    m.gap = static_cast<std::uint16_t>(start);
    m.gap_chunks = static_cast<std::uint16_t>(end - start);
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
