// The walkers behind Pool::validate(). They run under a shard's lock, so they allocate nothing and
// report what is wrong as a literal.
#include "compress/checksum.h"
#include "pool/frame_table.h"
#include "pool/shard.h"

namespace foldswap {

// Every list: members, their order, and what they add up to.
const char* FrameTable::validate_lists(Sums& sums, std::uint64_t& places) const {
  std::uint64_t empty = 0;
  for (std::uint32_t list = 0; list < kClasses; ++list) {
    const bool bit = (state_.list_bits[list / 64] >> (list % 64) & 1) != 0;
    if (bit != (state_.list_head[list] != kNoFrame)) return "list bitmap and list head differ";
    std::uint32_t before = kNoFrame;
    for (std::uint32_t f = state_.list_head[list]; f != kNoFrame; f = meta(f).next) {
      if (!frame_arena_.live(f)) return "list leads to a frame that is not held";
      const FrameMeta& m = meta(f);
      if (m.list != list || class_of(m) != list) return "frame hangs on the wrong list";
      if (m.prev != before) return "frame list: previous link is wrong";
      if (list == kClassEmpty) ++empty;
      ++sums.frames;
      sums.used_frames += list == kClassEmpty ? 0 : 1;
      sums.used_chunks += geometry_.frame_chunks() - m.free_chunks;
      sums.free_chunks += m.free_chunks;
      sums.objects += m.objects;
      places += static_cast<std::uint64_t>(places_of(m));
      before = f;
    }
  }
  return empty == state_.empty_frames ? nullptr : "count of empty frames is wrong";
}

const char* FrameTable::validate_object(ObjectId id, std::uint32_t frame,
                                        std::uint32_t chunk) const {
  if (!records_.live(static_cast<std::uint32_t>(id))) return "a frame names a free record";
  const ObjectMeta what = record(id).what();
  const Location where = record(id).where();
  if (what.refs == 0) return "object without a reference";
  if (what.codec == Codec::pattern || what.length == 0 || what.length > kObjectBytesMax) {
    return "object with bytes has a wrong codec or length";
  }
  if (where.tier != Tier::frame || where.frame != frame || where.chunk != chunk) {
    return "frame and record disagree";
  }
  if (!within(where, what.length)) return "object reaches past the end of its frame";
  if (checksum28({data(where, what.length), what.length}) != what.checksum) {
    return "checksum does not hold";
  }
  return nullptr;
}

// From chunk 0 to the tail, without anything between.
const char* FrameTable::validate_marks(std::uint32_t frame, std::uint32_t& objects) const {
  const FrameMeta& m = meta(frame);
  if (m.sole != kNoItem) {
    ++objects;
    return validate_object(ObjectId{m.sole}, frame, 0);
  }
  std::uint32_t chunk = 0;
  while (chunk < m.tail) {
    const Mark at = mark(frame, chunk);
    if (at.id == 0) {
      if (at.hole == 0) return "a hole of no length";
      chunk += at.hole;
      continue;
    }
    ++objects;
    if (const char* wrong = validate_object(ObjectId{at.id}, frame, chunk)) return wrong;
    chunk += geometry_.chunks_for(record(ObjectId{at.id}).what().length);
  }
  return chunk == m.tail ? nullptr : "the marks of a frame lead past its tail";
}

const char* FrameTable::validate_frame(std::uint32_t frame) {
  const FrameMeta& m = meta(frame);
  std::uint32_t objects = 0, used = 0;
  if (const char* wrong = validate_marks(frame, objects)) return wrong;
  if (objects != m.objects) return "frame's count and its objects differ";
  if (objects > geometry_.buddies) return "frame has more buddies than it may";
  if (objects == 0 && (m.sole != kNoItem || m.tail != 0 || m.gap_chunks != 0)) {
    return "empty frame is not as new";
  }
  if (m.damaged != 0) return "frame is marked as damaged";
  std::uint32_t end = 0;
  std::size_t count = 0;
  if (!gather(frame, count)) return "frame is damaged";
  for (std::size_t i = 0; i < count; ++i) {
    const Extent& object = order_[i];
    if (object.chunk < end) return "two objects overlap";
    end = object.end();
    used += object.chunks;
    if (m.gap_chunks != 0 && object.chunk < std::uint32_t{m.gap} + m.gap_chunks && m.gap < end) {
      return "an object lies in the gap";
    }
  }
  if (end > m.tail || m.tail > geometry_.frame_chunks()) return "tail is wrong";
  if (m.gap_chunks != 0 && std::uint32_t{m.gap} + m.gap_chunks > m.tail) return "gap is wrong";
  return used + m.free_chunks == geometry_.frame_chunks() ? nullptr : "frame has lost room";
}

const char* FrameTable::validate(std::uint64_t& places, std::uint64_t& objects) {
  if (const char* wrong = frame_arena_.validate()) return wrong;
  Sums listed, held;
  if (const char* wrong = validate_lists(listed, places)) return wrong;
  const char* wrong = nullptr;
  frame_arena_.for_each_live([&](std::uint32_t frame) {
    const FrameMeta& m = meta(frame);
    if (m.list == kDetached) return;  // on its way in or out: another thread's
    ++held.frames;
    held.used_frames += m.objects == 0 ? 0 : 1;
    held.used_chunks += geometry_.frame_chunks() - m.free_chunks;
    held.free_chunks += m.free_chunks;
    held.objects += m.objects;
    if (wrong == nullptr) wrong = validate_frame(frame);
  });
  if (wrong != nullptr) return wrong;
  objects = held.objects;
  if (held.used_frames != state_.used_frames || held.used_chunks != state_.used_chunks) {
    return "counts of what is in use are wrong";
  }
  return listed == held ? nullptr : "free space: sum over lists and sum over frames differ";
}

// Records against frames: each object has one record and one place, and the counters are their
// sums.
const char* Shard::validate_counts(std::uint64_t in_frames) {
  std::uint64_t objects = 0, patterns = 0, incompressible = 0, bytes = 0;
  std::uint64_t outside = 0, outside_bytes = 0, lost = 0;
  const char* wrong = nullptr;
  std::uint64_t ages = 0, unsettled = 0, unsettled_ages = 0;
  for (const std::uint32_t at_age : state_.age_count) ages += at_age;
  for (const std::uint32_t at_age : state_.unsettled_count) unsettled_ages += at_age;
  const auto* const entries = reinterpret_cast<const Record*>(records_.at(0));
  records_.for_each_live([&](std::uint32_t item) {
    const ObjectMeta what = entries[item].what();
    if (what.refs == 0) wrong = "record is taken but has no reference";
    if (what.codec == Codec::pattern) {
      ++patterns;
      return;
    }
    const Tier tier = entries[item].where().tier;
    if (tier == Tier::segment) {
      ++outside;
      outside_bytes += what.length;
      return;
    }
    if (tier != Tier::frame) {
      ++lost;
      return;
    }
    ++objects;
    unsettled += entries[item].where().settled ? 0 : 1;
    bytes += what.length;
    if (what.codec == Codec::raw && what.length == kObjectBytesMax) ++incompressible;
  });
  if (wrong != nullptr) return wrong;
  if (objects != in_frames) return "records with bytes and places in frames differ";
  if (ages != objects || unsettled_ages != unsettled)
    return "counts of ages are not what the records add up to";
  if (state_.replacing.id != 0) return "a replacement was left half-way";
  if (objects != state_.objects || patterns != state_.patterns ||
      incompressible != state_.incompressible || bytes != state_.compressed_bytes ||
      outside != state_.outside || outside_bytes != state_.outside_bytes || lost != state_.lost) {
    return "counters are not what the records add up to";
  }
  return nullptr;
}

const char* Shard::validate(std::uint64_t& places) {
  const Lock lock(mutex_);
  if (const char* wrong = records_.validate()) return wrong;
  std::uint64_t in_frames = 0;
  if (const char* wrong = frames_.validate(places, in_frames)) return wrong;
  return validate_counts(in_frames);
}

}  // namespace foldswap
