// In which order objects go to the disk: nothing is left out, nothing waits long, blocks get full.
#include "daemon/disk/packing.h"

#include <gtest/gtest.h>
#include <rapidcheck.h>

#include <algorithm>
#include <numeric>
#include <random>

namespace foldswap {
namespace {

constexpr std::uint32_t kBlock = 256;

// Blocks that these take when none crosses a border.
std::size_t blocks_of(const std::vector<std::uint32_t>& sizes,
                      const std::vector<std::size_t>& order) {
  std::size_t blocks = 0;
  std::uint32_t room = 0;
  for (const std::size_t i : order) {
    if (sizes[i] > room) {
      ++blocks;
      room = kBlock;
    }
    room -= std::min(sizes[i], room);
  }
  return blocks;
}

TEST(Packing, EachOnceAndFewAreOvertaken) {
  EXPECT_TRUE(rc::check([](const std::vector<std::uint16_t>& numbers) {
    std::vector<std::uint32_t> sizes;
    for (const std::uint16_t n : numbers) sizes.push_back(1 + n % 300U);
    std::vector<std::size_t> order = packing_order(sizes, kBlock);
    std::vector<std::size_t> left(sizes.size());
    std::iota(left.begin(), left.end(), 0);
    for (const std::size_t i : order) {
      const auto at = std::ranges::find(left, i);
      RC_ASSERT(at != left.end());
      RC_ASSERT(static_cast<std::size_t>(at - left.begin()) < kLookAhead);
      left.erase(at);
    }
    RC_ASSERT(left.empty());
  }));
}

TEST(Packing, ABlockIsFilledWhereThatCanBe) {
  const std::vector<std::uint32_t> sizes{200, 100, 56, 156, 255, 1, 256, 300, 128, 128};
  EXPECT_EQ(packing_order(sizes, kBlock), (std::vector<std::size_t>{0, 2, 1, 3, 4, 5, 6, 7, 8, 9}));
}

TEST(Packing, LittleIsLeftEmpty) {
  std::mt19937_64 random(3);
  for (const auto& [least, most] : {std::pair{37U, 54U}, {10U, 200U}, {60U, 120U}}) {
    std::vector<std::uint32_t> sizes(5'000);
    std::vector<std::size_t> as_given(sizes.size());
    std::iota(as_given.begin(), as_given.end(), 0);
    for (std::uint32_t& size : sizes)
      size = least + static_cast<std::uint32_t>(random() % (most - least + 1));
    const double units = std::accumulate(sizes.begin(), sizes.end(), 0.0);
    const auto filled = [&](const std::vector<std::size_t>& order) {
      return units / kBlock / static_cast<double>(blocks_of(sizes, order));
    };
    EXPECT_GT(filled(packing_order(sizes, kBlock)), 0.96) << least << " to " << most;
    EXPECT_LT(filled(as_given), 0.93) << "nothing is gained";
  }
}

}  // namespace
}  // namespace foldswap
