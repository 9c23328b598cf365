// HAZARDS 19: a daemon may be killed at any instruction of applying address-space events. A child
// process does that while we single-step it; each time that it has changed its files, what is in
// them then is taken over, the rest is applied, and every page must be what it was.
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <optional>

#include "daemon/recovery/take_over.h"
#include "daemon/state/event_journal.h"
#include "daemon/testing/core_fixture.h"
#include "pool/testing/crash_support.h"

namespace foldswap {
namespace {

constexpr std::uint64_t kS = 0x7f0000000000, kT = 0x7f1000000000, kD = 0x7f2000000000;
constexpr std::uint64_t kPages = 8, kBytes = kPages * kPage;

class DaemonCrashTest : public CoreFixture {
 protected:
  void SetUp() override {
    if (test::kUnderTsan || test::kUnderAsan)
      GTEST_SKIP() << "not instruction by instruction under sanitizers";
    pool_config.shards = 1;
    pool_config.limit_bytes = 8 << 20;
    pool_config.frame_bytes_max = 16 << 20;
    pool_config.objects_max = 20'000;
    CoreFixture::SetUp();
    client->record.life = Life::serving;
  }
  void evict_range(std::uint64_t start, std::uint64_t seed, std::uint64_t pages = kPages) {
    for (std::uint64_t i = 0; i < pages; ++i) evict(*client, start + i * kPage, bytes_of(seed + i));
  }
  // It has been read already.
  void has_read(std::uint8_t event, std::uint64_t start, std::uint64_t end) {
    uffd_msg message{};
    message.event = event;
    message.arg.remove.start = start;
    message.arg.remove.end = end;
    client->record.inbox[client->record.inbox_count++] = message;
    client->unapplied = true;
  }
  void has_read_remap(std::uint64_t from, std::uint64_t to) {
    uffd_msg message{};
    message.event = UFFD_EVENT_REMAP;
    message.arg.remap.from = from;
    message.arg.remap.to = to;
    message.arg.remap.len = kBytes;
    client->record.inbox[client->record.inbox_count++] = message;
    client->unapplied = true;
  }
  void expect_range(Client& c, std::uint64_t start, std::uint64_t seed) {
    for (std::uint64_t i = 0; i < kPages; ++i)
      expect_reads(c, start + i * kPage, bytes_of(seed + i));
  }

