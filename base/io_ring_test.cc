// The kernel's ring, on a file in the temporary directory.
#include "base/io_ring.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <sys/mman.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <map>
#include <vector>

#include "base/mapping.h"

namespace foldswap {
namespace {

constexpr std::size_t kBlock = 4096, kBlocks = 64;
using Ends = std::map<std::uint64_t, std::int32_t>;  // result by tag

struct IoRingTest : ::testing::Test {
  // A directory whose file system has no O_DIRECT tests all but that.
  IoRingTest() {
    auto direct = real_os().unnamed_file(::testing::TempDir(), true);
    file =
        direct ? std::move(*direct) : real_os().unnamed_file(::testing::TempDir(), false).value();
  }

  [[nodiscard]] std::unique_ptr<IoRing> ring(unsigned depth) const {
    auto made = make_io_ring(file.get(), {memory.data(), memory.size()}, depth);
    EXPECT_TRUE(made.has_value()) << made.error().text();
    return std::move(*made);
  }
  [[nodiscard]] std::span<std::byte> block(std::size_t index, std::size_t blocks = 1) const {
    return {memory.data() + index * kBlock, blocks * kBlock};
  }
  static void fill(std::span<std::byte> bytes, unsigned seed) {
    for (std::size_t i = 0; i < bytes.size(); ++i) {
      bytes[i] = static_cast<std::byte>((i * 31 + seed * 7 + (i >> 8)) & 0xff);
    }
  }
  // Submits, and waits for `count` ends, as a daemon's thread does: by poll.
  static Ends finish(IoRing& ring, std::size_t count) {
    EXPECT_GE(ring.submit(), 0);
    Ends ends;
    std::array<IoDone, 3> some{};
    while (ends.size() < count) {
      const std::size_t n = ring.reap(some);
      for (std::size_t i = 0; i < n; ++i)
        EXPECT_TRUE(ends.emplace(some[i].tag, some[i].result).second);
      pollfd ready{ring.fd(), POLLIN, 0};
      if (n != 0) continue;
      EXPECT_TRUE(::poll(&ready, 1, 60'000) == 1 || errno == EINTR);
      if (::testing::Test::HasFailure()) break;
    }
    return ends;
  }

  UniqueFd file;
  Mapping memory = Mapping::anonymous(kBlocks * kBlock).value();
};

TEST_F(IoRingTest, WhatIsWrittenIsRead) {
  const auto r = ring(8);
  EXPECT_EQ(r->note(), "");
  for (unsigned i = 0; i < 8; ++i) {
    fill(block(i), i);
    ASSERT_TRUE(r->write(block(i), i * kBlock, i));
  }
  const Ends written = finish(*r, 8);
  ASSERT_EQ(written.size(), 8U);
  for (const auto& [tag, result] : written) EXPECT_EQ(result, kBlock) << tag;
  ASSERT_TRUE(r->read(block(16, 8), 0, ~0ULL));
  EXPECT_EQ(finish(*r, 1), (Ends{{~0ULL, 8 * kBlock}}));
  EXPECT_TRUE(std::ranges::equal(block(0, 8), block(16, 8)));
}

TEST_F(IoRingTest, TakesNoMoreThanItIsDeep) {
  const auto r = ring(3);  // the kernel makes rings of a power of two
  for (int round = 0; round < 20; ++round) {
    for (unsigned i = 0; i < 3; ++i) ASSERT_TRUE(r->write(block(i), i * kBlock, i));
    EXPECT_FALSE(r->write(block(3), 0, 3));
    EXPECT_FALSE(r->read(block(3), 0, 3));
    EXPECT_EQ(r->submit(), 3);
    EXPECT_FALSE(r->write(block(3), 0, 3));  // until they are reaped, ended or not
    EXPECT_EQ(finish(*r, 3).size(), 3U);
  }
  std::array<IoDone, 4> none{};
  EXPECT_EQ(r->reap(none), 0U);
}

TEST_F(IoRingTest, WhatIsNotSubmittedDoesNotHappen) {
  fill(block(0), 1);
  {
    const auto r = ring(4);
    ASSERT_TRUE(r->write(block(0), 0, 1));
  }
  const auto r = ring(4);
  ASSERT_TRUE(r->read(block(1), 0, 2));
  EXPECT_EQ(finish(*r, 1), (Ends{{2, 0}}));
}

TEST_F(IoRingTest, ReadsPastTheEndAreShort) {
  const auto r = ring(4);
  fill(block(0, 2), 5);
  ASSERT_TRUE(r->write(block(0, 2), 0, 1));
  EXPECT_EQ(finish(*r, 1), (Ends{{1, 2 * kBlock}}));
  ASSERT_TRUE(r->read(block(8, 4), kBlock, 2));
  ASSERT_TRUE(r->read(block(12), 16 * kBlock, 3));
  EXPECT_EQ(finish(*r, 2), (Ends{{2, kBlock}, {3, 0}}));
  EXPECT_TRUE(std::ranges::equal(block(1), block(8)));
}

// The bytes are all there as soon as the ring is gone, so nothing was under way any more.
TEST_F(IoRingTest, DestructorWaitsForWhatIsUnderWay) {
  for (unsigned round = 1; round <= 20; ++round) {
    fill(block(0, kBlocks / 2), round);
    {
      const auto r = ring(kBlocks);
      for (std::size_t i = 0; i < kBlocks / 2; ++i) ASSERT_TRUE(r->write(block(i), i * kBlock, i));
      EXPECT_EQ(r->submit(), kBlocks / 2);
    }
    {
      const auto r = ring(kBlocks);
      std::memset(block(kBlocks / 2).data(), 0, kBlock * kBlocks / 2);
      for (std::size_t i = 0; i < kBlocks / 2; ++i) {
        ASSERT_TRUE(r->read(block(kBlocks / 2 + i), i * kBlock, i));
      }
      EXPECT_EQ(r->submit(), kBlocks / 2);
    }
    ASSERT_TRUE(std::ranges::equal(block(0, kBlocks / 2), block(kBlocks / 2, kBlocks / 2)));
  }
}

// Memory that nobody may write to cannot be registered: that the kernel may write there is asked
// for. It can be written from all the same.
TEST_F(IoRingTest, DoesWithoutRegisteredBuffers) {
  fill(block(0), 9);
  ASSERT_EQ(::mprotect(memory.data(), memory.size(), PROT_READ), 0);
  const auto r = ring(4);
  EXPECT_NE(r->note(), "");
  ASSERT_TRUE(r->write(block(0), 0, 1));
  EXPECT_EQ(finish(*r, 1), (Ends{{1, kBlock}}));
  ASSERT_EQ(::mprotect(memory.data(), memory.size(), PROT_READ | PROT_WRITE), 0);
  ASSERT_TRUE(r->read(block(1), 0, 2));
  EXPECT_EQ(finish(*r, 1), (Ends{{2, kBlock}}));
  EXPECT_TRUE(std::ranges::equal(block(0), block(1)));
}

TEST_F(IoRingTest, ErrorsAreResults) {
  const auto r = ring(4);
  ASSERT_TRUE(r->read(block(0), ~0ULL - kBlock, 1));  // no file is that large
  const Ends ends = finish(*r, 1);
  ASSERT_TRUE(ends.contains(1));
  EXPECT_LT(ends.at(1), 0);
  EXPECT_FALSE(make_io_ring(file.get(), {memory.data(), memory.size()}, 1U << 30).has_value());
}

TEST_F(IoRingTest, RealOsMakesThemOnceToldTo) {
  const std::span<std::byte> buffers{memory.data(), memory.size()};
  EXPECT_EQ(real_os().io_ring(file.get(), buffers, 4).error().code, ENOSYS);
  use_io_uring();
  EXPECT_TRUE(real_os().io_ring(file.get(), buffers, 4).has_value());
  set_io_ring_maker(nullptr);
}

}  // namespace
}  // namespace foldswap
