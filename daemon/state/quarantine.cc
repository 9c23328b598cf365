#include "daemon/state/quarantine.h"

#include <algorithm>
#include <span>

#include "base/mutation.h"

namespace foldswap {

namespace {

// The ranges are sorted by start and do not overlap.
void remove_at(QuarantineTable& table, std::uint32_t index) {
  std::copy(table.range + index + 1, table.range + table.count, table.range + index);
  --table.count;
}

void insert(QuarantineTable& table, Quarantine fresh) {
  Quarantine* const list = table.range;
  std::uint32_t i = 0;
  while (i < table.count && list[i].end < fresh.start) ++i;
  // Everything it touches becomes one range, as young as the new one.
  while (i < table.count && list[i].start <= fresh.end) {
    fresh.start = std::min(fresh.start, list[i].start);
    fresh.end = std::max(fresh.end, list[i].end);
    remove_at(table, i);
  }
  if (table.count == kQuarantines) {
    std::uint32_t best = 0;
    for (std::uint32_t k = 1; k + 1 < kQuarantines; ++k) {
      if (list[k + 1].start - list[k].end < list[best + 1].start - list[best].end) best = k;
    }
    list[best].end = list[best + 1].end;
    list[best].since_us = std::max(list[best].since_us, list[best + 1].since_us);
    list[best].witness = 0;
    remove_at(table, best + 1);
    insert(table, fresh);
    return;
  }
  std::copy_backward(list + i, list + table.count, list + table.count + 1);
  list[i] = fresh;
  ++table.count;
}

}  // namespace

template <typename Edit>
void QuarantineList::change(Edit edit) {
  const QuarantineTable& current = now();
  const std::uint32_t other = 1 - record_.quarantine_now.load(std::memory_order_relaxed);
  QuarantineTable& next = record_.quarantine[other];
  next.count = current.count;
  std::copy_n(current.range, current.count, next.range);
  edit(next);
  record_.quarantine_now.store(other, std::memory_order_release);
}

void QuarantineList::add(std::uint64_t start, std::uint64_t end, std::uint64_t now_us) {
  if (mutated(Mutation::h16_quarantine)) return;
  change([&](QuarantineTable& table) { insert(table, {start, end, now_us, 0}); });
}

bool QuarantineList::contains(std::uint64_t page) const {
  return end_of(page) != page;
}

std::uint64_t QuarantineList::end_of(std::uint64_t page) const {
  const Quarantine* begin = now().range;
  const Quarantine* end = begin + now().count;
  const Quarantine* it = std::upper_bound(
      begin, end, page, [](std::uint64_t at, const Quarantine& q) { return at < q.end; });
  return it != end && it->start <= page ? it->end : page;
}

std::uint64_t QuarantineList::next_after(std::uint64_t page) const {
  const Quarantine* begin = now().range;
  const Quarantine* end = begin + now().count;
  const Quarantine* it = std::upper_bound(
      begin, end, page, [](std::uint64_t at, const Quarantine& q) { return at < q.start; });
  return it == end ? kNone : it->start;
}

std::uint64_t QuarantineList::pages() const {
  std::uint64_t bytes = 0;
  for (const Quarantine& q : std::span(now().range, now().count)) bytes += q.end - q.start;
  return bytes / 4096;
}

void QuarantineList::witnessed(std::uint64_t generation) {
  QuarantineTable& table = record_.quarantine[record_.quarantine_now];
  for (Quarantine& q : std::span(table.range, table.count)) {
    if (q.witness == 0) q.witness = generation;  // one word: nothing is half done
  }
}

void QuarantineList::forget_witnesses() {
  QuarantineTable& table = record_.quarantine[record_.quarantine_now];
  for (Quarantine& q : std::span(table.range, table.count)) q.witness = 0;
}

void QuarantineList::expire(std::uint64_t generation, std::uint64_t now_us,
                            std::uint64_t min_age_us) {
  const auto over = [&](const Quarantine& q) {
    return q.witness != 0 && q.witness <= generation && now_us - q.since_us >= min_age_us;
  };
  if (std::ranges::none_of(std::span(now().range, now().count), over)) return;
  change([&](QuarantineTable& table) {
    table.count = static_cast<std::uint32_t>(
        std::remove_if(table.range, table.range + table.count, over) - table.range);
  });
}

}  // namespace foldswap
