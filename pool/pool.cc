#include "pool/pool.h"

#include <algorithm>
#include <chrono>
#include <string>
#include <thread>

#include "base/mutation.h"

namespace foldswap {
namespace {

// Objects that are stored together shall lie together: a run of stores goes to one shard.
constexpr std::uint64_t kStoresPerTurn = 64;

std::unexpected<Error> full() {
  return fail_errno("the pool is at its limit and has no room for the object", ENOSPC);
}
std::unexpected<Error> no_memory() {
  return fail_errno("the system has no memory for the pool to grow", ENOMEM);
}
std::unexpected<Error> unknown(ObjectId id) {
  return fail_errno("no object has the id " + std::to_string(static_cast<std::uint64_t>(id)),
                    ENOENT);
}
constexpr std::uint64_t places_for(std::uint64_t bytes) {
  return (bytes + kObjectBytesMax - 1) / kObjectBytesMax;
}

}  // namespace

Pool::Pool(Os& os, PoolLayout layout)
    : os_(os),
      layout_(std::move(layout)),
      budget_(layout_.geometry(), layout_.config().limit_bytes / layout_.geometry().frame_bytes),
      waste_percent_(layout_.config().waste_percent) {
  for (std::uint32_t s = 0; s < layout_.config().shards; ++s) {
    shards_.push_back(std::make_unique<Shard>(layout_, s, budget_));
  }
}

Result<std::unique_ptr<Pool>> Pool::create(Os& os, const PoolConfig& config) {
  auto layout = PoolLayout::create(os, config);
  if (!layout) return std::unexpected(layout.error());
  return std::unique_ptr<Pool>(new Pool(os, std::move(*layout)));
}

// Pages of the record table belong to the shards in turn.
Shard& Pool::shard_of(ObjectId id) {
  const std::uint64_t page = static_cast<std::uint64_t>(id) / (kTablePageBytes / sizeof(Record));
  return *shards_[page % shards_.size()];
}

std::uint32_t Pool::next_shard() {
  const std::uint64_t ticket = ticket_.fetch_add(1, std::memory_order_relaxed);
  return static_cast<std::uint32_t>(ticket / kStoresPerTurn % shards_.size());
}

// The shard whose turn it is takes the object, growing if it must and may. At the limit the others
// are asked. A search that found nothing is repeated while the pool changes under it: by the
// budget's arithmetic an object under a reservation finds its place (pool/budget.h).
Result<ObjectId> Pool::store(std::span<const std::byte> data, Codec codec) {
  if (data.empty() || data.size() > kObjectBytesMax || codec > Codec::zstd) {
    return fail_errno("cannot store " + std::to_string(data.size()) + " bytes of codec " +
                          std::to_string(static_cast<unsigned>(codec)),
                      EINVAL);
  }
  const bool unchecked = mutated(Mutation::entry_before_checksum);
  const NewObject object{data, codec, unchecked ? 0 : checksum28(data)};
  for (std::uint32_t turn = next_shard();; ++turn) {
    const std::uint64_t changes = budget_.changes();
    ObjectId id = ObjectId::none;
    const Outcome outcome = search(turn, object, id);
    if (outcome == Outcome::done) return id;
    if (outcome == Outcome::no_memory) return no_memory();
    if (outcome == Outcome::table_full) return full();
    // In this order: a frame in flight when that was read as false has counted as a change.
    if (!budget_.in_flight() && budget_.changes() == changes) return full();
    std::this_thread::yield();
  }
}

// One round over all shards.
Pool::Outcome Pool::search(std::uint32_t turn, const NewObject& object, ObjectId& id) {
  Outcome worst = Outcome::no_room;
  for (std::size_t i = 0; i < shards_.size(); ++i) {
    Shard& shard = *shards_[(turn + i) % shards_.size()];
    Outcome outcome = store_in(shard, object, id);
    // Only the shard whose turn it is grows, unless a table of it is full.
    while (outcome == Outcome::no_room && (i == 0 || worst == Outcome::table_full)) {
      outcome = grow(shard);
      if (outcome != Outcome::done) break;
      outcome = store_in(shard, object, id);
    }
    if (outcome == Outcome::done) return outcome;
    if (outcome != Outcome::no_room && worst != Outcome::no_memory) worst = outcome;
  }
  return worst;
}

Pool::Outcome Pool::store_in(Shard& shard, const NewObject& object, ObjectId& id) {
  for (;;) {
    const Shard::Stored stored = shard.store(object, id);
    if (stored == Shard::Stored::done) return Outcome::done;
    if (stored == Shard::Stored::no_frame) return Outcome::no_room;
    const Outcome added = add_page(shard, Shard::Table::records);
    if (added != Outcome::done) return added;
  }
}

Result<ObjectId> Pool::store_pattern(std::uint64_t pattern) {
  const std::uint32_t turn = next_shard();
  for (std::size_t i = 0; i < shards_.size(); ++i) {
    Shard& shard = *shards_[(turn + i) % shards_.size()];
    Outcome added = Outcome::done;
    while (added == Outcome::done) {
      ObjectId id = ObjectId::none;
      if (shard.store_pattern(pattern, id) == Shard::Stored::done) return id;
      added = add_page(shard, Shard::Table::records);
    }
    if (added == Outcome::no_memory) return no_memory();
  }
  return fail_errno("the pool's table of records is full", ENOSPC);
}

Result<Loaded> Pool::load(ObjectId id, std::span<std::byte, 4096> out) {
  const std::optional<RawLoad> raw = shard_of(id).load(id, out);
  if (!raw) return unknown(id);
  const ObjectMeta& meta = raw->meta;
  if (meta.codec == Codec::pattern) return Loaded{.codec = meta.codec, .pattern = raw->pattern};
  if (raw->where.tier == Tier::segment) {
    return Loaded{.codec = meta.codec,
                  .checksum = meta.checksum,
                  .elsewhere = Loaded::Elsewhere{raw->where.segment_place(), meta.length}};
  }
  if (meta.length == 0 || meta.length > out.size() ||
      checksum28(out.first(meta.length)) != meta.checksum) {
    return fail_errno("the checksum of object " + std::to_string(static_cast<std::uint64_t>(id)) +
                          " does not hold",
                      EIO);
  }
  return Loaded{.codec = meta.codec, .length = meta.length, .checksum = meta.checksum};
}

bool Pool::ref(ObjectId id) {
  return shard_of(id).ref(id, false);
}

bool Pool::try_ref(ObjectId id) {
  return shard_of(id).ref(id, true);
}

std::optional<Vacated> Pool::unref(ObjectId id) {
  Shard& shard = shard_of(id);
  std::optional<Vacated> vacated;
  give_back(shard, shard.unref(id, vacated));
  return vacated;
}

bool Pool::move_out(ObjectId id, const Loaded& as_loaded, SegmentPlace place) {
  Shard& shard = shard_of(id);
  const ObjectMeta expected{0, as_loaded.length, as_loaded.codec, as_loaded.checksum};
  if (!shard.move_out(id, expected, place)) return false;
  give_back(shard, shard.surplus());
  return true;
}

bool Pool::move_elsewhere(ObjectId id, SegmentPlace from, SegmentPlace to) {
  return shard_of(id).move_elsewhere(id, from, to);
}

bool Pool::verify(ObjectId id, std::span<const std::byte> data) {
  return shard_of(id).checksum_of(id) == checksum28(data);
}

// Down to half of what may be kept, so that a punch gives back several frames where it can.
void Pool::give_back(Shard& shard, Surplus surplus) {
  if (surplus.frames) release_frames(shard, (keep_frames() + 1) / 2);
  if (surplus.pages) release_pages(shard, Shard::kKeepPages / 2);
}

std::uint32_t Pool::refs(ObjectId id) {
  return info(id).refs;
}

std::optional<ObjectInfo> Pool::peek(ObjectId id) {
  return shard_of(id).info(id, true);
}

ObjectInfo Pool::info(ObjectId id) {
  return shard_of(id).info(id, false).value_or(ObjectInfo{});
}

bool Pool::reserve(std::uint64_t bytes_worst_case) {
  return budget_.reserve(places_for(bytes_worst_case));
}

bool Pool::can_reserve(std::uint64_t bytes_worst_case) const {
  return budget_.spare_places() >= static_cast<std::int64_t>(places_for(bytes_worst_case));
}

std::uint64_t Pool::spare_bytes() const {
  const std::int64_t places = budget_.spare_places();
  return places <= 0 ? 0 : static_cast<std::uint64_t>(places) * kObjectBytesMax;
}

void Pool::release_reservation(std::uint64_t bytes_worst_case) {
  budget_.release(places_for(bytes_worst_case));
}

Status Pool::set_limit(std::uint64_t bytes) {
  if (bytes > layout_.config().frame_bytes_max) {
    return fail_errno("the pool was laid out for a limit of at most " +
                          human_size(layout_.config().frame_bytes_max),
                      EINVAL);
  }
  budget_.set_limit(bytes / layout_.geometry().frame_bytes);
  return {};
}

Pool::Outcome Pool::grow(Shard& shard) {
  if (!budget_.begin_grow()) return Outcome::no_room;
  const Outcome grown = grow_reserved(shard);
  grown == Outcome::done ? budget_.finish_grow() : budget_.cancel_grow();
  return grown;
}

// The limit has room for one more frame and knows of it.
Pool::Outcome Pool::grow_reserved(Shard& shard) {
  std::uint32_t frame = shard.take_frame();
  while (frame == kNoFrame) {
    const Outcome page = add_page(shard, Shard::Table::frames);
    if (page != Outcome::done) return page;
    frame = shard.take_frame();
  }
  if (layout_.back_frame(os_, frame) != 0) {
    shard.drop_frame(frame);
    return Outcome::no_memory;
  }
  shard.add_frame(frame);
  return Outcome::done;
}

Pool::Outcome Pool::add_page(Shard& shard, Shard::Table table) {
  const std::uint32_t page = shard.claim_page(table);
  if (page == kNoPage) return Outcome::table_full;
  if (layout_.back_page(os_, table, page) != 0) {
    shard.forget_page(table, page);
    return Outcome::no_memory;
  }
  shard.attach_page(table, page);
  return Outcome::done;
}

// Gives back frames of one shard while the pool holds more than `keep_frames` empty ones; returns
// bytes.
std::uint64_t Pool::release_frames(Shard& shard, std::uint64_t keep_frames) {
  std::uint64_t released = 0;
  Shard::FrameBatch batch;
  for (bool going = true; going;) {
    const std::size_t count = shard.detach_empty(batch, keep_frames);
    std::sort(batch.begin(), batch.begin() + static_cast<std::ptrdiff_t>(count));
    going = count == batch.size();
    for (std::size_t first = 0, end = 0; first < count; first = end) {
      for (end = first + 1; end < count && batch[end] == batch[end - 1] + 1;) ++end;
      if (punch_run(shard, std::span(batch).subspan(first, end - first))) {
        released += (end - first) * layout_.geometry().frame_bytes;
      } else {
        going = false;
      }
    }
  }
  return released;
}

// One system call for neighbours. When it fails the frames are as good as before, only not given
// back.
bool Pool::punch_run(Shard& shard, std::span<const std::uint32_t> run) {
  const bool punched =
      layout_.punch_frames(os_, run.front(), static_cast<std::uint32_t>(run.size())) == 0;
  for (const std::uint32_t frame : run) {
    if (punched) {
      shard.drop_frame(frame);
      budget_.finish_shrink();
    } else {
      shard.add_frame(frame);
      budget_.cancel_shrink();
    }
  }
  return punched;
}

std::uint64_t Pool::release_pages(Shard& shard, std::uint32_t keep_pages) {
  std::uint64_t released = 0;
  for (const auto table : {Shard::Table::records, Shard::Table::frames}) {
    for (;;) {
      const std::uint32_t page = shard.detach_page(table, keep_pages);
      if (page == kNoPage) break;
      if (layout_.punch_page(os_, table, page) != 0) {
        shard.attach_page(table, page);
        break;
      }
      shard.forget_page(table, page);
      released += kTablePageBytes;
    }
  }
  return released;
}

Replaced Pool::replace(ObjectId id, std::span<const std::byte> data, Codec codec) {
  if (data.empty() || data.size() > kObjectBytesMax || codec > Codec::zstd) return Replaced::gone;
  Shard& shard = shard_of(id);
  const Replaced replaced = shard.replace(id, {data, codec, checksum28(data)});
  if (replaced == Replaced::done) give_back(shard, shard.surplus());
  return replaced;
}

void Pool::settle(ObjectId id) {
  shard_of(id).settle(id);
}

// Some pages of each shard's table, so that no lock is held for long; what a call does not find a
// later one will. Each shard has its share, and another is the first each time.
std::vector<ObjectId> Pool::oldest(std::size_t most, const AgeQuery& query) {
  constexpr std::uint32_t kPagesPerHold = 8, kHolds = 32;
  std::vector<Shard::Aged> found;
  found.reserve(most);
  const std::size_t share = (most + shards_.size() - 1) / shards_.size();
  const std::size_t among = std::max(query.among / shards_.size(), share);
  const std::uint32_t turn = oldest_turn_.fetch_add(1, std::memory_order_relaxed);
  for (std::size_t i = 0; i < shards_.size(); ++i) {
    Shard& shard = *shards_[(turn + i) % shards_.size()];
    const std::size_t end = std::min(found.size() + share, most);
    Shard::Sweep sweep;
    for (std::uint32_t hold = 0; hold < kHolds && found.size() < end && !sweep.done; ++hold) {
      shard.oldest({end - found.size(), among, query.least_age, query.unsettled}, kPagesPerHold,
                   sweep, found);
    }
  }
  // By number within an age: what was stored together has numbers near each other.
  std::ranges::sort(found, [](const Shard::Aged& a, const Shard::Aged& b) {
    return a.ticks != b.ticks ? a.ticks > b.ticks : a.id < b.id;
  });
  std::vector<ObjectId> ids;
  ids.reserve(found.size());
  for (const Shard::Aged& object : found) ids.push_back(object.id);
  return ids;
}

std::uint64_t Pool::ticks() {
  std::uint64_t ticks = 0;
  for (const auto& shard : shards_) ticks += shard->ticks();
  return ticks;
}

// Between two holds of a lock whoever waits for it has it first: a lock taken again at once would
// not let anybody in.
std::uint64_t Pool::tidy(std::uint64_t most_bytes) {
  constexpr std::uint64_t kCostPerHold = 16 * kKiB;
  constexpr std::chrono::microseconds kPause{20};
  std::uint64_t moved = 0;
  for (const auto& shard : shards_) {
    while (moved < most_bytes && shard->tidy(waste_percent_.load(std::memory_order_relaxed),
                                             std::min(kCostPerHold, most_bytes - moved), moved)) {
      std::this_thread::sleep_for(kPause);
    }
    give_back(*shard, shard->surplus());
  }
  return moved;
}

std::uint64_t Pool::trim(std::uint64_t keep_bytes) {
  std::uint64_t released = 0;
  for (const auto& shard : shards_) {
    released += release_frames(*shard, keep_bytes / layout_.geometry().frame_bytes);
    released += release_pages(*shard, 0);
  }
  return released;
}

PoolStats Pool::stats() {
  PoolStats stats;
  for (const auto& shard : shards_) shard->add_stats(stats);
  const std::uint64_t frame_bytes = layout_.geometry().frame_bytes;
  stats.frame_bytes = budget_.held_frames() * frame_bytes;
  stats.empty_frame_bytes = budget_.empty_frames() * frame_bytes;
  stats.metadata_bytes += layout_.fixed_bytes();
  stats.limit_bytes = budget_.limit_frames() * frame_bytes;
  stats.limit_in_force_bytes = budget_.limit_in_force() * frame_bytes;
  stats.reserved_bytes = budget_.reserved_places() * kObjectBytesMax;
  return stats;
}

Status Pool::validate(bool quiet) {
  std::uint64_t places = 0;
  for (std::size_t s = 0; s < shards_.size(); ++s) {
    if (const char* wrong = shards_[s]->validate(places)) {
      return fail("pool shard " + std::to_string(s) + ": " + wrong);
    }
  }
  if (quiet && !budget_.consistent(places)) return fail("pool budget and free places differ");
  return {};
}

}  // namespace foldswap
