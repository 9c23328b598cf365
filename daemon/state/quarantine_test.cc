// QuarantineList against a model of pages: it may hold more than was asked for, never less.
#include "daemon/state/quarantine.h"

#include <gtest/gtest.h>
#include <rapidcheck.h>

#include <memory>
#include <set>

namespace foldswap {
namespace {

constexpr std::uint64_t kPageBytes = 4096;

TEST(Quarantine, HoldsWhatWasAddedUntilProvedAndOld) {
  const auto record = std::make_unique<ClientRecord>();
  QuarantineList list(*record);
  EXPECT_TRUE(list.empty());
  list.add(0x10000, 0x12000, 100);
  EXPECT_TRUE(list.contains(0x10000));
  EXPECT_TRUE(list.contains(0x11000));
  EXPECT_FALSE(list.contains(0x12000));
  EXPECT_EQ(list.pages(), 2U);
  list.expire(5, 10'000, 100);  // old enough, but no snapshot of threads was taken after it
  EXPECT_TRUE(list.contains(0x10000));
  list.witnessed(3);
  list.expire(2, 10'000, 100);  // only an earlier snapshot is proved
  EXPECT_TRUE(list.contains(0x10000));
  list.expire(3, 150, 100);  // proved, too young
  EXPECT_TRUE(list.contains(0x10000));
  list.expire(3, 10'000, 100);
  EXPECT_TRUE(list.empty());
}

TEST(Quarantine, ARangeThatIsRemovedAgainIsYoungAgain) {
  const auto record = std::make_unique<ClientRecord>();
  QuarantineList list(*record);
  list.add(0x10000, 0x14000, 100);
  list.witnessed(1);
  list.add(0x13000, 0x16000, 5'000);
  list.expire(1, 5'050, 100);
  EXPECT_TRUE(list.contains(0x10000));
  EXPECT_TRUE(list.contains(0x15000));
  EXPECT_EQ(list.end_of(0x10000), 0x16000U);
}

TEST(Quarantine, NeverForgetsAPage) {
  EXPECT_TRUE(rc::check([] {
    const auto record = std::make_unique<ClientRecord>();
    QuarantineList list(*record);
    std::set<std::uint64_t> pages;
    const int steps = *rc::gen::inRange(1, 1500);
    for (int i = 0; i < steps; ++i) {
      const auto start = static_cast<std::uint64_t>(*rc::gen::inRange(0, 100'000)) * kPageBytes;
      const auto length = static_cast<std::uint64_t>(*rc::gen::inRange(1, 4));
      list.add(start, start + length * kPageBytes, static_cast<std::uint64_t>(i));
      for (std::uint64_t p = 0; p < length; ++p) pages.insert(start + p * kPageBytes);
    }
    for (const std::uint64_t page : pages) RC_ASSERT(list.contains(page));
    const QuarantineTable& table = record->quarantine[record->quarantine_now];
    RC_ASSERT(table.count <= kQuarantines);
    for (std::uint32_t k = 0; k + 1 < table.count; ++k)
      RC_ASSERT(table.range[k].end < table.range[k + 1].start);
    RC_ASSERT(list.pages() >= pages.size());
    list.witnessed(1);
    list.expire(1, 1'000'000, 10);
    RC_ASSERT(list.empty());
  }));
}

}  // namespace
}  // namespace foldswap
