#include "pool/take_over.h"

#include <algorithm>
#include <atomic>
#include <utility>

#include "pool/budget.h"
#include "pool/frame_table.h"
#include "pool/pool.h"

namespace foldswap {
namespace {

using Table = PoolLayout::Table;
using Extent = FrameTable::Extent;

// So many numbers of items lie below the end of the last attached page.
std::size_t numbers_of(const std::vector<Arena>& arenas) {
  std::size_t pages = 1;
  for (const Arena& arena : arenas) {
    arena.for_each_attached(
        [&](std::uint32_t page) { pages = std::max<std::size_t>(pages, page + 1); });
  }
  return pages * arenas.front().items_per_page();
}

void mark_used(Arena::UsedBits& used, std::uint32_t index) {
  used[index / 64] |= std::uint64_t{1} << (index % 64);
}

// What all shards' parts share.
struct Work {
  Os& os;
  const PoolLayout& layout;
  const PoolTakeOver::Outside& outside;
  // By id: its references, until its record was looked at; then the next object in its frame.
  std::span<std::uint32_t> references;
  std::span<std::uint32_t> firsts;  // by frame: an object that lies there; 0: none
  Budget budget;                    // counts places; nothing is held and nothing allowed
  std::uint64_t frames = 0;         // with objects
  std::vector<Extent> objects;      // of one frame
};

// One shard. Nobody else knows of it yet, so there is no lock.
class ShardTakeOver {
 public:
  ShardTakeOver(Work& work, std::uint32_t shard)
      : work_(work),
        state_(work.layout.shard_state(shard)),
        records_(work.layout.arena(Table::records, shard)),
        frames_(work.layout, shard, records_, work.budget) {}

  void run() {
    drop_unattached(Table::records, records_);
    drop_unattached(Table::frames, frames_.frames());
    finish_replacing();
    forget_sums();
    records_.for_each_attached([&](std::uint32_t page) { take_records(page); });
    frames_.frames().for_each_attached([&](std::uint32_t page) { take_frames(page); });
    empty_scratch();
  }

 private:
  [[nodiscard]] Record& record(std::uint32_t id) const {
    return *reinterpret_cast<Record*>(records_.at(id));
  }
  void drop_unattached(Table table, Arena& arena);
  void finish_replacing();
  void forget_sums();
  void take_records(std::uint32_t page);
  void take_object(std::uint32_t id, std::uint32_t references);
  void take_scratch(std::uint32_t id);
  [[nodiscard]] bool possible(const ObjectMeta& what, const Location& where) const;
  void lose(std::uint32_t id);
  void take_frames(std::uint32_t page);
  void gather(std::uint32_t frame);
  void part();
  void drop_frames(std::span<const std::uint32_t> frames, Arena::UsedBits& used);
  void empty_scratch();

