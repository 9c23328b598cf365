#include "pool/budget.h"

#include <gtest/gtest.h>

#include <thread>
#include <vector>

namespace foldswap {
namespace {

constexpr PoolGeometry kGeometry{32768, 4};  // four places a frame

TEST(Budget, ReservationsNeverPassTheLimit) {
  Budget budget(kGeometry, 10);
  EXPECT_FALSE(budget.reserve(41));
  EXPECT_TRUE(budget.reserve(40));
  EXPECT_FALSE(budget.reserve(1));
  budget.release(1);
  EXPECT_TRUE(budget.reserve(1));
}

TEST(Budget, RoomInHeldFramesCounts) {
  Budget budget(kGeometry, 2);
  ASSERT_TRUE(budget.begin_grow());
  budget.finish_grow();
  budget.room_changed(-3);  // three objects in the first frame
  EXPECT_TRUE(budget.reserve(5));
  EXPECT_FALSE(budget.reserve(1));
  EXPECT_TRUE(budget.consistent(1));
}

TEST(Budget, GrowsToTheLimitOnly) {
  Budget budget(kGeometry, 3);
  for (int i = 0; i < 3; ++i) ASSERT_TRUE(budget.begin_grow());
  EXPECT_FALSE(budget.begin_grow());
  EXPECT_TRUE(budget.in_flight());
  budget.cancel_grow();
  EXPECT_TRUE(budget.begin_grow());
  for (int i = 0; i < 3; ++i) budget.finish_grow();
  EXPECT_FALSE(budget.in_flight());
  EXPECT_EQ(budget.held_frames(), 3U);
}

TEST(Budget, EmptyFramesThatAreCountedOnStay) {
  Budget budget(kGeometry, 2);
  ASSERT_TRUE(budget.begin_grow());
  budget.finish_grow();
  ASSERT_TRUE(budget.reserve(5));
  EXPECT_FALSE(budget.begin_shrink());
  budget.release(1);
  ASSERT_TRUE(budget.begin_shrink());
  EXPECT_FALSE(budget.reserve(1)) << "the frame is neither room nor given back yet";
  budget.finish_shrink();
  EXPECT_TRUE(budget.reserve(4));
  EXPECT_FALSE(budget.begin_shrink());
}

TEST(Budget, LimitFallsAsReservationsAllow) {
  Budget budget(kGeometry, 10);
  ASSERT_TRUE(budget.reserve(20));
  budget.set_limit(2);
  EXPECT_EQ(budget.limit_frames(), 2U);
  EXPECT_EQ(budget.limit_in_force(), 5U);
  EXPECT_FALSE(budget.reserve(1));
  for (int i = 0; i < 5; ++i) EXPECT_TRUE(budget.begin_grow()) << "what was reserved is honoured";
  EXPECT_FALSE(budget.begin_grow());
  for (int i = 0; i < 5; ++i) budget.cancel_grow();
  budget.release(20);
  EXPECT_EQ(budget.limit_in_force(), 2U);
  EXPECT_TRUE(budget.reserve(8));
  EXPECT_FALSE(budget.reserve(1));
  budget.set_limit(3);
  EXPECT_TRUE(budget.reserve(4));
  EXPECT_FALSE(budget.reserve(1));
  budget.release(12);
  EXPECT_TRUE(budget.consistent(0));
}

TEST(Budget, FramesOverALoweredLimitMayGo) {
  Budget budget(kGeometry, 3);
  for (int i = 0; i < 3; ++i) {
    ASSERT_TRUE(budget.begin_grow());
    budget.finish_grow();
  }
  budget.set_limit(0);
  EXPECT_FALSE(budget.reserve(1));
  for (int i = 0; i < 3; ++i) ASSERT_TRUE(budget.begin_shrink()) << i;
  EXPECT_TRUE(budget.in_flight());
  for (int i = 0; i < 3; ++i) budget.finish_shrink();
  EXPECT_FALSE(budget.in_flight());
  EXPECT_EQ(budget.held_frames(), 0U);
  EXPECT_TRUE(budget.consistent(0));
}

// What nobody can reserve any more is not spare, be it still allowed for a moment.
TEST(Budget, SpareIsWhatCanBeReserved) {
  Budget budget(PoolGeometry{.frame_bytes = 4096, .buddies = 1}, 10);
  for (int i = 0; i < 10; ++i) {
    ASSERT_TRUE(budget.begin_grow());
    budget.finish_grow();
    budget.room_changed(-1);  // in use
  }
  budget.set_limit(4);
  EXPECT_LE(budget.spare_places(), 0);
  budget.room_changed(5);
  EXPECT_LE(budget.spare_places(), 0);
  EXPECT_FALSE(budget.reserve(1));
  budget.room_changed(3);
  EXPECT_EQ(budget.spare_places(), 2);
  EXPECT_FALSE(budget.reserve(3));
  EXPECT_TRUE(budget.reserve(2));
}

TEST(Budget, ManyThreadsNeverPassTheLimit) {
  Budget budget(kGeometry, 16);
  std::atomic<std::int64_t> reserved{0};
  std::atomic<bool> passed{false};
  std::vector<std::jthread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < 5000; ++i) {
        const int n = 1 + (i * 7 + t) % 23;
        if (!budget.reserve(static_cast<std::uint64_t>(n))) continue;
        if (reserved.fetch_add(n) + n > 64) passed = true;
        reserved.fetch_sub(n);
        budget.release(static_cast<std::uint64_t>(n));
      }
    });
  }
  threads.clear();
  EXPECT_FALSE(passed);
  EXPECT_TRUE(budget.consistent(0));
}

}  // namespace
}  // namespace foldswap
