// Cleaning: live objects of sparse segments move into others, and what they leave is given back
// (writeback.h). A part of Writeback.
#include <algorithm>
#include <cstring>
#include <iterator>
#include <map>

#include "base/size.h"
#include "daemon/writeback/writeback.h"

namespace foldswap {
namespace {

constexpr std::uint32_t kSegment = BackingFile::kSegmentBytes;
constexpr std::uint64_t kUnit = BackingFile::kUnit;
constexpr std::uint64_t kLossWorthALook = 64 * kKiB;
constexpr auto kBlock = static_cast<std::uint32_t>(BackingFile::kBlock);
constexpr std::uint32_t kWorthCleaning = 90;  // live percent of what is vacated, at most
constexpr std::uint64_t kLeastGain = 16;      // room that cleaning makes, at least: a part of this
constexpr std::size_t kRound = 16;            // segments that are looked at for what moves together

// Bytes that are freed and bytes that are written for it.
bool is_worth(std::uint64_t freed, std::uint64_t written) {
  return freed >= written + std::max(written / kLeastGain, BackingFile::kBlock);
}

}  // namespace

bool Writeback::clean(Need need) {
  auto* const source = std::ranges::find_if(
      buffers_, [](const Buffer& b) { return b.state == Buffer::State::cleaning; });
  if (source != buffers_.end()) return keep_live(*source);
  forget_victims();
  return start_cleaning(need);
}

bool Writeback::cleaned_under_way() const {
  return std::ranges::any_of(
      buffers_, [](const Buffer& b) { return !b.items.empty() && b.items.front().cleaned; });
}

bool Writeback::cleaning_pending() const {
  return cleaned_under_way() || std::ranges::any_of(buffers_, [](const Buffer& b) {
           return b.state == Buffer::State::reading || b.state == Buffer::State::cleaning;
         });
}

// Nothing of it is gone since.
bool Writeback::as_it_was(const Victim& victim) const {
  const auto [segment, generation] = victim.claim;
  return file_.live_bytes(segment) == victim.live_bytes && file_.generation(segment) == generation;
}

// What was to be moved has been. A victim of which nothing was holds what does not open, or what
// its headers do not lead to: it stays as it is.
void Writeback::forget_victims() {
  if (victims_.empty() || cleaning_pending()) return;
  std::erase_if(stuck_, [&](const auto& stuck) { return !as_it_was(stuck); });
  std::ranges::copy_if(victims_, std::back_inserter(stuck_),
                       [&](const auto& victim) { return as_it_was(victim); });
  victims_.clear();
}

// Less than an eighth of what the file may take, what is dead in it not counted: be it for its
// maximum or for what the file system must keep.
bool Writeback::little_room_left() const {
  const std::uint64_t used = file_.used_bytes(), most = file_.max_bytes();
  const std::uint64_t spare = file_.spare_bytes().value_or(most);
  const std::uint64_t may_take = std::min(most, used + std::min(spare, most));
  return used - std::min(used, file_.dead_bytes()) > may_take - may_take / 8;
}

// Whether to move something before there is need.
bool Writeback::worth_tidying() const {
  constexpr std::uint64_t kLeast = 4 * kMiB;
  const std::uint64_t live = file_.live_bytes();
  const std::uint64_t used = file_.used_bytes() - std::min(file_.used_bytes(), file_.dead_bytes());
  return little_left_ && live + kLeast < used && live < used / 2;
}

bool Writeback::start_cleaning(Need need) {
  if (std::ranges::any_of(buffers_,
                          [](const Buffer& b) { return b.state == Buffer::State::reading; }))
    return false;
  if (need == Need::none ? !worth_tidying() : !no_room_) {
    flush_cleaned(false);
    return false;
  }
  const bool busy =
      std::ranges::any_of(buffers_, [](const Buffer& b) { return b.state != Buffer::State::idle; });
  std::vector<BackingFile::Sparse> found;
  if (!futile()) {
    found =
        file_.sparsest(victims_.size() + stuck_.size() + kRound, no_room_ ? kWorthCleaning : 50);
    std::erase_if(found, [&](const BackingFile::Sparse& one) {
      const auto is_it = [&](const Victim& victim) {
        return victim.claim.segment == one.segment &&
               victim.claim.generation == file_.generation(one.segment);
      };
      return std::ranges::any_of(victims_, is_it) || std::ranges::any_of(stuck_, is_it);
    });
    if (victims_.empty()) {
      round_made_room_ = false;
      if (!promises_room(found)) {
        if (busy) return false;  // what has been written may leave dead blocks behind its end
        found.clear();
        futile_at_ = lost_bytes();
      }
    }
  }
  if (found.empty()) {
    flush_cleaned(true);
    if (no_room_ && !busy) {
      stop("the backing file is full (" + human_size(file_.live_bytes()) + " of " +
               human_size(file_.max_bytes()) + ")",
           kRetryRoomUs);
    }
    return false;
  }
  const std::uint32_t fresh = found.front().segment;
  Buffer* const buffer = idle_buffer();
  if (buffer == nullptr) return false;
  buffer->state = Buffer::State::reading;
  buffer->claim = {fresh, file_.generation(fresh)};
  buffer->vacate = file_.emptiest_blocks(fresh);
  victims_.push_back({buffer->claim, file_.live_bytes(fresh)});
  read_victim(*buffer);
  return true;
}

// Only the blocks that are vacated, and what the objects in them have in others: in as many reads
// as that takes, but for kMostReads at most, by reading what lies in between where it is least.
void Writeback::read_victim(Buffer& buffer) {
  const auto wanted = file_.with_whole_objects(buffer.claim.segment, buffer.vacate);
  std::vector<Run> runs;
  for (std::uint32_t block = 0; block < BackingFile::kBlocks; ++block) {
    if (!wanted.test(block)) continue;
    if (runs.empty() || runs.back().end != block) runs.push_back({block, block});
    runs.back().end = block + 1;
  }
  while (runs.size() > kMostReads) {
    const auto gap = [&](const Run& run) { return (&run)[1].first - run.end; };
    const auto nearest = std::ranges::min_element(runs.begin(), runs.end() - 1, {}, gap);
    nearest->end = nearest[1].end;
    runs.erase(nearest + 1);
  }
  std::ranges::copy(runs, buffer.runs.begin());
  buffer.there.reset();
  buffer.reading = static_cast<std::uint32_t>(runs.size());
  buffer.state = runs.empty() ? Buffer::State::idle : Buffer::State::reading;
  const auto index = static_cast<std::uint64_t>(&buffer - buffers_.data());
  for (std::uint64_t i = 0; i < runs.size(); ++i) {
    const std::uint64_t begin = std::uint64_t{runs[i].first} * kBlock;
    const std::uint64_t end = std::uint64_t{runs[i].end} * kBlock;
    (void)ring_->read(buffer.bytes.subspan(begin, end - begin),
                      BackingFile::offset_of(buffer.claim.segment) + begin, index + i * kBuffers);
  }
  (void)ring_->submit();
}

void Writeback::end_read(Buffer& buffer, const Run& run, std::int32_t result) {
  // Short at the end of the file, where a segment was not written to its end.
  const auto bytes = static_cast<std::uint32_t>(std::max(result, 0));
  bytes == 0 ? bump(counters_.disk_errors) : bump(counters_.disk_read_bytes, bytes);
  for (std::uint32_t block = run.first; block < run.end; ++block)
    buffer.there.set(block, (block + 1 - run.first) * kBlock <= bytes);
  if (--buffer.reading != 0) return;
  buffer.used = first_object(buffer, 0);
  buffer.state = Buffer::State::cleaning;
}

bool Writeback::keep_live(Buffer& from) {
  const std::uint32_t segment = from.claim.segment;
  while (from.used + kSealedOverhead < kSegment && file_.live_bytes(segment) != 0) {
    DiskHeader header;
    std::memcpy(&header, from.bytes.data() + from.used, sizeof(header));
    if (header.length == 0 || header.length > kPage || header.units != disk_units(header.length) ||
        from.used + disk_bytes(header.length) > kSegment) {
      from.used = first_object(from, from.used / kBlock + 1);  // that was the last of the block
      continue;
    }
    const auto end = static_cast<std::uint32_t>(from.used + disk_bytes(header.length));
    const std::uint32_t last = (end - 1) / kBlock;
    const bool wanted =
        from.there.test(last) && (from.vacate.test(from.used / kBlock) || from.vacate.test(last));
    if (wanted &&
        !keep_object(from, {segment, static_cast<std::uint32_t>(from.used / kUnit)}, header))
      return false;
    const std::uint32_t next = from.used / kBlock + 1;
    from.used = end < next * kBlock ? end : first_object(from, next);
  }
  from.state = Buffer::State::idle;
  return true;
}

// Where the first object begins of this block or of those after it, as far as they were read.
std::uint32_t Writeback::first_object(const Buffer& from, std::uint32_t block) const {
  for (; block < BackingFile::kBlocks; ++block) {
    if (!from.there.test(block)) continue;
    if (const auto unit = file_.first_unit(from.claim.segment, block))
      return static_cast<std::uint32_t>(*unit * kUnit);
  }
  return kSegment;
}

// False: no room to move it to, now.
bool Writeback::keep_object(const Buffer& from, SegmentPlace at, const DiskHeader& header) {
  const ObjectId id{header.object};
  if (!pool_.try_ref(id)) return true;
  const ObjectInfo info = pool_.info(id);
  std::array<std::byte, kPage> packed;
  const auto plain = std::span(packed).first(header.length);
  const auto sealed =
      from.bytes.subspan(from.used + sizeof(header), header.length + Seal::kTagBytes);
  if (info.tier != Tier::segment || info.place != at || info.length != header.length ||
      info.refs == 1 || file_.generation(at.segment) != from.claim.generation) {
    store_.unref(id);  // not here, not any more, or nobody's; or this was read before its time
    return true;
  }
  if (!seal_.open({header.object, from.claim.generation, at.unit}, sealed, plain)) {
    bump(counters_.disk_errors);
    store_.unref(id);
    return true;
  }
  const Item item{
      .id = id, .loaded = {}, .to = {}, .from = at, .cleaned = true, .length = header.length};
  for (int round = 0; round < 2; ++round) {
    if (cleaned_ == nullptr) {
      Buffer* const buffer = idle_buffer();
      if (buffer == nullptr || !open_segment(*buffer, true)) break;
      cleaned_ = buffer;
    }
    if (put(*cleaned_, item, plain)) return true;
    if (!flush_cleaned(true)) break;
  }
  store_.unref(id);
  return false;
}

// ---- that it ends ------------------------------------------------------------------------------
//
// Cleaning moves nothing without making room, as it is counted here, of which there is an end:
//   With holes: the blocks in which something is live get fewer with every write. Those of a
//   source that hold nothing but what is in the buffer die when it moves, and each block that is
//   written lives; it is written only if those are more.
//   Without: the segment that is written gets fuller than each that something is taken from. So
//   the fill of all segments, in descending order, grows lexicographically.
// Both are bounded, and only what is done elsewhere takes them back: something dies, or cold
// objects are written. What is not written for that reason is not looked at again before more has
// been lost (futile()), and so nothing is read again and again either: a round of reading that
// writes nothing is the last.

bool Writeback::promises_room(std::span<const BackingFile::Sparse> victims) const {
  std::uint64_t live = 0, blocks = 0;
  for (const BackingFile::Sparse& one : victims) {
    live += one.live;
    blocks += one.blocks;
    if (file_.can_punch() ? is_worth(blocks * kBlock, block_ceil(live))
                          : is_worth(std::min<std::uint64_t>(live, kSegment), one.live)) {
      return true;
    }
  }
  return false;
}

bool Writeback::makes_room(const Buffer& buffer) const {
  std::map<std::pair<std::uint32_t, std::uint32_t>, std::uint64_t> leaves;  // by segment and block
  std::uint64_t bytes = 0, fullest = 0, freed = 0;
  for (const Item& item : buffer.items) {
    const std::uint64_t begin = item.from.unit * kUnit, end = begin + disk_bytes(item.length);
    for (std::uint64_t at = begin; at < end; at = block_floor(at) + kBlock) {
      leaves[{item.from.segment, static_cast<std::uint32_t>(at / kBlock)}] +=
          std::min(end, block_floor(at) + kBlock) - at;
    }
    bytes += end - begin;
    fullest = std::max(fullest, file_.live_bytes(item.from.segment));
  }
  if (!file_.can_punch()) return is_worth(bytes, fullest);
  for (const auto& [where, leaving] : leaves)
    freed += file_.live_bytes(where.first, where.second) <= leaving ? kBlock : 0;
  return is_worth(freed, block_ceil(buffer.used));
}

bool Writeback::futile() {
  if (futile_at_ && lost_bytes() - *futile_at_ >= kLossWorthALook) futile_at_.reset();
  return futile_at_.has_value();
}

bool Writeback::flush_cleaned(bool sure) {
  if (cleaned_ == nullptr) return true;
  Buffer& buffer = *cleaned_;
  cleaned_ = nullptr;
  if (buffer.items.empty()) {
    drop(buffer);
    return true;
  }
  if (makes_room(buffer)) {
    round_made_room_ = true;
    start_write(buffer);
    return true;
  }
  forget_sources(buffer);
  drop(buffer);
  if (sure) end_round();
  return false;
}

void Writeback::end_round() {
  if (!round_made_room_) futile_at_ = lost_bytes();
  for (Buffer& buffer : buffers_) {
    if (buffer.state == Buffer::State::cleaning) buffer.state = Buffer::State::idle;
  }
}

// They may be victims again.
void Writeback::forget_sources(const Buffer& buffer) {
  std::erase_if(victims_, [&](const Victim& victim) {
    return std::ranges::any_of(buffer.items, [&](const Item& item) {
      return item.cleaned && item.from.segment == victim.claim.segment;
    });
  });
}

}  // namespace foldswap
