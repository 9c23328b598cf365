#include "daemon/evict/policy.h"

#include <algorithm>
#include <array>
#include <utility>

#include "base/mutation.h"

namespace foldswap {
namespace {

constexpr std::uint64_t kScanBytes =
    16 * wire::kExtentBytes;  // of a dense VMA, per look at the page tables
constexpr std::uint64_t kMostScansPerPlan = 512;
constexpr std::uint64_t kMostPlanUs = 2'000;  // others wait for the evict thread
// Of a sparse VMA it depends on how much of it has page tables, be they empty by now: half a
// microsecond for each 2 MiB that has one, and nothing for the rest.
constexpr std::uint64_t kFirstSpan = 1ULL << 30, kMostSpan = 1ULL << 47;
constexpr std::uint64_t kCheapScanUs = 100, kDearScanUs = 500;

constexpr std::uint64_t end_of(const wire::Run& run) {
  return run.start + run.pages * kPage;
}

}  // namespace

std::uint64_t ClockPolicy::scan(Client& client, std::uint64_t start, std::uint64_t end,
                                std::vector<wire::Range>& present) {
  std::array<uapi::PageRegion, 256> regions;
  uapi::PmScanArg arg{};
  arg.size = sizeof(arg);
  arg.start = start;
  arg.end = end;
  arg.vec = reinterpret_cast<std::uint64_t>(regions.data());
  arg.vec_len = regions.size();
  arg.category_mask = uapi::kPageIsPresent | uapi::kPageIsFile | uapi::kPageIsPfnZero;
  arg.category_inverted = uapi::kPageIsFile | uapi::kPageIsPfnZero;
  arg.return_mask = uapi::kPageIsPresent;
  const int count = os_.pagemap_scan(client.pagemap_fd(), arg);
  present.clear();
  if (count < 0) return end;
  for (int i = 0; i < count; ++i) {
    const auto& region = regions[static_cast<std::size_t>(i)];
    present.push_back({region.start, region.end - region.start});
  }
  return arg.walk_end > start ? std::min(arg.walk_end, end) : end;
}

EvictionPlan ClockPolicy::choose(Client& client, const EvictionWish& wish,
                                 const std::vector<wire::Range>& never) {
  Task task{client, wish, never, {}, os_.now_us(), 0, kFirstSpan};
  looked_until_ = 0;  // what was seen for an earlier plan is old
  if (counted_long_ago(client)) {
    client.vmas_at_us = 0;
    task.plan.unfinished = true;
    return std::move(task.plan);
  }
  for (const VmaInfo& vma : client.vmas) {
    if (!vma.manageable || vma.end <= client.clock_cursor) continue;
    const bool dense = vma.anonymous_bytes * 2 >= vma.end - vma.start;
    std::uint64_t at = std::max(vma.start, client.clock_cursor);
    while (at < vma.end) {
      bool stop = task.full() || (task.scans != 0 && os_.now_us() - task.begun_us > kMostPlanUs) ||
                  ++task.scans > kMostScansPerPlan;
      if (stop) {
        task.plan.unfinished = task.plan.pages == 0;
      } else {
        at = dense ? look_at_dense(task, vma, at, stop) : look_at_sparse(task, vma, at, stop);
      }
      if (stop) {
        client.clock_cursor = at;
        return std::move(task.plan);
      }
    }
  }
  client.clock_cursor = 0;
  task.plan.turn_ended = true;
  return std::move(task.plan);
}

// Mappings seem to be scarce, but only because of what we may have split since the last look.
bool ClockPolicy::counted_long_ago(const Client& client) {
  constexpr std::uint64_t kMany = 1'024;  // more than what two commands may be about to split
  constexpr std::uint64_t kOnePlan = 2ULL * wire::kMaxRegs;
  const std::uint64_t splits = client.splits.load(), sparing = limit_.sparing();
  return splits > kMany && client.mappings() + kOnePlan > sparing &&
         client.mappings() - splits + kOnePlan <= sparing;
}

std::uint64_t ClockPolicy::look_at_dense(Task& task, const VmaInfo& vma, std::uint64_t at,
                                         bool& stop) {
  const std::uint64_t end = scan(task.client, at, std::min(at + kScanBytes, vma.end), present_);
  for (const auto& range : present_) {
    take(task, range, {{vma.start, vma.end - vma.start}, 0});
    if (task.plan.pages >= task.wish.pages) break;
  }
  stop = task.plan.pages >= task.wish.pages && !task.plan.runs.empty();
  return stop ? end_of(task.plan.runs.back()) : end;
}

// One look at all that is left of it, or as much of it as is cheap; then slice by slice. The last
// slice may have been seen in part only: it is the next look's.
std::uint64_t ClockPolicy::look_at_sparse(Task& task, const VmaInfo& vma, std::uint64_t at,
                                          bool& stop) {
  const std::uint64_t span = mutated(Mutation::sparse_scan) ? wire::kExtentBytes : task.span;
  const std::uint64_t most = vma.end - extent_floor(at);
  const std::uint64_t end = extent_floor(at) + std::min(span, most);
  const std::uint64_t begun_us = os_.now_us();
  const std::uint64_t scanned = scan(task.client, at, end, present_);
  const std::uint64_t took_us = os_.now_us() - begun_us;
  if (took_us < kCheapScanUs) task.span = std::min(task.span * 2, kMostSpan);
  if (took_us > kDearScanUs) task.span = std::max(task.span / 2, kFirstSpan);
  std::uint64_t seen = scanned == end ? end : extent_floor(scanned);
  if (seen <= at) seen = scanned;  // a vector holds all of one slice, so it never comes to this
  for (std::size_t i = 0; i < present_.size();) {
    const std::uint64_t slice_start = std::max(extent_floor(present_[i].start), vma.start);
    const std::uint64_t slice_end =
        std::min(extent_floor(present_[i].start) + wire::kExtentBytes, vma.end);
    if (slice_end > seen && seen != scanned) break;
    slice_.clear();
    std::uint64_t populated = 0;
    while (i < present_.size() && present_[i].start < slice_end) {
      wire::Range& range = present_[i];
      const std::uint64_t bytes = std::min(range.bytes, slice_end - range.start);
      slice_.push_back({range.start, bytes});
      populated += bytes;
      range = {range.start + bytes, range.bytes - bytes};
      if (range.bytes == 0) ++i;
    }
    const bool worth = vma.registered || task.wish.explicit_reclaim || task.wish.relaxed ||
                       populated * 2 >= slice_end - slice_start;
    if (!worth) continue;
    stop = task.full();
    if (stop) return slice_.front().start;
    const Reg reg = reg_of(task, vma, {slice_start, slice_end - slice_start});
    for (const wire::Range& range : slice_) {
      take(task, range, reg);
      if (task.plan.pages >= task.wish.pages) break;
    }
    stop = task.plan.pages >= task.wish.pages && !task.plan.runs.empty();
    if (stop) return end_of(task.plan.runs.back());
  }
  return seen;
}

// HAZARDS 32.
ClockPolicy::Reg ClockPolicy::reg_of(Task& task, const VmaInfo& vma, const wire::Range& slice) {
  const wire::Range up_to_it{vma.start, slice.start + slice.bytes - vma.start};
  if (vma.registered) return {up_to_it, 0};
  const std::uint64_t mappings = task.client.mappings() + task.plan.splits;
  if (mappings + 2 <= limit_.sparing()) return {slice, 2};
  if (mappings + 1 <= limit_.most()) return {up_to_it, 1};
  return {{vma.start, vma.end - vma.start}, 0};
}

// Whether a relative maps the page, too: MOVE would refuse it. Looked up for many pages at once.
bool ClockPolicy::shared(Client& client, std::uint64_t page, std::uint64_t end) {
  constexpr std::uint64_t kPresent = 1ULL << 63, kMappedOnce = 1ULL << 56;
  if (looked_client_ != client.id || page < looked_from_ || page >= looked_until_) {
    const std::uint64_t pages = std::min<std::uint64_t>((end - page) / kPage, looked_.size());
    const int n = os_.read_at(client.pagemap_fd(), looked_.data(), pages * sizeof(looked_[0]),
                              page / kPage * sizeof(looked_[0]));
    if (n < static_cast<int>(sizeof(looked_[0]))) return false;  // MOVE will say
    looked_client_ = client.id;
    looked_from_ = page;
    looked_until_ = page + static_cast<std::uint64_t>(n) / sizeof(looked_[0]) * kPage;
  }
  return (looked_[(page - looked_from_) / kPage] & (kPresent | kMappedOnce)) == kPresent;
}

void ClockPolicy::take(Task& task, const wire::Range& present, const Reg& reg) {
  Client& client = task.client;
  EvictionPlan& plan = task.plan;
  const std::vector<wire::Range>& never = task.never;
  const std::uint64_t end = present.start + present.bytes;
  const bool may_share = client.may_share.load(std::memory_order_relaxed);
  for (std::uint64_t page = present.start; page < end && plan.pages < task.wish.pages;
       page += kPage) {
    const auto after = std::ranges::upper_bound(never, page, {}, &wire::Range::start);
    if (after != never.begin()) {
      const wire::Range& before = *std::prev(after);
      if (page - before.start < before.bytes) continue;
    }
    const Entry entry = client.map->load(page);
    if (entry.state() != PageState::none) continue;
    if (may_share && shared(client, page, end)) {
      ++client.shared_this_turn;
      continue;
    }
    if (entry.heat() > 0 && !task.wish.explicit_reclaim) {
      (void)client.map->replace(page, entry, Entry::none(entry.heat() - 1));
      continue;
    }
    {
      const RankedLock lock(client.mutex);
      if (client.quarantine.contains(page)) continue;
    }
    const bool same_reg = !plan.regs.empty() && plan.regs.back().start == reg.range.start;
    const bool extends = same_reg && end_of(plan.runs.back()) == page;
    if (!extends && plan.runs.size() == wire::kMaxRuns) return;
    if (!same_reg) {
      plan.regs.push_back(reg.range);
      plan.splits += reg.splits;
    } else if (plan.regs.back().bytes < reg.range.bytes) {
      plan.regs.back().bytes = reg.range.bytes;  // up to and with this slice
    }
    if (!extends) plan.runs.push_back({page, 0, static_cast<std::uint32_t>(plan.regs.size() - 1)});
    ++plan.runs.back().pages;
    ++plan.pages;
  }
}

}  // namespace foldswap
