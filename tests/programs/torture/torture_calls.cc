// The calls that map, discard, protect, lock and advise.
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <array>
#include <cerrno>

#include "tests/programs/torture/torture_worker.h"

namespace testprog::torture {
namespace {

constexpr int kPopulateRead = 22;
constexpr int kPopulateWrite = 23;
constexpr int kCollapse = 25;
constexpr int kGuardInstall = 102;
constexpr int kGuardRemove = 103;

bool unlocked(const PageShadow& page) {
  return page.mapped() && !page.has(kLocked);
}

int advise(Area& area, Span span, int advice) {
  return madvise(area.at(span.first), span.count * kPage, advice);
}

}  // namespace

void Worker::discard() {
  Area& area = some_area();
  const Span span = area.pick(random_, 200, unlocked);
  if (span.empty()) return;
  slot_->note("DONTNEED", area.at(span.first), span.count);
  expect(advise(area, span, MADV_DONTNEED), "madvise(DONTNEED)");
  area.zero(span);
  area.check(span.first, *slot_);
  area.check(span.end() - 1, *slot_);
}

// Old bytes or zeros until the next write: some stay in that state.
void Worker::free_lazily() {
  Area& area = some_area();
  const Span span = area.pick(random_, 100, unlocked);
  if (span.empty()) return;
  slot_->note("FREE", area.at(span.first), span.count);
  expect(advise(area, span, MADV_FREE), "madvise(FREE)");
  const std::uint64_t every = 1 + random_.below(3);
  for (std::size_t i = span.first; i < span.end(); ++i) {
    if (area[i].is == Is::data && area[i].key != 0) area[i].is = Is::maybe;
    if (i % every == 0 && area[i].writable()) area.write(i, author_);
  }
}

void Worker::unmap() {
  Area& area = some_area();
  const Span span = area.pick(random_, 80, &PageShadow::mapped);
  if (span.empty()) return;
  slot_->note("munmap a part", area.at(span.first), span.count);
  area.check(span.first, *slot_);
  expect(munmap(area.at(span.first), span.count * kPage), "munmap");
  area.unmap(span);
  forget_empty();
}

void Worker::replace() {
  Area& area = some_area();
  const Span span = area.pick(random_, 300, &PageShadow::mapped);
  if (span.empty()) return;
  slot_->note("mmap(FIXED)", area.at(span.first), span.count);
  if (map_at(area.at(span.first), span.count, MAP_FIXED) == nullptr) {
    fail_call(*slot_, "mmap(FIXED)", errno);
  }
  area.map_new(span);
  area.touch_piece(span.first, author_);
  for (std::size_t i = span.first + 1; i < span.end(); ++i) {
    if (i % 3 == 0) area.check(i, *slot_);
    if (i % 3 != 1) area.write(i, author_);
  }
}

// A hole may have become someone else's meanwhile.
void Worker::fill_holes() {
  Area& area = some_area();
  const Span span =
      area.pick(random_, 100, [](const PageShadow& page) { return page.is == Is::hole; });
  if (span.empty()) return;
  slot_->note("mmap(NOREPLACE)", area.at(span.first), span.count);
  if (map_at(area.at(span.first), span.count, MAP_FIXED_NOREPLACE) == nullptr) {
    if (errno != EEXIST) fail_call(*slot_, "mmap(NOREPLACE)", errno);
    return;
  }
  area.map_new(span);
  area.touch_piece(span.first, author_);
  for (std::size_t i = span.first + 1; i < span.end(); i += 1 + random_.below(2)) {
    area.write(i, author_);
  }
}

void Worker::rebuild() {
  if (areas_.size() > 1) drop_area(random_.below(areas_.size()));
  add_area();
}

void Worker::protect() {
  Area& area = some_area();
  const Span span =
      area.pick(random_, random_.below(4) == 0 ? area.size() : 64, &PageShadow::mapped);
  if (span.empty()) return;
  const std::uint64_t draw = random_.below(3);
  const int protection = draw == 0 ? PROT_READ | PROT_WRITE : draw == 1 ? PROT_READ : PROT_NONE;
  slot_->note("mprotect", area.at(span.first), span.count, static_cast<unsigned>(protection));
  expect(mprotect(area.at(span.first), span.count * kPage, protection), "mprotect");
  area.set_flags(span,
                 draw == 0   ? 0U
                 : draw == 1 ? unsigned{kReadOnly}
                             : unsigned{kNoAccess},
                 kReadOnly | kNoAccess);
  area.check(span.first, *slot_);
  area.check(random_.below(area.size()), *slot_);
}

void Worker::lock() {
  Area& area = some_area();
  if (random_.below(2) == 0) {
    const Span span = area.pick(random_, 64, &PageShadow::mapped);
    if (span.empty()) return;
    slot_->note("munlock", area.at(span.first), span.count);
    expect(munlock(area.at(span.first), span.count * kPage), "munlock");
    area.set_flags(span, 0, kLocked);
    return;
  }
  const Span span = area.pick(random_, 32, &PageShadow::readable);
  if (span.empty()) return;
  slot_->note("mlock", area.at(span.first), span.count);
  const int result = mlock(area.at(span.first), span.count * kPage);
  if (result != 0 && errno != EPERM && errno != EAGAIN && errno != ENOMEM) expect(-1, "mlock");
  if (result != 0) munlock(area.at(span.first), span.count * kPage);
  area.set_flags(span, result == 0 ? unsigned{kLocked} : 0U, kLocked);
  area.check_span(span, *slot_);
}

// Equal flags everywhere again, so that VMAs merge and mremap gets large ranges.
void Worker::normalize() {
  Area& area = some_area();
  slot_->note("normalize", area.at(0), area.size());
  area.each_span(&PageShadow::mapped, [&](Span span) {
    std::byte* start = area.at(span.first);
    const std::size_t bytes = span.count * kPage;
    expect(mprotect(start, bytes, PROT_READ | PROT_WRITE), "mprotect");
    expect(munlock(start, bytes), "munlock");
    expect(madvise(start, bytes, MADV_DOFORK), "madvise(DOFORK)");
    expect(madvise(start, bytes, MADV_KEEPONFORK), "madvise(KEEPONFORK)");
    const bool huge = madvise(start, bytes, MADV_NOHUGEPAGE) == 0;
    area.set_flags(span, huge ? unsigned{kNoHuge} : 0U, 0xff);
  });
  area.check(random_.below(area.size()), *slot_);
}

// Without MADV_PAGEOUT where there are forks: Linux 6.18 by itself (this program run plainly, too)
// now and then drops a page that is data here, when a relative has given MADV_FREE for its copy of
// it. Programs space_* have it without forks.
void Worker::advise_harmlessly() {
  Area& area = some_area();
  const Span span = area.pick(random_, 256, unlocked);
  if (span.empty()) return;
  const int page_out = settings_.fork ? MADV_COLD : MADV_PAGEOUT;
  const std::array<int, 4> kAdvice{MADV_WILLNEED, MADV_COLD, page_out, kCollapse};
  const int advice = kAdvice[random_.below(kAdvice.size())];
  slot_->note("harmless advice", area.at(span.first), span.count, static_cast<unsigned>(advice));
  static_cast<void>(advise(area, span, advice));  // may be refused
  area.check(span.first, *slot_);
  area.check(span.end() - 1, *slot_);
}

void Worker::advise_huge() {
  Area& area = some_area();
  const Span span = area.pick(random_, area.size(), &PageShadow::mapped);
  if (span.empty()) return;
  const bool on = random_.below(2) == 0;
  slot_->note(on ? "HUGEPAGE" : "NOHUGEPAGE", area.at(span.first), span.count);
  if (advise(area, span, on ? MADV_HUGEPAGE : MADV_NOHUGEPAGE) != 0) return;
  area.set_flags(span, on ? kHuge : kNoHuge, kHuge | kNoHuge);
}

void Worker::populate() {
  Area& area = some_area();
  const bool write = random_.below(2) == 0;
  const Span span = area.pick(random_, 100, write ? &PageShadow::writable : &PageShadow::readable);
  if (span.empty()) return;
  slot_->note(write ? "POPULATE_WRITE" : "POPULATE_READ", area.at(span.first), span.count);
  expect(advise(area, span, write ? kPopulateWrite : kPopulateRead), "madvise(POPULATE)");
  area.check_span(span, *slot_);
}

void Worker::advise_fork() {
  Area& area = some_area();
  const Span span = area.pick(random_, 64, &PageShadow::mapped);
  if (span.empty()) return;
  struct Kind {
    int advice;
    unsigned add, take;
  };
  constexpr std::array<Kind, 4> kKinds{{{MADV_DONTFORK, kDontFork, 0},
                                        {MADV_DOFORK, 0, kDontFork},
                                        {MADV_WIPEONFORK, kWipeOnFork, 0},
                                        {MADV_KEEPONFORK, 0, kWipeOnFork}}};
  const Kind& kind = kKinds[random_.below(kKinds.size())];
  slot_->note("advice for fork", area.at(span.first), span.count,
              static_cast<unsigned>(kind.advice));
  expect(advise(area, span, kind.advice), "madvise for fork");
  area.set_flags(span, kind.add, kind.take);
  area.check_span(span, *slot_);
}

void Worker::install_guards() {
  Area& area = some_area();
  const Span span = area.pick(random_, 24, unlocked);
  if (span.empty()) return;
  slot_->note("GUARD_INSTALL", area.at(span.first), span.count);
  if (advise(area, span, kGuardInstall) != 0) {
    if (errno != EINVAL) expect(-1, "madvise(GUARD_INSTALL)");
    return;  // a kernel without guards
  }
  for (std::size_t i = span.first; i < span.end(); ++i) {
    area[i].is = Is::guard;
    area[i].key = 0;
  }
  if (span.first > 0) area.check(span.first - 1, *slot_);
  if (span.end() < area.size()) area.check(span.end(), *slot_);
}

void Worker::remove_guards() {
  Area& area = some_area();
  const Span span =
      area.pick(random_, 100, [](const PageShadow& page) { return page.is == Is::guard; });
  if (span.empty()) return;
  slot_->note("GUARD_REMOVE", area.at(span.first), span.count);
  expect(advise(area, span, kGuardRemove), "madvise(GUARD_REMOVE)");
  for (std::size_t i = span.first; i < span.end(); ++i) area[i].is = Is::data;
  area.check_span(span, *slot_);
}

// Guards and pages without access are refused, whatever became of them.
void Worker::check_refused() {
  Area& area = some_area();
  const Span span = area.pick(random_, 8, [](const PageShadow& page) {
    return page.is == Is::guard || (page.mapped() && page.has(kNoAccess));
  });
  if (span.empty()) return;
  slot_->note("touch what is refused", area.at(span.first), span.count);
  std::array<int, 2> ends{};
  expect(pipe2(ends.data(), O_CLOEXEC), "pipe2");
  for (std::size_t i = span.first; i < span.end(); ++i) {
    if (write(ends[1], area.at(i), 1) != -1 || errno != EFAULT) {
      fail(*slot_, "a guard or a page without access could be read: flags " +
                       std::to_string(area[i].flags));
    }
  }
  close(ends[0]);
  close(ends[1]);
}

}  // namespace testprog::torture
