#include "daemon/evict/policy.h"

#include <algorithm>

#include "daemon/testing/core_fixture.h"

namespace foldswap {
namespace {

constexpr std::uint64_t kArena = 0x1000'0000'0000, kHeap = 0x6000'0000'0000;
constexpr std::uint64_t kExtent = wire::kExtentBytes;

// A client whose mappings are those of `areas`, cut at the borders of what has been registered.
class PolicyTest : public CoreFixture {
 protected:
  void SetUp() override {
    CoreFixture::SetUp();
    policy = std::make_unique<ClockPolicy>(os);
  }

  void set_limit(std::uint64_t most) {
    os.texts["/proc/sys/vm/max_map_count"] = std::to_string(most) + "\n";
  }

  void add_area(std::uint64_t start, std::uint64_t bytes) { areas.push_back({start, bytes}); }
  void add_page(std::uint64_t page) { space().present[page] = kZeros; }
  void fill_area(std::uint64_t start, std::uint64_t bytes) {
    add_area(start, bytes);
    for (std::uint64_t at = start; at < start + bytes; at += kPage) add_page(at);
  }

  // What /proc would show.
  [[nodiscard]] std::vector<VmaInfo> mappings() {
    std::vector<VmaInfo> vmas;
    for (const wire::Range& area : areas) {
      const std::uint64_t end = area.start + area.bytes;
      for (std::uint64_t at = area.start; at < end;) {
        const auto next = std::ranges::upper_bound(registered, at, {}, &wire::Range::start);
        const bool inside =
            next != registered.begin() && at - std::prev(next)->start < std::prev(next)->bytes;
        std::uint64_t until = next == registered.end() ? end : std::min(end, next->start);
        if (inside) until = std::prev(next)->start + std::prev(next)->bytes;
        VmaInfo vma;
        vma.start = at;
        vma.end = until;
        vma.manageable = true;
        vma.registered = inside;
        const auto& present = space().present;
        vma.anonymous_bytes = kPage * static_cast<std::uint64_t>(std::distance(
                                          present.lower_bound(at), present.lower_bound(until)));
        vmas.push_back(vma);
        at = until;
      }
    }
    return vmas;
  }

  void look() {
    const std::uint64_t splits = client->splits.load();
    client->vmas = mappings();
    client->vmas_at_us = os.now_us();
    client->mappings_counted(client->vmas.size(), splits);
  }

  // One plan, carried out as the agent does.
  EvictionPlan step(bool relaxed = true) {
    EvictionPlan plan = policy->choose(*client, {512, false, relaxed}, {});
    client->splits.fetch_add(plan.splits);
    std::vector<bool> wanted(plan.regs.size());
    for (const wire::Run& run : plan.runs) {
      EXPECT_LT(run.reg, plan.regs.size());
      const wire::Range& reg = plan.regs[run.reg];
      EXPECT_GE(run.start, reg.start);
      EXPECT_LE(run.start + run.pages * kPage, reg.start + reg.bytes);
      for (std::uint32_t i = 0; i < run.pages; ++i)
        EXPECT_EQ(space().present.erase(run.start + i * kPage), 1U);
      wanted[run.reg] = true;
    }
    EXPECT_EQ(std::ranges::count(wanted, false), 0);
    for (const wire::Range& reg : plan.regs) note_registered(reg);
    return plan;
  }

  void note_registered(wire::Range reg) {
    std::erase_if(registered, [&](const wire::Range& r) {
      if (r.start > reg.start + reg.bytes || reg.start > r.start + r.bytes) return false;
      const std::uint64_t end = std::max(r.start + r.bytes, reg.start + reg.bytes);
      reg.start = std::min(r.start, reg.start);
      reg.bytes = end - reg.start;
      return true;
    });
    registered.insert(std::ranges::upper_bound(registered, reg.start, {}, &wire::Range::start),
                      reg);
  }

  // Takes everything out, with a look at the mappings before each `plans_per_look` plans; the most
  // mappings that there ever were.
  std::uint64_t take_everything(int plans_per_look) {
    std::uint64_t most = 0;
    for (int i = 0; i < 20'000 && !space().present.empty(); ++i) {
      if (i % plans_per_look == 0 || client->vmas_at_us == 0) look();
      (void)step();
      most = std::max<std::uint64_t>(most, mappings().size());
    }
    EXPECT_TRUE(space().present.empty());
    return most;
  }

