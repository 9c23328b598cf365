// mremap in all its forms. The range is always within one VMA as far as plain Linux goes: see
// torture_area.h.
#include <sys/mman.h>

#include <algorithm>
#include <cerrno>

#include "tests/programs/torture/torture_worker.h"

namespace testprog::torture {
namespace {

// A part of a run of equal flags and piece, or all of it.
Span part_of(Random& random, Span run) {
  if (run.empty() || random.below(2) == 0) return run;
  const std::size_t first = run.first + random.below(run.count);
  return {first, 1 + random.below(run.end() - first)};
}

}  // namespace

void Worker::expect_untouched(Area& area, Span span, const char* call) {
  if (errno != EFAULT || !settings_.fork) fail_call(*slot_, call, errno);
  area.check_span(span, *slot_);
}

void Worker::became_area(std::byte* base, const std::vector<PageShadow>& pages) {
  Area& area = areas_.emplace_back(base, pages.size());
  area.receive(0, pages);
  area.check(random_.below(area.size()), *slot_);
}

void Worker::move_away() {
  Area& area = some_area();
  const Span span = part_of(random_, area.pick_run(random_));
  if (span.empty()) return;
  std::byte* target =
      random_.below(2) == 0 ? map_aligned(span.count * kPage) : map_at(nullptr, span.count, 0);
  if (target == nullptr) fail_call(*slot_, "mmap", errno);
  slot_->note("mremap(FIXED)", area.at(span.first), span.count,
              reinterpret_cast<std::uint64_t>(target));
  void* moved = mremap(area.at(span.first), span.count * kPage, span.count * kPage,
                       MREMAP_MAYMOVE | MREMAP_FIXED, target);
  if (moved == MAP_FAILED) return expect_untouched(area, span, "mremap(FIXED)");
  const std::vector<PageShadow> pages = area.copy_of(span);
  area.unmap(span);
  became_area(target, pages);
  forget_empty();
}

// Onto pages of ours, which are replaced by it.
void Worker::move_over() {
  Area& area = some_area();
  Span span = part_of(random_, area.pick_run(random_));
  if (span.empty()) return;
  Area& target = some_area();
  const Span place = target.pick(random_, span.count, &PageShadow::mapped);
  if (place.empty()) return;
  span.count = place.count;
  if (&area == &target && span.first < place.end() && place.first < span.end()) return;
  slot_->note("mremap(FIXED) over", area.at(span.first), span.count,
              reinterpret_cast<std::uint64_t>(target.at(place.first)));
  void* moved = mremap(area.at(span.first), span.count * kPage, span.count * kPage,
                       MREMAP_MAYMOVE | MREMAP_FIXED, target.at(place.first));
  if (moved == MAP_FAILED) {
    expect_untouched(area, span, "mremap(FIXED) over");
    return target.check_span(place, *slot_);
  }
  const std::vector<PageShadow> pages = area.copy_of(span);
  area.unmap(span);
  target.receive(place.first, pages);
  target.check(place.first, *slot_);
  target.check(place.end() - 1, *slot_);
  forget_empty();
}

// In place where there is room, else elsewhere with the whole span.
void Worker::grow() {
  Area& area = some_area();
  const Span run = area.pick_run(random_);
  if (run.empty() || mapped_pages() > settings_.pages) return;
  const Span span{run.first + random_.below(run.count), 0};
  const Span old{span.first, run.end() - span.first};
  const std::size_t more = 1 + random_.below(200);
  const bool may_move = random_.below(3) != 0;
  slot_->note("mremap to grow", area.at(old.first), old.count, more);
  void* moved = mremap(area.at(old.first), old.count * kPage, (old.count + more) * kPage,
                       may_move ? MREMAP_MAYMOVE : 0);
  if (moved == MAP_FAILED) {
    if (errno != ENOMEM || may_move) expect_untouched(area, old, "mremap to grow");
    return;
  }
  std::vector<PageShadow> pages = area.copy_of(old);
  pages.resize(old.count + more, {0, pages.front().piece, pages.front().flags, Is::data});
  if (moved != area.at(old.first)) {
    area.unmap(old);
    became_area(static_cast<std::byte*>(moved), pages);
    areas_.back().check_span({old.count, more}, *slot_);
    return forget_empty();
  }
  if (old.first + pages.size() > area.size()) area.grow(old.first + pages.size() - area.size());
  for (std::size_t i = old.count; i < pages.size(); ++i) area[old.first + i] = pages[i];
  area.check_span({old.first, pages.size()}, *slot_);
}

void Worker::shrink() {
  Area& area = some_area();
  const Span span = part_of(random_, area.pick_run(random_));
  if (span.count < 2) return;
  const std::size_t kept = 1 + random_.below(span.count - 1);
  slot_->note("mremap to shrink", area.at(span.first), span.count, kept);
  void* moved = mremap(area.at(span.first), span.count * kPage, kept * kPage, 0);
  if (moved != area.at(span.first)) fail_call(*slot_, "mremap to shrink", errno);
  area.unmap({span.first + kept, span.count - kept});
  area.check(span.first + kept - 1, *slot_);
}

// The old place stays mapped and reads as zeros; locks are lost there, so locked memory is left
// alone.
void Worker::dont_unmap() {
  Area& area = some_area();
  const Span span = part_of(random_, area.pick_run(random_));
  if (span.empty() || area[span.first].has(kLocked) || mapped_pages() > settings_.pages) return;
  void* target = random_.below(2) == 0 ? map_at(nullptr, span.count, 0) : nullptr;
  const int flags = MREMAP_MAYMOVE | MREMAP_DONTUNMAP | (target != nullptr ? MREMAP_FIXED : 0);
  slot_->note("mremap(DONTUNMAP)", area.at(span.first), span.count,
              reinterpret_cast<std::uint64_t>(target));
  void* moved = mremap(area.at(span.first), span.count * kPage, span.count * kPage, flags, target);
  if (moved == MAP_FAILED) return expect_untouched(area, span, "mremap(DONTUNMAP)");
  const std::vector<PageShadow> pages = area.copy_of(span);
  const std::uint8_t kept_flags = area[span.first].flags;
  area.map_new(span, kept_flags);
  area.touch_piece(span.first, author_);
  area.check_span(span, *slot_);
  became_area(static_cast<std::byte*>(moved), pages);
}

}  // namespace testprog::torture
