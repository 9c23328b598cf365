// Sets of address-space events (HAZARDS 1, 16, 18): contents are read back through faults, not only
// entries compared.
#include <rapidcheck.h>

#include "daemon/testing/core_fixture.h"

namespace foldswap {
namespace {

constexpr std::uint64_t kS = 0x7f0000000000, kD = 0x7f0010000000, kT = 0x7f0020000000,
                        kE = 0x7f0030000000;
constexpr std::uint64_t kBytes = 8 * kPage;

class AddressSpaceTest : public CoreFixture {
 protected:
  void evict_range(std::uint64_t start, std::uint64_t seed) {
    for (std::uint64_t i = 0; i < 8; ++i) evict(*client, start + i * kPage, bytes_of(seed + i));
  }
  void expect_range(Client& c, std::uint64_t start, std::uint64_t seed) {
    for (std::uint64_t i = 0; i < 8; ++i) expect_reads(c, start + i * kPage, bytes_of(seed + i));
  }
  void step() { (void)service->step(*client); }
  // As mremap tells of it.
  void move(int whose, std::uint64_t from, std::uint64_t to) {
    os.remap(whose, from, to, kBytes);
    os.range_event(whose, UFFD_EVENT_UNMAP, from, from + kBytes);
  }
};

TEST_F(AddressSpaceTest, Hazard01EventOrderVacateBeforeOccupy) {
  // Thread A: mremap S->D; thread B: T->(freed S). B's events come first.
  evict_range(kS, 100);
  evict_range(kT, 200);
  os.drop_range(fd(), kT, 8);
  os.add_range(fd(), kD, 8);
  os.range_event(fd(), UFFD_EVENT_UNMAP, kD, kD + kBytes);
  move(fd(), kT, kS);
  move(fd(), kS, kD);
  step();
  expect_conserved(*client);
  expect_range(*client, kD, 100);
  expect_range(*client, kS, 200);
  EXPECT_EQ(client->map->out_total(), 0U);
}

TEST_F(AddressSpaceTest, Hazard01EventOrderIsNotAppliedWhileAChangeIsUnderWay) {
  evict_range(kS, 100);
  evict_range(kT, 200);
  os.drop_range(fd(), kT, 8);
  os.add_range(fd(), kD, 8);
  space().changing = 1;  // A has moved S->D but has not queued its event
  move(fd(), kT, kS);
  for (int i = 0; i < 5; ++i) step();
  EXPECT_TRUE(client->unapplied.load());
  EXPECT_EQ(client->record.inbox_count, 2U);
  move(fd(), kS, kD);
  step();
  EXPECT_TRUE(client->unapplied.load());
  space().changing = 0;
  step();
  EXPECT_FALSE(client->unapplied.load());
  expect_range(*client, kD, 100);
  expect_range(*client, kS, 200);
}

TEST_F(AddressSpaceTest, AChainOfMovesOfTheSamePagesFollowsThem) {
  // One thread: S->D, then D->E; both read in one set because others kept changing things.
  evict_range(kS, 300);
  os.drop_range(fd(), kS, 8);
  os.add_range(fd(), kE, 8);
  move(fd(), kS, kD);
  move(fd(), kD, kE);
  step();
  expect_conserved(*client);
  expect_range(*client, kE, 300);
  EXPECT_EQ(client->map->out_total(), 0U);
}

// mremap(MREMAP_FIXED) that grows, onto something larger than what it moves; and on from there.
TEST_F(AddressSpaceTest, WhatAGrowingMoveReplacedDoesNotMoveOnWithIt) {
  evict_range(kS, 300);
  evict_range(kD, 700);
  os.drop_range(fd(), kS, 8);
  os.drop_range(fd(), kD, 8);
  os.add_range(fd(), kE, 8);
  os.range_event(fd(), UFFD_EVENT_UNMAP, kD, kD + kBytes);
  os.remap(fd(), kS, kD, 2 * kPage);
  os.range_event(fd(), UFFD_EVENT_UNMAP, kS, kS + kBytes);
  move(fd(), kD, kE);
  step();
  expect_conserved(*client);
  EXPECT_EQ(client->map->out_total(), 2U);
  expect_reads(*client, kE + kPage, bytes_of(301));
  expect_reads(*client, kE + 2 * kPage, kZeros);
  expect_reads(*client, kE + 7 * kPage, kZeros);
}

// Nor does a child get it that was forked after it; one that was forked before does.
TEST_F(AddressSpaceTest, WhatAGrowingMoveReplacedIsNoLaterChilds) {
  for (const bool later : {true, false}) {
    evict_range(kS, 300);
    evict_range(kD, 700);
    os.range_event(fd(), UFFD_EVENT_UNMAP, kD, kD + kBytes);
    os.remap(fd(), kS, kD, 2 * kPage);
    os.range_event(fd(), UFFD_EVENT_UNMAP, kS, kS + kBytes);
    const int child_fd = ::dup(0);
    os.add_range(child_fd, kD, 8);
    if (!later) os.add_range(child_fd, kS, 8);
    os.drop_range(fd(), kS, 8);
    os.fork_event(fd(), child_fd);
    step();
    ASSERT_FALSE(children.back()->doomed());
    Client& child = *children.back();
    EXPECT_EQ(child.map->out_total(), later ? 2U : 16U);
    for (std::uint64_t i = 0; i < 8; ++i) {
      if (!later) expect_reads(child, kS + i * kPage, bytes_of(300 + i));
      expect_reads(child, kD + i * kPage,
                   !later  ? bytes_of(700 + i)
                   : i < 2 ? bytes_of(300 + i)
                           : kZeros);
    }
    EXPECT_EQ(client->map->out_total(), 2U);
    for (std::uint64_t i = 0; i < 2; ++i) expect_reads(*client, kD + i * kPage, bytes_of(300 + i));
    os.drop_range(fd(), kD, 8);
    os.range_event(fd(), UFFD_EVENT_UNMAP, kD, kD + kBytes);
    step();
  }
}

// Likewise, but what lay there had been unmapped before, and something else has come there since.
TEST_F(AddressSpaceTest, WhatCameBehindAMovesEndStays) {
  evict_range(kS, 300);
  evict_range(kD, 700);
  evict_range(kT, 400);
  os.drop_range(fd(), kS, 8);
  os.drop_range(fd(), kT, 8);
  os.range_event(fd(), UFFD_EVENT_UNMAP, kD, kD + kBytes);
  os.remap(fd(), kT, kD + 4 * kPage, 4 * kPage);
  os.range_event(fd(), UFFD_EVENT_UNMAP, kT, kT + kBytes);
  os.remap(fd(), kS, kD, 2 * kPage);
  os.range_event(fd(), UFFD_EVENT_UNMAP, kS, kS + kBytes);
  step();
  expect_conserved(*client);
  EXPECT_EQ(client->map->out_total(), 6U);
  for (std::uint64_t i = 0; i < 2; ++i) expect_reads(*client, kD + i * kPage, bytes_of(300 + i));
  for (std::uint64_t i = 2; i < 4; ++i) expect_reads(*client, kD + i * kPage, kZeros);
  for (std::uint64_t i = 4; i < 8; ++i) expect_reads(*client, kD + i * kPage, bytes_of(396 + i));
}

TEST_F(AddressSpaceTest, BackAndForthInOneSetEndsWhereItEnded) {
  // X->Y, Y->X, X->Y by one thread while others kept changing things.
  evict_range(kS, 500);
  os.drop_range(fd(), kS, 8);
  os.add_range(fd(), kD, 8);
  for (const bool forth : {true, false, true}) {
    const std::uint64_t from = forth ? kS : kD, to = forth ? kD : kS;
    os.remap(fd(), from, to, kBytes);
    os.range_event(fd(), UFFD_EVENT_UNMAP, from, from + kBytes);
  }
  step();
  expect_conserved(*client);
  expect_range(*client, kD, 500);
  EXPECT_TRUE(os.signals.empty());
}

TEST_F(AddressSpaceTest, MovesThatCannotBeOrderedEndTheClientAndNothingIsAnsweredAnyMore) {
  evict_range(kS, 1);
  evict_range(kT, 50);
  evict_range(kE, 90);
  os.drop_range(fd(), kS, 8);
  // Three moves touch D, and where they leave it fits no order.
  move(fd(), kS, kD);
  move(fd(), kD, kT);
  move(fd(), kE, kD);
  os.fault(fd(), kT, false);
  step();
  ASSERT_FALSE(os.signals.empty());
  EXPECT_EQ(os.signals[0], SIGKILL);
  for (int i = 0; i < 5; ++i) step();
  EXPECT_TRUE(space().present.empty());
}

TEST_F(AddressSpaceTest, UnmapFreesExactlyItsRange) {
  evict_range(kS, 1);
  os.drop_range(fd(), kS + 2 * kPage, 3);
  os.range_event(fd(), UFFD_EVENT_UNMAP, kS + 2 * kPage, kS + 5 * kPage);
  step();
  EXPECT_EQ(client->map->out_total(), 5U);
  expect_conserved(*client);
  expect_reads(*client, kS + kPage, bytes_of(2));
  expect_reads(*client, kS + 5 * kPage, bytes_of(6));
}

TEST_F(AddressSpaceTest, Hazard16RemoveFreesAndQuarantines) {
  evict_range(kS, 1);
  os.range_event(fd(), UFFD_EVENT_REMOVE, kS, kS + 4 * kPage);
  os.fault(fd(), kS, false);  // read with the event: answered after it
  step();
  step();
  ASSERT_TRUE(space().present.contains(kS));
  EXPECT_EQ(space().present[kS], kZeros);
  EXPECT_EQ(client->map->out_total(), 4U);
  const RankedLock lock(client->mutex);
  EXPECT_TRUE(client->quarantine.contains(kS));
  EXPECT_TRUE(client->quarantine.contains(kS + 3 * kPage));
  EXPECT_FALSE(client->quarantine.contains(kS + 4 * kPage));
}

TEST_F(AddressSpaceTest, Hazard18AMoveWaitsForTheBatchInFlight) {
  evict_range(kS, 1);
  client->batches = 1;
  os.drop_range(fd(), kS, 8);
  os.add_range(fd(), kD, 8);
  os.remap(fd(), kS, kD, kBytes);
  for (int i = 0; i < 3; ++i) step();
  EXPECT_TRUE(client->unapplied.load());
  EXPECT_NE(client->map->next_out(kS, kS + kBytes), kS + kBytes) << "moved under a batch";
  client->batches = 0;
  step();
  expect_range(*client, kD, 1);
}

TEST_F(AddressSpaceTest, ForkGivesTheChildEveryPageAndOneReference) {
  evict_range(kS, 1);
  evict(*client, kT, kZeros);
  FakeOs::PageBytes letters{};
  letters.fill(std::byte{0x41});
  evict(*client, kT + kPage, letters);
  const int child_fd = ::dup(0);
  os.spaces[child_fd].registered = space().registered;
  os.fork_event(fd(), child_fd);
  step();
  ASSERT_EQ(children.size(), 1U);
  EXPECT_EQ(children_ready, 1);
  Client& child = *children[0];
  expect_conserved(child);
  EXPECT_EQ(child.map->out_total(), 10U);
  // The parent's copy goes; the child's stays.
  os.drop_range(fd(), kS, 8);
  os.range_event(fd(), UFFD_EVENT_UNMAP, kS, kS + kBytes);
  step();
  expect_range(child, kS, 1);
  expect_reads(child, kT, kZeros);
  expect_reads(child, kT + kPage, letters, true);
  expect_reads(*client, kT + kPage, letters);
  EXPECT_EQ(pool->stats().objects, 0U);
  EXPECT_TRUE(pool->validate());
}

TEST_F(AddressSpaceTest, ForkLeavesOutWhatTheChildDoesNotHave) {
  evict_range(kS, 1);
  const int child_fd = ::dup(0);
  os.spaces[child_fd].registered = space().registered;
  for (std::uint64_t i = 2; i < 8; ++i) os.spaces[child_fd].registered.erase(kS + i * kPage);
  os.fork_event(fd(), child_fd);
  step();
  ASSERT_EQ(children.size(), 1U);
  EXPECT_EQ(children[0]->map->out_total(), 2U);
}

TEST_F(AddressSpaceTest, Hazard01AChangeThatBeginsWhileTheSetIsAppliedWaitsItsTurn) {
  // The set of the first test. Some other thread begins to unmap something at each moment of it.
  for (int moment = 0; moment < 40; ++moment) {
    evict_range(kS, 100);
    evict_range(kT, 200);
    os.drop_range(fd(), kT, 8);
    os.add_range(fd(), kD, 8);
    os.range_event(fd(), UFFD_EVENT_UNMAP, kD, kD + kBytes);
    move(fd(), kT, kS);
    move(fd(), kS, kD);
    space().probes_until_change = moment;
    step();
    os.range_event(fd(), UFFD_EVENT_UNMAP, kE, kE + kPage);
    space().probes_until_change = -1;
    space().changing = 0;
    step();
    step();
    ASSERT_FALSE(client->doomed());
    EXPECT_FALSE(client->unapplied.load());
    expect_range(*client, kD, 100);
    expect_range(*client, kS, 200);
    EXPECT_EQ(client->map->out_total(), 0U) << "at moment " << moment;
    os.drop_range(fd(), kD, 8);
    os.drop_range(fd(), kS, 8);
    os.range_event(fd(), UFFD_EVENT_UNMAP, kD, kD + kBytes);
    os.range_event(fd(), UFFD_EVENT_UNMAP, kS, kS + kBytes);
    step();
  }
}

TEST_F(AddressSpaceTest, AMoveIsAppliedOnceThoughTheRestTakesSeveralSteps) {
  // A: mremap S->D, then discards D, more than one step lets go of; B: mremap T->E.
  constexpr std::uint64_t kLarge = 20'000, kLargeBytes = kLarge * kPage;
  for (std::uint64_t i = 0; i < kLarge; ++i) evict(*client, kS + i * kPage, kZeros);
  evict_range(kT, 50);
  os.drop_range(fd(), kS, kLarge);
  os.add_range(fd(), kD, kLarge);
  os.drop_range(fd(), kT, 8);
  os.add_range(fd(), kE, 8);
  os.remap(fd(), kS, kD, kLargeBytes);
  os.range_event(fd(), UFFD_EVENT_REMOVE, kD, kD + kLargeBytes);
  os.remap(fd(), kT, kE, kBytes);
  os.range_event(fd(), UFFD_EVENT_UNMAP, kS, kS + kLargeBytes);
  os.range_event(fd(), UFFD_EVENT_UNMAP, kT, kT + kBytes);
  for (int i = 0; i < 5; ++i) step();
  EXPECT_FALSE(client->unapplied.load());
  EXPECT_EQ(client->map->out_total(), 8U);
  expect_range(*client, kE, 50);
}

TEST_F(AddressSpaceTest, AChildThatRunsAlreadyGetsEverythingAndThenWhatItDid) {
  // Its fork() ended when the event was read; a batch is in flight meanwhile, and the child
  // discards, unmaps and moves (Redis' children discard first of all).
  evict_range(kS, 1);
  evict_range(kT, 50);
  evict_range(kE, 90);
  const int child_fd = ::dup(0);
  os.spaces[child_fd].registered = space().registered;
  client->batches = 1;
  os.fork_event(fd(), child_fd);
  step();
  os.range_event(child_fd, UFFD_EVENT_REMOVE, kS, kS + kPage);
  os.drop_range(child_fd, kT + 4 * kPage, 4);
  os.range_event(child_fd, UFFD_EVENT_UNMAP, kT + 4 * kPage, kT + kBytes);
  os.drop_range(child_fd, kE, 8);
  os.add_range(child_fd, kD, 8);
  move(child_fd, kE, kD);
  client->batches = 0;
  step();
  ASSERT_EQ(children.size(), 1U);
  Client& child = *children[0];
  EXPECT_TRUE(os.signals.empty());
  (void)service->step(child);
  expect_conserved(child);
  EXPECT_EQ(child.map->out_total(), 7U + 4U + 8U);
  expect_reads(child, kS, kZeros);
  for (std::uint64_t i = 1; i < 8; ++i) expect_reads(child, kS + i * kPage, bytes_of(1 + i));
  for (std::uint64_t i = 0; i < 4; ++i) expect_reads(child, kT + i * kPage, bytes_of(50 + i));
  expect_range(child, kD, 90);
  expect_range(*client, kS, 1);
}

// Another thread of the parent unmaps S, before the fork or after it. Only the child can say, which
// is busy with its own changes.
struct PlaceInDoubt : AddressSpaceTest {
  void begin(bool child_has_it) {
    evict_range(kS, 1);
    evict_range(kT, 50);
    child_fd = ::dup(0);
    client->batches = 1;
    os.fork_event(fd(), child_fd);
    if (child_has_it) os.spaces[child_fd].registered = space().registered;
    step();
    os.drop_range(fd(), kS, 8);
    os.range_event(fd(), UFFD_EVENT_UNMAP, kS, kS + kBytes);
    if (!child_has_it) os.spaces[child_fd].registered = space().registered;
    client->batches = 0;
  }
  Client& child() { return *children.at(0); }
  int child_fd = -1;
};

TEST_F(PlaceInDoubt, IsTheChildsThoughItChangesItsMemory) {
  begin(true);
  os.range_event(child_fd, UFFD_EVENT_REMOVE, kT, kT + kPage);
  os.fault(child_fd, kS, false);
  step();
  EXPECT_EQ(children_ready, 1);
  EXPECT_FALSE(child().doomed());
  (void)service->step(child());
  expect_range(child(), kS, 1);
  expect_reads(child(), kT, kZeros);
  expect_range(*client, kT, 50);
}

TEST_F(PlaceInDoubt, IsNotTheChildsThoughItChangesItsMemory) {
  begin(false);
  os.range_event(child_fd, UFFD_EVENT_REMOVE, kT, kT + kPage);
  step();
  EXPECT_EQ(children_ready, 1);
  EXPECT_FALSE(child().doomed());
  (void)service->step(child());
  EXPECT_EQ(child().map->out_total(), 7U) << "old bytes wait for whatever it maps at S";
  expect_conserved(child());
}

TEST_F(PlaceInDoubt, IsLookedForWhereTheChildHasMovedIt) {
  begin(true);
  // It moves S to D, then T to where S was, and unmaps half of what was S.
  os.drop_range(child_fd, kT, 8);
  os.add_range(child_fd, kD, 8);
  os.drop_range(child_fd, kD + 4 * kPage, 4);
  os.remap(child_fd, kS, kD, kBytes);
  os.remap(child_fd, kT, kS, kBytes);
  os.range_event(child_fd, UFFD_EVENT_UNMAP, kD + 4 * kPage, kD + kBytes);
  step();
  EXPECT_EQ(children_ready, 1);
  EXPECT_FALSE(child().doomed());
  (void)service->step(child());
  EXPECT_EQ(child().map->out_total(), 12U);
  expect_range(child(), kS, 50);
  for (std::uint64_t i = 0; i < 4; ++i) expect_reads(child(), kD + i * kPage, bytes_of(1 + i));
}

TEST_F(PlaceInDoubt, WasTheChildsWhenItForkedBeforeItUnmapped) {
  begin(true);
  const int grandchild_fd = ::dup(0);
  os.spaces[grandchild_fd].registered = os.spaces[child_fd].registered;
  os.fork_event(child_fd, grandchild_fd);
  os.drop_range(child_fd, kS, 8);
  os.range_event(child_fd, UFFD_EVENT_UNMAP, kS, kS + kBytes);
  step();
  EXPECT_FALSE(child().doomed());
  (void)service->step(child());
  EXPECT_EQ(child().map->out_total(), 8U) << "what it unmapped is no longer its";
  expect_range(child(), kT, 50);
  ASSERT_EQ(children.size(), 2U);
  Client& grandchild = *children[1];
  EXPECT_FALSE(grandchild.doomed());
  (void)service->step(grandchild);
  expect_conserved(grandchild);
  expect_range(grandchild, kS, 1);
  expect_range(grandchild, kT, 50);
}

TEST_F(PlaceInDoubt, IsWhereTheChildMovedItThoughAnotherThreadsUnmapIsReadAfterwards) {
  begin(true);
  // A thread unmaps D, another moves S there; the first one's event comes last.
  os.drop_range(child_fd, kS, 8);
  os.add_range(child_fd, kD, 8);
  move(child_fd, kS, kD);
  os.range_event(child_fd, UFFD_EVENT_UNMAP, kD, kD + kBytes);
  step();
  EXPECT_FALSE(child().doomed());
  (void)service->step(child());
  expect_conserved(child());
  EXPECT_EQ(child().map->out_total(), 16U);
  expect_range(child(), kD, 1);
  expect_range(child(), kT, 50);
}

TEST_F(PlaceInDoubt, IsGoneWhenTheChildMovedItAndThenUnmappedIt) {
  begin(true);
  os.drop_range(child_fd, kS, 8);
  move(child_fd, kS, kD);
  os.range_event(child_fd, UFFD_EVENT_UNMAP, kD, kD + kBytes);
  step();
  EXPECT_FALSE(child().doomed());
  (void)service->step(child());
  EXPECT_EQ(child().map->out_total(), 8U);
  expect_range(child(), kT, 50);
}

// Before the fork another thread has moved S to D; the child moves T to where S was.
TEST_F(AddressSpaceTest, AChildThatFillsAVacatedPlaceKeepsWhatWasMoved) {
  evict_range(kS, 1);
  evict_range(kT, 50);
  const int child_fd = ::dup(0);
  client->batches = 1;
  os.drop_range(fd(), kS, 8);
  os.add_range(fd(), kD, 8);
  move(fd(), kS, kD);
  os.spaces[child_fd].registered = space().registered;
  os.fork_event(fd(), child_fd);
  step();
  os.drop_range(child_fd, kT, 8);
  os.add_range(child_fd, kS, 8);
  move(child_fd, kT, kS);
  client->batches = 0;
  step();
  ASSERT_EQ(children_ready, 1);
  Client& child = *children.at(0);
  EXPECT_FALSE(child.doomed());
  (void)service->step(child);
  expect_range(child, kD, 1);
  expect_range(child, kS, 50);
  expect_range(*client, kD, 1);
}

// After the fork another thread moves S over D, where the child has its own, and the child unmaps
// S: whether D holds the one or the other in the child nobody can tell any more.
TEST_F(AddressSpaceTest, AChildThatUnmapsTheEvidenceIsDoomed) {
  evict_range(kS, 1);
  evict_range(kD, 90);
  const int child_fd = ::dup(0);
  client->batches = 1;
  os.spaces[child_fd].registered = space().registered;
  os.fork_event(fd(), child_fd);
  step();
  os.drop_range(fd(), kS, 8);
  os.range_event(fd(), UFFD_EVENT_UNMAP, kD, kD + kBytes);
  move(fd(), kS, kD);
  os.drop_range(child_fd, kS, 8);
  os.range_event(child_fd, UFFD_EVENT_UNMAP, kS, kS + kBytes);
  os.range_event(child_fd, UFFD_EVENT_REMOVE, kT, kT + kPage);
  client->batches = 0;
  step();
  // The first look at the child makes its events known; what it finds before that is no guess.
  ASSERT_EQ(children_ready, 1);
  EXPECT_TRUE(children.at(0)->doomed());
  expect_range(*client, kD, 1);
}

TEST_F(AddressSpaceTest, AChildsManyPagesAreTakenOverInSlices) {
  constexpr std::uint64_t kMany = 40'000;
  for (std::uint64_t i = 0; i < kMany; ++i) evict(*client, kS + i * kPage, kZeros);
  const int child_fd = ::dup(0);
  os.spaces[child_fd].registered = space().registered;
  os.fork_event(fd(), child_fd);
  step();
  EXPECT_EQ(children_ready, 0);
  for (int i = 0; i < 5; ++i) step();
  ASSERT_EQ(children_ready, 1);
  EXPECT_EQ(children.at(0)->map->out_total(), kMany);
  expect_conserved(*children.at(0));
}

TEST_F(PlaceInDoubt, WaitsForAChildThatHasNotComeBack) {
  begin(true);
  os.spaces[child_fd].changing = 1;
  for (int i = 0; i < 5; ++i) step();
  EXPECT_EQ(children_ready, 0);
  EXPECT_TRUE(client->unapplied.load());
  os.range_event(fd(), UFFD_EVENT_REMOVE, kT, kT + kPage);  // after the fork: the child has it
  step();
  os.spaces[child_fd].changing = 0;
  step();
  step();
  EXPECT_EQ(children.size(), 1U);
  EXPECT_EQ(children_ready, 1);
  EXPECT_FALSE(child().doomed());
  (void)service->step(child());
  expect_range(child(), kS, 1);
  expect_range(child(), kT, 50);
  expect_reads(*client, kT, kZeros);
}

TEST_F(PlaceInDoubt, DoomsAChildThatCanNeverBeAsked) {
  begin(true);
  os.spaces[child_fd].changing = 1;
  step();
  os.clock_ns += 60'000'000'000;
  step();
  EXPECT_EQ(children_ready, 1);
  EXPECT_TRUE(child().doomed());
  expect_range(*client, kT, 50);
}

TEST_F(PlaceInDoubt, DoomsAChildWhoseParentIsEnded) {
  begin(true);
  os.spaces[child_fd].changing = 1;
  step();
  client->kill("a test");
  step();
  EXPECT_EQ(children_ready, 1);
  EXPECT_TRUE(child().doomed());
  EXPECT_EQ(client->child, nullptr);
}

TEST_F(AddressSpaceTest, ForkIsClonedBeforeTheSetFreesAnything) {
  evict_range(kS, 1);
  const int child_fd = ::dup(0);
  os.spaces[child_fd].registered = space().registered;
  os.drop_range(fd(), kS, 8);
  os.range_event(fd(), UFFD_EVENT_UNMAP, kS, kS + kBytes);  // another thread, read first
  os.fork_event(fd(), child_fd);
  step();
  ASSERT_EQ(children.size(), 1U);
  expect_range(*children[0], kS, 1);
}

// A program that becomes a daemon: its child forks and ends before it is taken over itself.
TEST_F(AddressSpaceTest, AGrandchildGetsWhatItsParentDidNotLiveToGet) {
  evict_range(kS, 300);
  const int child = ::dup(0), grandchild = ::dup(0);
  os.add_range(grandchild, kS, 8);
  os.fork_event(child, grandchild);
  os.fork_event(fd(), child);
  os.spaces[child].changing = 1;  // its fork; it has ended when its event has been read
  os.before_read = [&](int read) {
    if (read != child) return;
    os.spaces[child].changing = 0;
    os.spaces[child].gone = true;
  };
  for (int i = 0; i < 10; ++i) step();
  ASSERT_EQ(children.size(), 1U);
  for (int i = 0; i < 10; ++i) (void)service->step(*children[0]);
  ASSERT_EQ(children.size(), 2U);
  EXPECT_EQ(children_ready, 2);
  expect_range(*children[1], kS, 300);
}

TEST_F(AddressSpaceTest, Hazard18WhatAParentDiscardsAfterForkStaysItsChilds) {
  // The FORK is kept (a batch is in flight); the parent has returned from fork(2) and discards
  // (Redis does exactly this).
  evict_range(kS, 1);
  const int child_fd = ::dup(0);
  os.spaces[child_fd].registered = space().registered;
  client->batches = 1;
  os.fork_event(fd(), child_fd);
  step();
  os.range_event(fd(), UFFD_EVENT_REMOVE, kS, kS + kBytes);
  step();
  client->batches = 0;
  step();
  ASSERT_EQ(children.size(), 1U);
  expect_range(*children[0], kS, 1);
  expect_reads(*client, kS, kZeros);
  const RankedLock lock(client->mutex);
  EXPECT_TRUE(client->quarantine.contains(kS));
}

// Another thread moves T to D and discards that, all of it told of before a fork that was made
// before the move.
TEST_F(AddressSpaceTest, Hazard18WhatIsDiscardedAfterAMoveThatTheChildHasNotSeenIsItsChilds) {
  evict_range(kS, 1);
  evict_range(kT, 50);
  const int child_fd = ::dup(0);
  os.spaces[child_fd].registered = space().registered;
  client->batches = 1;
  os.drop_range(fd(), kT, 8);
  os.add_range(fd(), kD, 8);
  os.range_event(fd(), UFFD_EVENT_REMOVE, kS, kS + kPage);
  move(fd(), kT, kD);
  os.range_event(fd(), UFFD_EVENT_REMOVE, kD, kD + kBytes);
  os.fork_event(fd(), child_fd);
  step();
  client->batches = 0;
  step();
  ASSERT_EQ(children.size(), 1U);
  EXPECT_FALSE(children[0]->doomed());
  EXPECT_EQ(children[0]->map->out_total(), 15U);
  expect_range(*children[0], kT, 50);
  expect_reads(*children[0], kS, kZeros);
  EXPECT_EQ(client->map->out_total(), 7U);
  expect_reads(*client, kD, kZeros);
}

// MREMAP_DONTUNMAP: the place that is left stays registered, so that a child has it whether it is
// older than the move or younger.
struct LeftMapped : AddressSpaceTest {
  void begin(bool younger, bool discarded) {
    evict_range(kS, 1);
    evict_range(kT, 50);
    const int child_fd = ::dup(0);
    os.spaces[child_fd].registered = space().registered;
    client->batches = 1;
    os.add_range(fd(), kD, 8);
    if (younger) os.add_range(child_fd, kD, 8);
    os.remap(fd(), kS, kD, kBytes);
    if (discarded) os.range_event(fd(), UFFD_EVENT_REMOVE, kD, kD + kBytes);
    os.fork_event(fd(), child_fd);
    step();
    client->batches = 0;
    step();
    ASSERT_EQ(children.size(), 1U);
  }
  void expect_child(std::uint64_t place, std::uint64_t empty, bool discarded) {
    Client& child = *children[0];
    EXPECT_FALSE(child.doomed());
    expect_range(child, kT, 50);
    for (std::uint64_t i = 0; i < 8; ++i) {
      if (discarded) expect_reads(child, place + i * kPage, kZeros);
      if (!discarded) expect_reads(child, place + i * kPage, bytes_of(1 + i));
      if (empty != 0) expect_reads(child, empty + i * kPage, kZeros);
    }
  }
};

TEST_F(LeftMapped, AYoungerChildHasItWhereItWent) {
  begin(true, false);
  expect_child(kD, kS, false);
}

TEST_F(LeftMapped, AYoungerChildHasNotWhatWasDiscardedThere) {
  begin(true, true);
  expect_child(kD, kS, true);
}

TEST_F(LeftMapped, AnOlderChildHasItWhereItWas) {
  begin(false, false);
  expect_child(kS, 0, false);
}

TEST_F(LeftMapped, AnOlderChildHasWhatWasDiscardedWhereItWent) {
  begin(false, true);
  expect_child(kS, 0, false);
}

TEST_F(AddressSpaceTest, AYoungerChildOfAMoveThereAndBackHasItWhereItWas) {
  evict_range(kS, 1);
  const int child_fd = ::dup(0);
  os.spaces[child_fd].registered = space().registered;
  client->batches = 1;
  move(fd(), kS, kD);
  move(fd(), kD, kS);
  os.fork_event(fd(), child_fd);
  step();
  client->batches = 0;
  step();
  ASSERT_EQ(children.size(), 1U);
  EXPECT_FALSE(children[0]->doomed());
  expect_range(*children[0], kS, 1);
  expect_range(*client, kS, 1);
}

TEST_F(AddressSpaceTest, Hazard18WhatIsDiscardedBetweenTwoForksIsTheFirstChildsOnly) {
  evict_range(kS, 1);
  evict_range(kT, 50);
  const int first = ::dup(0), second = ::dup(0);
  os.spaces[first].registered = space().registered;
  client->batches = 1;
  os.fork_event(fd(), first);
  step();
  os.range_event(fd(), UFFD_EVENT_REMOVE, kS, kS + kBytes);
  step();
  // Moved, then half discarded where it is now.
  os.drop_range(fd(), kT, 8);
  os.add_range(fd(), kD, 8);
  os.remap(fd(), kT, kD, kBytes);
  os.range_event(fd(), UFFD_EVENT_REMOVE, kD, kD + kBytes / 2);
  os.spaces[second].registered = space().registered;
  step();
  os.fork_event(fd(), second);
  step();
  client->batches = 0;
  step();
  ASSERT_EQ(children.size(), 2U);
  expect_range(*children[0], kS, 1);
  expect_range(*children[0], kT, 50);
  EXPECT_EQ(children[1]->map->out_total(), 4U);
  for (std::uint64_t i = 4; i < 8; ++i)
    expect_reads(*children[1], kD + i * kPage, bytes_of(50 + i));
  EXPECT_EQ(client->map->out_total(), 4U);
  expect_reads(*client, kS, kZeros);
}

TEST_F(AddressSpaceTest, Hazard04AChildOutlivesAParentThatDiedBeforeItsForkWasApplied) {
  evict_range(kS, 1);
  const int child_fd = ::dup(0);
  os.spaces[child_fd].registered = space().registered;
  client->batches = 1;
  os.fork_event(fd(), child_fd);
  step();
  space().gone = true;
  client->set_state(ClientState::exiting);
  step();
  EXPECT_FALSE(client->reader_done);
  client->batches = 0;
  for (int i = 0; i < 5; ++i) step();
  EXPECT_TRUE(client->reader_done);
  ASSERT_EQ(children.size(), 1U);
  expect_range(*children[0], kS, 1);
  EXPECT_EQ(pool->stats().objects, 0U);
}

// It did not get all of its parent's pages, so its own child would not, either.
TEST_F(AddressSpaceTest, AChildOfADoomedParentThatHasEndedIsNotServed) {
  evict_range(kS, 1);
  client->batches = 1;
  os.remap(fd(), kT, kD, kBytes);
  os.fork_event(fd(), ::dup(0));
  step();
  client->kill("a test");
  space().gone = true;
  client->set_state(ClientState::exiting);
  client->batches = 0;
  for (int i = 0; i < 5; ++i) step();
  EXPECT_TRUE(client->reader_done);
  EXPECT_TRUE(children.empty() || children.back()->doomed());
  EXPECT_EQ(doomed.size() + children.size(), 1U);
  EXPECT_EQ(pool->stats().objects, 0U);
}

// One thread moves S to D, another forks, and the process is killed before the move was told of.
// The child has it all at D, and nobody knows.
TEST_F(AddressSpaceTest, AChildIsDoomedWhenItsParentDiedInTheMiddleOfACall) {
  for (const bool in_call : {true, false}) {
    SCOPED_TRACE(in_call);
    os.spaces.clear();  // numbers of descriptors come again
    client = make_client(UniqueFd(::dup(0)), true);
    evict_range(kS, 100);
    const int child_fd = ::dup(0);
    os.add_range(child_fd, in_call ? kD : kS, 8);
    client->mailbox->fork_seq = 7;
    client->mailbox->layout_busy = in_call ? 2 : 1;
    os.fork_event(fd(), child_fd);
    space().changing = 1;
    step();
    space().gone = true;
    for (int i = 0; i < 10; ++i) step();
    ASSERT_FALSE(children.empty());
    EXPECT_EQ(children.back()->doomed(), in_call);
    if (!in_call) expect_range(*children.back(), kS, 100);
  }
}

TEST_F(AddressSpaceTest, ARemoveHeldUpByAForkComesBeforeTheMoveThatFollowedIt) {
  // The FORK is kept (a batch is in flight). B discards and unmaps D; then A moves S to D.
  evict_range(kS, 1);
  evict_range(kD, 50);
  const int child_fd = ::dup(0);
  os.spaces[child_fd].registered = space().registered;
  client->batches = 1;
  os.fork_event(fd(), child_fd);
  step();
  os.range_event(fd(), UFFD_EVENT_REMOVE, kD, kD + kBytes);
  os.range_event(fd(), UFFD_EVENT_UNMAP, kD, kD + kBytes);
  step();
  os.drop_range(fd(), kS, 8);
  move(fd(), kS, kD);
  step();
  client->batches = 0;
  step();
  ASSERT_EQ(children.size(), 1U);
  expect_range(*children[0], kD, 50);
  expect_range(*client, kD, 1);
  EXPECT_EQ(pool->stats().objects, 8U) << "the child's S is still there";
}

TEST_F(AddressSpaceTest, WhatIsUnmappedWhileAForkMayBeUnreadStaysTheChilds) {
  // B unmaps S; A's fork came before that in the kernel, and its event is not there yet.
  evict_range(kS, 1);
  const int child_fd = ::dup(0);
  os.spaces[child_fd].registered = space().registered;
  os.drop_range(fd(), kS, 8);
  space().changing = 1;
  for (int i = 0; i < 8; ++i)
    os.range_event(fd(), UFFD_EVENT_UNMAP, kS + static_cast<std::uint64_t>(i) * kPage,
                   kS + static_cast<std::uint64_t>(i + 1) * kPage);
  for (int i = 0; i < 5; ++i) step();
  os.fork_event(fd(), child_fd);
  space().changing = 0;
  step();
  ASSERT_EQ(children.size(), 1U);
  expect_range(*children[0], kS, 1);
  EXPECT_EQ(client->map->out_total(), 0U);
}

TEST_F(AddressSpaceTest, AStormOfUnmapsWaitsForTheThreadsToBeStopped) {
  int stops = 0;
  service = std::make_unique<FaultService>(os, *state, *store, *this, tunables,
                                           PageCodec::make().value(), [&](Client&) { ++stops; });
  evict_range(kS, 1);
  std::uint64_t unmapped = 0;
  const auto unmap = [&] {
    os.range_event(fd(), UFFD_EVENT_UNMAP, kE + unmapped * kPage, kE + (unmapped + 1) * kPage);
    ++unmapped;
  };
  space().changing = 1;
  for (int i = 0; i < 200; ++i) {  // threads that unmap whenever their last event has been read
    while (space().queue.size() < 64) unmap();
    step();
  }
  EXPECT_EQ(stops, 1);
  const std::uint32_t crowded = client->record.inbox_count;
  EXPECT_LT(crowded, kInboxMessages - 1'000) << "it must wait until they have been told to stop";
  client->stop_armed = true;
  space().changing = 0;
  for (int i = 0; i < 3; ++i) step();
  EXPECT_EQ(client->record.inbox_count, 0U);
  EXPECT_FALSE(client->stop_wanted.load());
  EXPECT_TRUE(os.signals.empty()) << "killed for unmapping";
  expect_range(*client, kS, 1);
}

TEST_F(AddressSpaceTest, AClientThatCannotBeStoppedIsEndedAndItsUnservedChildrenGetSigbus) {
  evict_range(kS, 1);
  space().changing = 1;
  os.fork_event(fd(), ::dup(0));
  for (std::uint64_t i = 0; i < 5'000; ++i)
    os.range_event(fd(), UFFD_EVENT_UNMAP, kE + i * kPage, kE + (i + 1) * kPage);
  for (int i = 0; i < 100; ++i) step();
  EXPECT_TRUE(os.signals.empty());
  os.clock_ns += 10'000'000'000;
  for (int i = 0; i < 5; ++i) step();
  ASSERT_FALSE(os.signals.empty());
  EXPECT_EQ(os.signals[0], SIGKILL);
  EXPECT_EQ(doomed.size(), 1U) << "its child would wait for ever";
  // Should it live on all the same (its pid is not known), it gets SIGBUS and no bytes.
  space().changing = 0;
  os.fault(fd(), kS, false);
  for (int i = 0; i < 60; ++i) step();
  EXPECT_TRUE(space().poisoned.contains(kS));
  EXPECT_FALSE(space().present.contains(kS));
}

TEST_F(AddressSpaceTest, ALargeUnmapIsDoneInSlices) {
  constexpr std::uint64_t kMany = 40'000;
  for (std::uint64_t i = 0; i < kMany; ++i) evict(*client, kS + i * kPage, kZeros);
  os.drop_range(fd(), kS, kMany);
  os.range_event(fd(), UFFD_EVENT_UNMAP, kS, kS + kMany * kPage);
  step();
  EXPECT_TRUE(client->unapplied.load());
  EXPECT_GT(client->map->out_total(), 0U);
  for (int i = 0; i < 5; ++i) step();
  EXPECT_FALSE(client->unapplied.load());
  EXPECT_EQ(client->map->out_total(), 0U);
  expect_conserved(*client);
}

TEST_F(AddressSpaceTest, AChildThatCannotBeServedCostsItsParentNothing) {
  evict_range(kS, 1);
  refuse_children = true;
  os.fork_event(fd(), ::dup(0));
  step();
  EXPECT_TRUE(os.signals.empty());
  EXPECT_EQ(children_ready, 0);
  expect_range(*client, kS, 1);
}

TEST_F(AddressSpaceTest, AChildGetsTheMiddleWhenItsEndsWereUnmappedBeforeTheFork) {
  evict_range(kS, 1);
  const int child_fd = ::dup(0);
  os.spaces[child_fd].registered = space().registered;
  for (const std::uint64_t i : {0ULL, 7ULL}) {
    os.spaces[child_fd].registered.erase(kS + i * kPage);
    os.drop_range(fd(), kS + i * kPage, 1);
    os.range_event(fd(), UFFD_EVENT_UNMAP, kS + i * kPage, kS + (i + 1) * kPage);
  }
  os.fork_event(fd(), child_fd);
  step();
  ASSERT_EQ(children.size(), 1U);
  EXPECT_EQ(children[0]->map->out_total(), 6U);
  for (std::uint64_t i = 1; i < 7; ++i) expect_reads(*children[0], kS + i * kPage, bytes_of(1 + i));
}

}  // namespace
}  // namespace foldswap