  Work& work_;
  ShardState& state_;
  Arena records_;
  FrameTable frames_;
  std::uint32_t in_scratch_ = kNoItem;
  std::uint32_t home_ = kNoFrame;  // has room for it
};

// On their way in or out. One whose memory does not go stays held: nothing will live there.
void ShardTakeOver::drop_unattached(Table table, Arena& arena) {
  arena.restart();
  arena.for_each_held_unattached([&](std::uint32_t page) {
    if (work_.layout.punch_page(work_.os, table, page) == 0) arena.forget(page);
  });
}

void ShardTakeOver::finish_replacing() {
  const Replacing noted = state_.replacing;
  const auto id = static_cast<std::uint32_t>(noted.id);
  if (id == noted.id && records_.exists(id)) {
    record(id).location.store(noted.location);
    record(id).meta.store(noted.meta);
  }
  std::atomic_ref(state_.replacing.id).store(0);
}

// Not those of what has been: compactions, the clock of age.
void ShardTakeOver::forget_sums() {
  frames_.forget_lists();
  state_.objects = state_.patterns = state_.incompressible = state_.compressed_bytes = 0;
  state_.outside = state_.outside_bytes = state_.lost = 0;
  std::ranges::fill(state_.age_count, 0U);
  std::ranges::fill(state_.unsettled_count, 0U);
  if (state_.age_cursor >= records_.pages_end()) state_.age_cursor = 0;
}

void ShardTakeOver::take_records(std::uint32_t page) {
  const std::uint32_t first = page * records_.items_per_page();
  Arena::UsedBits used{};
  for (std::uint32_t i = records_.first_index(); i < records_.items_per_page(); ++i) {
    const std::uint32_t id = first + i, references = work_.references[id];
    if (references == 0) {
      record(id).meta.store(0, std::memory_order_relaxed);
    } else {
      mark_used(used, i);
      take_object(id, references);
    }
  }
  records_.restore(page, used);
}

// Those that lie in frames are only entered there; what they make up is counted when it is sure
// that nothing else lies over them.
void ShardTakeOver::take_object(std::uint32_t id, std::uint32_t references) {
  ObjectMeta what = record(id).what();
  const Location where = record(id).where();
  work_.references[id] = kNoItem;
  const bool was_free = what.refs == 0;
  what.refs = references;
  record(id).set(what);
  if (was_free || !possible(what, where)) {
    lose(id);
  } else if (what.codec == Codec::pattern) {
    state_.count(what, where, 1);
  } else if (where.tier == Tier::segment) {
    const bool taken = work_.outside(ObjectId{id}, where.segment_place(), what.length);
    taken ? state_.count(what, where, 1) : lose(id);
  } else if (frames_.in_scratch(where, what.length)) {
    take_scratch(id);
  } else {
    work_.references[id] = std::exchange(work_.firsts[where.frame], id);
  }
}

// There can be no second one but for damage.
void ShardTakeOver::take_scratch(std::uint32_t id) {
  const std::uint32_t other = std::exchange(in_scratch_, id);
  if (other == kNoItem) return;
  const bool keep = frames_.sound({0, 0, other});
  lose(keep ? std::exchange(in_scratch_, other) : other);
}

bool ShardTakeOver::possible(const ObjectMeta& what, const Location& where) const {
  if (what.codec == Codec::pattern) return what.length == 0 && what.checksum == 0;
  if (what.codec > Codec::zstd || what.length == 0 || what.length > kObjectBytesMax) return false;
  if (where.tier == Tier::segment) return true;
  return frames_.within(where, what.length) &&
         (frames_.frames().live(where.frame) || frames_.in_scratch(where, what.length));
}

// The record stays, and says nothing but how many name it.
void ShardTakeOver::lose(std::uint32_t id) {
  const ObjectMeta nothing{.refs = record(id).what().refs};
  record(id).set(Location{});
  record(id).set(nothing);
  state_.count(nothing, Location{}, 1);
}

// A frame's bit of use goes only when its memory is gone, so a death in between loses none.
void ShardTakeOver::take_frames(std::uint32_t page) {
  Arena& arena = frames_.frames();
  const std::uint32_t first = page * arena.items_per_page();
  Arena::UsedBits used{};
  std::vector<std::uint32_t> empty;
  for (std::uint32_t i = arena.first_index(); i < arena.items_per_page(); ++i) {
    const std::uint32_t frame = first + i;
    if (!arena.live(frame)) continue;
    gather(frame);
    part();
    if (work_.objects.empty()) {
      empty.push_back(frame);
      continue;
    }
    mark_used(used, i);
    frames_.restore(frame, work_.objects);
    ++work_.frames;
    for (const Extent& object : work_.objects) {
      state_.count(record(object.id).what(), record(object.id).where(), 1);
    }
    if (in_scratch_ == kNoItem || home_ != kNoFrame) continue;
    const std::uint32_t bytes = record(in_scratch_).what().length;
    if (frames_.has_piece(frame, work_.layout.geometry().chunks_for(bytes))) home_ = frame;
  }
  drop_frames(empty, used);
  arena.restore(page, used);
}

// All that say that they lie there, by position.
void ShardTakeOver::gather(std::uint32_t frame) {
  work_.objects.clear();
  for (std::uint32_t id = work_.firsts[frame]; id != kNoItem; id = work_.references[id]) {
    const std::uint32_t bytes = record(id).what().length;
    work_.objects.push_back(
        {record(id).where().chunk, work_.layout.geometry().chunks_for(bytes), id});
  }
  std::ranges::sort(work_.objects, {}, &Extent::chunk);
}

// Of two that lie over each other one is lost, and the bytes themselves say which. There is no such
// thing but for damage; nor are there more buddies than may be.
void ShardTakeOver::part() {
  std::size_t kept = 0;
  auto& objects = work_.objects;
  for (const Extent object : objects) {
    bool lost = false;
    while (!lost && kept > 0 && objects[kept - 1].end() > object.chunk) {
      lost = frames_.sound(objects[kept - 1]);
      if (!lost) lose(objects[--kept].id);
    }
    lost ? lose(object.id) : void(objects[kept++] = object);
  }
  while (kept > work_.layout.geometry().buddies) lose(objects[--kept].id);
  objects.resize(kept);
}

// Neighbours in one call. One that cannot be given back is set aside for good.
void ShardTakeOver::drop_frames(std::span<const std::uint32_t> frames, Arena::UsedBits& used) {
  for (std::size_t first = 0, end = 0; first < frames.size(); first = end) {
    for (end = first + 1; end < frames.size() && frames[end] == frames[end - 1] + 1;) ++end;
    const auto count = static_cast<std::uint32_t>(end - first);
    if (work_.layout.punch_frames(work_.os, frames[first], count) == 0) continue;
    for (const std::uint32_t frame : frames.subspan(first, count)) {
      frames_.set_aside(frame);
      mark_used(used, frame % frames_.frames().items_per_page());
    }
  }
}

// Where it was moved within still has that room, in one piece.
void ShardTakeOver::empty_scratch() {
  if (in_scratch_ == kNoItem) return;
  if (home_ == kNoFrame) return lose(in_scratch_);
  frames_.bring_home(ObjectId{in_scratch_}, home_);
  state_.count(record(in_scratch_).what(), record(in_scratch_).where(), 1);
}

}  // namespace

PoolTakeOver::PoolTakeOver(Os& os, PoolLayout layout) : os_(&os), layout_(std::move(layout)) {
  for (std::uint32_t s = 0; s < layout_.config().shards; ++s) {
    records_.push_back(layout_.arena(Table::records, s));
    frames_.push_back(layout_.arena(Table::frames, s));
  }
}

Result<PoolTakeOver> PoolTakeOver::begin(Os& os, PoolFiles& files, const PoolConfig& config) {
  auto layout = PoolLayout::open(files, config);
  if (!layout) return std::unexpected(layout.error());
  PoolTakeOver begun(os, std::move(*layout));
  if (const Status ok = begun.make_room(); !ok) return std::unexpected(ok.error());
  begun.layout_.hold(std::move(files));
  return begun;
}

Status PoolTakeOver::make_room() {
  auto references = Mapping::anonymous(numbers_of(records_) * sizeof(std::uint32_t));
  if (!references) return std::unexpected(references.error());
  auto firsts = Mapping::anonymous(numbers_of(frames_) * sizeof(std::uint32_t));
  if (!firsts) return std::unexpected(firsts.error());
  references_ = std::move(*references);
  firsts_ = std::move(*firsts);
  return {};
}

// A number beyond the last attached page does not exist, so there is no looking behind the end.
bool PoolTakeOver::reference(ObjectId id) {
  const auto number = static_cast<std::uint32_t>(id);
  const std::uint32_t page = number / records_.front().items_per_page();
  if (static_cast<std::uint64_t>(id) != number ||
      !records_[page % records_.size()].exists(number)) {
    return false;
  }
  std::uint32_t& references = references_.as<std::uint32_t>()[number];
  if (references == kRefsMax) return false;
  ++references;
  return true;
}

std::unique_ptr<Pool> PoolTakeOver::finish(const Outside& outside) {
  const auto numbers = [](const Mapping& mapping) {
    return std::span(mapping.as<std::uint32_t>(), mapping.size() / sizeof(std::uint32_t));
  };
  Work work{
      *os_, layout_, outside, numbers(references_), numbers(firsts_), Budget(layout_.geometry(), 0),
      0,    {}};
  for (std::uint32_t s = 0; s < layout_.config().shards; ++s) ShardTakeOver(work, s).run();
  std::unique_ptr<Pool> pool(new Pool(*os_, std::move(layout_)));
  pool->budget_.adopt(work.frames, work.budget.spare_places());
  for (const auto& shard : pool->shards_) pool->give_back(*shard, shard->surplus());
  return pool;
}

}  // namespace foldswap
