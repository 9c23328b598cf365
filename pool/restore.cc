// The frames of a process that has died, made anew from the records that are left. Nothing is
// believed of what FrameMeta, lists and marks of holes say: whoever died may have been half-way in
// any of them. A death in here leaves the records as they are, and the next one begins anew.
#include <algorithm>
#include <cstring>

#include "compress/checksum.h"
#include "pool/frame_table.h"

namespace foldswap {

void FrameTable::forget_lists() {
  std::ranges::fill(state_.list_bits, 0);
  std::ranges::fill(state_.list_head, kNoFrame);
  state_.empty_frames = state_.used_frames = 0;
  state_.used_chunks = 0;
}

bool FrameTable::in_scratch(const Location& where, std::uint32_t bytes) const {
  return where.frame == scratch_frame_ && where.chunk == 0 && within(where, bytes) &&
         geometry_.header_bytes(bytes) != 0;
}

bool FrameTable::sound(const Extent& object) const {
  const ObjectId id{object.id};
  const ObjectMeta what = record(id).what();
  const Location where = record(id).where();
  const std::uint32_t named = geometry_.header_bytes(what.length) == 0
                                  ? meta(where.frame).sole
                                  : mark(where.frame, where.chunk).id;
  return named == object.id && checksum28({data(where, what.length), what.length}) == what.checksum;
}

// Only what lies between the objects is written to. (Looking first whether it is right already
// costs more: a fault to read maps all the pages around.)
void FrameTable::restore(std::uint32_t frame, std::span<const Extent> objects) {
  const bool was_damaged = meta(frame).damaged != 0;
  FrameMeta m{};
  std::uint32_t used = 0, end = 0;
  for (const Extent& object : objects) {
    const std::uint32_t hole = object.chunk - end;
    mark_hole(frame, end, hole);
    if (hole > m.gap_chunks) {
      m.gap = static_cast<std::uint16_t>(end);
      m.gap_chunks = static_cast<std::uint16_t>(hole);
    }
    used += object.chunks;
    end = object.end();
    const bool alone = geometry_.header_bytes(record(ObjectId{object.id}).what().length) == 0;
    if (alone) m.sole = object.id;
    if (was_damaged && !alone) mark(frame, object.chunk).id = object.id;
  }
  m.objects = static_cast<std::uint16_t>(objects.size());
  m.free_chunks = static_cast<std::uint16_t>(geometry_.frame_chunks() - used);
  m.tail = static_cast<std::uint16_t>(end);
  meta(frame) = m;
  state_.used_chunks += used;
  link(frame, class_of(m));
  budget_.room_changed(places_of(m));
}

bool FrameTable::has_piece(std::uint32_t frame, std::uint32_t chunks) const {
  return class_of(meta(frame)) != kClassFull && in_one_piece(meta(frame), chunks);
}

// Out of scratch. As ever: the bytes first, then the one word that says where they are.
void FrameTable::bring_home(ObjectId id, std::uint32_t frame) {
  Record& object = record(id);
  const std::uint32_t bytes = object.what().length;
  const Location from = object.where();
  const std::int64_t places = places_of(meta(frame));
  Location to = enter(frame, id, bytes);
  to.age = from.age;
  to.settled = from.settled;
  std::memcpy(data(to, bytes), data(from, bytes), bytes);
  object.set(to);
  relist(frame);
  budget_.room_changed(places_of(meta(frame)) - places);
}

}  // namespace foldswap
