// The simulated disk does what it is told, and the rest as a disk does.
#include "daemon/testing/fake_disk.h"

#include <gtest/gtest.h>
#include <poll.h>

#include <array>

#include "daemon/testing/fake_os.h"

namespace foldswap {
namespace {

constexpr std::size_t kBlock = FakeDisk::kBlock;

struct FakeDiskTest : ::testing::Test {
  [[nodiscard]] std::span<std::byte> block(std::size_t index) {
    return std::span(memory->bytes).subspan(index * kBlock, kBlock);
  }
  void fill(std::size_t index, int value) {
    std::ranges::fill(block(index), static_cast<std::byte>(value));
  }
  // Result of each that has ended, in that order.
  std::vector<std::pair<std::uint64_t, int>> ended() {
    std::array<IoDone, 16> done{};
    std::vector<std::pair<std::uint64_t, int>> out;
    const std::size_t n = ring->reap(done);
    for (std::size_t i = 0; i < n; ++i) out.emplace_back(done[i].tag, done[i].result);
    return out;
  }
  int one(bool write, std::size_t index, std::uint64_t offset) {
    EXPECT_TRUE(write ? ring->write(block(index), offset, 1) : ring->read(block(index), offset, 1));
    EXPECT_EQ(ring->submit(), 1);
    const auto done = ended();
    EXPECT_EQ(done.size(), 1U);
    return done.empty() ? 0 : done.front().second;
  }
  [[nodiscard]] std::byte there(std::uint64_t offset) {
    return os.disk.contents(file.get(), offset, 1).front();
  }

