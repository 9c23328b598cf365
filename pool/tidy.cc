// Moving objects out of sparse frames, so that those can go back to the system. The sparsest frame
// is emptied into the best fits among the others: every move takes an object from the frame with
// the most room to one with less, so the work ends when nothing fits any more. When what lies in
// the sparsest fits nowhere (one large object), another frame whose objects all fit into it is
// emptied there instead.
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
namespace {

constexpr std::uint64_t kCompactionCost = 8 * 1024;  // to read what lies in a frame, in bytes moved
constexpr int kMostSources = 16;

}  // namespace

FrameTable::Tidied FrameTable::tidy_step(std::uint64_t most_cost, std::uint64_t& moved) {
  const std::uint32_t sparse = sparsest();
  if (sparse == kNoFrame || meta(sparse).list == kClassFull || meta(sparse).sole != kNoItem) {
    return Tidied::exhausted;
  }
  const Tidied result = empty_into(sparse, kNoFrame, most_cost, moved);
  if (result != Tidied::exhausted) return result;
  const std::uint32_t other = source_for(sparse);
  return other == kNoFrame ? result : empty_into(other, sparse, most_cost, moved);
}

// The next sparse frame, if all of it has room in `target`. A few are looked at.
std::uint32_t FrameTable::source_for(std::uint32_t target) const {
  int looked = 0;
  for (std::uint32_t list = kClassEmpty - 1; list > kClassFull; --list) {
    for (std::uint32_t f = state_.list_head[list]; f != kNoFrame; f = meta(f).next) {
      if (++looked > kMostSources) return kNoFrame;
      const FrameMeta& m = meta(f);
      const std::uint32_t used = geometry_.frame_chunks() - m.free_chunks;
      const bool fits = used <= meta(target).free_chunks &&
                        meta(target).objects + std::uint32_t{m.objects} <= geometry_.buddies;
      if (f != target && m.sole == kNoItem && fits) return f;
    }
  }
  return kNoFrame;
}

// only_target: kNoFrame: whatever fits best, but no empty frame.
FrameTable::Tidied FrameTable::empty_into(std::uint32_t source, std::uint32_t only_target,
                                          std::uint64_t most_cost, std::uint64_t& moved) {
  std::size_t count = 0;
  if (!gather(source, count)) return Tidied::moved;  // it is out of the way: look at the next
  order_.swap(leaving_);                             // compacting a target fills order_ anew
  unlink(source);                                    // it must not be its own best fit
  Tidied result = Tidied::exhausted;
  std::uint64_t cost = kCompactionCost;
  for (std::size_t i = 0; i < count && cost < most_cost + kCompactionCost; ++i) {
    const Extent& object = leaving_[i];
    const std::uint32_t target = only_target != kNoFrame ? only_target : easy_fit(object.chunks);
    if (target == kNoFrame || meta(target).list == kClassEmpty) continue;
    const std::uint64_t compacted = state_.compacted_bytes, compactions = state_.compactions;
    if (!make_room(target, object.chunks)) continue;
    cost +=
        state_.compacted_bytes - compacted + (state_.compactions - compactions) * kCompactionCost;
    if (!relocate(object, source, target)) {
      if (result == Tidied::exhausted) result = Tidied::blocked;
      continue;
    }
    const std::uint64_t bytes = std::uint64_t{object.chunks} * kChunkBytes;
    cost += bytes;
    moved += bytes;
    state_.moved_bytes += bytes;
    result = Tidied::moved;
  }
  link(source, class_of(meta(source)));
  return result;
}

// `from` is on no list; `to` has the room in one piece. False: it would cost a place that is not to
// be had.
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
