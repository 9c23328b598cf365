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
  return table == Table::frames ? frames_.frames() : records_;
}

Record* Shard::find(ObjectId id, bool quiet) {
  if (static_cast<std::uint64_t>(id) > ~std::uint32_t{0} ||
      !records_.live(static_cast<std::uint32_t>(id))) {
    if (!quiet) ++state_.misuses;
    return nullptr;
  }
  return &record(id);
}

// Age is told in ticks of a shard, and a tick is some 1/256 of what the shard holds: a clock that
// runs as fast as the pool turns over. An object that survives sixteen such turns looks young
// again, once.
std::uint32_t Shard::next_age() {
  if (++state_.stores_in_tick > 64 + state_.objects / 256) {
    state_.stores_in_tick = 0;
    ++state_.ticks;
  }
  return static_cast<std::uint32_t>(state_.ticks % kAges);
}

// Publish order: bytes, location, meta; the id leaves with the lock.
Shard::Stored Shard::store(const NewObject& object, ObjectId& id) {
  const Lock lock(mutex_);
  const std::uint32_t item = records_.take();
  if (item == kNoItem) return Stored::no_record_page;
  const auto bytes = static_cast<std::uint32_t>(object.data.size());
  Location where;
  if (!frames_.place(ObjectId{item}, bytes, where)) {
    records_.give(item);
    return Stored::no_frame;
  }
  where.age = next_age();
  std::memcpy(frames_.data(where, bytes), object.data.data(), bytes);
  const ObjectMeta meta{1, bytes, object.codec, object.checksum};
  Record& target = record(ObjectId{item});
  target.set(where);
  target.set(meta);
  state_.count(meta, where, 1);
  id = ObjectId{item};
  return Stored::done;
}

// Both words change, which is more than one store: noted first, so that whoever finds a dead
// owner's shard can finish it. The new bytes are in place before, the old ones are given up after.
// For that moment it has two places, and as another object may come to lie in the room of the old
// bytes only, it takes up a place until then.
Replaced Shard::replace(ObjectId id, const NewObject& object) {
  const Lock lock(mutex_);
  Record* const found = find(id, true);
  if (found == nullptr) return Replaced::gone;
  const ObjectMeta old = found->what();
  if (old.codec == Codec::pattern || found->where().tier != Tier::frame) return Replaced::gone;
  if (!budget_.spend(1)) return Replaced::no_room;
  const auto bytes = static_cast<std::uint32_t>(object.data.size());
  Location to;
  const bool placed = frames_.place(id, bytes, to);
  if (placed) {
    const Location from = found->where();  // now: to make room, its frame may have been compacted
    to.age = from.age;
    to.settled = true;
    std::memcpy(frames_.data(to, bytes), object.data.data(), bytes);
    const ObjectMeta meta{old.refs, bytes, object.codec, object.checksum};
    state_.replacing = {0, to.pack(), meta.pack()};
    std::atomic_ref(state_.replacing.id).store(static_cast<std::uint64_t>(id));
    found->set(to);
    found->set(meta);
    std::atomic_ref(state_.replacing.id).store(0);
    frames_.remove(from, old.length);
    state_.count(old, from, ~std::uint64_t{0});
    state_.count(meta, to, 1);
  }
  budget_.room_changed(1);
  return placed ? Replaced::done : Replaced::no_room;
}

void Shard::settle(ObjectId id) {
  const Lock lock(mutex_);
  Record* const found = find(id, true);
  if (found == nullptr || found->what().codec == Codec::pattern) return;
  Location where = found->where();
  if (!where.settled && where.tier == Tier::frame) --state_.unsettled_count[where.age];
  where.settled = true;
  found->set(where);
}

std::uint64_t Shard::ticks() {
  const Lock lock(mutex_);
  return state_.ticks;
}

// How many ticks old an object must be to be among so many oldest; kAges: there is none.
std::uint32_t Shard::oldest_age(std::size_t wanted, bool unsettled) const {
  const auto& count = unsettled ? state_.unsettled_count : state_.age_count;
  std::size_t found = 0;
  std::uint32_t age = kAges;
  while (age > 0 && found < wanted) {
    --age;
    found += count[(state_.ticks + kAges - age) % kAges];
  }
  return found == 0 ? kAges : age;
}

void Shard::oldest(Search search, std::uint32_t pages, Sweep& sweep, std::vector<Aged>& out) {
  const Lock lock(mutex_);
  const std::uint32_t least =
      std::max(oldest_age(search.among, search.unsettled), search.least_age);
  const std::size_t most = std::min(out.size() + search.wanted, out.capacity());
  if (!sweep.begun) sweep = {true, false, false, state_.age_cursor, state_.age_cursor};
  const auto* const entries = reinterpret_cast<const Record*>(records_.at(0));
  const std::uint64_t ticks = state_.ticks;
  const auto look = [&](std::uint32_t item) {
    const Record& object = entries[item];
    if (object.what().codec == Codec::pattern) return;
    const Location where = object.where();
    if (where.tier != Tier::frame || (search.unsettled && where.settled)) return;
    const auto age = static_cast<std::uint32_t>((ticks + kAges - where.age) % kAges);
    if (age >= least && out.size() < most) out.push_back({ObjectId{item}, age});
  };
  for (; pages > 0 && !sweep.done && out.size() < most; --pages) {
    const std::uint32_t end = sweep.wrapped ? sweep.start : records_.pages_end();
    sweep.at = records_.for_each_live_of_next_page(sweep.at, end, look);
    if (sweep.at < end) continue;
    sweep.done = sweep.wrapped;
    sweep.wrapped = true;
    if (!sweep.done) sweep.at = 0;
  }
  state_.age_cursor = sweep.at;
}