  std::vector<wire::Range> areas, registered;
  std::unique_ptr<ClockPolicy> policy;
};

TEST_F(PolicyTest, SlicesOfSparseMemoryAreRegisteredByThemselves) {
  add_area(kArena, 64 * kExtent);
  for (std::uint64_t i = 0; i < 32; ++i) add_page(kArena + i * 2 * kExtent + kPage);
  EXPECT_EQ(take_everything(1), 64U);
  EXPECT_EQ(registered.size(), 32U);
}

TEST_F(PolicyTest, Hazard32MappingsAreCounted) {
  set_limit(400);
  add_area(kArena, 2'000 * kExtent);
  for (std::uint64_t i = 0; i < 1'000; ++i) add_page(kArena + i * 2 * kExtent + 7 * kPage);
  EXPECT_LE(take_everything(1), 200U);
}

TEST_F(PolicyTest, Hazard32MappingsAreCountedBetweenLooks) {
  set_limit(4'000);
  add_area(kArena, 12'000 * kExtent);
  for (std::uint64_t i = 0; i < 6'000; ++i) add_page(kArena + i * 2 * kExtent);
  const std::uint64_t most = take_everything(50);
  EXPECT_LE(most, 2'000U);
  EXPECT_GT(most, 800U);  // not at the first sign of scarcity
}

TEST_F(PolicyTest, Hazard32SeveralMappingsAndNoneToSpare) {
  set_limit(400);
  for (std::uint64_t i = 0; i < 300; ++i) {  // more than half are its own
    add_area(kArena + i * 16 * kExtent, 8 * kExtent);
    add_page(kArena + i * 16 * kExtent + kExtent);
    add_page(kArena + i * 16 * kExtent + 5 * kExtent);
  }
  EXPECT_EQ(take_everything(3), 300U);
}

TEST_F(PolicyTest, Hazard32TheLimitMayChange) {
  set_limit(65'530);
  add_area(kArena, 800 * kExtent);
  for (std::uint64_t i = 0; i < 400; ++i) add_page(kArena + i * 2 * kExtent);
  look();
  for (int i = 0; i < 3; ++i) (void)step();
  const std::size_t before = mappings().size();
  EXPECT_GT(before, 300U);
  set_limit(500);
  os.clock_ns += 2'000'000'000;
  EXPECT_LE(take_everything(1), before);
}

TEST_F(PolicyTest, WhatLiesBehindAnOceanIsFoundSoon) {
  constexpr std::uint64_t kOcean = 14ULL << 40;
  add_area(kArena, kOcean);
  add_page(kArena);
  add_page(kArena + kOcean - kPage);
  fill_area(kHeap, 4 * kExtent);
  add_area(kHeap + (1ULL << 40), kOcean);
  look();
  EvictionPlan plan;
  for (int i = 0; i < 3 && plan.pages == 0; ++i) {
    plan = step(false);
    EXPECT_NE(plan.unfinished, plan.pages != 0);
  }
  EXPECT_EQ(plan.pages, 512U);
  EXPECT_LT(os.scans, 50);
}

TEST_F(PolicyTest, IslandsInAnOceanAreTakenWhole) {
  add_area(kArena, 1ULL << 40);
  for (std::uint64_t i = 0; i < 64; ++i) {
    for (std::uint64_t page = 0; page < 1'024; ++page)  // not at a border of extents
      add_page(kArena + (i << 34) + kExtent / 2 + page * kPage);
  }
  look();
  std::uint32_t pages = 0;
  for (int i = 0; i < 1'000 && pages < 64 * 1'024; ++i) pages += step(false).pages;
  EXPECT_EQ(pages, 64U * 1'024);
}

// The vector of a look holds 256 regions: a slice that alternates fills it by itself.
TEST_F(PolicyTest, NoPageOfAChequeredMappingIsPassedOver) {
  add_area(kArena + 3 * kPage, 64 * kExtent);
  for (std::uint64_t page = 3; page < 64 * 512; page += page % 1'024 == 511 ? 1 : 2)
    add_page(kArena + page * kPage);
  look();
  EvictionPlan plan;
  for (int i = 0; i < 1'000 && !plan.turn_ended; ++i) plan = step();
  EXPECT_TRUE(plan.turn_ended);
  EXPECT_TRUE(space().present.empty());
}

// Others of the evict thread wait no longer than that for one that has much to look at in vain.
TEST_F(PolicyTest, APlanEndsAlthoughNothingWasFound) {
  add_area(kArena, 1ULL << 38);
  for (std::uint64_t at = 0; at < 1ULL << 38; at += kExtent) add_page(kArena + at);
  look();
  int plans = 0;
  for (EvictionPlan plan; !plan.turn_ended; ++plans) {
    const std::uint64_t begun_us = os.now_us();
    plan = step(false);
    EXPECT_LT(os.now_us() - begun_us, 20'000U);
    EXPECT_EQ(plan.pages, 0U);
    ASSERT_LT(plans, 10'000);
  }
  EXPECT_GT(plans, 2);
}

}  // namespace
}  // namespace foldswap
