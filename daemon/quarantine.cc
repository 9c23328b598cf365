#include "daemon/quarantine.h"

#include <algorithm>

#include "base/mutation.h"

namespace foldswap {

// The ranges are sorted by start and do not overlap.
void QuarantineList::add(std::uint64_t start, std::uint64_t end, std::uint64_t now_us) {
  if (mutated(Mutation::h16_quarantine)) return;
  Quarantine* list = record_.quarantine;
  std::uint32_t i = 0;
  while (i < record_.quarantine_count && list[i].end < start) ++i;
  // Everything it touches becomes one range, as young as the new one.
  while (i < record_.quarantine_count && list[i].start <= end) {
    start = std::min(start, list[i].start);
    end = std::max(end, list[i].end);
    remove_at(i);
  }
  if (record_.quarantine_count == kQuarantines) {
    std::uint32_t best = 0;
    for (std::uint32_t k = 1; k + 1 < kQuarantines; ++k) {
      if (list[k + 1].start - list[k].end < list[best + 1].start - list[best].end) best = k;
    }
    list[best].end = list[best + 1].end;
    list[best].since_us = std::max(list[best].since_us, list[best + 1].since_us);
    list[best].witness = 0;
    remove_at(best + 1);
    add(start, end, now_us);
    return;
  }
  std::copy_backward(list + i, list + record_.quarantine_count,
                     list + record_.quarantine_count + 1);
  list[i] = {start, end, now_us, 0};
  ++record_.quarantine_count;
}

void QuarantineList::remove_at(std::uint32_t index) {
  Quarantine* list = record_.quarantine;
  std::copy(list + index + 1, list + record_.quarantine_count, list + index);
  --record_.quarantine_count;
}

bool QuarantineList::contains(std::uint64_t page) const {
  return end_of(page) != page;
}

std::uint64_t QuarantineList::end_of(std::uint64_t page) const {
  const Quarantine* begin = record_.quarantine;
  const Quarantine* end = begin + record_.quarantine_count;
  const Quarantine* it = std::upper_bound(
      begin, end, page, [](std::uint64_t at, const Quarantine& q) { return at < q.end; });
  return it != end && it->start <= page ? it->end : page;
}

std::uint64_t QuarantineList::next_after(std::uint64_t page) const {
  const Quarantine* begin = record_.quarantine;
  const Quarantine* end = begin + record_.quarantine_count;
  const Quarantine* it = std::upper_bound(
      begin, end, page, [](std::uint64_t at, const Quarantine& q) { return at < q.start; });
  return it == end ? kNone : it->start;
}

std::uint64_t QuarantineList::pages() const {
  std::uint64_t bytes = 0;
  for (std::uint32_t i = 0; i < record_.quarantine_count; ++i) {
    bytes += record_.quarantine[i].end - record_.quarantine[i].start;
  }
  return bytes / 4096;
}

void QuarantineList::witnessed(std::uint64_t generation) {
  for (std::uint32_t i = 0; i < record_.quarantine_count; ++i) {
    if (record_.quarantine[i].witness == 0) record_.quarantine[i].witness = generation;
  }
}

void QuarantineList::expire(std::uint64_t generation, std::uint64_t now_us,
                            std::uint64_t min_age_us) {
  for (std::uint32_t i = record_.quarantine_count; i-- > 0;) {
    const Quarantine& q = record_.quarantine[i];
    if (q.witness != 0 && q.witness <= generation && now_us - q.since_us >= min_age_us)
      remove_at(i);
  }
}

}  // namespace foldswap