  struct Memory {
    alignas(kBlock) std::array<std::byte, 16 * kBlock> bytes{};
  };
  FakeOs os;
  UniqueFd file = os.unnamed_file("/anywhere", true).value();
  std::unique_ptr<Memory> memory = std::make_unique<Memory>();
  std::unique_ptr<IoRing> ring = os.io_ring(file.get(), memory->bytes, 4).value();
};

TEST_F(FakeDiskTest, WhatIsWrittenIsReadAndTheEndIsShort) {
  fill(0, 7);
  EXPECT_EQ(one(true, 0, kBlock), kBlock);
  EXPECT_EQ(one(false, 1, kBlock), kBlock);
  EXPECT_TRUE(std::ranges::equal(block(0), block(1)));
  EXPECT_EQ(one(false, 1, 0), kBlock);  // before it: zeros
  EXPECT_EQ(block(1).front(), std::byte{0});
  EXPECT_EQ(one(false, 1, 2 * kBlock), 0);
  EXPECT_EQ(one(false, 1, 100), -EINVAL);  // not at a block, but opened with O_DIRECT
}

TEST_F(FakeDiskTest, EndsInTheOrderThatTheTestWants) {
  os.disk.auto_complete = false;
  pollfd ready{ring->fd(), POLLIN, 0};
  for (std::uint64_t tag = 0; tag < 4; ++tag) {
    fill(tag, static_cast<int>(tag + 1));
    ASSERT_TRUE(ring->write(block(tag), 0, tag));
  }
  EXPECT_FALSE(ring->write(block(0), 0, 9));
  EXPECT_EQ(os.disk.under_way(), 0U);  // not submitted yet
  EXPECT_EQ(ring->submit(), 4);
  EXPECT_TRUE(ended().empty());
  EXPECT_EQ(::poll(&ready, 1, 0), 0);
  os.disk.complete_at(2);
  EXPECT_EQ(::poll(&ready, 1, 0), 1);
  EXPECT_EQ(os.disk.complete_io(1), 1U);
  const auto first = ended();
  EXPECT_EQ(first, (decltype(first){{2, kBlock}, {0, kBlock}}));
  EXPECT_EQ(::poll(&ready, 1, 0), 0);
  EXPECT_EQ(there(0), std::byte{1});
  ring.reset();  // the other two end with it
  EXPECT_EQ(os.disk.under_way(), 0U);
  EXPECT_NE(there(0), std::byte{1});
}

TEST_F(FakeDiskTest, FaultsAreInjected) {
  fill(0, 1);
  fill(1, 2);
  ASSERT_EQ(one(true, 0, 0), kBlock);
  ASSERT_EQ(one(true, 1, 0), kBlock);
  os.disk.on_io = [](FakeIo& io) { return io.before_last = true, 0; };
  EXPECT_EQ(one(false, 2, 0), kBlock);
  EXPECT_EQ(block(2).front(), std::byte{1});  // old contents
  os.disk.on_io = [](FakeIo& io) { return io.flip_bit = 9, 0; };
  EXPECT_EQ(one(false, 2, 0), kBlock);
  EXPECT_EQ(block(2)[1], std::byte{0});
  EXPECT_EQ(block(2)[2], std::byte{2});
  os.disk.on_io = [](FakeIo&) { return -EIO; };
  EXPECT_EQ(one(true, 0, 0), -EIO);
  EXPECT_EQ(there(0), std::byte{2});
  os.disk.on_io = [](FakeIo&) { return 512; };
  EXPECT_EQ(one(true, 0, 0), 512);  // short, and so it says
  os.disk.on_io = [](FakeIo& io) { return io.moved /= 2, 0; };
  EXPECT_EQ(one(true, 0, kBlock), kBlock);  // torn: it says nothing
  os.disk.on_io = [](FakeIo& io) { return io.lands_at += 2 * kBlock, 0; };
  EXPECT_EQ(one(true, 1, kBlock), kBlock);  // astray
  EXPECT_EQ(there(511), std::byte{1});
  EXPECT_EQ(there(512), std::byte{2});
  EXPECT_EQ(there(kBlock + kBlock / 2 - 1), std::byte{1});
  EXPECT_EQ(there(kBlock + kBlock / 2), std::byte{0});
  EXPECT_EQ(there(3 * kBlock), std::byte{2});
}

TEST_F(FakeDiskTest, RoomIsTakenAndGivenBack) {
  os.disk.info.free_bytes = 4 * kBlock;
  EXPECT_EQ(os.allocate(file.get(), 0, 3 * kBlock), 0);
  EXPECT_EQ(os.file_system("/anywhere")->free_bytes, kBlock);
  EXPECT_EQ(one(true, 0, 0), kBlock);  // its room is taken already
  EXPECT_EQ(os.allocated_bytes(file.get()).value(), 3 * kBlock);
  EXPECT_EQ(os.allocate(file.get(), 3 * kBlock, 2 * kBlock), -ENOSPC);
  EXPECT_EQ(one(true, 0, 8 * kBlock), -ENOSPC);
  os.disk.fail_punches = {EIO};
  EXPECT_EQ(os.punch(file.get(), 0, 3 * kBlock), -EIO);
  EXPECT_EQ(os.punch(file.get(), 0, 3 * kBlock), 0);
  EXPECT_EQ(os.file_system("/anywhere")->free_bytes, 3 * kBlock);
  EXPECT_EQ(there(0), std::byte{0});
  os.disk.fail_allocates = {EIO};
  EXPECT_EQ(os.allocate(file.get(), 0, kBlock), -EIO);
}

// Descriptors of memory files stay the real system's, whatever number they have.
TEST_F(FakeDiskTest, KnowsItsFilesByMoreThanTheirNumber) {
  const int number = file.get();
  const UniqueFd again(::dup(number));
  file.reset();
  auto memory_file = os.memory_file("other", kBlock).value();
  ASSERT_EQ(memory_file.get(), number);
  EXPECT_FALSE(os.disk.has(number));
  EXPECT_TRUE(os.disk.has(again.get()));
  EXPECT_EQ(os.allocate(number, 0, kBlock), 0);
  EXPECT_EQ(os.allocated_bytes(again.get()).value(), 0U);
}

}  // namespace
}  // namespace foldswap