  // What is left of the dead daemon lives on in this one; descriptors are copies.
  struct Successor {
    std::unique_ptr<State> state;
    std::unique_ptr<Pool> pool;
    std::unique_ptr<PageStore> store;
    std::unique_ptr<FaultService> service;
    std::shared_ptr<Client> client;
  };
  Successor take_over(const test::Snapshot& dead) {
    auto files = dead.files();
    Successor next;
    next.state = State::take_over(os, std::move(files[0])).value();
    ClientRecord& record = *next.state->records().front();
    const auto copy = [](NotedFd& note, UniqueFd fd) { note.note(fd.release()); };
    copy(record.fds.uffd, UniqueFd(::dup(0)));
    copy(record.fds.map, std::move(files[1]));
    copy(record.fds.pidfd, UniqueFd(::dup(0)));
    copy(record.fds.pagemap, UniqueFd(::dup(0)));
    NotedFd* const noted = next.state->header().files;
    copy(noted[kPoolFrames], std::move(files[2]));
    copy(noted[kPoolRecords], std::move(files[3]));
    copy(noted[kPoolMeta], std::move(files[4]));
    os.spaces[record.fds.uffd.get()] = space();
    os.pagemap_of[record.fds.pagemap.get()] = record.fds.uffd.get();
    TakeOver taking(os, *next.state);
    const auto make = [this](ClientParts parts) {
      return std::make_shared<Client>(std::move(parts), os);
    };
    Left left;
    EXPECT_TRUE(taking.all(make, pool_config, left));
    next.pool = std::move(left.pool);
    next.store = std::make_unique<PageStore>(*next.pool);
    taking.settle(left.clients, *next.store);
    next.service = std::make_unique<FaultService>(os, *next.state, *next.store, *this, tunables,
                                                  PageCodec::make().value());
    next.client = left.clients.front();
    return next;
  }
  // `expect` reads all that is there; nothing may be left after it.
  template <typename Expect>
  void die_anywhere(std::uint64_t least_deaths, Expect expect) {
    const int fds[] = {state->fd(), client->map->fd(), pool->layout().frames_fd(),
                       pool->layout().records_fd(), pool->layout().meta_fd()};
    const auto work = [&] {
      for (int i = 0; i < 4; ++i) (void)service->step(*client);
      return true;
    };
    const std::uint64_t deaths =
        test::die_at_every_store(fds, work, [&](const test::Snapshot& dead) {
          Successor next = take_over(dead);
          EXPECT_FALSE(next.client->doomed());
          for (int i = 0; i < 4; ++i) (void)next.service->step(*next.client);
          EXPECT_EQ(next.client->record.inbox_count, space().changing == 0 ? 0U : 1U);
          expect_conserved(*next.client);
          // expect_reads() steps the fixture's.
          std::swap(service, next.service);
          expect(*next.client);
          std::swap(service, next.service);
          EXPECT_EQ(next.client->map->out_total(), 0U);
          EXPECT_EQ(next.pool->stats().objects, 0U);
          os.spaces.erase(next.client->uffd.get());
          return !HasFailure();
        });
    EXPECT_GE(deaths, least_deaths);
    RecordProperty("deaths", static_cast<int>(deaths));
  }
};

TEST_F(DaemonCrashTest, Hazard19_Moves) {
  evict_range(kS, 100);
  evict_range(kT, 200);
  evict_range(kD, 300);  // is under what comes there
  os.drop_range(fd(), kT, kPages);
  has_read_remap(kT, kS);
  has_read(UFFD_EVENT_UNMAP, kT, kT + kBytes);
  has_read_remap(kS, kD);
  has_read(UFFD_EVENT_UNMAP, kS, kS + kBytes);
  die_anywhere(60, [&](Client& c) {
    expect_range(c, kD, 100);
    expect_range(c, kS, 200);
  });
}

// Of what was moved, a part was unmapped at once; another change lets go of something else.
TEST_F(DaemonCrashTest, Hazard19_MovesAndWhatIsUnmapped) {
  evict_range(kS, 100);
  evict_range(kT, 200);
  os.drop_range(fd(), kS, kPages);
  os.drop_range(fd(), kT, 2);
  os.add_range(fd(), kD, kPages);
  os.drop_range(fd(), kD + 3 * kPage, 2);
  has_read_remap(kS, kD);
  has_read(UFFD_EVENT_UNMAP, kS, kS + kBytes);
  has_read(UFFD_EVENT_UNMAP, kD + 3 * kPage, kD + 5 * kPage);
  has_read(UFFD_EVENT_UNMAP, kT, kT + 2 * kPage);
  has_read(UFFD_EVENT_REMOVE, kD, kD + kPage);
  die_anywhere(60, [&](Client& c) {
    for (const std::uint64_t i : {1, 2, 5, 6, 7})
      expect_reads(c, kD + i * kPage, bytes_of(100 + i));
    for (std::uint64_t i = 2; i < kPages; ++i) expect_reads(c, kT + i * kPage, bytes_of(200 + i));
    expect_reads(c, kD, kZeros);
    const RankedLock lock(c.mutex);
    EXPECT_TRUE(c.quarantine.contains(kD));
  });
}

// There and back: the same object is named by both places in between.
TEST_F(DaemonCrashTest, Hazard19_ThereAndBack) {
  evict_range(kS, 100);
  os.add_range(fd(), kD, kPages);
  os.drop_range(fd(), kD, kPages);
  has_read_remap(kS, kD);
  has_read(UFFD_EVENT_UNMAP, kS, kS + kBytes);
  has_read_remap(kD, kS);
  has_read(UFFD_EVENT_UNMAP, kD, kD + kBytes);
  die_anywhere(60, [&](Client& c) { expect_range(c, kS, 100); });
}

TEST_F(DaemonCrashTest, Hazard16_NoQuarantineIsLost) {
  evict_range(kS, 100);
  std::vector<std::uint64_t> pages;
  {
    const RankedLock lock(client->mutex);
    for (std::uint64_t i = 0; i < 6; ++i) {
      pages.push_back(kT + 2 * i * kPage);
      client->quarantine.add(pages.back(), pages.back() + kPage, 1);
    }
  }
  // One that touches some of them, one before, one behind.
  has_read(UFFD_EVENT_REMOVE, kT + kPage, kT + 6 * kPage);
  has_read(UFFD_EVENT_REMOVE, kS, kS + 2 * kPage);
  has_read(UFFD_EVENT_REMOVE, kD, kD + 2 * kPage);
  die_anywhere(60, [&](Client& c) {
    for (std::uint64_t i = 2; i < kPages; ++i) expect_reads(c, kS + i * kPage, bytes_of(100 + i));
    const RankedLock lock(c.mutex);
    for (const std::uint64_t page : pages) EXPECT_TRUE(c.quarantine.contains(page));
    for (const std::uint64_t page : {kT + kPage, kT + 5 * kPage, kS, kS + kPage, kD, kD + kPage})
      EXPECT_TRUE(c.quarantine.contains(page));
    EXPECT_FALSE(c.quarantine.contains(kT + 7 * kPage));
  });
}

// The rest of the inbox moves down over a hundred gaps, and is neither lost nor there twice.
TEST_F(DaemonCrashTest, Hazard19_GapsInTheInboxAreClosed) {
  evict_range(kS, 100);
  for (std::uint64_t i = 0; i < 100; ++i) has_read(0, 0, 0);
  has_read_remap(kS, kD);
  ++space().changing;  // so that it is kept
  die_anywhere(8, [&](Client& c) {
    const int f = c.uffd.get();
    os.spaces[f].changing = 0;
    os.drop_range(f, kS, kPages);
    os.add_range(f, kD, kPages);
    expect_range(c, kD, 100);
  });
}

}  // namespace
}  // namespace foldswap
