// Orders of several clients of one fault thread: nobody keeps the others from the disk, whatever he
// does, and what a fault waits for goes before what is written.
#include <random>

#include "daemon/testing/disk_fixture.h"

namespace foldswap {
namespace {

class DiskOrdersTest : public DiskFixture {
 protected:
  static constexpr std::uint64_t kB = kA + (1ULL << 32), kFar = 128 * kPage;
  static constexpr std::uint64_t kFiller = kA + (1ULL << 33);

  void SetUp() override {
    max_segments = 64;
    DiskFixture::SetUp();
    other = &another_client();
  }
  // Pages on disk of both, so far from each other that nothing is read ahead.
  void bring(std::uint64_t pages, std::uint64_t distance = kFar) {
    for (std::uint64_t i = 0; i < pages; ++i) put(*client, kA + i * distance, page_of(4 * i));
    for (std::uint64_t i = 0; i < 8; ++i) put(*other, kB + i * kFar, page_of(90'000 + i));
    for (std::uint64_t i = 0; i < 300; ++i) put(*client, kFiller + i * kPage, page_of(7'000 + i));
    ASSERT_EQ(all_out(), 0U);
    hold_io();
  }
  void fault(Client& c, std::uint64_t page) { os.fault(c.uffd.get(), page, false); }
  // As FaultThread does it, with a disk that does one thing at a time.
  void turn() {
    if (os.disk.under_way() != 0) os.disk.complete_at(0);
    (void)reader().reap();
    for (const auto& one : everybody) (void)service->step(*one);
    os.clock_ns += 1'000'000;
  }
  int turns_until(Client& c, std::uint64_t page, int most) {
    int turns = 0;
    while (look(c, page) == Got::nothing && turns < most) {
      turn();
      ++turns;
    }
    return turns;
  }

  Client* other = nullptr;
};

TEST_F(DiskOrdersTest, ARestoreKeepsNobodyFromTheDisk) {
  bring(400);
  client->restore_wanted = true;
  for (int i = 0; i < 20; ++i) turn();
  fault(*other, kB);
  EXPECT_LT(turns_until(*other, kB, 300), 40);
  EXPECT_TRUE(client->restore_wanted) << "it had ended before";
  let_io_go();
  for (int i = 0; i < 400 && client->restore_wanted; ++i) turn();
  EXPECT_FALSE(client->restore_wanted);
  expect_everything_right();
}

TEST_F(DiskOrdersTest, ARestoreKeepsNoOtherFromTheDisk) {
  bring(400);
  client->restore_wanted = true;
  for (int i = 0; i < 20; ++i) turn();
  other->restore_wanted = true;
  for (int i = 0; i < 150; ++i) turn();
  EXPECT_FALSE(other->restore_wanted);
  EXPECT_TRUE(client->restore_wanted) << "it had ended before";
  let_io_go();
  for (int i = 0; i < 400 && client->restore_wanted; ++i) turn();
  EXPECT_FALSE(client->restore_wanted);
  expect_everything_right();
}

TEST_F(DiskOrdersTest, AClientOfManyThreadsKeepsNobodyFromTheDisk) {
  bring(400);
  for (std::uint64_t i = 0; i < 400; ++i) fault(*client, kA + i * kFar);
  for (int i = 0; i < 20; ++i) turn();
  fault(*other, kB);
  EXPECT_LT(turns_until(*other, kB, 300), 40);
  EXPECT_EQ(look(*client, kA + 399 * kFar), Got::nothing) << "it had ended before";
  expect_everything_right();
}

// Its events cannot be read (it is stopped, or holds its own layout lock): what was read for it
// cannot be delivered.
TEST_F(DiskOrdersTest, AClientThatCannotBeServedKeepsNobodyFromTheDisk) {
  bring(400);
  Client& third = another_client();
  for (std::uint64_t i = 0; i < 8; ++i) share(*client, third, kA + i * kFar);
  for (std::uint64_t i = 8; i < 60; ++i) fault(*client, kA + i * kFar);
  for (std::uint64_t i = 0; i < 8; ++i) fault(third, kA + i * kFar);
  (void)service->step(*client);
  (void)service->step(third);
  os.spaces[fd()].changing = 1;
  os.spaces[third.uffd.get()].changing = 1;
  for (int i = 0; i < 40; ++i) turn();
  ASSERT_EQ(os.disk.under_way(), 0U);
  fault(*other, kB);
  EXPECT_LT(turns_until(*other, kB, 2'000), 100);
  os.spaces[fd()].changing = 0;
  os.spaces[third.uffd.get()].changing = 0;
  os.clock_ns += 2'000'000'000;
  expect_everything_right();
}

TEST_F(DiskOrdersTest, AClientThatHasGoneKeepsNothing) {
  bring(40);
  for (std::uint64_t i = 0; i < 40; ++i) fault(*client, kA + i * kFar);
  (void)service->step(*client);
  os.disk.complete_io();
  (void)reader().reap();
  client->batches = 1;  // the evictor ends it in its own time
  client->set_state(ClientState::exiting);
  (void)service->step(*client);
  std::uint32_t pages = 0;
  EXPECT_EQ(reader().begin(*other, kB, 1, DiskReader::Purpose::back, pages),
            DiskReader::Begun::reading);
  client->batches = 0;
  std::erase_if(truth, [&](const auto& one) { return one.first.first == client.get(); });
  for (int i = 0; i < 100 && !client->reader_done; ++i) (void)service->step(*client);
  expect_everything_right();
}

// Whether it was ordered for that fault or before it.
TEST_F(DiskOrdersTest, AFaultThatWaitsForWhatIsReadAheadIsWaitedFor) {
  bring(64, kPage);
  std::uint32_t pages = 0;
  ASSERT_EQ(reader().begin(*client, kA, 4, DiskReader::Purpose::ahead, pages),
            DiskReader::Begun::reading);
  EXPECT_EQ(traffic.demand.load(), 0U);
  for (int i = 0; i < 3; ++i) {
    fault(*client, kA + (1 + i % 2) * kPage);
    (void)service->step(*client);
    EXPECT_EQ(traffic.demand.load(), 1U) << "read ahead, and waited for";
  }
  let_io_go();
  (void)service->step(*client);
  EXPECT_EQ(traffic.demand.load(), 0U);
  EXPECT_EQ(look(*client, kA + kPage), Got::page);
  expect_everything_right();
}

// -- what changes while an order is under way

TEST_F(DiskOrdersTest, Hazard12AGuardThatCameMeanwhileStays) {
  bring(8, kPage);
  for (const auto purpose :
       {DiskReader::Purpose::demand, DiskReader::Purpose::ahead, DiskReader::Purpose::back}) {
    const std::uint64_t first = kA + (purpose == DiskReader::Purpose::demand ? 0 : 4) * kPage;
    std::uint32_t pages = 0;
    ASSERT_EQ(reader().begin(*client, first, 4, purpose, pages), DiskReader::Begun::reading);
    ASSERT_EQ(pages, 4U);
    const std::uint64_t guard = first + (purpose == DiskReader::Purpose::demand ? 2 : 0) * kPage;
    os.spaces[fd()].guards = {guard};
    os.disk.complete_io();
    (void)service->step(*client);
    EXPECT_EQ(look(*client, guard), Got::nothing);
    EXPECT_EQ(look(*client, kA + kPage), Got::page);
    os.spaces[fd()].guards.clear();
  }
  expect_everything_right();
}

TEST_F(DiskOrdersTest, WhatIsNotWantedAnyMoreIsNoError) {
  bring(4);
  fault(*client, kA);
  (void)service->step(*client);
  ASSERT_EQ(os.disk.under_way(), 1U);
  unmap(*client, kA, 1);
  os.disk.complete_io();
  (void)service->step(*client);
  EXPECT_EQ(os.disk.under_way(), 0U);
  EXPECT_EQ(counters().disk_errors.load(), 0U);
  EXPECT_EQ(counters().lost_pages.load(), 0U);
  expect_everything_right();
}

TEST_F(DiskOrdersTest, PagesThatBecameOthersMeanwhileAreTheOthers) {
  bring(8, kPage);
  std::uint32_t pages = 0;
  ASSERT_EQ(reader().begin(*client, kA, 8, DiskReader::Purpose::ahead, pages),
            DiskReader::Begun::reading);
  ASSERT_EQ(pages, 8U);
  unmap(*client, kA + 3 * kPage, 1);
  put(*client, kA + 3 * kPage, page_of(555));
  unmap(*client, kA + 5 * kPage, 2);
  os.disk.complete_io();
  (void)service->step(*client);
  EXPECT_EQ(look(*client, kA + 2 * kPage), Got::page);
  EXPECT_EQ(look(*client, kA + 3 * kPage), Got::nothing);
  expect_everything_right();
}

}  // namespace
}  // namespace foldswap
