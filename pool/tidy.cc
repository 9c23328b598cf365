// Moving objects out of sparse frames, so that those can go back to the system. The sparsest frame
// is emptied into the best fits among the others: every move takes an object from the frame with
// the most room to one with less, so the work ends when nothing fits any more.
//
// HAZARDS 19: the bytes are copied first, then the location word is set; source and target are
// different frames. Readers copy under the shard's lock, which the caller holds.
//
// Reservations: a move may cost a place (the target had room for just one object of the largest
// size, and the source gains less than that). It is made only if nobody has reserved that place.
#include <algorithm>
#include <cstring>

#include "pool/frame_table.h"

namespace foldswap {

FrameTable::Tidied FrameTable::tidy_step(std::uint64_t most_bytes, std::uint64_t& moved) {
  const std::uint32_t source = sparsest();
  if (source == kNoFrame || meta(source).sole != kNoItem) return Tidied::exhausted;
  const std::size_t count = gather(source);
  order_.swap(leaving_);  // compacting a target fills order_ anew
  unlink(source);         // it must not be its own best fit
  Tidied result = Tidied::exhausted;
  std::uint64_t here = 0;
  for (std::size_t i = 0; i < count && here < most_bytes; ++i) {
    const Extent& object = leaving_[i];
    const std::uint32_t target = best_fit(object.chunks);
    if (target == kNoFrame || meta(target).list == kClassEmpty) continue;
    if (!relocate(object, source, target)) {
      result = Tidied::blocked;
      break;
    }
    here += std::uint64_t{object.chunks} * kChunkBytes;
    result = Tidied::moved;
  }
  link(source, class_of(meta(source)));
  moved += here;
  state_.moved_bytes += here;
  return result;
}

// `from` is on no list. False: it would cost a place that is not to be had.
bool FrameTable::relocate(const Extent& object, std::uint32_t from, std::uint32_t to) {
  FrameMeta &source = meta(from), &target = meta(to);
  FrameMeta source_after = source, target_after = target;
  --source_after.objects;
  ++target_after.objects;
  source_after.free_chunks = static_cast<std::uint16_t>(source.free_chunks + object.chunks);
  target_after.free_chunks = static_cast<std::uint16_t>(target.free_chunks - object.chunks);
  const std::int64_t places =
      places_of(source_after) + places_of(target_after) - places_of(source) - places_of(target);
  if (places < 0 && !budget_.spend(-places)) return false;

  const ObjectId id{object.id};
  Record& moving = record(id);
  const std::uint32_t bytes = moving.what().length;
  const Location old = moving.where();
  Location now = enter(to, id, bytes);
  now.age = old.age;
  now.settled = old.settled;
  std::memcpy(data(now, bytes), data(old, bytes), bytes);
  moving.set(now);
  --source.objects;
  uncarve(from, old.chunk, object.chunks);
  relist(to);
  if (places > 0) budget_.room_changed(places);
  return true;
}

}  // namespace foldswap
