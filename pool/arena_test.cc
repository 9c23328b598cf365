#include "pool/arena.h"

#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <memory>
#include <set>
#include <vector>

#include "base/mapping.h"

namespace foldswap {
namespace {

constexpr std::uint32_t kShards = 3, kPages = 70;

struct Fixture {
  Mapping memory = Mapping::anonymous(kPages * kShards * kTablePageBytes).value();
  ArenaState state;
  std::vector<std::uint64_t> bitmaps = std::vector<std::uint64_t>(2 * Arena::bitmap_words(kPages));
  Arena arena;
  explicit Fixture(std::uint32_t item_bytes, std::uint32_t shard = 1)
      : arena({memory.data(), item_bytes, kShards, shard, kPages, &state, bitmaps.data()}) {}
  std::uint32_t add_page() {
    const std::uint32_t page = arena.claim();
    if (page != kNoPage) arena.attach(page);
    return page;
  }
};

struct ArenaTest : ::testing::TestWithParam<std::uint32_t> {};

TEST_P(ArenaTest, FillsAndEmpties) {
  Fixture f(GetParam());
  EXPECT_EQ(f.arena.take(), kNoItem);
  std::set<std::uint32_t> items;
  for (std::uint32_t p = 0; p < kPages; ++p) {
    const std::uint32_t page = f.add_page();
    EXPECT_EQ(page % kShards, 1U);
    for (std::uint32_t item; (item = f.arena.take()) != kNoItem;) {
      EXPECT_TRUE(items.insert(item).second);
      EXPECT_EQ(item / f.arena.items_per_page(), page);
      EXPECT_TRUE(f.arena.live(item));
      std::fill_n(f.arena.at(item), GetParam(), std::byte{0xff});  // items may be anything
    }
    ASSERT_EQ(f.arena.validate(), nullptr);
  }
  EXPECT_EQ(items.size(), kPages * std::size_t{f.arena.items_per_page() - f.arena.first_index()});
  EXPECT_EQ(f.arena.claim(), kNoPage);
  std::size_t seen = 0;
  f.arena.for_each_live([&](std::uint32_t item) { seen += items.count(item); });
  EXPECT_EQ(seen, items.size());
  for (const std::uint32_t item : items) f.arena.give(item);
  EXPECT_EQ(f.arena.empty_pages(), kPages);
  ASSERT_EQ(f.arena.validate(), nullptr);
}

INSTANTIATE_TEST_SUITE_P(ItemBytes, ArenaTest, ::testing::Values(16, 32, 64));

TEST(Arena, PagesComeAndGo) {
  Fixture f(16);
  const std::uint32_t first = f.add_page(), second = f.add_page();
  const std::uint32_t item = f.arena.take();
  EXPECT_EQ(f.arena.held_pages(), 2U);
  const std::uint32_t gone = f.arena.detach_empty();
  EXPECT_TRUE(gone == first || gone == second);
  EXPECT_EQ(f.arena.detach_empty(), kNoPage);
  EXPECT_EQ(f.arena.held_pages(), 2U) << "held until forgotten";
  f.arena.forget(gone);
  EXPECT_EQ(f.arena.held_pages(), 1U);
  EXPECT_TRUE(f.arena.live(item));
  EXPECT_EQ(f.add_page(), gone) << "the lowest absent page comes first";
  EXPECT_EQ(f.arena.validate(), nullptr);
}

TEST(Arena, AnyNumberMayBeAsked) {
  Fixture f(32);
  const std::uint32_t page = f.add_page();
  const std::uint32_t item = f.arena.take();
  EXPECT_FALSE(f.arena.live(0));
  EXPECT_FALSE(f.arena.live(page * 128)) << "the header";
  EXPECT_FALSE(f.arena.live(item + 1));
  EXPECT_FALSE(f.arena.live(item + 128)) << "another shard's page";
  EXPECT_FALSE(f.arena.live(item + 3 * 128)) << "an absent page";
  EXPECT_FALSE(f.arena.live(~0U));
  f.arena.give(item);
  EXPECT_FALSE(f.arena.live(item));
}

RC_GTEST_PROP(Arena, AnyOrder, (std::vector<std::uint16_t> steps)) {
  Fixture f(64, 2);
  std::vector<std::uint32_t> live;
  for (const std::uint16_t step : steps) {
    if (step % 8 < 4) {
      std::uint32_t item = f.arena.take();
      if (item == kNoItem && f.add_page() != kNoPage) item = f.arena.take();
      if (item != kNoItem) live.push_back(item);
    } else if (step % 8 < 7 && !live.empty()) {
      std::swap(live[step / 8 % live.size()], live.back());
      f.arena.give(live.back());
      live.pop_back();
    } else if (const std::uint32_t page = f.arena.detach_empty(); page != kNoPage) {
      f.arena.forget(page);
    }
    RC_ASSERT(f.arena.validate() == nullptr);
  }
  const std::set<std::uint32_t> expected(live.begin(), live.end());
  std::set<std::uint32_t> found;
  f.arena.for_each_live([&](std::uint32_t item) { found.insert(item); });
  RC_ASSERT(found == expected);
}

}  // namespace
}  // namespace foldswap
