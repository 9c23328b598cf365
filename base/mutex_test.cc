// The count of locks held at once, and the order of their ranks.
#include "base/mutex.h"

#include <gtest/gtest.h>

#include <barrier>
#include <thread>

namespace foldswap {
namespace {

using rank_check::held_max;
using rank_check::held_now;

// One test, because the maximum never falls.
TEST(HeldLocks, AreCountedByThread) {
  EXPECT_EQ(held_now(), 0U);
  EXPECT_EQ(held_max(), 0U);

  // Two threads that hold one each: one.
  {
    std::barrier both(2);
    const auto hold = [&] {
      RankedMutex<LockRank::leaf> mutex;
      const RankedLock lock(mutex);
      EXPECT_EQ(held_now(), 1U);
      both.arrive_and_wait();
      both.arrive_and_wait();
    };
    const std::jthread first(hold), second(hold);
  }
  EXPECT_EQ(held_now(), 0U);
  EXPECT_EQ(held_max(), 1U);

  RankedMutex<LockRank::client> client;
  RankedMutex<LockRank::pool_shard> shard;
  for (int i = 0; i < 3; ++i) {  // one after the other is never more than two
    const RankedLock outer(client);
    {
      const RankedLock inner(shard);
      EXPECT_EQ(held_now(), 2U);
    }
    EXPECT_EQ(held_now(), 1U);
    const RankedLock again(shard);
  }
  EXPECT_EQ(held_now(), 0U);
  EXPECT_EQ(held_max(), 2U);

  {
    const RankScope layout(LockRank::layout);  // what is no RankedMutex counts, too
    const RankedLock outer(client);
    const RankedLock inner(shard);
    EXPECT_EQ(held_now(), 3U);
  }
  EXPECT_EQ(held_now(), 0U);
  EXPECT_EQ(held_max(), 3U);
}

// z3fold's failure: one lock after another of the same kind. Release builds must see it, too; debug
// builds do not let it come to that.
TEST(HeldLocksDeathTest, OfOneRank) {
  ::testing::FLAGS_gtest_death_test_style = "threadsafe";
  const auto loop = [] {
    for (unsigned held = 1; held <= 48; ++held) {
      rank_check::acquired(LockRank::pool_shard);
      if (held_now() != held || held_max() < held) std::_Exit(1);
    }
    std::_Exit(0);
  };
#if defined(FOLDSWAP_DEBUG_CHECKS)
  EXPECT_DEATH(loop(), "lock order violated");
#else
  EXPECT_EXIT(loop(), ::testing::ExitedWithCode(0), "");
#endif
}

}  // namespace
}  // namespace foldswap
