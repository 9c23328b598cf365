// What the reader does about mappings that went without an event, that are none of ours, and about
// an agent that is stopped with the layout lock in its hand (HAZARDS 13, 30, 31, 38).
#include <utility>

#include "daemon/testing/core_fixture.h"

namespace foldswap {
namespace {

constexpr std::uint64_t kA = 0x7f0000000000;
constexpr std::uint64_t kStaging = 0x7e0000000000;

class MappingsTest : public CoreFixture {
 protected:
  void SetUp() override {
    CoreFixture::SetUp();
    client = make_client(UniqueFd(::dup(0)), true);
    client->record.staging = kStaging;
    os.add_range(fd(), kStaging, wire::kStagingBytes / kPage);
  }
  StepResult step() {
    os.clock_ns += 10'000'000;
    return service->step(*client);
  }
  // As PROCMAP_QUERY tells of it.
  static uapi::ProcmapQuery mapping(std::uint64_t start, std::uint64_t pages,
                                    std::uint64_t page_size = kPage, std::uint64_t flags = 0) {
    uapi::ProcmapQuery m{};
    m.vma_start = start;
    m.vma_end = start + pages * kPage;
    m.vma_flags = uapi::kVmaReadable | uapi::kVmaWritable | flags;
    m.vma_page_size = page_size;
    return m;
  }
  // These, beside staging.
  void show(std::vector<uapi::ProcmapQuery> mappings) {
    mappings.insert(mappings.begin(), mapping(kStaging, wire::kStagingBytes / kPage));
    os.mappings = std::move(mappings);
  }
  void ask(wire::RequestOp op, std::uint64_t start, std::uint64_t bytes) {
    wire::Request& request = client->mailbox->request;
    request.op = static_cast<std::uint32_t>(op);
    request.start = start;
    request.bytes = bytes;
    store_word(request.seq, load_word(request.served) + 1);
  }
  [[nodiscard]] bool served() const {
    const wire::Request& request = client->mailbox->request;
    return load_word(request.seq) == load_word(request.served);
  }
  [[nodiscard]] PageState state_of(std::uint64_t page) const {
    return client->map->load(page).state();
  }
  [[nodiscard]] bool registered(std::uint64_t page) { return space().registered.contains(page); }
};

TEST_F(MappingsTest, AnEntryWithoutARegisteredMappingIsDropped) {
  for (unsigned i = 0; i < 3; ++i) evict(*client, kA + i * kPage, bytes_of(i));
  os.drop_range(fd(), kA + kPage, 1);
  const auto request = [&] { client->stale_requests = {{kA, 3 * kPage}}; };
  // Not while a change is under way: it may be that a move has taken it elsewhere.
  space().changing = 1;
  request();
  (void)step();
  EXPECT_NE(state_of(kA + kPage), PageState::none);
  space().changing = 0;
  request();
  (void)step();
  EXPECT_EQ(state_of(kA + kPage), PageState::none);
  expect_conserved(*client);
  // Another mapping there reads as zeros, and what was registered all the time is as it was.
  os.add_range(fd(), kA + kPage, 1);
  expect_reads(*client, kA + kPage, kZeros);
  expect_reads(*client, kA, bytes_of(0));
  expect_reads(*client, kA + 2 * kPage, bytes_of(2));
}

TEST_F(MappingsTest, WhatIsOnItsWayOutIsNotStale) {
  {
    const RankedLock lock(client->mutex);
    ASSERT_NE(client->map->ensure(kA), nullptr);
  }
  ASSERT_TRUE(client->map->replace(kA, Entry(), Entry::out(0, 0, 1)));
  client->stale_requests = {{kA, kPage}};
  (void)step();
  EXPECT_EQ(state_of(kA), PageState::out);
}

TEST_F(MappingsTest, HugePagesRegisteredByMistakeAreLetGo) {
  const std::uint64_t huge = kA + wire::kExtentBytes;
  show({mapping(huge, 1'024, wire::kExtentBytes)});
  os.add_range(fd(), huge, 1'024);
  os.fail_copies = {EINVAL};
  os.fault(fd(), huge + 5 * kPage, true);
  (void)step();
  EXPECT_FALSE(registered(huge));
  EXPECT_FALSE(registered(huge + 1'023 * kPage));
  EXPECT_EQ(space().woken, std::vector<std::uint64_t>{huge + 5 * kPage});
  EXPECT_TRUE(client->pending.empty());
}

TEST_F(MappingsTest, MemoryOfOursStaysRegisteredWhateverCopySays) {
  show({mapping(kA, 512)});
  os.add_range(fd(), kA, 512);
  os.fail_copies = {EINVAL};
  os.fault(fd(), kA, true);
  (void)step();
  EXPECT_TRUE(registered(kA));
  EXPECT_EQ(space().woken, std::vector<std::uint64_t>{kA});
}

TEST_F(MappingsTest, UnifyRegistersTheRestOfWhatIsRegisteredInPart) {
  show({mapping(kA, 8), mapping(kA + 8 * kPage, 8), mapping(kA + 16 * kPage, 8)});
  os.add_range(fd(), kA + 8 * kPage, 8);
  ask(wire::RequestOp::unify, kA, 24 * kPage);
  (void)step();
  EXPECT_TRUE(served());
  for (unsigned i = 0; i < 24; ++i) EXPECT_TRUE(registered(kA + i * kPage)) << i;
}

TEST_F(MappingsTest, UnifyLeavesAloneWhatIsNotRegisteredAtAll) {
  show({mapping(kA, 8), mapping(kA + 8 * kPage, 8, kPage, uapi::kVmaShared)});
  ask(wire::RequestOp::unify, kA, 16 * kPage);
  (void)step();
  EXPECT_TRUE(served());
  for (unsigned i = 0; i < 16; ++i) EXPECT_FALSE(registered(kA + i * kPage)) << i;
}

TEST_F(MappingsTest, UnifyRegistersAllThatAStoppedAgentMayRegisterInPart) {
  show({mapping(kA, 16)});
  store_word(client->mailbox->commands[1].state,
             static_cast<std::uint32_t>(wire::CommandState::posted));
  ask(wire::RequestOp::unify, kA, 16 * kPage);
  (void)step();
  EXPECT_TRUE(served());
  for (unsigned i = 0; i < 16; ++i) EXPECT_TRUE(registered(kA + i * kPage)) << i;
}

TEST_F(MappingsTest, UnifyRegistersNothingThatIsShared) {
  show({mapping(kA, 8), mapping(kA + 8 * kPage, 8, kPage, uapi::kVmaShared)});
  os.add_range(fd(), kA, 8);
  ask(wire::RequestOp::unify, kA, 16 * kPage);
  (void)step();
  EXPECT_TRUE(served());
  EXPECT_TRUE(registered(kA));
  EXPECT_FALSE(registered(kA + 8 * kPage));
}

TEST_F(MappingsTest, UnifyRegistersNothingThatIsOutAndStale) {
  evict(*client, kA + 8 * kPage, bytes_of(1));
  os.drop_range(fd(), kA + 8 * kPage, 1);
  show({mapping(kA, 8), mapping(kA + 8 * kPage, 8)});
  os.add_range(fd(), kA, 8);
  ask(wire::RequestOp::unify, kA, 16 * kPage);
  (void)step();
  EXPECT_TRUE(registered(kA + 8 * kPage));
  expect_reads(*client, kA + 8 * kPage, kZeros);
}

// A mapping grows in place over what has gone without an event: that is registered with it.
TEST_F(MappingsTest, UnifyDropsWhatIsStaleBehindTheRange) {
  show({mapping(kA, 8)});
  os.add_range(fd(), kA, 8);
  for (unsigned i = 0; i < 4; ++i) evict(*client, kA + (8 + i) * kPage, bytes_of(i));
  os.drop_range(fd(), kA + 8 * kPage, 3);
  ask(wire::RequestOp::unify, kA, 8 * kPage);
  (void)step();
  for (unsigned i = 0; i < 3; ++i) EXPECT_EQ(state_of(kA + (8 + i) * kPage), PageState::none) << i;
  expect_reads(*client, kA + 11 * kPage, bytes_of(3));
}

TEST_F(MappingsTest, AStoppedAgentsLockIsNotWaitedFor) {
  evict(*client, kA, bytes_of(1));
  evict(*client, kA + kPage, bytes_of(2));
  const std::uint32_t word = (1U << 2) | wire::kLayoutAgent;
  store_word(client->mailbox->layout, word);
  store_word(client->mailbox->layout_agent, 1);
  os.range_event(fd(), UFFD_EVENT_UNMAP, kA, kA + kPage);
  (void)step();
  EXPECT_NE(state_of(kA), PageState::none) << "read under the agent's lock";
  const std::uint32_t epoch = load_word(client->mailbox->epoch);
  client->agent_overdue = true;
  (void)step();
  EXPECT_TRUE(client->revoked);
  EXPECT_GT(load_word(client->mailbox->epoch), epoch);
  EXPECT_TRUE(client->is_void(epoch)) << "a command of then counts";
  EXPECT_FALSE(client->is_void(load_word(client->mailbox->epoch)));
  EXPECT_FALSE(registered(kStaging)) << "a MOVE could still come through";
  EXPECT_FALSE(registered(kStaging + wire::kStagingBytes - kPage));
  EXPECT_EQ(load_word(client->mailbox->layout_agent), 0U) << "callers would wait";
  EXPECT_EQ(state_of(kA), PageState::none);
  expect_reads(*client, kA + kPage, bytes_of(2));
  EXPECT_EQ(load_word(client->mailbox->layout), word) << "the word is the agent's to give back";
  store_word(client->mailbox->layout, wire::kLayoutFree);
  (void)step();
  EXPECT_FALSE(client->revoked);
  EXPECT_TRUE(registered(kStaging)) << "an older library's agent does not look";
  EXPECT_TRUE(registered(kStaging + wire::kStagingBytes - kPage));
}

// The agent goes on just before its commands are revoked once more.
TEST_F(MappingsTest, ASecondRevocationThatFindsTheLockFreeGivesStagingBack) {
  store_word(client->mailbox->layout, (1U << 2) | wire::kLayoutAgent);
  client->agent_overdue = true;
  (void)step();
  EXPECT_TRUE(client->revoked);
  EXPECT_FALSE(registered(kStaging));
  store_word(client->mailbox->layout, wire::kLayoutFree);
  const std::uint32_t epoch = load_word(client->mailbox->epoch);
  client->agent_overdue = true;
  (void)step();
  EXPECT_FALSE(client->revoked);
  EXPECT_TRUE(client->is_void(epoch));
  EXPECT_TRUE(registered(kStaging)) << "MOVE would fail for good";
  EXPECT_TRUE(registered(kStaging + wire::kStagingBytes - kPage));
}

// What is posted while commands are revoked is either of an older epoch, or counts: it must never
// be taken over, because its agent finds the epoch that it expects.
TEST_F(MappingsTest, ACommandPlannedDuringARevocationIsNotTakenForVoid) {
  for (const bool agent_has_lock : {false, true}) {
    store_word(client->mailbox->layout,
               agent_has_lock ? (1U << 2) | wire::kLayoutAgent : std::uint32_t{wire::kLayoutFree});
    bool planned = false;
    std::uint32_t epoch = 0;
    const auto plan = [&] {  // as Evictor::begin_batch does
      epoch = load_word(client->mailbox->epoch);
      planned = !client->revoked;
    };
    os.before_register = plan;
    client->agent_overdue = true;
    (void)step();
    if (planned && epoch == load_word(client->mailbox->epoch)) {
      EXPECT_FALSE(client->is_void(epoch)) << agent_has_lock;
    }
    plan();
    if (planned) {
      EXPECT_FALSE(client->is_void(epoch)) << agent_has_lock;
    }
    os.before_register = nullptr;
  }
}

// The pages are on their way elsewhere, and nobody has read that yet.
TEST_F(MappingsTest, EntriesOfAMoveThatIsNotReadAreNotDropped) {
  const std::uint64_t huge = kA + wire::kExtentBytes, there = kA + 16 * wire::kExtentBytes;
  evict(*client, huge, bytes_of(3));
  show({mapping(huge, 512, wire::kExtentBytes)});
  os.fail_copies = {EINVAL};
  os.fault(fd(), huge + kPage, true);
  os.add_range(fd(), huge + kPage, 1);
  bool moved = false;
  os.before_register = [&] {
    if (std::exchange(moved, true)) return;
    os.drop_range(fd(), huge, 1);
    os.add_range(fd(), there, 1);
    os.remap(fd(), huge, there, kPage);
  };
  (void)step();
  os.before_register = nullptr;
  for (int i = 0; i < 5; ++i) (void)step();
  expect_reads(*client, there, bytes_of(3));
}

TEST_F(MappingsTest, AChildOfAForkReadPastAStoppedAgentEndsWithItsBatch) {
  store_word(client->mailbox->layout, (1U << 2) | wire::kLayoutAgent);
  client->batches = 1;
  client->agent_overdue = true;
  os.fork_event(fd(), ::dup(0));
  (void)step();
  EXPECT_TRUE(client->fork_over_batch);
  // The client ends, and with it the only copy of what was in staging (Evictor::abandon_batches).
  client->batch_lost = true;
  client->batches = 0;
  space().gone = true;
  client->set_state(ClientState::exiting);
  for (int i = 0; i < 5; ++i) (void)step();
  EXPECT_TRUE(client->reader_done);
  EXPECT_EQ(doomed.size() + children.size(), 1U);
  for (const auto& child : children) EXPECT_TRUE(child->doomed());
}

TEST_F(MappingsTest, FaultsAreHeldBackOnlyWhileResultsArrive) {
  evict(*client, kA, bytes_of(1));
  client->hold_above_bytes = 1;
  client->rss_bytes = 1 << 20;
  client->batches = 1;
  client->results_at_us = os.now_us();
  os.fault(fd(), kA, false);
  (void)service->step(*client);
  EXPECT_EQ(client->pending.size(), 1U) << "not held back though the client is over its budget";
  // An agent that is stopped brings no result, and a fault does not wait for one.
  os.clock_ns += 160'000'000;
  (void)service->step(*client);
  EXPECT_TRUE(client->pending.empty());
  EXPECT_TRUE(space().present[kA] == bytes_of(1));
}

TEST_F(MappingsTest, FaultsAreHeldBackForAPartOfASecondOnly) {
  client->hold_above_bytes = 1;
  client->rss_bytes = 1 << 20;
  client->batches = 1;
  // Results keep arriving, and each fault would wait for its own bound.
  std::uint64_t answered = 0, end_ns = os.clock_ns + 1'000'000'000;
  for (std::uint64_t page = kA; os.clock_ns < end_ns; page += kPage) {
    evict(*client, page, bytes_of(page));
    os.fault(fd(), page, false);
    while (!space().present.contains(page) && os.clock_ns < end_ns) {
      client->results_at_us = os.now_us();
      os.clock_ns += 100'000;
      (void)service->step(*client);
    }
    answered += space().present.contains(page) ? 1 : 0;
  }
  EXPECT_GT(answered, 20U);
}

}  // namespace
}  // namespace foldswap
