#include "daemon/disk/write_budget.h"

#include <algorithm>

namespace foldswap {
namespace {

constexpr std::uint64_t kHourUs = 3'600ULL * 1'000'000;

}  // namespace

// Whoever dies in between has forgotten what is a day old; it is done again then.
void WriteBudget::forget_old(std::uint64_t hour) {
  const std::uint64_t last = written_.hour;
  if (hour <= last) return;
  for (std::uint64_t h = hour - std::min<std::uint64_t>(hour - last, kBudgetHours) + 1; h <= hour;
       ++h)
    written_.bytes[h % kBudgetHours] = 0;
  written_.hour = hour;
}

bool WriteBudget::allows(std::uint64_t bytes, std::uint64_t per_day, std::uint64_t now_us) {
  if (per_day == 0) return true;
  forget_old(now_us / kHourUs);
  std::uint64_t spent = 0;
  for (const Counter& hour : written_.bytes) spent += hour;
  return bytes <= per_day && spent <= per_day - bytes;
}

void WriteBudget::spend(std::uint64_t bytes, std::uint64_t now_us) {
  forget_old(now_us / kHourUs);
  bump(written_.bytes[written_.hour % kBudgetHours], bytes);
}

}  // namespace foldswap
