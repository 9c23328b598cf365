// PageMap: a model test (RapidCheck) against std::map, and the word's encodings.
#include "daemon/state/page_map.h"

#include <gtest/gtest.h>
#include <rapidcheck.h>

#include <algorithm>
#include <map>

namespace foldswap {
namespace {

TEST(PageEntry, PatternsThatFitAreKeptInTheWord) {
  for (const std::uint64_t pattern :
       {0ULL, 1ULL, ~0ULL, 0x01FFFFFFFFFFFFFFULL, 0xFE00000000000000ULL}) {
    const auto entry = Entry::same(pattern);
    ASSERT_TRUE(entry) << std::hex << pattern;
    EXPECT_EQ(entry->pattern(), pattern);
    EXPECT_EQ(entry->state(), PageState::same);
    EXPECT_FALSE(entry->wanted());
  }
  EXPECT_FALSE(Entry::same(0x4141414141414141ULL));
  EXPECT_FALSE(Entry::same(0x0200000000000000ULL));
}

TEST(PageEntry, FieldsDoNotDisturbEachOther) {
  EXPECT_TRUE(rc::check([](std::uint64_t id, std::uint64_t batch, bool half) {
    const std::uint64_t object = id >> 6;
    const Entry stored = Entry::object(object);
    RC_ASSERT(stored.object_id() == object);
    RC_ASSERT(stored.with_wanted().object_id() == object);
    RC_ASSERT(stored.with_wanted().without_wanted() == stored);
    const auto slot = static_cast<std::uint32_t>(*rc::gen::inRange(0, 512));
    const Entry out = Entry::out(half ? 1 : 0, slot, batch >> 16);
    RC_ASSERT(out.half() == (half ? 1U : 0U));
    RC_ASSERT(out.slot() == slot);
    RC_ASSERT(out.state() == PageState::out);
    RC_ASSERT(out != Entry::out(half ? 1 : 0, slot, (batch >> 16) + 1));
  }));
}

// Addresses that share and do not share leaves and nodes, up to the end of the address space.
std::uint64_t some_page() {
  const std::uint64_t base =
      *rc::gen::element<std::uint64_t>(0, 0x5555'0000'0000, 0x7fff'ff00'0000, 64ULL << 30);
  return base + static_cast<std::uint64_t>(*rc::gen::inRange(0, 2000)) * kPage;
}

TEST(PageMap, BehavesLikeAMapOfPages) {
  EXPECT_TRUE(rc::check([] {
    const auto map = PageMap::create(real_os()).value();
    std::map<std::uint64_t, Entry> model;
    const int steps = *rc::gen::inRange(1, 200);
    for (int i = 0; i < steps; ++i) {
      const std::uint64_t page = some_page();
      const Entry now = model.contains(page) ? model[page] : Entry();
      RC_ASSERT(map->load(page) == now);
      switch (*rc::gen::inRange(0, 6)) {
        case 0:
        case 1: {
          const Entry next = Entry::object(static_cast<std::uint64_t>(*rc::gen::inRange(1, 1000)));
          RC_ASSERT(map->ensure(page) != nullptr);
          RC_ASSERT(map->replace(page, now, next));
          model[page] = next;
          break;
        }
        case 2: {
          const Entry heat = Entry::none(static_cast<unsigned>(*rc::gen::inRange(0, 4)));
          if (map->find(page) != nullptr) {
            RC_ASSERT(map->replace(page, now, heat));
            model[page] = heat;
          } else {
            RC_ASSERT(!map->replace(page, now, heat));
          }
          break;
        }
        case 3:
          RC_ASSERT(!map->replace(page, Entry::object(5000), Entry::bad()));
          break;
        case 4: {
          const auto leaves = map->unlink_empty_leaves();
          map->punch_leaves(leaves);
          map->recycle_leaves(leaves);
          // Heat of pages in emptied leaves is forgotten; nothing else is.
          for (auto& [p, e] : model) {
            if (map->find(p) == nullptr) RC_ASSERT(e.state() == PageState::none);
            if (map->find(p) == nullptr) e = Entry();
          }
          break;
        }
        default: {
          const std::uint64_t end =
              page + static_cast<std::uint64_t>(*rc::gen::inRange(1, 3000)) * kPage;
          auto it = model.lower_bound(page);
          while (it != model.end() && it->second.state() == PageState::none) ++it;
          const std::uint64_t first =
              it == model.end() || it->first >= end ? std::min(end, kAddressEnd) : it->first;
          RC_ASSERT(map->next_out(page, end) == first);
        }
      }
      const auto out = std::ranges::count_if(
          model, [](const auto& m) { return m.second.state() != PageState::none; });
      RC_ASSERT(map->out_total() == static_cast<std::uint64_t>(out));
      RC_ASSERT(map->out_in_extents(0, kAddressEnd) == static_cast<std::uint64_t>(out));
    }
    for (const auto& [page, entry] : model) RC_ASSERT(map->load(page) == entry);
  }));
}

TEST(PageMap, AnAddressBeyondUserSpaceHasNoEntry) {
  const auto map = PageMap::create(real_os()).value();
  EXPECT_EQ(map->ensure(kAddressEnd), nullptr);
  EXPECT_EQ(map->find(~0ULL & ~(kPage - 1)), nullptr);
  EXPECT_EQ(map->load(kAddressEnd), Entry());
  EXPECT_FALSE(map->replace(kAddressEnd, Entry(), Entry::bad()));
}

TEST(PageMap, EmptyLeavesGiveTheirMemoryBack) {
  const auto map = PageMap::create(real_os()).value();
  const std::uint64_t before = map->resident_bytes();
  for (std::uint64_t i = 0; i < 1000; ++i) {
    const std::uint64_t page = i * wire::kExtentBytes;
    ASSERT_NE(map->ensure(page), nullptr);
    ASSERT_TRUE(map->replace(page, Entry(), Entry::object(i + 1)));
    ASSERT_TRUE(map->replace(page, Entry::object(i + 1), Entry::none(3)));
  }
  const auto leaves = map->unlink_empty_leaves();
  EXPECT_EQ(leaves.size(), 1000U);
  map->punch_leaves(leaves);
  map->recycle_leaves(leaves);
  EXPECT_LE(map->resident_bytes(), before + 2 * kPage);
  // Used again, they hold no trace of what they held.
  ASSERT_NE(map->ensure(1ULL << 40), nullptr);
  EXPECT_EQ(map->load(1ULL << 40), Entry());
}

TEST(PageMap, TheLastPageThatIsOutIsFoundFromBehind) {
  constexpr std::uint64_t kBase = 0x7f00000fe000 - (64ULL << 40);
  const auto map = PageMap::create(real_os()).value();
  constexpr std::uint64_t kFar = 20ULL << 40;  // beyond what one node covers
  for (const std::uint64_t page : {kBase, kBase + 5 * kPage, kBase + kFar}) {
    ASSERT_NE(map->ensure(page), nullptr);
    ASSERT_TRUE(map->replace(page, Entry(), Entry::object(1)));
  }
  EXPECT_EQ(map->end_of_out(kBase, kBase + kFar), kBase + 6 * kPage);
  EXPECT_EQ(map->end_of_out(kBase, kBase + kFar + kPage), kBase + kFar + kPage);
  EXPECT_EQ(map->end_of_out(kBase, kBase + 5 * kPage), kBase + kPage);
  EXPECT_EQ(map->end_of_out(kBase + kPage, kBase + 5 * kPage), kBase + kPage);
  EXPECT_EQ(map->end_of_out(kBase + 6 * kPage, kBase + kFar), kBase + 6 * kPage);
  EXPECT_EQ(map->end_of_out(0, kBase), 0U);
  EXPECT_EQ(map->end_of_out(0, kAddressEnd), kBase + kFar + kPage);
}

}  // namespace
}  // namespace foldswap
