// Every row of DESIGN §6's table and every error code, stepped by hand over FakeOs with contents
// compared.
#include <rapidcheck.h>

#include "daemon/testing/core_fixture.h"

namespace foldswap {
namespace {

constexpr std::uint64_t kA = 0x7f0000000000;

class FaultServiceTest : public CoreFixture {
 protected:
  void step() { (void)service->step(*client); }
  Counters& counters() { return state->counters(); }
};

TEST_F(FaultServiceTest, NothingOutIsAZeroPage) {
  os.add_range(fd(), kA, 2);
  expect_reads(*client, kA, kZeros, false);
  expect_reads(*client, kA + kPage, kZeros, true);
  EXPECT_EQ(counters().faults_zero.load(), 2U);
  EXPECT_EQ(client->record.faults.load(), 2U);
}

// Two threads wait for one page, the answer wakes both, and what they write is evicted before the
// second message is looked at: between that look and the answer no agent may take a page.
TEST_F(FaultServiceTest, AnOldFaultDoesNotBringZerosOverWhatHasLeft) {
  client = make_client(UniqueFd(::dup(0)), true);
  os.add_range(fd(), kA, 1);
  space().present[kA] = bytes_of(5);
  bool locked = false;
  os.before_fill = [&] {
    locked = load_word(client->mailbox->layout) != wire::kLayoutFree;
    if (!locked) evict(*client, kA, bytes_of(5));
  };
  os.fault(fd(), kA, false);
  step();
  EXPECT_TRUE(locked);
  expect_reads(*client, kA, bytes_of(5));
  // And while the agent is at it, the fault waits.
  client->pending.push_back({.page = kA, .read_ns = 1});
  store_word(client->mailbox->layout, (1U << 2) | wire::kLayoutAgent);
  step();
  EXPECT_EQ(client->pending.size(), 1U);
  evict(*client, kA, bytes_of(6));
  store_word(client->mailbox->layout, wire::kLayoutFree);
  os.clock_ns += 1'000'000;
  step();
  EXPECT_TRUE(space().present[kA] == bytes_of(6));
}

TEST_F(FaultServiceTest, EveryKindOfPageComesBackByteForByte) {
  FakeOs::PageBytes same{};
  same.fill(std::byte{0xA5});
  FakeOs::PageBytes noise{};
  std::uint64_t x = 88172645463325252ULL;
  for (auto& b : noise) {
    x ^= x << 13;
    x ^= x >> 7;
    x ^= x << 17;
    b = static_cast<std::byte>(x);
  }
  evict(*client, kA, kZeros);
  evict(*client, kA + 10 * kPage, same);
  evict(*client, kA + 20 * kPage, bytes_of(7));
  evict(*client, kA + 30 * kPage, noise);
  expect_conserved(*client);
  expect_reads(*client, kA, kZeros);
  expect_reads(*client, kA + 10 * kPage, same);
  expect_reads(*client, kA + 20 * kPage, bytes_of(7), true);
  expect_reads(*client, kA + 30 * kPage, noise);
  EXPECT_EQ(counters().faults_same_filled.load(), 2U);
  EXPECT_EQ(counters().faults_pool.load(), 2U);
  EXPECT_EQ(pool->stats().objects + pool->stats().pattern_objects, 0U);
  expect_conserved(*client);
}

TEST_F(FaultServiceTest, ReadAheadDoublesOnlyWhereTheLastWindowEnded) {
  for (std::uint64_t i = 0; i < 40; ++i) evict(*client, kA + i * kPage, bytes_of(i));
  expect_reads(*client, kA, bytes_of(0));
  EXPECT_FALSE(space().present.contains(kA + kPage));
  expect_reads(*client, kA + kPage, bytes_of(1));
  EXPECT_TRUE(space().present.contains(kA + 2 * kPage));
  EXPECT_FALSE(space().present.contains(kA + 3 * kPage));
  expect_reads(*client, kA + 3 * kPage, bytes_of(3));
  EXPECT_TRUE(space().present[kA + 6 * kPage] == bytes_of(6));
  EXPECT_FALSE(space().present.contains(kA + 7 * kPage));
  expect_reads(*client, kA + 20 * kPage, bytes_of(20));
  EXPECT_FALSE(space().present.contains(kA + 21 * kPage));
  EXPECT_EQ(counters().readahead_pages.load(), 4U);
  expect_conserved(*client);
}

TEST_F(FaultServiceTest, AWindowStopsAtWhatIsNotOut) {
  for (std::uint64_t i = 0; i < 8; ++i) {
    if (i != 3) evict(*client, kA + i * kPage, bytes_of(i));
  }
  os.add_range(fd(), kA + 3 * kPage, 1);
  space().present[kA + 3 * kPage] = bytes_of(99);  // resident, newer than anything of ours
  expect_reads(*client, kA, bytes_of(0));
  expect_reads(*client, kA + kPage, bytes_of(1));
  EXPECT_TRUE(space().present[kA + 3 * kPage] == bytes_of(99));
}

TEST_F(FaultServiceTest, Hazard12AWindowStopsAtAGuard) {
  for (std::uint64_t i = 0; i < 8; ++i) evict(*client, kA + i * kPage, bytes_of(i));
  space().guards.insert(kA + 2 * kPage);  // by a raw system call: nobody told us
  expect_reads(*client, kA, bytes_of(0));
  expect_reads(*client, kA + kPage, bytes_of(1));
  EXPECT_FALSE(space().present.contains(kA + 2 * kPage)) << "a guard was overwritten";
  EXPECT_FALSE(space().present.contains(kA + 3 * kPage));
  // Nor does a restore bring back what was advised away.
  client->restore_wanted = true;
  for (int i = 0; i < 20; ++i) step();
  EXPECT_FALSE(client->restore_wanted);
  EXPECT_FALSE(space().present.contains(kA + 2 * kPage));
  EXPECT_TRUE(space().present[kA + 7 * kPage] == bytes_of(7));
  EXPECT_EQ(pool->stats().objects, 0U);
  expect_conserved(*client);
}

TEST_F(FaultServiceTest, Hazard02NothingIsUnregisteredUnderAChange) {
  os.add_range(fd(), kA, 4);
  const auto ask = [&] {
    const RankedLock lock(client->mutex);
    client->unregister_requests = {{kA, 4 * kPage}};
  };
  ask();
  space().changing = 1;  // a move onto this range whose event is not there yet
  for (int i = 0; i < 3; ++i) step();
  EXPECT_TRUE(space().registered.contains(kA));
  space().changing = 0;
  step();
  EXPECT_FALSE(space().registered.contains(kA)) << "it is asked for again";
}

TEST_F(FaultServiceTest, Hazard05AStarvedFaultHasTheThreadsStopped) {
  int stops = 0;
  service = std::make_unique<FaultService>(os, *state, *store, *this, tunables,
                                           PageCodec::make().value(), [&](Client& c) {
                                             EXPECT_TRUE(c.stop_wanted.load());
                                             ++stops;
                                           });
  evict(*client, kA, bytes_of(1));
  space().changing = 1;
  os.fault(fd(), kA, false);
  step();
  EXPECT_EQ(stops, 0) << "a change is nothing special";
  os.clock_ns += 30'000'000;
  step();
  EXPECT_EQ(stops, 1);
  for (int i = 0; i < 10; ++i) step();
  EXPECT_EQ(stops, 1) << "once is enough, until it is over";
  space().changing = 0;
  step();
  EXPECT_TRUE(space().present[kA] == bytes_of(1));
  EXPECT_FALSE(client->stop_wanted.load());
}

TEST_F(FaultServiceTest, AnAgentIsTakenOnlyByTheAddressSpaceItLivesIn) {
  constexpr std::uint64_t kStaging = 0x7f8000000000;
  const int other = ::dup(0);  // somebody else's userfaultfd
  const auto offer = [&](int pagemap_of) {
    client->offer.parts.pagemap = UniqueFd(::dup(0));
    os.pagemap_of[client->offer.parts.pagemap.get()] = pagemap_of;
    client->offer.parts.mailbox = Mapping::anonymous(wire::kMailboxBytes).value();
    client->offer.parts.transfer = Mapping::anonymous(wire::kTransferBytes).value();
    client->offer.staging = kStaging;
    client->offer.pid = 77;
    client->offer_state = AgentOffer::State::made;
    step();
  };
  offer(other);
  EXPECT_EQ(client->offer_state.load(), AgentOffer::State::refused);
  EXPECT_EQ(client->state(), ClientState::agentless);
  space().present.clear();
  evict(*client, kStaging + 5 * kPage, bytes_of(3));  // a hostile choice of "staging"
  offer(fd());
  EXPECT_EQ(client->offer_state.load(), AgentOffer::State::refused);
  expect_reads(*client, kStaging + 5 * kPage, bytes_of(3));
  space().present.clear();
  space().changing = 1;
  offer(fd());
  EXPECT_EQ(client->offer_state.load(), AgentOffer::State::made) << "later";
  space().changing = 0;
  step();
  EXPECT_EQ(client->offer_state.load(), AgentOffer::State::taken);
  EXPECT_EQ(client->state(), ClientState::active);
  EXPECT_EQ(client->pid(), 77);
  ::close(other);
}

TEST_F(FaultServiceTest, Hazard10AWindowThatCannotBeCopiedIsTriedPageByPage) {
  for (std::uint64_t i = 0; i < 4; ++i) evict(*client, kA + i * kPage, bytes_of(i));
  expect_reads(*client, kA, bytes_of(0));
  os.fail_copies = {ENOENT};  // the window crosses a border
  expect_reads(*client, kA + kPage, bytes_of(1));
  EXPECT_FALSE(space().present.contains(kA + 2 * kPage));
  expect_reads(*client, kA + 2 * kPage, bytes_of(2));
}

TEST_F(FaultServiceTest, Hazard10AFaultWhoseMappingIsGoneIsWoken) {
  os.fault(fd(), kA, true);
  step();
  ASSERT_EQ(space().woken.size(), 1U);
  EXPECT_EQ(space().woken[0], kA);
  EXPECT_TRUE(client->pending.empty());
}

TEST_F(FaultServiceTest, APresentPageWinsAndItsWaiterIsWoken) {
  evict(*client, kA, bytes_of(1));
  space().present[kA] = bytes_of(2);
  os.fault(fd(), kA, false);
  step();
  EXPECT_TRUE(space().present[kA] == bytes_of(2));
  EXPECT_EQ(client->map->load(kA).state(), PageState::none);
  EXPECT_EQ(space().woken.size(), 1U);
  EXPECT_EQ(pool->stats().objects, 0U);
  expect_conserved(*client);
}

TEST_F(FaultServiceTest, EagainDrainsEventsFirstAndReusesNothing) {
  evict(*client, kA, bytes_of(1));
  // An unmap becomes visible between our read and our COPY.
  os.fault(fd(), kA, false);
  os.fail_copies = {EAGAIN};
  (void)service->step(*client);
  EXPECT_TRUE(space().present.contains(kA));  // tried again after looking for events
  EXPECT_TRUE(space().present[kA] == bytes_of(1));
}

TEST_F(FaultServiceTest, EagainThatLastsIsGivenUpForAMoment) {
  evict(*client, kA, bytes_of(1));
  space().changing = 1;
  os.fault(fd(), kA, false);
  const StepResult result = service->step(*client);
  EXPECT_GT(result.retry_us, 0U);
  EXPECT_EQ(client->pending.size(), 1U);
  EXPECT_EQ(client->map->load(kA).state(), PageState::object);
  space().changing = 0;
  step();
  EXPECT_TRUE(space().present[kA] == bytes_of(1));
}

TEST_F(FaultServiceTest, EnomemWaitsAndDoesNotWake) {
  evict(*client, kA, bytes_of(1));
  os.fail_copies = {ENOMEM};
  os.fault(fd(), kA, false);
  const StepResult result = service->step(*client);
  EXPECT_GT(result.retry_us, 0U);
  EXPECT_TRUE(space().woken.empty());
  EXPECT_EQ(client->map->load(kA).state(), PageState::object);
  step();
  EXPECT_TRUE(space().present[kA] == bytes_of(1));
}

TEST_F(FaultServiceTest, EsrchEndsTheClientAndFreesEverything) {
  for (std::uint64_t i = 0; i < 5; ++i) evict(*client, kA + i * kPage, bytes_of(i));
  space().gone = true;
  os.fault(fd(), kA, false);
  step();
  step();
  EXPECT_TRUE(client->gone());
  EXPECT_TRUE(client->reader_done);
  EXPECT_EQ(pool->stats().objects, 0U);
  EXPECT_EQ(client->evicted_pages(), 0U);
}

// The record's checksum no longer fits: the page must be poisoned, never guessed at.
TEST_F(FaultServiceTest, AnObjectThatDoesNotVerifyPoisonsItsPageAlone) {
  const Entry good = evict(*client, kA + 8 * kPage, bytes_of(8));
  ASSERT_EQ(good.state(), PageState::object);
  evict(*client, kA, bytes_of(1));
  // The same as damaged bytes to every reader: an id that names nothing.
  const Entry real = client->map->load(kA);
  ASSERT_TRUE(client->map->replace(kA, real, Entry::object(1U << 20)));
  os.fault(fd(), kA, false);
  step();
  EXPECT_TRUE(space().poisoned.contains(kA));
  EXPECT_EQ(client->map->load(kA).state(), PageState::bad);
  EXPECT_FALSE(space().present.contains(kA));
  EXPECT_EQ(counters().faults_poisoned.load(), 1U);
  expect_reads(*client, kA + 8 * kPage, bytes_of(8));
  store->discard(real);
  // Poisoned for as long as it is mapped, then forgotten.
  os.drop_range(fd(), kA, 1);
  os.range_event(fd(), UFFD_EVENT_UNMAP, kA, kA + kPage);
  step();
  EXPECT_EQ(client->map->load(kA).state(), PageState::none);
}

TEST_F(FaultServiceTest, AFaultOnAPageInFlightWaitsAndIsMarkedWanted) {
  os.add_range(fd(), kA, 1);
  {
    const RankedLock lock(client->mutex);
    ASSERT_NE(client->map->ensure(kA), nullptr);
  }
  const Entry out = Entry::out(0, 5, 1);
  ASSERT_TRUE(client->map->replace(kA, Entry(), out));
  os.fault(fd(), kA, false);
  step();
  EXPECT_EQ(client->map->load(kA), out.with_wanted());
  EXPECT_EQ(client->pending.size(), 1U);
  EXPECT_TRUE(client->faults_parked.load());
  // The evictor published it meanwhile: served from the pool.
  const Entry entry =
      store->put(std::span<const std::byte, kPage>(bytes_of(5)), {Codec::lz4, 1}, *codec).value();
  ASSERT_TRUE(store->publish(*client, kA, out.with_wanted(), entry));
  client->pending[0].retry_at_us = 0;
  step();
  EXPECT_TRUE(space().present[kA] == bytes_of(5));
  EXPECT_FALSE(client->faults_parked.load());
}

TEST_F(FaultServiceTest, RestoreBringsEverythingBack) {
  for (std::uint64_t i = 0; i < 300; ++i) evict(*client, kA + 3 * i * kPage, bytes_of(i));
  for (std::uint64_t i = 0; i < 200; ++i)
    evict(*client, kA + (4096 + i) * kPage, bytes_of(1000 + i));
  client->restore_wanted = true;
  for (int i = 0; i < 1000 && client->restore_wanted; ++i) step();
  EXPECT_FALSE(client->restore_wanted.load());
  EXPECT_EQ(client->map->out_total(), 0U);
  for (std::uint64_t i = 0; i < 300; ++i)
    EXPECT_TRUE(space().present[kA + 3 * i * kPage] == bytes_of(i));
  for (std::uint64_t i = 0; i < 200; ++i)
    EXPECT_TRUE(space().present[kA + (4096 + i) * kPage] == bytes_of(1000 + i));
  EXPECT_EQ(pool->stats().objects, 0U);
}

TEST_F(FaultServiceTest, Hazard02UnregisterLeavesARangeWithPagesOutAlone) {
  evict(*client, kA, bytes_of(1));
  os.add_range(fd(), kA + kPage, 1);
  {
    const RankedLock lock(client->mutex);
    client->unregister_requests = {{kA, 2 * kPage}};
  }
  step();
  EXPECT_TRUE(space().registered.contains(kA));
  expect_reads(*client, kA, bytes_of(1));
  {
    const RankedLock lock(client->mutex);
    client->unregister_requests = {{kA, 2 * kPage}};
  }
  step();
  EXPECT_FALSE(space().registered.contains(kA));
}

// Random faults, unmaps, removes, moves and injected errors over a model of what must be read.
TEST_F(FaultServiceTest, PropertyNoByteIsEverWrong) {
  EXPECT_TRUE(rc::check([this] {
    SetUp();
    std::map<std::uint64_t, FakeOs::PageBytes> truth;
    std::uint64_t seed = 1;
    const int steps = *rc::gen::inRange(1, 120);
    for (int i = 0; i < steps; ++i) {
      const std::uint64_t page = kA + static_cast<std::uint64_t>(*rc::gen::inRange(0, 24)) * kPage;
      switch (*rc::gen::inRange(0, 6)) {
        case 0:
        case 1:
          if (client->map->load(page).state() == PageState::none) {
            truth[page] = seed % 5 == 0 ? kZeros : bytes_of(seed);
            ++seed;
            evict(*client, page, truth[page]);
          }
          break;
        case 2: {
          os.drop_range(fd(), page, 2);
          os.range_event(fd(), UFFD_EVENT_UNMAP, page, page + 2 * kPage);
          truth.erase(page);
          truth.erase(page + kPage);
          break;
        }
        case 3: {
          os.range_event(fd(), UFFD_EVENT_REMOVE, page, page + kPage);
          space().present.erase(page);
          if (truth.contains(page)) truth[page] = kZeros;
          break;
        }
        case 4: {
          const std::uint64_t to = page + 1024 * kPage;
          if (!truth.contains(page) || truth.contains(to)) break;
          (void)service->step(*client);
          if (space().present.contains(page)) {
            space().present[to] = space().present[page];
          } else {
            space().present.erase(to);
          }
          os.drop_range(fd(), page, 1);
          os.add_range(fd(), to, 1);
          os.remap(fd(), page, to, kPage);
          os.range_event(fd(), UFFD_EVENT_UNMAP, page, page + kPage);
          truth[to] = truth[page];
          truth.erase(page);
          break;
        }
        default:
          os.fail_copies = {*rc::gen::element(0, EAGAIN, ENOMEM)};
          break;
      }
      (void)service->step(*client);
      expect_conserved(*client);
      if (truth.contains(page) && client->map->load(page).evicted() &&
          *rc::gen::arbitrary<bool>()) {
        expect_reads(*client, page, truth[page], *rc::gen::arbitrary<bool>());
      }
    }
    for (const auto& [page, bytes] : truth) {
      if (!space().present.contains(page)) expect_reads(*client, page, bytes);
      RC_ASSERT(space().present[page] == bytes);
    }
    RC_ASSERT(!::testing::Test::HasFailure());
  }));
}

// What is poisoned keeps its marker when it is unregistered, and is forgotten: no event tells when
// the program has another page there.
TEST_F(FaultServiceTest, APoisonedPageIsForgottenWhenItIsUnregistered) {
  const Entry entry = evict(*client, kA, bytes_of(1));
  ASSERT_TRUE(store->poison(*client, kA, entry));
  client->unregister_requests = {{kA, 2 * kPage}};
  space().changing = 1;
  (void)service->step(*client);
  EXPECT_EQ(client->map->load(kA).state(), PageState::bad);
  space().changing = 0;
  (void)service->step(*client);
  EXPECT_FALSE(space().registered.contains(kA));
  EXPECT_TRUE(space().poisoned.contains(kA));
  EXPECT_EQ(client->map->load(kA).state(), PageState::none);
  space().poisoned.clear();  // discarded without an event
  os.add_range(fd(), kA, 2);
  expect_reads(*client, kA, kZeros);
  EXPECT_TRUE(space().poisoned.empty());
}

}  // namespace
}  // namespace foldswap