bool Shard::tidy(std::uint32_t waste_percent, std::uint64_t most_bytes, std::uint64_t& moved) {
  const Lock lock(mutex_);
  if (frames_.wasted_chunks() * 100 <= waste_percent * frames_.chunks_in_use()) return false;
  return frames_.tidy_step(most_bytes, moved) == FrameTable::Tidied::moved;
}

Shard::Stored Shard::store_pattern(std::uint64_t pattern, ObjectId& id) {
  const Lock lock(mutex_);
  const std::uint32_t item = records_.take();
  if (item == kNoItem) return Stored::no_record_page;
  const ObjectMeta meta{1, 0, Codec::pattern, 0};
  Record& target = record(ObjectId{item});
  target.location.store(pattern, std::memory_order_release);
  target.set(meta);
  state_.count(meta, {}, 1);
  id = ObjectId{item};
  return Stored::done;
}

std::optional<RawLoad> Shard::load(ObjectId id, std::span<std::byte, 4096> out) {
  const Lock lock(mutex_);
  const Record* const found = find(id);
  if (found == nullptr) return std::nullopt;
  const ObjectMeta meta = found->what();
  if (meta.codec == Codec::pattern) {
    return RawLoad{meta, found->location.load(std::memory_order_acquire), {}};
  }
  // A damaged record must not make us read elsewhere (no length: an error); the checksum tells the
  // rest.
  const Location where = found->where();
  if (where.tier == Tier::segment) return RawLoad{meta, 0, where};
  if (!frames_.within(where, meta.length)) return RawLoad{ObjectMeta{}, 0, {}};
  std::memcpy(out.data(), frames_.data(where, meta.length), meta.length);
  return RawLoad{meta, 0, where};
}

bool Shard::ref(ObjectId id, bool quiet) {
  const Lock lock(mutex_);
  Record* const found = find(id, quiet);
  if (found == nullptr) return false;
  ObjectMeta meta = found->what();
  if (meta.refs == kRefsMax) return false;
  ++meta.refs;
  found->set(meta);
  return true;
}

Surplus Shard::unref(ObjectId id, std::optional<Vacated>& vacated) {
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
  const Location where = meta.codec == Codec::pattern ? Location{} : found->where();
  if (where.tier == Tier::frame) frames_.remove(where, meta.length);
  if (where.tier == Tier::segment) vacated = Vacated{where.segment_place(), meta.length};
  records_.give(static_cast<std::uint32_t>(id));
  state_.count(meta, where, ~std::uint64_t{0});
  return surplus_locked();
}

// The bytes are where the word will point (whoever calls has seen the write end), so one store is
// enough, and a death before or after it leaves a whole object.
bool Shard::move_out(ObjectId id, const ObjectMeta& expected, SegmentPlace place) {
  const Lock lock(mutex_);
  Record* const found = find(id, true);
  if (found == nullptr) return false;
  const ObjectMeta meta = found->what();
  const Location from = found->where();
  if (meta.codec == Codec::pattern || from.tier != Tier::frame || meta.codec != expected.codec ||
      meta.length != expected.length || meta.checksum != expected.checksum) {
    return false;
  }
  const Location to{Tier::segment, place.segment, place.unit, from.age, from.settled};
  found->set(to);
  frames_.remove(from, meta.length);
  state_.count(meta, from, ~std::uint64_t{0});
  state_.count(meta, to, 1);
  return true;
}

bool Shard::move_elsewhere(ObjectId id, SegmentPlace from, SegmentPlace to) {
  const Lock lock(mutex_);
  Record* const found = find(id, true);
  if (found == nullptr || found->what().codec == Codec::pattern) return false;
  Location where = found->where();
  if (where.tier != Tier::segment || where.segment_place() != from) return false;
  where.frame = to.segment;
  where.chunk = to.unit;
  found->set(where);
  return true;
}

std::optional<std::uint32_t> Shard::checksum_of(ObjectId id) {
  const Lock lock(mutex_);
  const Record* const found = find(id, true);
  if (found == nullptr) return std::nullopt;
  return found->what().checksum;
}

Surplus Shard::surplus() {
  const Lock lock(mutex_);
  return surplus_locked();
}

Surplus Shard::surplus_locked() {
  return {.frames = state_.empty_frames > 0 &&
                    budget_.empty_frames() > budget_.empty_to_keep(keep_frames_),
          .pages = records_.empty_pages() > kKeepPages};
}

std::optional<ObjectInfo> Shard::info(ObjectId id, bool quiet) {
  const Lock lock(mutex_);
  const Record* const found = find(id, quiet);
  if (found == nullptr) return std::nullopt;
  const ObjectMeta meta = found->what();
  const Location where = meta.codec == Codec::pattern ? Location{} : found->where();
  return ObjectInfo{meta.codec, where.tier,    meta.length,
                    meta.refs,  where.settled, where.segment_place()};
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
  stats.outside += state_.outside;
  stats.outside_bytes += state_.outside_bytes;
  stats.lost += state_.lost;
  stats.misuses += state_.misuses;
  stats.damages += state_.damages;
  stats.moved_bytes += state_.moved_bytes;
  stats.unused_bytes += frames_.wasted_chunks() * kChunkBytes;
  const std::uint64_t pages = std::uint64_t{records_.held_pages()} + frames_.frames().held_pages();
  stats.metadata_bytes += pages * kTablePageBytes;
}

}  // namespace foldswap
