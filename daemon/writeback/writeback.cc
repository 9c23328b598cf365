#include "daemon/writeback/writeback.h"

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "base/size.h"
#include "daemon/disk/packing.h"
#include "daemon/host/log.h"

namespace foldswap {
namespace {

constexpr std::uint32_t kSegment = BackingFile::kSegmentBytes;
constexpr std::uint64_t kUnit = BackingFile::kUnit;
constexpr std::size_t kMostItems = kSegment / (kSealedOverhead + 1);
constexpr std::size_t kCandidates = 2048;

// Room in the pool below which cold objects leave, as a part of its limit; they do until there is
// twice as much.
constexpr std::uint64_t kLowPart = 8, kLowLeast = 8 * kMiB, kLowMost = 512 * kMiB;
constexpr std::uint64_t kFloorBytes = 16 * kMiB;  // of the pool, that memory pressure leaves alone

constexpr std::uint64_t kYieldUs = 2'000;  // the longest that a write waits for reads of faults
constexpr unsigned kMostTries = 3, kMostFailures = 3;
constexpr std::uint64_t kRetryErrorUs = 10'000'000;
constexpr std::uint32_t kForCleaning = 2;  // free segments below which only cleaning may begin one
constexpr auto kBlock = static_cast<std::uint32_t>(BackingFile::kBlock);
constexpr std::uint32_t kGapLeast = 64;  // bytes: a smaller one is not worth remembering

}  // namespace

Writeback::Writeback(Os& os, State& state, PageStore& store, BackingFile& file, const Seal& seal,
                     DiskTraffic& traffic, const Tunables& tunables)
    : os_(os),
      counters_(state.counters()),
      store_(store),
      pool_(store.pool()),
      file_(file),
      seal_(seal),
      traffic_(traffic),
      tunables_(tunables),
      budget_(state.header().writeback.written),
      pressure_(os),
      memory_(Mapping::anonymous(std::size_t{kBuffers} * kSegment).value()) {
  for (std::uint32_t i = 0; i < kBuffers; ++i) {
    buffers_[i].bytes = {memory_.data() + std::size_t{i} * kSegment, kSegment};
    buffers_[i].items.reserve(1024);
  }
}

Result<std::unique_ptr<Writeback>> Writeback::create(Os& os, State& state, PageStore& store,
                                                     BackingFile& file, const Seal& seal,
                                                     DiskTraffic& traffic,
                                                     const Tunables& tunables) {
  std::unique_ptr<Writeback> writeback(
      new Writeback(os, state, store, file, seal, traffic, tunables));
  auto ring =
      os.io_ring(file.fd(), {writeback->memory_.data(), kBuffers * std::size_t{kSegment}}, kDepth);
  if (!ring) return std::unexpected(ring.error());
  writeback->ring_ = std::move(*ring);
  if (const std::string note = writeback->ring_->note(); !note.empty())
    log::info("writeback: {}", note);
  traffic.relief = true;
  return writeback;
}

Writeback::~Writeback() {
  traffic_.relief = false;
  ring_.reset();  // waits for what is under way; the buffers go after it
  for (Buffer& buffer : buffers_) {
    for (const Item& item : buffer.items) store_.unref(item.id);
  }
}

std::string Writeback::report() const {
  const RankedLock lock(mutex_);
  return why_;
}

void Writeback::say(const std::string& why) {
  const RankedLock lock(mutex_);
  why_ = why;
}

void Writeback::stop(const std::string& why, std::uint64_t retry_us) {
  if (report() != why) log::warn("writeback stops: {}; pages stay in the pool", why);
  say(why);
  stopped_until_us_ = os_.now_us() + retry_us;
  traffic_.relief = false;
}

void Writeback::go_on() {
  if (report().empty()) return;
  log::info("writeback goes on");
  say("");
}

std::uint64_t Writeback::step() {
  constexpr std::uint64_t kIdleUs = 100'000, kSoonUs = 1'000, kYieldStepUs = 200;
  const std::uint64_t now_us = os_.now_us();
  reap();
  keep_house(now_us);
  const Need need = this->need();
  if (now_us < stopped_until_us_) {
    flush_cleaned(false);
    return kIdleUs;
  }
  traffic_.relief = true;
  if (need == Need::none) go_on();  // nothing is to be written any more
  if (!may_start(need)) return kYieldStepUs;
  bool any = false;
  if (need != Need::none) {
    while (write_cold()) any = true;
  }
  any = clean(need) || any;
  const bool flying =
      std::ranges::any_of(buffers_, [](const Buffer& b) { return b.state != Buffer::State::idle; });
  if (need == Need::none) return flying || any ? kSoonUs : kIdleUs;
  return any && !flying ? 0 : kSoonUs;
}

Writeback::Need Writeback::need() {
  const PoolStats pool = pool_.stats();
  const std::uint64_t low =
      std::min(std::clamp(pool.limit_bytes / kLowPart, kLowLeast, kLowMost), pool.limit_bytes / 2);
  const std::uint64_t spare = pool_.spare_bytes();
  if (spare < low) writing_ = true;
  if (spare > 2 * low) writing_ = false;
  if (writing_ && pool.objects != 0) return spare < low / 2 ? Need::urgent : Need::some;
  pressed_ = pressure_.high({tunables_.available_low.load(std::memory_order_relaxed),
                             tunables_.psi_ms.load(std::memory_order_relaxed)});
  if (pressed_ && pool.compressed_bytes > kFloorBytes) return Need::some;
  return Need::none;
}

// Demand before background: a read that a fault waits for goes first. But it goes on in the end,
// because faults wait for room, too.
bool Writeback::may_start(Need need) {
  const std::uint64_t now_us = os_.now_us();
  if (traffic_.demand.load(std::memory_order_relaxed) == 0) {
    demand_since_us_ = 0;
    return true;
  }
  if (demand_since_us_ == 0) demand_since_us_ = now_us;
  if (need != Need::urgent && now_us - demand_since_us_ < 10 * kYieldUs) return false;
  if (now_us - demand_since_us_ < kYieldUs) return false;
  demand_since_us_ = now_us;
  return true;
}

// Whether another segment may be written. What is being filled with what cleaning keeps is written
// some time, too.
bool Writeback::budget_allows_one() {
  const std::uint64_t segments = cleaned_ != nullptr ? 2 : 1;
  return budget_.allows(segments * kSegment,
                        tunables_.writeback_per_day.load(std::memory_order_relaxed), os_.now_us());
}

Writeback::Buffer* Writeback::idle_buffer() {
  auto* const found =
      std::ranges::find(buffers_, Buffer::State::idle, [](const Buffer& b) { return b.state; });
  return found == buffers_.end() ? nullptr : found;
}

bool Writeback::write_cold() {
  // One stays for cleaning, once there is any.
  const auto busy = std::ranges::count_if(
      buffers_, [](const Buffer& b) { return b.state != Buffer::State::idle; });
  Buffer* const buffer = idle_buffer();
  if (buffer == nullptr || (no_room_ && busy + 1 >= kBuffers)) return false;
  if (!open_segment(*buffer, false)) return false;
  add_cold(*buffer);
  if (buffer->items.empty()) {
    drop(*buffer);
    return false;
  }
  start_write(*buffer);
  return true;
}

// What is dead makes room at no cost.
bool Writeback::make_room(std::uint64_t bytes) {
  const std::uint64_t wanted = file_.used_bytes() + bytes, most = file_.max_bytes();
  return wanted <= most || file_.make_holes(wanted - most) >= wanted - most;
}

bool Writeback::open_segment(Buffer& buffer, bool for_cleaning) {
  if (!for_cleaning && !make_room(std::uint64_t{kForCleaning} * kSegment)) {
    no_room_ = true;
    return false;
  }
  // Beyond the maximum only one at a time: what it frees comes when it is written.
  if (for_cleaning && !make_room(kSegment) && cleaned_under_way()) return false;
  const auto claim =
      file_.claim(for_cleaning ? BackingFile::Purpose::cleaning : BackingFile::Purpose::more);
  if (!claim) {
    if (claim.error().code == ENOSPC && !for_cleaning && file_.used_bytes() != 0) {
      no_room_ = true;
      return false;
    }
    stop(claim.error().message, kRetryRoomUs);
    return false;
  }
  if (!budget_allows_one()) {
    file_.abandon(claim->segment);
    stop("the budget for bytes written per day is used up", kRetryRoomUs);
    return false;
  }
  if (!for_cleaning) no_room_ = false;
  buffer.claim = *claim;
  buffer.state = Buffer::State::filling;
  buffer.used = buffer.gaps = 0;
  buffer.open.fill(0);
  buffer.tries = 0;
  std::ranges::fill(buffer.bytes, std::byte{0});
  return true;
}

std::vector<ObjectId> Writeback::in_packing_order(const std::vector<ObjectId>& found) {
  std::vector<ObjectId> there, ordered;
  std::vector<std::uint32_t> units;
  for (const ObjectId id : found) {
    const auto info = pool_.peek(id);
    if (!info || info->length == 0) continue;  // freed meanwhile
    there.push_back(id);
    units.push_back(disk_units(info->length));
  }
  constexpr std::uint32_t kUnits = kBlock / kUnit;
  for (const std::size_t i : packing_order(units, kUnits)) ordered.push_back(there[i]);
  return ordered;
}

bool Writeback::next_candidate(ObjectId& id) {
  if (next_candidate_ == candidates_.size()) {
    const std::uint64_t begun_us = os_.now_us();
    if (begun_us < search_again_us_) return false;
    const std::size_t objects = pool_.stats().objects;
    candidates_ = in_packing_order(pool_.oldest(
        kCandidates,
        {.unsettled = false, .least_age = 0, .among = std::max<std::size_t>(8192, objects / 8)}));
    next_candidate_ = 0;
    // The search goes over the records of what is on disk, too: no more than a fifth of our time
    // for it where it finds little.
    const std::uint64_t cost_us = os_.now_us() - begun_us;
    search_again_us_ = candidates_.size() < kCandidates / 2 ? begun_us + 5 * cost_us : 0;
    if (candidates_.empty()) return false;
  }
  id = candidates_[next_candidate_++];
  return true;
}

void Writeback::add_cold(Buffer& buffer) {
  std::array<std::byte, kPage> packed;
  ObjectId id = ObjectId::none;
  for (std::size_t looked = 0; looked < 4 * kCandidates && next_candidate(id); ++looked) {
    if (leaving_.contains(id) || !pool_.try_ref(id)) continue;
    const auto loaded = pool_.load(id, packed);
    if (!loaded || loaded->length == 0 || pool_.refs(id) == 1) {
      store_.unref(id);  // freed, or out already, since it was found; or it does not verify
      continue;
    }
    const Item item{.id = id, .loaded = *loaded, .to = {}, .from = {}, .length = loaded->length};
    if (put(buffer, item, std::span(packed).first(loaded->length))) {
      leaving_.insert(id);
      continue;
    }
    store_.unref(id);
    --next_candidate_;
    return;
  }
}

// The end of a block that has the least room of those with enough; else a new block. Where too much
// would be left empty it goes on where the last one ended, across the border.
std::optional<std::uint32_t> Writeback::make_place(Buffer& buffer, std::uint32_t bytes) {
  const auto room = [](std::uint32_t at) {
    return static_cast<std::uint32_t>(block_ceil(at)) - at;
  };
  std::uint32_t* best = nullptr;
  for (std::uint32_t& gap : buffer.open) {
    if (room(gap) >= bytes && (best == nullptr || room(gap) < room(*best))) best = &gap;
  }
  if (best != nullptr) {
    const std::uint32_t at = *best;
    const bool last = at == buffer.used;
    last ? buffer.used += bytes : buffer.gaps -= bytes;
    *best = room(at + bytes) >= kGapLeast ? at + bytes : 0;
    return at;
  }
  const std::uint32_t rest = room(buffer.used);
  // None begins at a block's last unit (BackingFile::first_unit).
  const bool across =
      rest > kUnit && (bytes > kBlock || buffer.gaps + rest > buffer.used / 12 + kBlock);
  const std::uint32_t at = buffer.used + (across ? 0 : rest);
  if (at + bytes > kSegment) return std::nullopt;
  if (across) {
    std::ranges::replace(buffer.open, buffer.used, 0U);
  } else {
    buffer.gaps += rest;
  }
  buffer.used = at + bytes;
  auto* const smallest = std::ranges::min_element(buffer.open, {}, room);
  if (const std::uint32_t left = room(buffer.used); left >= kGapLeast && left > room(*smallest))
    *smallest = buffer.used;
  return at;
}

bool Writeback::put(Buffer& buffer, Item item, std::span<const std::byte> packed) const {
  const auto bytes = static_cast<std::uint32_t>(disk_bytes(item.length));
  if (buffer.items.size() == kMostItems) return false;
  const auto at = make_place(buffer, bytes);
  if (!at) return false;
  item.to = {buffer.claim.segment, static_cast<std::uint32_t>(*at / kUnit)};
  const auto into = buffer.bytes.subspan(*at, bytes);
  const DiskHeader header{static_cast<std::uint32_t>(item.id),
                          static_cast<std::uint16_t>(item.length),
                          static_cast<std::uint16_t>(bytes / kUnit)};
  std::memcpy(into.data(), &header, sizeof(header));
  const Seal::Place place{static_cast<std::uint64_t>(item.id), buffer.claim.generation,
                          item.to.unit};
  seal_.close(place, packed, into.subspan(sizeof(header), packed.size() + Seal::kTagBytes));
  buffer.items.push_back(item);
  return true;
}

void Writeback::start_write(Buffer& buffer) {
  for (const Item& item : buffer.items) file_.fill(item.to, disk_bytes(item.length));
  buffer.state = Buffer::State::writing;
  submit_write(buffer);
}

void Writeback::submit_write(Buffer& buffer) {
  const auto index = static_cast<std::uint64_t>(&buffer - buffers_.data());
  ++buffer.tries;
  budget_.spend(block_ceil(buffer.used), os_.now_us());
  // The ring is deep enough for every buffer.
  (void)ring_->write(buffer.bytes.first(block_ceil(buffer.used)),
                     BackingFile::offset_of(buffer.claim.segment), index);
  (void)ring_->submit();
}

void Writeback::reap() {
  (void)ring_->submit();  // what it had no room for before
  std::array<IoDone, kDepth> ended;
  const std::size_t count = ring_->reap(ended);
  for (std::size_t i = 0; i < count; ++i) {
    Buffer& buffer = buffers_[ended[i].tag % kBuffers];
    buffer.state == Buffer::State::reading
        ? end_read(buffer, buffer.runs[ended[i].tag / kBuffers], ended[i].result)
        : end_write(buffer, ended[i].result);
  }
}

void Writeback::end_write(Buffer& buffer, std::int32_t result) {
  if (result == static_cast<std::int32_t>(block_ceil(buffer.used))) {
    bump(counters_.disk_written_bytes, static_cast<std::uint64_t>(result));
    failures_ = 0;
    // Not by a write that had begun before the reason was found.
    if (os_.now_us() >= stopped_until_us_) go_on();
    publish(buffer);
    return;
  }
  bump(counters_.disk_errors);
  const bool full = result == -ENOSPC || result == -EDQUOT;
  // The same bytes at the same place: no nonce is used for anything else.
  if (!full && buffer.tries < kMostTries) {
    submit_write(buffer);
    return;
  }
  forget_sources(buffer);
  drop(buffer, true);
  const std::string why = result < 0 ? std::strerror(-result) : "a write ended early";
  if (full || ++failures_ >= kMostFailures)
    stop("the backing file cannot be written (" + why + ")", kRetryErrorUs);
}

// The write has ended: from here the records say so, one word each.
void Writeback::publish(Buffer& buffer) {
  file_.written(buffer.claim.segment);
  for (const Item& item : buffer.items) {
    const std::uint64_t bytes = disk_bytes(item.length);
    const bool moved =
        item.cleaned ? pool_.move_elsewhere(item.id, item.from, item.to)
                     : pool_.refs(item.id) > 1 && pool_.move_out(item.id, item.loaded, item.to);
    if (!moved) file_.release(item.to, bytes);
    if (moved && !item.cleaned) futile_at_.reset();
    if (moved && item.cleaned) {
      file_.release(item.from, bytes);
      moved_bytes_ += bytes;
      bump(counters_.disk_cleaned_bytes, bytes);
    }
  }
  let_go(buffer);
}

void Writeback::let_go(Buffer& buffer) {
  for (const Item& item : buffer.items) {
    if (!item.cleaned) leaving_.erase(item.id);
    store_.unref(item.id);
  }
  buffer.items.clear();
  buffer.state = Buffer::State::idle;
}

void Writeback::drop(Buffer& buffer, bool failed) {
  file_.abandon(buffer.claim.segment, failed);
  let_go(buffer);
}

// Twice a second is enough for what only gives room back.
void Writeback::keep_house(std::uint64_t now_us) {
  constexpr std::uint64_t kEveryUs = 500'000;
  constexpr std::uint32_t kKeep = 8;
  constexpr std::uint64_t kHoles = 16 * kMiB;
  if (file_.collect() != 0) no_room_ = false;
  const BackingFile::Limits limits{tunables_.writeback_max.load(std::memory_order_relaxed),
                                   tunables_.writeback_free_min.load(std::memory_order_relaxed)};
  if (limits.max_bytes != limits_.max_bytes || limits.free_min_bytes != limits_.free_min_bytes) {
    file_.set_limits(limits);
    futile_at_.reset();
    limits_ = limits;
  }
  if (now_us - house_us_ < kEveryUs) return;
  house_us_ = now_us;
  // While something is written the places of what was freed are wanted again.
  file_.give_back(writing_ ? static_cast<std::uint32_t>(file_.used_bytes() / kSegment / 4) + kKeep
                           : kKeep);
  if (!writing_ && file_.dead_bytes() > file_.used_bytes() / 8) (void)file_.make_holes(kHoles);
  little_left_ = little_room_left();
  if (pressed_) (void)pool_.trim(Pool::kKeepEmptyBytes);
  stuck_.resize(std::min<std::size_t>(stuck_.size(), 4096));
}

}  // namespace foldswap
