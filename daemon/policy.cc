#include "daemon/policy.h"

#include <algorithm>
#include <array>

namespace foldswap {
namespace {

constexpr std::uint64_t kScanBytes =
    16 * wire::kExtentBytes;  // of a dense VMA, per look at the page tables
constexpr std::uint64_t kMostScansPerPlan = 512;

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
  EvictionPlan plan;
  looked_until_ = 0;  // what was seen for an earlier plan is old
  std::uint64_t scans = 0;
  for (const VmaInfo& vma : client.vmas) {
    if (!vma.manageable || vma.end <= client.clock_cursor) continue;
    const bool dense = vma.anonymous_bytes * 2 >= vma.end - vma.start;
    std::uint64_t at = std::max(vma.start, client.clock_cursor);
    while (at < vma.end) {
      // A dense VMA is registered whole, so that mremap finds it in one state; of a sparse one a
      // slice at a time.
      const std::uint64_t slice_end =
          dense ? std::min(at + kScanBytes, vma.end)
                : std::min(extent_floor(at) + wire::kExtentBytes, vma.end);
      const std::uint64_t slice_start = dense ? at : std::max(extent_floor(at), vma.start);
      const wire::Range reg = dense ? wire::Range{vma.start, vma.end - vma.start}
                                    : wire::Range{slice_start, slice_end - slice_start};
      if (plan.pages >= wish.pages || plan.regs.size() >= wire::kMaxRegs - 1 ||
          ++scans > kMostScansPerPlan) {
        client.clock_cursor = at;
        return plan;
      }
      const std::uint64_t scanned = scan(client, at, slice_end, present_);
      std::uint64_t populated = 0;
      for (const auto& range : present_) populated += range.bytes;
      const bool worth = dense || vma.registered || wish.explicit_reclaim || wish.relaxed ||
                         populated * 2 >= slice_end - slice_start;
      if (worth) {
        for (const auto& range : present_) {
          take(client, vma, range, reg, wish, never, plan);
          if (plan.pages >= wish.pages) break;
        }
      }
      if (plan.pages >= wish.pages && !plan.runs.empty()) {
        const wire::Run& last = plan.runs.back();
        client.clock_cursor = last.start + last.pages * kPage;
        return plan;
      }
      at = scanned;
    }
  }
  client.clock_cursor = 0;
  plan.turn_ended = true;
  return plan;
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

void ClockPolicy::take(Client& client, const VmaInfo& /*vma*/, const wire::Range& present,
                       const wire::Range& reg, const EvictionWish& wish,
                       const std::vector<wire::Range>& never, EvictionPlan& plan) {
  const std::uint64_t end = present.start + present.bytes;
  const bool may_share = client.may_share.load(std::memory_order_relaxed);
  for (std::uint64_t page = present.start; page < end && plan.pages < wish.pages; page += kPage) {
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
    if (entry.heat() > 0 && !wish.explicit_reclaim) {
      (void)client.map->replace(page, entry, Entry::none(entry.heat() - 1));
      continue;
    }
    {
      const RankedLock lock(client.mutex);
      if (client.quarantine.contains(page)) continue;
    }
    const bool extends = !plan.runs.empty() &&
                         plan.runs.back().start + plan.runs.back().pages * kPage == page &&
                         plan.regs.back().start == reg.start;
    if (!extends) {
      if (plan.runs.size() == wire::kMaxRuns) return;
      if (plan.regs.empty() || plan.regs.back().start != reg.start ||
          plan.regs.back().bytes != reg.bytes) {
        plan.regs.push_back(reg);
      }
      plan.runs.push_back({page, 0, static_cast<std::uint32_t>(plan.regs.size() - 1)});
    }
    ++plan.runs.back().pages;
    ++plan.pages;
  }
}

}  // namespace foldswap
