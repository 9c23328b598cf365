#include "pool/shard.h"

#include <cstring>

#include "pool/pool.h"

namespace foldswap {

Shard::Shard(const PoolLayout& layout, std::uint32_t shard, Budget& budget)
    : state_(layout.shard_state(shard)),
      records_(layout.arena(Table::records, shard)),
      frames_(layout, shard, records_, budget),
      budget_(budget),
      keep_frames_(Pool::kKeepEmptyBytes / layout.geometry().frame_bytes) {}

Arena& Shard::arena(Table table) {
  switch (table) {
    case Table::frames:
      return frames_.frames();
    case Table::blocks:
      return frames_.blocks();
    case Table::records:
      break;
  }
  return records_;
}

Record* Shard::find(ObjectId id) {
  if (static_cast<std::uint64_t>(id) > ~std::uint32_t{0} ||
      !records_.live(static_cast<std::uint32_t>(id))) {
    ++state_.misuses;
    return nullptr;
  }
  return &record(id);
}

// `by` is 1 or -1 (as an unsigned number): adds or takes away one object's share of the counters.
void Shard::count(const ObjectMeta& meta, std::uint64_t by) {
  if (meta.codec == Codec::pattern) {
    state_.patterns += by;
    return;
  }
  state_.objects += by;
  state_.compressed_bytes += by * meta.length;
  if (meta.codec == Codec::raw && meta.length == kObjectBytesMax) state_.incompressible += by;
}

// Publish order: bytes, location, meta; the id leaves with the lock.
Shard::Stored Shard::store(const NewObject& object, ObjectId& id) {
  const Lock lock(mutex_);
  const std::uint32_t item = records_.take();
  if (item == kNoItem) return Stored::no_record_page;
  const auto bytes = static_cast<std::uint32_t>(object.data.size());
  Location where;
  const FrameTable::Placed placed = frames_.place(ObjectId{item}, bytes, where);
  if (placed != FrameTable::Placed::done) {
    records_.give(item);
    return placed == FrameTable::Placed::no_frame ? Stored::no_frame : Stored::no_block_page;
  }
  std::memcpy(frames_.data(where), object.data.data(), bytes);
  const ObjectMeta meta{1, bytes, object.codec, object.checksum};
  Record& target = record(ObjectId{item});
  target.set(where);
  target.set(meta);
  count(meta, 1);
  id = ObjectId{item};
  return Stored::done;
}

Shard::Stored Shard::store_pattern(std::uint64_t pattern, ObjectId& id) {
  const Lock lock(mutex_);
  const std::uint32_t item = records_.take();
  if (item == kNoItem) return Stored::no_record_page;
  const ObjectMeta meta{1, 0, Codec::pattern, 0};
  Record& target = record(ObjectId{item});
  target.location.store(pattern, std::memory_order_release);
  target.set(meta);
  count(meta, 1);
  id = ObjectId{item};
  return Stored::done;
}

std::optional<RawLoad> Shard::load(ObjectId id, std::span<std::byte, 4096> out) {
  const Lock lock(mutex_);
  const Record* const found = find(id);
  if (found == nullptr) return std::nullopt;
  const ObjectMeta meta = found->what();
  if (meta.codec == Codec::pattern) {
    return RawLoad{meta, found->location.load(std::memory_order_acquire)};
  }
  // A damaged record must not make us read elsewhere (no length: an error); the checksum tells the
  // rest.
  const Location where = found->where();
  if (!frames_.within(where, meta.length)) return RawLoad{ObjectMeta{}, 0};
  std::memcpy(out.data(), frames_.data(where), meta.length);
  return RawLoad{meta, 0};
}

bool Shard::ref(ObjectId id) {
  const Lock lock(mutex_);
  Record* const found = find(id);
  if (found == nullptr) return false;
  ObjectMeta meta = found->what();
  if (meta.refs == kRefsMax) return false;
  ++meta.refs;
  found->set(meta);
  return true;
}

Surplus Shard::unref(ObjectId id) {
  const Lock lock(mutex_);
  Record* const found = find(id);
  if (found == nullptr) return {};
  ObjectMeta meta = found->what();
  if (meta.refs > 1) {
    --meta.refs;
    found->set(meta);
    return {};
  }
  found->meta.store(0, std::memory_order_release);
  if (meta.codec != Codec::pattern) frames_.remove(found->where(), meta.length);
  records_.give(static_cast<std::uint32_t>(id));
  count(meta, ~std::uint64_t{0});
  return {
      .frames = state_.empty_frames > 0 && budget_.empty_frames() > keep_frames_,
      .pages = records_.empty_pages() > kKeepPages || frames_.blocks().empty_pages() > kKeepPages};
}

std::optional<ObjectInfo> Shard::info(ObjectId id) {
  const Lock lock(mutex_);
  const Record* const found = find(id);
  if (found == nullptr) return std::nullopt;
  const ObjectMeta meta = found->what();
  const Tier tier = meta.codec == Codec::pattern ? Tier::none : found->where().tier;
  return ObjectInfo{meta.codec, tier, meta.length, meta.refs};
}

std::uint32_t Shard::take_frame() {
  const Lock lock(mutex_);
  return frames_.take_frame();
}

void Shard::drop_frame(std::uint32_t frame) {
  const Lock lock(mutex_);
  frames_.drop_frame(frame);
}

void Shard::add_frame(std::uint32_t frame) {
  const Lock lock(mutex_);
  frames_.add(frame);
}

std::size_t Shard::detach_empty(FrameBatch& batch, std::uint64_t keep) {
  const Lock lock(mutex_);
  std::size_t count = 0;
  while (count < batch.size() && budget_.empty_frames() > keep) {
    const std::uint32_t frame = frames_.detach_empty();
    if (frame == kNoFrame) break;
    batch[count++] = frame;
  }
  return count;
}

std::uint32_t Shard::claim_page(Table table) {
  const Lock lock(mutex_);
  return arena(table).claim();
}

void Shard::attach_page(Table table, std::uint32_t page) {
  const Lock lock(mutex_);
  arena(table).attach(page);
}

void Shard::forget_page(Table table, std::uint32_t page) {
  const Lock lock(mutex_);
  arena(table).forget(page);
}

std::uint32_t Shard::detach_page(Table table, std::uint32_t keep) {
  const Lock lock(mutex_);
  Arena& pages = arena(table);
  return pages.empty_pages() > keep ? pages.detach_empty() : kNoPage;
}

void Shard::add_stats(PoolStats& stats) {
  const Lock lock(mutex_);
  stats.objects += state_.objects;
  stats.pattern_objects += state_.patterns;
  stats.incompressible += state_.incompressible;
  stats.compressed_bytes += state_.compressed_bytes;
  stats.compactions += state_.compactions;
  stats.compacted_bytes += state_.compacted_bytes;
  stats.misuses += state_.misuses;
  const std::uint64_t pages = std::uint64_t{records_.held_pages()} + frames_.frames().held_pages() +
                              frames_.blocks().held_pages();
  stats.metadata_bytes += pages * kTablePageBytes;
}

}  // namespace foldswap
