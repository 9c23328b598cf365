// What the next daemon makes of what a dead one left: page maps, records, inboxes. Real deaths
// under load are tests/e2e/test_kill.py's; the pool's own are pool/take_over_*_test.cc.
#include "daemon/recovery/take_over.h"

#include <fcntl.h>
#include <sys/mman.h>

#include <map>
#include <random>

#include "daemon/state/event_journal.h"
#include "daemon/state/noted_fds.h"
#include "daemon/testing/core_fixture.h"

namespace foldswap {
namespace {

TEST(StateTakeOver, CountersAndRecordsAreWhatTheyWere) {
  const auto state = State::create(real_os()).value();
  EXPECT_TRUE(State::begun(real_os(), state->fd()));
  bump(state->counters().evict_pages, 7);
  ClientRecord* const record = state->claim_record();
  record->quarantine[0].count = 3;
  const auto next = State::take_over(real_os(), UniqueFd(::dup(state->fd()))).value();
  EXPECT_EQ(next->header().incarnation, 2U);
  EXPECT_EQ(next->counters().evict_pages.load(), 7U);
  ASSERT_EQ(next->records().size(), 1U);
  EXPECT_EQ(next->records()[0]->id, record->id);
  EXPECT_EQ(next->records()[0]->quarantine[0].count, 3U);
}

TEST(StateTakeOver, FaultsAddUpAfterADeathBetweenTwoCounters) {
  const auto state = State::create(real_os()).value();
  bump(state->counters().faults_total, 8);
  bump(state->counters().faults_zero, 6);
  bump(state->counters().faults_disk, 3);
  const auto next = State::take_over(real_os(), UniqueFd(::dup(state->fd()))).value();
  EXPECT_EQ(next->counters().faults_total.load(), 9U);
}

TEST(StateTakeOver, AnotherVersionIsRefusedByName) {
  const auto state = State::create(real_os()).value();
  state->header().version = 999;
  const auto next = State::take_over(real_os(), UniqueFd(::dup(state->fd())));
  ASSERT_FALSE(next.has_value());
  EXPECT_NE(next.error().text().find("version 999"), std::string::npos) << next.error().text();
  EXPECT_NE(next.error().text().find("drain"), std::string::npos) << next.error().text();
}

TEST(StateTakeOver, WhatIsNoStateIsRefused) {
  const UniqueFd empty(::memfd_create("empty", MFD_CLOEXEC));
  EXPECT_FALSE(State::begun(real_os(), empty.get()));
  EXPECT_FALSE(State::take_over(real_os(), UniqueFd(::dup(empty.get()))).has_value());
  ASSERT_EQ(::ftruncate(empty.get(), static_cast<off_t>(State::file_bytes())), 0);
  EXPECT_FALSE(State::begun(real_os(), empty.get())) << "no daemon came so far";
  EXPECT_FALSE(State::take_over(real_os(), UniqueFd(::dup(empty.get()))).has_value());
}

class PageMapTakeOver : public ::testing::Test {
 protected:
  void set(std::uint64_t page, Entry entry) {
    ASSERT_NE(map->ensure(page), nullptr);
    ASSERT_TRUE(map->replace(page, map->load(page), entry));
    truth[page] = entry;
  }
  Result<std::unique_ptr<PageMap>> next() {
    return PageMap::take_over(real_os(), UniqueFd(::dup(map->fd())));
  }
  std::unique_ptr<PageMap> map = PageMap::create(real_os()).value();
  std::map<std::uint64_t, Entry> truth;
};

TEST_F(PageMapTakeOver, EveryEntryIsThereAndCounted) {
  std::mt19937_64 random(3);
  for (int i = 0; i < 5'000; ++i) {
    const std::uint64_t page = (random() % 8 << 40) + random() % 4'096 * kPage * 37;
    const Entry kinds[] = {Entry::none(1), Entry::object(random() >> 30), Entry::bad(),
                           Entry::same(random() % 1'000).value(), Entry::out(1, 3, 9)};
    set(page, kinds[random() % std::size(kinds)]);
  }
  const auto after = next().value();
  std::uint64_t out = 0, evicted = 0;
  for (const auto& [page, entry] : truth) {
    EXPECT_EQ(after->load(page), entry);
    out += entry.state() != PageState::none ? 1 : 0;
    evicted += entry.evicted() ? 1 : 0;
  }
  EXPECT_EQ(after->out_total(), out);
  EXPECT_EQ(after->evicted_total(), evicted);
  std::uint64_t walked = 0;
  for (auto p = after->next_out(0, kAddressEnd); p < kAddressEnd;
       p = after->next_out(p + kPage, kAddressEnd))
    ++walked;
  EXPECT_EQ(walked, out);
}

TEST_F(PageMapTakeOver, LeavesThatAreFreeAreUsedAgainAndEmpty) {
  constexpr std::uint64_t kA = 1ULL << 40, kB = kA + (1ULL << 30);
  set(kA, Entry::object(5));
  set(kA, Entry::none(3));           // heat is left in the leaf
  (void)map->unlink_empty_leaves();  // and its daemon dies before it can be punched
  const auto after = next().value();
  const std::uint64_t bytes = after->resident_bytes();
  ASSERT_NE(after->ensure(kB), nullptr);
  EXPECT_EQ(after->resident_bytes(), bytes + kPage);
  EXPECT_EQ(after->load(kB), Entry());
  EXPECT_EQ(after->load(kA), Entry());
}

TEST_F(PageMapTakeOver, NonsenseIsRefused) {
  constexpr std::uint64_t kA = 1ULL << 40;
  set(kA, Entry::object(5));
  map->find(kA)->store(7);  // a state that there is not
  EXPECT_FALSE(next().has_value());
}

class TakeOverTest : public CoreFixture {
 protected:
  static constexpr std::uint64_t kA = 0x7f0000000000;

  void SetUp() override {
    CoreFixture::SetUp();
    client->record.life = Life::serving;
  }
  // The daemon is dead: nothing of it is destroyed, and its descriptors stay.
  void die() {
    struct Dead {
      std::unique_ptr<State> state;
      std::unique_ptr<Pool> pool;
      std::unique_ptr<PageStore> store;
      std::unique_ptr<FaultService> service;
      std::shared_ptr<Client> client;
    };
    static auto* const dead = new std::vector<Dead>();
    NotedFd* const files = state->header().files;
    files[kPoolFrames].note(::dup(pool->layout().frames_fd()));
    files[kPoolRecords].note(::dup(pool->layout().records_fd()));
    files[kPoolMeta].note(::dup(pool->layout().meta_fd()));
    const int state_fd = ::dup(state->fd());
    dead->push_back({std::move(state), std::move(pool), std::move(store), std::move(service),
                     std::move(client)});
    state = State::take_over(os, UniqueFd(state_fd)).value();
    TakeOver take_over(os, *state);
    Left left;
    const auto make = [this](ClientParts parts) {
      auto made = std::make_shared<Client>(std::move(parts), os);
      when_made = {made->record.doomed != 0, static_cast<ClientState>(made->record.state.load())};
      return made;
    };
    const Status taken = take_over.all(make, pool_config, left);
    ASSERT_TRUE(taken) << taken.error().text();
    clients = std::move(left.clients);
    pool = std::move(left.pool);
    store = std::make_unique<PageStore>(*pool);
    take_over.settle(clients, *store);
    service = std::make_unique<FaultService>(os, *state, *store, *this, tunables,
                                             PageCodec::make().value());
    client = clients.empty() ? nullptr : clients.front();
  }
  static uffd_msg event(std::uint8_t kind, std::uint64_t start, std::uint64_t end) {
    uffd_msg message{};
    message.event = kind;
    message.arg.remove.start = start;
    message.arg.remove.end = end;
    return message;
  }
  std::vector<std::shared_ptr<Client>> clients;
  // What yet another daemon would find, if this one died as soon as the client was made.
  struct {
    bool doomed = false;
    ClientState state = ClientState::active;
  } when_made;
};

TEST_F(TakeOverTest, WhatIsOutComesBackAsItWas) {
  for (std::uint64_t i = 0; i < 200; ++i) evict(*client, kA + i * kPage, bytes_of(i));
  evict(*client, kA + 200 * kPage, kZeros);
  die();
  ASSERT_EQ(clients.size(), 1U);
  EXPECT_FALSE(client->doomed());
  EXPECT_EQ(client->evicted_pages(), 201U);
  expect_conserved(*client);
  for (std::uint64_t i = 0; i < 200; ++i) expect_reads(*client, kA + i * kPage, bytes_of(i));
  expect_reads(*client, kA + 200 * kPage, kZeros);
  EXPECT_EQ(pool->stats().objects, 0U);
}

TEST_F(TakeOverTest, DeathAfterDeath) {
  for (std::uint64_t i = 0; i < 50; ++i) evict(*client, kA + i * kPage, bytes_of(i));
  for (int deaths = 0; deaths < 5; ++deaths) die();
  EXPECT_EQ(state->header().incarnation, 6U);
  for (std::uint64_t i = 0; i < 50; ++i) expect_reads(*client, kA + i * kPage, bytes_of(i));
}

TEST_F(TakeOverTest, ThePageWins) {
  evict(*client, kA, bytes_of(1));
  space().present[kA] = bytes_of(2);  // copied back, and written to since
  die();
  EXPECT_EQ(client->map->load(kA).state(), PageState::none);
  EXPECT_EQ(client->evicted_pages(), 0U);
  EXPECT_EQ(pool->stats().objects, 0U);
  EXPECT_TRUE(space().present[kA] == bytes_of(2));
}

// Another page may be there by now, and the one that the entry means have moved on.
TEST_F(TakeOverTest, ThePageDoesNotWinWhileAnEventWaits) {
  evict(*client, kA, bytes_of(1));
  space().present[kA] = bytes_of(2);
  client->record.inbox[0] = event(UFFD_EVENT_UNMAP, kA + 64 * kPage, kA + 65 * kPage);
  client->record.inbox_count = 1;
  die();
  EXPECT_EQ(client->map->load(kA).state(), PageState::object);
  EXPECT_TRUE(client->unapplied);
}

TEST_F(TakeOverTest, WhatWasReadAndNotCountedIsApplied) {
  evict(*client, kA, bytes_of(1));
  evict(*client, kA + kPage, bytes_of(2));
  uffd_msg fault{};
  fault.event = UFFD_EVENT_PAGEFAULT;
  client->record.inbox[0] = fault;
  client->record.inbox[1] = event(UFFD_EVENT_UNMAP, kA, kA + kPage);
  os.drop_range(fd(), kA, 1);
  die();
  EXPECT_EQ(client->record.inbox_count, 2U);
  EXPECT_TRUE(client->unapplied);
  (void)service->step(*client);
  EXPECT_EQ(client->record.inbox_count, 0U);
  EXPECT_EQ(client->map->load(kA).state(), PageState::none);
  expect_reads(*client, kA + kPage, bytes_of(2));
}

TEST_F(TakeOverTest, NobodyGuessesWhereAPageIs) {
  {
    const RankedLock lock(client->mutex);
    ASSERT_NE(client->map->ensure(kA), nullptr);
  }
  ASSERT_TRUE(client->map->replace(kA, Entry(), Entry::out(0, 3, 17)));
  die();
  EXPECT_TRUE(client->doomed());
}

// HAZARDS 2. The dead daemon took a range off, and had not looked whether something came to lie
// there: it did.
TEST_F(TakeOverTest, WhatWasBeingUnregisteredIsRegisteredAgain) {
  constexpr std::uint64_t kB = kA + (1ULL << 30);
  for (std::uint64_t i = 0; i < 4; ++i) evict(*client, kA + i * kPage, bytes_of(i));
  os.drop_range(fd(), kA, 4);
  os.remap(fd(), kA, kB, 4 * kPage);
  os.range_event(fd(), UFFD_EVENT_UNMAP, kA, kA + 4 * kPage);
  client->record.unregistering.note(kB, 8 * kPage);
  space().not_anonymous.insert(kB + 6 * kPage);
  die();
  EXPECT_EQ(client->record.unregistering.bytes(), 0U);
  for (std::uint64_t i = 0; i < 8; ++i)
    EXPECT_EQ(space().registered.contains(kB + i * kPage), i != 6);
  (void)service->step(*client);
  (void)service->step(*client);
  EXPECT_FALSE(client->doomed());
  for (std::uint64_t i = 0; i < 4; ++i) expect_reads(*client, kB + i * kPage, bytes_of(i));
}

// Whoever asks for all that there is holds nobody else up.
TEST_F(TakeOverTest, WhatWasBeingUnregisteredIsNotLookedAtForEver) {
  client->record.unregistering.note(0, kAddressEnd);
  space().not_anonymous.insert(kA);
  die();
  EXPECT_TRUE(client->doomed());
}

// A death in the middle of taking over is one like any other.
TEST_F(TakeOverTest, MovesHalfMadeAreFinishedByWhoeverComesLast) {
  constexpr std::uint64_t kB = kA + (1ULL << 30);
  for (std::uint64_t i = 0; i < 4; ++i) evict(*client, kA + i * kPage, bytes_of(i));
  evict(*client, kB + kPage, bytes_of(9));  // is under what comes there
  client->record.inbox[0] = event(UFFD_EVENT_UNMAP, kA, kA + 4 * kPage);
  client->record.inbox_count = 1;
  const Move move[] = {{kA, kB, 4 * kPage}};
  note_moves(client->record, move);
  store->move(*client, kA, kB, client->map->load(kA));
  const Entry twice = client->map->load(kA + kPage);
  os.drop_range(fd(), kA, 4);
  os.add_range(fd(), kB, 4);
  client->record.plan.cleared = 1;
  (void)client->map->replace(kB + kPage, client->map->load(kB + kPage), twice);
  die();
  die();
  EXPECT_EQ(client->record.plan.count.load(), 0U);
  for (int i = 0; i < 3; ++i) (void)service->step(*client);
  EXPECT_EQ(client->record.inbox_count, 0U);
  EXPECT_EQ(client->evicted_pages(), 4U);
  for (std::uint64_t i = 0; i < 4; ++i) expect_reads(*client, kB + i * kPage, bytes_of(i));
  EXPECT_EQ(client->map->out_total(), 0U);
  EXPECT_EQ(pool->stats().objects, 0U);
}

TEST_F(TakeOverTest, ARecordThatCannotBeEndsItsClientAlone) {
  client->record.quarantine_now = 7;
  die();
  EXPECT_TRUE(client->doomed());
  const RankedLock lock(client->mutex);
  EXPECT_TRUE(client->quarantine.empty());
}

// It gets another map, which is empty and looks whole: whoever comes next must know better.
TEST_F(TakeOverTest, WhoseMapIsDamagedIsDoomedBeforeItHasAnother) {
  evict(*client, kA, bytes_of(1));
  client->map->find(kA)->store(7);  // a state that there is not
  die();
  EXPECT_TRUE(when_made.doomed);
  EXPECT_TRUE(client->doomed());
}

TEST_F(TakeOverTest, WhoHasEndedStaysSoWhoeverDies) {
  client->set_state(ClientState::exiting);
  die();
  EXPECT_EQ(when_made.state, ClientState::exiting);
  EXPECT_TRUE(client->gone());
}

TEST_F(TakeOverTest, APlanThatCannotBeEndsTheClient) {
  client->record.plan.count = kInboxMessages + 1;
  die();
  EXPECT_TRUE(client->doomed());
}

// The child's record is there, and some of its pages: it gets the others, and nothing twice.
TEST_F(TakeOverTest, AForkHalfDoneIsFinished) {
  for (std::uint64_t i = 0; i < 20; ++i) evict(*client, kA + i * kPage, bytes_of(i));
  evict(*client, kA + 20 * kPage, kZeros);
  const auto child = make_client();
  child->record.life = Life::forming;
  child->record.parent_id = client->id;
  os.add_range(child->uffd.get(), kA, 21);
  for (const std::uint64_t i : {0, 1, 2, 3, 20})
    ASSERT_TRUE(store->share(*child, kA + i * kPage, client->map->load(kA + i * kPage)));
  uffd_msg fork{};
  fork.event = UFFD_EVENT_FORK;
  fork.arg.fork.ufd = kForkTaken;
  client->record.inbox[0] = fork;
  client->record.inbox_count = 1;
  const int child_fd = child->uffd.get();
  die();
  ASSERT_EQ(clients.size(), 2U);
  EXPECT_FALSE(TakeOver::complete(*clients[1], clients));
  for (int i = 0; i < 10 && children_ready == 0; ++i) (void)service->step(*client);
  EXPECT_EQ(children_ready, 1);
  Client& taken = *clients[1];
  ASSERT_EQ(taken.uffd.get(), child_fd);
  EXPECT_FALSE(taken.doomed());
  EXPECT_EQ(taken.evicted_pages(), 21U);
  expect_conserved(taken);
  for (std::uint64_t i = 0; i < 20; ++i) {
    expect_reads(*client, kA + i * kPage, bytes_of(i));
    expect_reads(taken, kA + i * kPage, bytes_of(i));
  }
  expect_reads(taken, kA + 20 * kPage, kZeros);
  EXPECT_EQ(pool->stats().objects, 0U);
}

// One whose parent still has a FORK for it is its parent's reader's to serve, and nobody else's;
// the other one is no child of that FORK.
TEST_F(TakeOverTest, WhoIsServedIsDecidedBeforeAnybodyIs) {
  evict(*client, kA, bytes_of(1));
  const auto whole = make_client(), half = make_client();
  for (const auto& child : {whole, half}) {
    child->record.life = Life::forming;
    child->record.parent_id = client->id;
  }
  uffd_msg fork{};
  fork.event = UFFD_EVENT_FORK;
  fork.arg.fork.ufd = static_cast<std::uint32_t>(half->uffd.get());
  client->record.inbox[0] = fork;
  client->record.inbox_count = 1;
  const std::uint64_t half_id = half->id;
  die();
  ASSERT_EQ(clients.size(), 3U);
  const auto served = TakeOver::complete(clients);
  ASSERT_EQ(served.size(), 2U);
  for (const auto& c : served) {
    EXPECT_NE(c->id, half_id);
    EXPECT_EQ(c->record.life, Life::serving);
  }
  for (int i = 0; i < 10 && children_ready == 0; ++i) (void)service->step(*client);
  EXPECT_EQ(children_ready, 1);
}

TEST_F(TakeOverTest, EntriesThatNameNoObjectArePoisoned) {
  evict(*client, kA, bytes_of(1));
  const Entry entry = client->map->load(kA);
  ASSERT_TRUE(client->map->replace(kA, entry, Entry::object(1ULL << 39)));
  die();
  EXPECT_EQ(client->map->load(kA).state(), PageState::bad);
  EXPECT_EQ(client->evicted_pages(), 0U);
  EXPECT_EQ(state->counters().lost_pages.load(), 1U);
}

TEST_F(TakeOverTest, RecordsOfNobodyAreGivenBack) {
  ClientRecord* const half_made = state->claim_record();
  ASSERT_NE(half_made, nullptr);
  half_made->pid = 5;
  evict(*client, kA, bytes_of(1));
  die();
  EXPECT_EQ(clients.size(), 1U);
  EXPECT_EQ(state->records().size(), 1U);
  expect_reads(*client, kA, bytes_of(1));
}

TEST_F(TakeOverTest, NotedDescriptorsAreTheOnesThatAreKept) {
  const UniqueFd of_nobody(::dup(0));
  uffd_msg fork{};
  fork.event = UFFD_EVENT_FORK;
  const UniqueFd of_a_child(::dup(0));
  fork.arg.fork.ufd = static_cast<std::uint32_t>(of_a_child.get());
  client->record.inbox[0] = fork;  // read, and not counted yet
  const UniqueFd of_a_doomed_one(::dup(0));
  fork.arg.fork.ufd = static_cast<std::uint32_t>(of_a_doomed_one.get());
  state->header().doomed_messages[3] = fork;
  const auto noted = noted_fds(*state);
  EXPECT_TRUE(noted.contains(state->fd()));
  EXPECT_TRUE(noted.contains(client->uffd.get()));
  EXPECT_TRUE(noted.contains(client->map->fd()));
  EXPECT_TRUE(noted.contains(of_a_child.get()));
  EXPECT_TRUE(noted.contains(of_a_doomed_one.get()));
  EXPECT_FALSE(noted.contains(of_nobody.get()));
}

// Its daemon died before the record was a client's: whoever waits on the socket must see it close.
TEST_F(TakeOverTest, DescriptorsOfRecordsOfNobodyAreNotKept) {
  ClientRecord* const half_made = state->claim_record();
  ASSERT_NE(half_made, nullptr);
  const UniqueFd lifeline(::dup(0)), map(::dup(0)), uffd(::dup(0));
  half_made->fds.lifeline.note(lifeline.get());
  half_made->fds.map.note(map.get());
  EXPECT_FALSE(noted_fds(*state).contains(lifeline.get()));
  EXPECT_FALSE(noted_fds(*state).contains(map.get()));
  half_made->fds.uffd.note(uffd.get());
  EXPECT_TRUE(noted_fds(*state).contains(lifeline.get()));
}

}  // namespace
}  // namespace foldswap
