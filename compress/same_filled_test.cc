#include "compress/same_filled.h"

#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <array>
#include <cstring>

namespace foldswap {
namespace {

using Page = std::array<std::byte, kPageBytes>;

TEST(SameFilled, ZeroPage) {
  EXPECT_EQ(same_filled(Page{}), std::uint64_t{0});
}

TEST(SameFilled, EveryDifferingByteIsSeen) {
  Page page;
  fill_pattern(page, 0x0123456789abcdefULL);
  ASSERT_EQ(same_filled(page), 0x0123456789abcdefULL);
  for (auto& byte : page) {
    byte ^= std::byte{0x40};
    EXPECT_FALSE(same_filled(page).has_value());
    byte ^= std::byte{0x40};
  }
}

TEST(SameFilled, ShiftedByOneByteIsStillAWord) {
  Page page;
  fill_pattern(page, 0x1111111111111111ULL);
  EXPECT_EQ(same_filled(page), 0x1111111111111111ULL);
  for (std::size_t i = 0; i < page.size(); ++i) page[i] = std::byte(i % 3);  // period 3 is no word
  EXPECT_FALSE(same_filled(page).has_value());
}

TEST(FillPattern, TailsAndEmpty) {
  std::array<std::byte, 13> out{};
  fill_pattern(std::span(out).first(0), ~0ULL);
  EXPECT_EQ(out[0], std::byte{0});
  fill_pattern(out, 0x0807060504030201ULL);
  EXPECT_EQ(out[7], std::byte{8});
  EXPECT_EQ(out[8], std::byte{1});
  EXPECT_EQ(out[12], std::byte{5});
}

RC_GTEST_PROP(SameFilled, FillThenFind, (std::uint64_t word)) {
  Page page;
  fill_pattern(page, word);
  RC_ASSERT(same_filled(page) == word);
}

}  // namespace
}  // namespace foldswap
