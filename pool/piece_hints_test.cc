#include "pool/piece_hints.h"

#include <gtest/gtest.h>

namespace foldswap {
namespace {

constexpr auto kAny = [](std::uint32_t) { return true; };

TEST(PieceHints, SmallestThatSuffices) {
  PieceHints hints;
  hints.note(70, 1);
  hints.note(64, 2);
  hints.note(200, 3);
  EXPECT_EQ(hints.take(63, 200, kAny), 2U);
  EXPECT_EQ(hints.take(63, 200, kAny), 1U);
  EXPECT_EQ(hints.take(63, 199, kAny), 0U);
  EXPECT_EQ(hints.take(201, kObjectChunksMax, kAny), 0U);
  EXPECT_EQ(hints.take(200, 200, kAny), 3U);
  EXPECT_EQ(hints.take(1, kObjectChunksMax, kAny), 0U);
}

TEST(PieceHints, LargerThanAnyObjectIsTheLargest) {
  PieceHints hints;
  hints.note(8192, 5);
  EXPECT_EQ(hints.take(kObjectChunksMax, ~0U, kAny), 5U);
}

TEST(PieceHints, OutOfDateIsForgotten) {
  PieceHints hints;
  hints.note(10, 1);
  hints.note(11, 2);
  EXPECT_EQ(hints.take(10, 20, [](std::uint32_t frame) { return frame == 2; }), 2U);
  EXPECT_EQ(hints.take(10, 20, kAny), 0U);
}

TEST(PieceHints, OldOnesGiveWay) {
  PieceHints hints;
  for (std::uint32_t frame = 1; frame <= 100; ++frame) hints.note(10, frame);
  int found = 0;
  for (std::uint32_t frame = 0; (frame = hints.take(10, 10, kAny)) != 0; ++found) {
    EXPECT_GT(frame, 90U);
  }
  EXPECT_GT(found, 3);
}

}  // namespace
}  // namespace foldswap
