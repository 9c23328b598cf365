#include "tests/programs/torture/torture_area.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdio>

namespace testprog::torture {
namespace {

std::atomic<std::uint32_t> pieces{1};

std::string where(const Area& area, std::size_t i) {
  std::array<char, 160> text{};
  std::snprintf(text.data(), text.size(),
                "page %zu of %zu of the area at %p, address %p, flags %x: ", i, area.size(),
                static_cast<const void*>(area.at(0)), static_cast<const void*>(area.at(i)),
                area[i].flags);
  return text.data();
}

}  // namespace

std::uint32_t new_piece() {
  return pieces.fetch_add(1, std::memory_order_relaxed);
}

std::uint64_t Author::next_key() {
  const std::uint64_t draw = Random(owner_ << 40 ^ ++serial_).next();
  if (draw % 24 == 0) return 0;
  return make_key(owner_, serial_, draw_look(draw >> 8));
}

Author Author::child() {
  return Author(Random(owner_ << 40 ^ ++serial_).next() | 1);
}

bool Area::empty() const {
  return std::ranges::none_of(pages_, &PageShadow::mapped);
}

Span Area::pick(Random& random, std::size_t most, const Accepts& accepts) const {
  for (int tries = 0; tries < 4; ++tries) {
    const std::size_t first = random.below(size());
    const std::size_t wanted = 1 + random.below(most);
    std::size_t count = 0;
    while (count < wanted && first + count < size() && accepts(pages_[first + count])) ++count;
    if (count != 0) return {first, count};
  }
  return {};
}

Span Area::pick_run(Random& random) const {
  const Span seed = pick(random, 1, &PageShadow::mapped);
  if (seed.empty()) return {};
  const auto alike = [&](std::size_t i) {
    return pages_[i].mapped() && pages_[i].piece == pages_[seed.first].piece &&
           pages_[i].flags == pages_[seed.first].flags;
  };
  std::size_t first = seed.first, end = seed.end();
  while (first > 0 && alike(first - 1)) --first;
  while (end < size() && alike(end)) ++end;
  return {first, end - first};
}

void Area::each_span(const Accepts& accepts, const std::function<void(Span)>& call) const {
  for (std::size_t first = 0; first < size();) {
    std::size_t end = first;
    while (end < size() && accepts(pages_[end])) ++end;
    if (end > first) call({first, end - first});
    first = std::max(end, first + 1);
  }
}

void Area::write(std::size_t i, Author& author) {
  pages_[i].key = author.next_key();
  pages_[i].is = Is::data;
  fill(at(i), pages_[i].key);
}

void Area::zero(Span span) {
  for (std::size_t i = span.first; i < span.end(); ++i) {
    if (pages_[i].is == Is::maybe) pages_[i].is = Is::data;
    pages_[i].key = 0;
  }
}

void Area::map_new(Span span, std::uint8_t flags) {
  detach_behind(span.end());
  const std::uint32_t piece = new_piece();
  for (std::size_t i = span.first; i < span.end(); ++i) pages_[i] = {0, piece, flags, Is::data};
}

void Area::unmap(Span span) {
  detach_behind(span.end());
  for (std::size_t i = span.first; i < span.end(); ++i) pages_[i] = {};
}

void Area::detach_behind(std::size_t end) {
  if (end == 0 || end >= size() || !pages_[end].mapped()) return;
  const std::uint32_t old = pages_[end].piece, fresh = new_piece();
  for (std::size_t i = end; i < size() && pages_[i].mapped() && pages_[i].piece == old; ++i) {
    pages_[i].piece = fresh;
  }
}

void Area::set_flags(Span span, unsigned add, unsigned take) {
  for (std::size_t i = span.first; i < span.end(); ++i) {
    pages_[i].flags = static_cast<std::uint8_t>((pages_[i].flags & ~take) | add);
  }
}

void Area::receive(std::size_t first, const std::vector<PageShadow>& pages) {
  const Span span{first, pages.size()};
  detach_behind(span.end());
  const std::uint32_t piece = new_piece();
  std::ranges::copy(pages, pages_.begin() + static_cast<std::ptrdiff_t>(first));
  for (std::size_t i = span.first; i < span.end(); ++i) pages_[i].piece = piece;
}

std::vector<PageShadow> Area::copy_of(Span span) const {
  const auto begin = pages_.begin() + static_cast<std::ptrdiff_t>(span.first);
  return {begin, begin + static_cast<std::ptrdiff_t>(span.count)};
}

void Area::touch_piece(std::size_t first, Author& author) {
  if (pages_[first].writable()) write(first, author);
}

// DONTFORK is not there, WIPEONFORK is a fresh mapping without an anon_vma, locks are not
// inherited.
void Area::inherit(Author& author) {
  set_flags({0, size()}, 0, kLocked);
  std::vector<Span> gone, wiped;
  each_span([](const PageShadow& page) { return page.mapped() && page.has(kDontFork); },
            [&](Span span) { gone.push_back(span); });
  for (const Span span : gone) unmap(span);
  each_span([](const PageShadow& page) { return page.mapped() && page.has(kWipeOnFork); },
            [&](Span span) { wiped.push_back(span); });
  for (const Span span : wiped) {
    // Spans of different flags are VMAs of their own here, and stay so.
    for (std::size_t i = span.first; i < span.end();) {
      std::size_t end = i + 1;
      while (end < span.end() && pages_[end].flags == pages_[i].flags &&
             pages_[end].piece == pages_[i].piece) {
        ++end;
      }
      map_new({i, end - i}, pages_[i].flags);
      touch_piece(i, author);
      i = end;
    }
  }
}

void Area::check(std::size_t i, const Slot& slot) const {
  const PageShadow& page = pages_[i];
  if (!page.readable()) return;
  if (holds(at(i), page.key)) return;
  if (page.is == Is::maybe && holds(at(i), 0)) return;
  fail(slot, where(*this, i) + "expected " + name_key(page.key) +
                 (page.is == Is::maybe ? " or zeros: " : ": ") + describe(at(i), page.key));
}

void Area::check_span(Span span, const Slot& slot) const {
  for (std::size_t i = span.first; i < span.end(); ++i) check(i, slot);
}

}  // namespace testprog::torture
