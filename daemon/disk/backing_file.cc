#include "daemon/disk/backing_file.h"

#include <algorithm>
#include <cassert>
#include <cerrno>
#include <cstring>
#include <new>
#include <queue>
#include <utility>

#include "daemon/host/log.h"

namespace foldswap {
namespace {

constexpr std::uint32_t kStep = 16;  // segments that the file grows by
constexpr std::uint64_t kGenerationBlock = 1024;

// A segment's word: objects in bits 0 to 19, units in 20 to 39, life in 40 to 43, dead blocks in 44
// to 53, holes from 54 on. All counts change by one addition; each has room for its most, so
// nothing is ever carried or borrowed.
struct Word {
  static constexpr unsigned kUnitsShift = 20, kLifeShift = 40, kDeadShift = 44, kHolesShift = 54;
  static constexpr std::uint64_t kMask = (1U << 20) - 1;
  static constexpr std::uint64_t kMost = BackingFile::kSegmentBytes / BackingFile::kUnit;

  static constexpr std::uint64_t counts(std::uint64_t objects, std::uint64_t units) {
    return objects | units << kUnitsShift;
  }
  template <typename Life>
  static constexpr std::uint64_t of(Life life) {
    return static_cast<std::uint64_t>(life) << kLifeShift;
  }
  static constexpr std::uint64_t dead(std::uint64_t blocks) { return blocks << kDeadShift; }
  static constexpr std::uint64_t holes(std::uint64_t blocks) { return blocks << kHolesShift; }
  std::uint64_t word;
  [[nodiscard]] std::uint64_t dead() const { return word >> kDeadShift & 0x3ff; }
  [[nodiscard]] std::uint64_t holes() const { return word >> kHolesShift; }
  [[nodiscard]] std::uint64_t objects() const { return word & kMask; }
  [[nodiscard]] std::uint64_t units() const { return word >> kUnitsShift & kMask; }
  template <typename Life>
  [[nodiscard]] bool is(Life life) const {
    return (word >> kLifeShift & 0xf) == static_cast<std::uint64_t>(life);
  }
};

constexpr std::uint32_t kUnitsPerBlock = BackingFile::kBlock / BackingFile::kUnit;
constexpr std::uint8_t kNoFirst = kUnitsPerBlock - 1;

// each(block, units of it that the object takes)
template <typename Each>
void for_blocks(SegmentPlace place, std::uint64_t units, Each each) {
  const auto end = static_cast<std::uint32_t>(place.unit + units);
  for (std::uint32_t at = place.unit; at < end;) {
    const std::uint32_t block = at / kUnitsPerBlock;
    const std::uint32_t to = std::min(end, (block + 1) * kUnitsPerBlock);
    each(block, static_cast<std::uint16_t>(to - at));
    at = to;
  }
}

std::uint64_t clamped(std::uint64_t max_bytes) {
  constexpr std::uint64_t kMostBytes = BackingFile::kMostSegments * BackingFile::kSegmentBytes;
  if (max_bytes <= kMostBytes) return max_bytes;
  log::warn("writeback: the backing file grows to {} bytes at most, not {}", kMostBytes, max_bytes);
  return kMostBytes;
}

Status look_at(Os& os, const std::string& directory, const BackingFile::Limits& limits) {
  const auto there = os.file_system(directory);
  if (!there)
    return fail_errno("writeback directory: " + there.error().message, there.error().code);
  if (there->in_memory) {
    return fail("writeback directory " + directory + " lies in memory (" + there->type +
                "): nothing is gained there");
  }
  const std::uint64_t least = limits.free_min_bytes + BackingFile::kSegmentBytes;
  if (least < limits.free_min_bytes || there->free_bytes < least) {
    return fail_errno("writeback directory " + directory + " has " +
                          std::to_string(there->free_bytes) + " bytes free, of which " +
                          std::to_string(limits.free_min_bytes) + " are to stay free",
                      ENOSPC);
  }
  if (there->free_bytes - limits.free_min_bytes < limits.max_bytes) {
    log::warn("writeback directory {} ({}) has less room than the {} bytes that the file may take",
              directory, there->type, limits.max_bytes);
  }
  return {};
}

}  // namespace

Result<UniqueFd> BackingFile::open_file(Os& os, const std::string& directory, bool& direct) {
  auto fd = os.unnamed_file(directory, true);
  direct = fd.has_value();
  if (!fd && fd.error().code == EINVAL) {
    log::warn(
        "writeback directory {}: its file system has no O_DIRECT: what is written back"
        " passes through the page cache",
        directory);
    fd = os.unnamed_file(directory, false);
  }
  if (!fd) return fail_errno("writeback directory: " + fd.error().message, fd.error().code);
  return fd;
}

Result<BackingFile::Account> BackingFile::make_account(Os& os) {
  auto fd = os.memory_file("foldswap-segments", account_bytes());
  if (!fd) return std::unexpected(fd.error());
  if (const int error = os.allocate(fd->get(), 0, kAccountPage); error != 0) {
    return fail_errno("no memory for the backing file's account", -error);
  }
  auto mapping = Mapping::shared(fd->get(), account_bytes());
  if (!mapping) return std::unexpected(mapping.error());
  new (mapping->data()) Header{.magic = kMagic,
                               .version = kVersion,
                               .segment_bytes = static_cast<std::uint32_t>(kSegmentBytes),
                               .file_bytes = account_bytes(),
                               .segments = 0,
                               .direct = 0};
  return Account{std::move(*fd), std::move(*mapping)};
}

Result<std::unique_ptr<BackingFile>> BackingFile::create(Os& os, State& state,
                                                         const std::string& directory,
                                                         Limits limits) {
  if (const Status ok = look_at(os, directory, limits); !ok) return std::unexpected(ok.error());
  bool direct = false;
  auto fd = open_file(os, directory, direct);
  if (!fd) return std::unexpected(fd.error());
  auto account = make_account(os);
  if (!account) return std::unexpected(account.error());
  return std::unique_ptr<BackingFile>(
      new BackingFile(os, state, std::move(*fd), direct, std::move(*account), limits));
}

BackingFile::BackingFile(Os& os, State& state, UniqueFd fd, bool direct, Account account,
                         Limits limits)
    : os_(os),
      state_(state),
      fd_(std::move(fd)),
      direct_(direct),
      account_fd_(std::move(account.fd)),
      account_(std::move(account.mapping)) {
  backed_bytes_ = kAccountPage;
  set_limits(limits);
  account_.as<Header>()->direct = direct ? 1 : 0;
  state.header().files[kBackingAccount].note(account_fd_.get());
  state.header().files[kBackingFile].note(fd_.get());  // last: from here there is one
}

Result<std::unique_ptr<BackingFile>> BackingFile::take_over(Os& os, State& state) {
  NotedFd* const noted = state.header().files;
  const int account_fd = noted[kBackingAccount].get();
  auto mapping = Mapping::shared(account_fd, account_bytes());
  if (!mapping) return std::unexpected(mapping.error());
  const Header& header = *mapping->as<Header>();
  if (header.magic != kMagic || header.version != kVersion ||
      header.segment_bytes != kSegmentBytes || header.file_bytes != account_bytes() ||
      header.segments.load() > kMostSegments) {
    return fail("the account of the backing file that was left behind is of another version");
  }
  const bool direct = header.direct != 0;
  std::unique_ptr<BackingFile> file(
      new BackingFile(os, state, UniqueFd(noted[kBackingFile].get()), direct,
                      Account{UniqueFd(account_fd), std::move(*mapping)}, Limits{}));
  file->begin_to_count();
  return file;
}

void BackingFile::begin_to_count() {
  end_ = account_.as<Header>()->segments.load();
  backed_ = end_;
  backed_bytes_ += std::uint64_t{end_} * (sizeof(Segment) + sizeof(Blocks));
  for (std::uint32_t i = 0; i < end_; ++i) {
    segment(i).word.store(Word::of(Life::writing) + Word::dead(kBlocks));
    for (auto& live : blocks(i).live) live.store(0, std::memory_order_relaxed);
  }
}

bool BackingFile::adopt(SegmentPlace place, std::uint64_t bytes) {
  if (place.segment >= end_ || bytes == 0 || bytes % kUnit != 0 ||
      place.unit + bytes / kUnit > Word::kMost || segment(place.segment).generation.load() == 0)
    return false;
  fill(place, bytes);
  return true;
}

void BackingFile::settle() {
  for (std::uint32_t i = 0; i < end_; ++i) {
    const Word word{segment(i).word.load()};
    if (word.objects() != 0) {
      ++used_segments_;
      dead_blocks_ += kBlocks;  // fill() has taken off those that are not
      written(i);
    } else if (punch(offset_of(i), kSegmentBytes)) {
      make_free(i, Life::hole);
    } else {
      ++used_segments_;  // for good, as one that is being written: nobody knows when that ends
      dead_blocks_ += kBlocks;
    }
  }
}

void BackingFile::set_limits(Limits limits) {
  max_bytes_ = clamped(limits.max_bytes);
  free_min_bytes_ = limits.free_min_bytes;
}

BackingFile::Segment& BackingFile::segment(std::uint32_t number) const {
  assert(number < kMostSegments);
  return account_.as<Segment>(kAccountPage)[number];
}

BackingFile::Blocks& BackingFile::blocks(std::uint32_t number) const {
  assert(number < kMostSegments);
  return account_.as<Blocks>(kAccountPage + std::uint64_t{kMostSegments} * sizeof(Segment))[number];
}

// The block is taken in the state file before one of it is used: the next daemon begins after it.
std::uint64_t BackingFile::next_generation() {
  if (generation_ == generations_end_) {
    std::atomic_ref<std::uint64_t> reserved(state_.header().writeback.next_generation);
    generation_ = std::max<std::uint64_t>(reserved.load(), 1);
    generations_end_ = generation_ + kGenerationBlock;
    reserved.store(generations_end_);
  }
  return generation_++;
}

// -- a segment's life

Result<BackingFile::Claim> BackingFile::claim(Purpose purpose) {
  if (purpose == Purpose::more && !has_room()) {
    return fail_errno("the backing file is as large as it may become", ENOSPC);
  }
  const auto found = next_free();
  if (!found) return std::unexpected(found.error());
  const std::uint32_t number = *found;
  free_.remove(number);
  const std::uint64_t generation = next_generation();
  Segment& s = segment(number);
  s.generation.store(generation);
  for (auto& live : blocks(number).live) live.store(0, std::memory_order_relaxed);
  blocks(number).first.fill(kNoFirst);
  s.word.store(Word::of(Life::writing) + Word::dead(kBlocks));
  dead_blocks_ += kBlocks;
  ++used_segments_;
  return Claim{number, generation};
}

// The lowest, but after a place that could not be written those that follow it come first, and
// those that the file does not have yet: when there are none, it is the turn of all of them again.
Result<std::uint32_t> BackingFile::next_free() {
  auto found = free_.lowest_from(first_choice_);
  if (!found) {
    const Status ok = extend();
    if (!ok && free_.count() == 0) return std::unexpected(ok.error());
    found = free_.lowest_from(first_choice_);
  }
  if (found) return *found;
  first_choice_ = 0;
  return *free_.lowest();
}

void BackingFile::fill(SegmentPlace place, std::uint64_t bytes) {
  const std::uint64_t units = bytes / kUnit;
  assert(bytes % kUnit == 0 && units >= 1 && place.unit + units <= Word::kMost);
  Blocks& in = blocks(place.segment);
  std::uint32_t begun = 0;
  for_blocks(place, units, [&](std::uint32_t block, std::uint16_t part) {
    begun += in.live[block].fetch_add(part) == 0 ? 1 : 0;
  });
  std::uint8_t& first = in.first[place.unit / kUnitsPerBlock];
  first = std::min(first, static_cast<std::uint8_t>(place.unit % kUnitsPerBlock));
  ++live_objects_;
  live_bytes_ += bytes;
  filled_bytes_ += bytes;
  dead_blocks_ -= begun;
  const Word before{
      segment(place.segment).word.fetch_add(Word::counts(1, units) - Word::dead(begun))};
  assert(before.is(Life::writing) && before.units() + units <= Word::kMost);
  (void)before;
}

void BackingFile::written(std::uint32_t number) {
  constexpr std::uint64_t kStepOn = Word::of(Life::full) - Word::of(Life::writing);
  const Word before{segment(number).word.fetch_add(kStepOn)};
  assert(before.is(Life::writing));
  if (before.objects() == 0) ++dead_;
}

void BackingFile::abandon(std::uint32_t number, bool failed) {
  const Word before{segment(number).word.load()};
  assert(before.is(Life::writing));
  subtract_live(before.objects(), before.units());
  dead_blocks_ -= static_cast<std::int64_t>(before.dead());
  make_free(number, Life::free);
  --used_segments_;
  if (failed) first_choice_ = number + 1;
}

// The blocks first: when the word says that nothing is left, the segment may be used anew.
void BackingFile::release(SegmentPlace place, std::uint64_t bytes) {
  assert(bytes % kUnit == 0);
  const std::uint64_t units = bytes / kUnit;
  Blocks& in = blocks(place.segment);
  std::uint32_t died = 0;
  for_blocks(place, units, [&](std::uint32_t block, std::uint16_t part) {
    died += in.live[block].fetch_sub(part) == part ? 1 : 0;
  });
  subtract_live(1, units);
  dead_blocks_ += died;
  const Word before{
      segment(place.segment).word.fetch_sub(Word::counts(1, units) - Word::dead(died))};
  assert((before.is(Life::writing) || before.is(Life::full)) && before.objects() >= 1 &&
         before.units() >= units);
  if (before.is(Life::full) && before.objects() == 1) ++dead_;
}

bool BackingFile::in_use(std::uint32_t number) const {
  return number < backed_.load() && Word{segment(number).word.load()}.objects() != 0;
}

std::uint64_t BackingFile::generation(std::uint32_t number) const {
  return segment(number).generation.load();
}

std::uint64_t BackingFile::live_bytes(std::uint32_t number) const {
  return Word{segment(number).word.load()}.units() * kUnit;
}

std::uint64_t BackingFile::live_bytes(std::uint32_t number, std::uint32_t block) const {
  const std::uint16_t live = blocks(number).live[block].load();
  return live == kHole ? 0 : live * kUnit;
}

void BackingFile::subtract_live(std::uint64_t objects, std::uint64_t units) {
  live_objects_ -= objects;
  live_bytes_ -= units * kUnit;
}

void BackingFile::make_free(std::uint32_t number, Life life) {
  segment(number).word.store(Word::of(life));
  (life == Life::free ? free_ : holes_).add(number);
}

// A segment may be seen dead before the thread that found it so has counted it: dead_ is below 0
// for that moment.
std::uint32_t BackingFile::collect() {
  const std::int64_t wanted = dead_.load();
  std::uint32_t found = 0;
  for (std::uint32_t i = 0; i < end_ && found < wanted; ++i) {
    const Word word{segment(i).word.load()};
    if (!word.is(Life::full) || word.objects() != 0) continue;
    dead_blocks_ -= static_cast<std::int64_t>(word.dead());
    hole_blocks_ -= word.holes();
    --used_segments_;
    // With holes its room would have to be asked for anew: that is done for segments that are one.
    const bool hole = word.holes() != 0 && punch(offset_of(i), kSegmentBytes);
    make_free(i, hole ? Life::hole : Life::free);
    ++found;
  }
  dead_ -= found;
  return found;
}

// -- the file's size

// Holes that lie together, else what follows the end. Returns how many; 0: there is no number left.
std::uint32_t BackingFile::run_of_holes(std::uint32_t most, std::uint32_t& first) {
  first = holes_.lowest().value_or(end_);
  std::uint32_t count = 0;
  while (count < most && first + count < kMostSegments &&
         (holes_.contains(first + count) || first + count >= end_)) {
    ++count;
  }
  return count;
}

// Asked of the file itself, wherever its directory is by now.
Result<std::uint64_t> BackingFile::spare_bytes() const {
  const auto there = os_.file_system("/proc/self/fd/" + std::to_string(fd_.get()));
  if (!there) return std::unexpected(there.error());
  return there->free_bytes - std::min(there->free_bytes, free_min_bytes_);
}

Result<std::uint32_t> BackingFile::affordable(std::uint32_t wanted) const {
  const auto spare = spare_bytes();
  if (!spare) return std::unexpected(spare.error());
  if (*spare < kSegmentBytes) {
    return fail_errno("the file system must keep what it has free", ENOSPC);
  }
  return static_cast<std::uint32_t>(std::min<std::uint64_t>(wanted, *spare / kSegmentBytes));
}

// A file system that runs out of room half-way keeps what it has found; a hole gives that back.
int BackingFile::take_room(std::uint32_t first, std::uint32_t count) {
  if (!can_allocate_) return 0;
  int error = -EINTR;
  while (error == -EINTR) {
    error = os_.allocate(fd_.get(), offset_of(first), count * kSegmentBytes);
  }
  if (error == -EOPNOTSUPP) {
    log::warn(
        "writeback: the file system has no fallocate: the backing file takes its room as"
        " it is written");
    can_allocate_ = false;
    return 0;
  }
  if (error != 0) (void)os_.punch(fd_.get(), offset_of(first), count * kSegmentBytes);
  return error;
}

// Memory for a part of the account.
int BackingFile::back(std::uint64_t begin, std::uint64_t end) {
  const auto page_of = [](std::uint64_t at) {
    return (at + kAccountPage - 1) / kAccountPage * kAccountPage;
  };
  if (page_of(end) <= page_of(begin)) return 0;
  const std::uint64_t bytes = page_of(end) - page_of(begin);
  if (const int error = os_.allocate(account_fd_.get(), page_of(begin), bytes); error != 0)
    return error;
  backed_bytes_ += bytes;
  return 0;
}

// For all segments below `end`, so that using it cannot fail.
int BackingFile::back_account(std::uint32_t end) {
  constexpr std::uint64_t kTable = kAccountPage;
  constexpr std::uint64_t kBlockTable = kTable + std::uint64_t{kMostSegments} * sizeof(Segment);
  static_assert(kBlockTable % kAccountPage == 0);
  const std::uint64_t from = backed_.load();
  if (end <= from) return 0;
  int error = back(kTable + from * sizeof(Segment), kTable + end * sizeof(Segment));
  if (error == 0)
    error = back(kBlockTable + from * sizeof(Blocks), kBlockTable + end * sizeof(Blocks));
  if (error != 0) return error;
  backed_ = end;
  account_.as<Header>()->segments.store(end);
  return 0;
}

// Only when no free segment is left that is worth a try.
Status BackingFile::extend() {
  const std::uint64_t used = used_bytes(), most = max_bytes_.load(), there = free_.count();
  const std::uint64_t all = has_room() ? (most - used) / kSegmentBytes : 1;  // for cleaning
  const std::uint64_t room = all - std::min(all, there);
  const auto wanted = affordable(static_cast<std::uint32_t>(std::min<std::uint64_t>(room, kStep)));
  if (!wanted) return std::unexpected(wanted.error());
  std::uint32_t first = 0;
  std::uint32_t count = run_of_holes(*wanted, first);
  if (count == 0) return fail_errno("the backing file has no segment left", ENOSPC);
  int error = back_account(first + count);
  if (error == 0) error = take_room(first, count);
  if (error == -ENOSPC && count > 1) error = take_room(first, count = 1);
  if (error != 0) return fail_errno("the backing file cannot grow", -error);
  end_ = std::max(end_, first + count);
  for (std::uint32_t i = first; i < first + count; ++i) {
    holes_.remove(i);
    make_free(i, Life::free);
  }
  return {};
}

// Said once for each time that it begins to fail: give_back() comes again and again.
bool BackingFile::punch(std::uint64_t offset, std::uint64_t bytes) {
  const int error = os_.punch(fd_.get(), offset, bytes);
  if (error != 0 && !punch_failed_) {
    log::warn("writeback: no hole could be made ({}): the backing file stays as large as it is",
              std::strerror(-error));
  }
  punch_failed_ = error != 0;
  can_punch_ = error != -EOPNOTSUPP;
  return error == 0;
}

// From the end, so that what stays lies together at the front; neighbours with one call.
void BackingFile::give_back(std::uint32_t keep) {
  const std::uint64_t used = used_bytes(), most = max_bytes_.load();
  const std::uint64_t kept =
      std::min<std::uint64_t>(keep, most > used ? (most - used) / kSegmentBytes : 0);
  while (can_punch_ && free_.count() > kept) {
    const std::uint32_t last = *free_.highest();
    std::uint32_t first = last;
    while (first > 0 && free_.contains(first - 1) && last - first + 1 < free_.count() - kept) {
      --first;
    }
    if (!punch(offset_of(first), (last - first + 1) * kSegmentBytes)) return;
    for (std::uint32_t i = first; i <= last; ++i) {
      free_.remove(i);
      make_free(i, Life::hole);
    }
  }
}

std::uint64_t BackingFile::dead_bytes() const {
  const std::int64_t blocks = dead_blocks_.load();
  return can_punch_ && blocks > 0 ? static_cast<std::uint64_t>(blocks) * kBlock : 0;
}

// Nobody but the writer touches a dead block of a full segment: no object is there to be released.
// (One that just died may not be in the word yet: that sum is right again a moment later.)
std::uint32_t BackingFile::punch_dead(std::uint32_t number) {
  auto& live = blocks(number).live;
  std::uint32_t made = 0;
  for (std::uint32_t first = 0, end = 0; first < kBlocks; first = end + 1) {
    end = first;
    while (end < kBlocks && live[end].load() == 0) ++end;
    if (end == first) continue;
    if (!punch(offset_of(number) + first * kBlock, (end - first) * kBlock)) break;
    for (std::uint32_t b = first; b < end; ++b) live[b].store(kHole);
    made += end - first;
  }
  segment(number).word.fetch_add(Word::holes(made) - Word::dead(made));
  dead_blocks_ -= made;
  hole_blocks_ += made;
  return made;
}

// Round and round, so that each segment has time to collect dead blocks that lie together.
std::uint64_t BackingFile::make_holes(std::uint64_t bytes) {
  std::uint64_t made = 0;
  for (std::uint32_t looked = 0; looked < end_ && made < bytes && dead_bytes() != 0; ++looked) {
    if (next_hole_ >= end_) next_hole_ = 0;
    const Word word{segment(next_hole_).word.load()};
    if (word.is(Life::full) && word.objects() != 0 && word.dead() != 0)
      made += punch_dead(next_hole_) * kBlock;
    if (punch_failed_) break;
    ++next_hole_;
  }
  return made;
}

std::uint64_t BackingFile::file_bytes() const {
  return os_.allocated_bytes(fd_.get()).value_or(0);
}

std::uint64_t BackingFile::resident_bytes() const {
  return backed_bytes_.load();
}

// -- looking at all of it

std::vector<BackingFile::Sparse> BackingFile::sparsest(std::size_t most,
                                                       std::uint32_t percent_max) const {
  constexpr std::size_t kClosely = 64;
  using Candidate = std::pair<std::uint64_t, std::uint32_t>;  // how much is live, number
  std::priority_queue<Candidate> best;                        // on top the one to drop first
  for (std::uint32_t i = 0; i < end_; ++i) {
    const Word word{segment(i).word.load()};
    if (!word.is(Life::full) || word.objects() == 0) continue;
    const std::uint64_t kept = kBlocks - word.holes() - (can_punch_ ? word.dead() : 0);
    if (kept > kBlocks) continue;  // release() is about to count what became a hole already
    best.emplace(word.units() * 1024 / std::max<std::uint64_t>(kept, 1), i);
    if (best.size() > most + kClosely) best.pop();
  }
  std::vector<Sparse> found;
  for (; !best.empty(); best.pop()) {
    const std::uint32_t number = best.top().second;
    const BlockSet set = emptiest_blocks(number);
    const Sparse one{number, can_punch_ ? static_cast<std::uint32_t>(set.count()) : kBlocks,
                     cost_of_vacating(number, set)};
    if (one.live * 100 <= one.blocks * kBlock * percent_max) found.push_back(one);
  }
  std::ranges::sort(found, {}, [](const Sparse& one) {
    return std::pair(one.live / std::max(one.blocks, 1U), one.segment);
  });
  if (found.size() > most) found.resize(most);
  return found;
}

BackingFile::BlockSet BackingFile::blocks_with_live(std::uint32_t number) const {
  BlockSet set;
  for (std::uint32_t b = 0; b < kBlocks; ++b) set.set(b, live_bytes(number, b) != 0);
  return set;
}

// What lies over the border to a block that is not vacated moves as a whole: half of it is there.
std::uint64_t BackingFile::cost_of_vacating(std::uint32_t number, const BlockSet& set) const {
  const Word word{segment(number).word.load()};
  const BlockSet stays = blocks_with_live(number) & ~set;
  const std::size_t borders = (set & stays << 1).count() + (set & stays >> 1).count();
  std::uint64_t live = borders * word.units() * kUnit / std::max(word.objects(), 1UL) / 2;
  for (std::uint32_t b = 0; b < kBlocks; ++b) live += set.test(b) ? live_bytes(number, b) : 0;
  return live;
}

BackingFile::BlockSet BackingFile::emptiest_blocks(std::uint32_t number) const {
  constexpr std::size_t kFew = 8;
  using Candidate = std::pair<std::uint64_t, std::uint32_t>;  // live bytes, block
  const BlockSet all = blocks_with_live(number);
  if (!can_punch_ || all.count() <= kFew) return all;
  std::vector<Candidate> by_live;
  by_live.reserve(kBlocks);
  for (std::uint32_t b = 0; b < kBlocks; ++b) {
    if (all.test(b)) by_live.emplace_back(live_bytes(number, b), b);
  }
  std::ranges::sort(by_live);
  by_live.resize(std::max(kFew, by_live.size() / 8));
  BlockSet set;
  for (const auto& [live, b] : by_live) set.set(b);
  const auto per_block = [&](const BlockSet& blocks) {
    return cost_of_vacating(number, blocks) / blocks.count();
  };
  return per_block(set) <= per_block(all) ? set : all;
}

// Nothing reaches into a block that begins with an object; and none is longer than a block and one
// unit less than that, so none reaches farther than into the next.
BackingFile::BlockSet BackingFile::with_whole_objects(std::uint32_t number,
                                                      const BlockSet& wanted) const {
  const BlockSet live = blocks_with_live(number);
  BlockSet entered;
  for (std::uint32_t b = 0; b < kBlocks; ++b) entered.set(b, blocks(number).first[b] != 0);
  const BlockSet these = wanted & live;
  return these | ((these & entered) >> 1 & live) | (these << 1 & live & entered);
}

std::optional<std::uint32_t> BackingFile::first_unit(std::uint32_t number,
                                                     std::uint32_t block) const {
  const std::uint8_t first = blocks(number).first[block];
  if (first == kNoFirst) return std::nullopt;
  return block * kUnitsPerBlock + first;
}

const char* BackingFile::check_blocks(std::uint32_t number) const {
  const Word word{segment(number).word.load()};
  std::uint64_t dead = 0, holes = 0, units = 0;
  for (const auto& counter : blocks(number).live) {
    const std::uint16_t live = counter.load();
    if (live != kHole && live > kUnitsPerBlock) return "a block is more than full";
    dead += live == 0 ? 1 : 0;
    holes += live == kHole ? 1 : 0;
    units += live == kHole ? 0 : live;
  }
  if (dead != word.dead()) return "dead blocks do not add up";
  if (holes != word.holes()) return "holes do not add up";
  if (units != word.units()) return "live bytes of blocks do not add up";
  return nullptr;
}

const char* BackingFile::check_segment(std::uint32_t number) const {
  const Word word{segment(number).word.load()};
  if (word.objects() > word.units()) return "a segment has more objects than units";
  if (word.units() > Word::kMost) return "a segment is more than full";
  if ((word.objects() == 0) != (word.units() == 0)) return "live bytes of no object";
  if (word.is(Life::free) != free_.contains(number)) return "a free segment is not in the list";
  if (word.is(Life::hole) != holes_.contains(number)) return "a hole is not in the list";
  if (word.is(Life::free) || word.is(Life::hole)) {
    const bool clean = word.objects() == 0 && word.dead() == 0 && word.holes() == 0;
    return clean ? nullptr : "a free segment has live objects, or blocks";
  }
  if (!word.is(Life::writing) && !word.is(Life::full)) return "a segment is in no known state";
  const std::uint64_t generation = segment(number).generation.load();
  if (generation == 0 || generation >= state_.header().writeback.next_generation) {
    return "a generation was not reserved";
  }
  return check_blocks(number);
}

const char* BackingFile::validate() const {
  const auto& header = *account_.as<Header>();
  if (header.magic != kMagic || header.version != kVersion) return "not an account";
  std::uint64_t objects = 0, units = 0, used = 0, holes = 0;
  std::int64_t dead = 0, dead_blocks = 0;
  for (std::uint32_t i = 0; i < end_; ++i) {
    if (const char* wrong = check_segment(i); wrong != nullptr) return wrong;
    const Word word{segment(i).word.load()};
    objects += word.objects();
    units += word.units();
    dead_blocks += static_cast<std::int64_t>(word.dead());
    holes += word.holes();
    used += word.is(Life::writing) || word.is(Life::full) ? 1 : 0;
    dead += word.is(Life::full) && word.objects() == 0 ? 1 : 0;
  }
  if (objects != live_objects_) return "live objects do not add up";
  if (units * kUnit != live_bytes_) return "live bytes do not add up";
  if (used != used_segments_) return "used segments do not add up";
  if (dead_blocks != dead_blocks_ || holes != hole_blocks_) return "blocks do not add up";
  if (dead != dead_) return "dead segments do not add up";
  if (used + free_.count() + holes_.count() != end_) return "segments do not add up";
  return nullptr;
}

}  // namespace foldswap
