// HAZARDS 39: a starved client whose threads cannot be stopped.
#include <csignal>

#include "daemon/testing/core_fixture.h"

namespace foldswap {
namespace {

constexpr std::uint64_t kA = 0x7f0000000000, kB = 0x7f1000000000;

class StarvedTest : public CoreFixture {
 protected:
  void SetUp() override {
    CoreFixture::SetUp();
    service = std::make_unique<FaultService>(os, *state, *store, *this, tunables,
                                             PageCodec::make().value(),
                                             [](Client& c) { c.unstoppable = true; });
    client = make_client(UniqueFd(::dup(0)), true);
    evict(*client, kA, bytes_of(1));
    os.add_range(fd(), kA + 10 * kPage, 8);
  }
  // A fault waits, changes do not end, and these pages are discarded over and over.
  void starve(std::uint64_t start, std::uint64_t pages) {
    if (!space().changing) os.fault(fd(), kA, false);
    space().changing = 1;
    for (int i = 0; i < 4; ++i) {
      os.range_event(fd(), UFFD_EVENT_REMOVE, start, start + pages * kPage);
      os.clock_ns += 30'000'000;
      (void)service->step(*client);
    }
  }
  void feed() {
    space().changing = 0;
    for (int i = 0; i < 4; ++i) (void)service->step(*client);
    EXPECT_TRUE(space().present[kA] == bytes_of(1));
    EXPECT_EQ(load_word(client->mailbox->layout_daemon), 0U);
  }
  [[nodiscard]] bool registered(std::uint64_t page) { return space().registered.contains(page); }
};

TEST_F(StarvedTest, WhatIsDiscardedIsUnregistered) {
  starve(kA + 12 * kPage, 2);
  for (std::uint64_t i = 10; i < 18; ++i) EXPECT_FALSE(registered(kA + i * kPage)) << i;
  EXPECT_TRUE(registered(kA)) << "it is out";
  EXPECT_EQ(client->record.unregistering.bytes(), 0U);
  EXPECT_GT(client->no_eviction_until_us.load(), 0U);
  feed();
  EXPECT_TRUE(client->starvation.given_up.all().empty());
}

TEST_F(StarvedTest, WhatIsOutStaysRegistered) {
  evict(*client, kA + 12 * kPage, bytes_of(12));
  starve(kA + 13 * kPage, 1);
  EXPECT_FALSE(registered(kA + 13 * kPage));
  EXPECT_FALSE(registered(kA + 17 * kPage));
  EXPECT_TRUE(registered(kA + 12 * kPage));
  feed();
  expect_reads(*client, kA + 12 * kPage, bytes_of(12));
}

TEST_F(StarvedTest, ThreadsThatCanBeStoppedAre) {
  service = std::make_unique<FaultService>(os, *state, *store, *this, tunables,
                                           PageCodec::make().value(), [](Client&) {});
  starve(kA + 12 * kPage, 2);
  EXPECT_TRUE(registered(kA + 12 * kPage));
  feed();
}

// HAZARDS 2: not under a call that may be an mremap.
TEST_F(StarvedTest, CallsThatWaitStandBackAndOthersAreWaitedFor) {
  wire::Mailbox& mailbox = *client->mailbox;
  mailbox.layout_busy = 1;
  mailbox.request.op = static_cast<std::uint32_t>(wire::RequestOp::unify);
  mailbox.request.start = kB;
  mailbox.request.bytes = kPage;
  mailbox.request.seq = 1;
  starve(kA + 12 * kPage, 2);
  EXPECT_EQ(load_word(mailbox.request.served), 1U);
  EXPECT_EQ(load_word(mailbox.request.status), static_cast<std::uint32_t>(EAGAIN));
  EXPECT_TRUE(registered(kA + 12 * kPage));
  store_word(mailbox.layout_busy, 0);
  starve(kA + 12 * kPage, 2);
  EXPECT_FALSE(registered(kA + 12 * kPage));
  feed();
}

TEST_F(StarvedTest, AMoveThatIsKeptKeepsItsTargetRegistered) {
  os.remap(fd(), kB, kA + 12 * kPage, 2 * kPage);
  starve(kA + 12 * kPage, 2);
  EXPECT_TRUE(registered(kA + 12 * kPage));
  EXPECT_FALSE(client->doomed());
}

TEST_F(StarvedTest, AMoveOntoItThatNobodyAnnouncedEndsTheClient) {
  starve(kA + 12 * kPage, 2);
  os.remap(fd(), kB, kA + 12 * kPage, kPage);
  (void)service->step(*client);
  EXPECT_TRUE(client->doomed());
  EXPECT_EQ(os.signals, std::vector<int>{SIGKILL});
}

TEST_F(StarvedTest, AMoveElsewhereOrOneThatWasAskedForDoesNot) {
  starve(kA + 12 * kPage, 2);
  os.remap(fd(), kB, kB + 64 * kPage, kPage);
  client->starvation.asked.note({kB + 8 * kPage, 2 * kPage});
  os.remap(fd(), kB + 8 * kPage, kA + 12 * kPage, 2 * kPage);
  (void)service->step(*client);
  EXPECT_FALSE(client->doomed());
}

TEST_F(StarvedTest, AMoveAfterAQuietMomentDoesNot) {
  starve(kA + 12 * kPage, 2);
  feed();
  os.remap(fd(), kB, kA + 12 * kPage, kPage);
  for (int i = 0; i < 3; ++i) (void)service->step(*client);
  EXPECT_FALSE(client->doomed());
}

TEST_F(StarvedTest, NotBeyondHalfOfTheMappings) {
  os.texts["/proc/sys/vm/max_map_count"] = "1000\n";
  client->mappings_counted(499, 0);
  starve(kA + 12 * kPage, 2);
  EXPECT_TRUE(registered(kA + 12 * kPage));
  client->mappings_counted(100, 0);
  starve(kA + 12 * kPage, 2);
  EXPECT_FALSE(registered(kA + 12 * kPage));
}

TEST_F(StarvedTest, RangesThatGrowAreOne) {
  LastRanges<4> ranges;
  EXPECT_FALSE(ranges.note({kA, kPage}));
  EXPECT_FALSE(ranges.note({kA + 2 * kPage, kPage}));
  EXPECT_TRUE(ranges.note({kA + kPage, kPage}));
  ASSERT_EQ(ranges.all().size(), 1U);
  EXPECT_EQ(ranges.all()[0].bytes, 3 * kPage);
  EXPECT_TRUE(ranges.overlaps({kA + 2 * kPage, 100 * kPage}));
  EXPECT_FALSE(ranges.overlaps({kA + 3 * kPage, kPage}));
  for (std::uint64_t i = 0; i < 5; ++i) EXPECT_FALSE(ranges.note({kB + 2 * i * kPage, kPage}));
  EXPECT_TRUE(ranges.full());
}

}  // namespace
}  // namespace foldswap
