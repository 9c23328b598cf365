// The backing file's account, on the file system and on a simulated disk.
#include "daemon/disk/backing_file.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <set>
#include <thread>

#include "daemon/testing/fake_os.h"

namespace foldswap {
namespace {

namespace fs = std::filesystem;
constexpr std::uint64_t kSegment = BackingFile::kSegmentBytes;
constexpr std::uint64_t kUnit = BackingFile::kUnit;
constexpr std::uint64_t kBlock = BackingFile::kBlock;

std::unique_ptr<BackingFile> open_file(Os& os, State& state, const std::string& directory,
                                       BackingFile::Limits limits) {
  auto file = BackingFile::create(os, state, directory, limits);
  EXPECT_TRUE(file.has_value()) << file.error().text();
  return file ? std::move(*file) : nullptr;
}

void fill(BackingFile& file, std::uint32_t segment, std::uint32_t objects) {
  for (std::uint32_t i = 0; i < objects; ++i) file.fill({segment, i}, kUnit);
}

// Claims one and fills it with objects of one unit each.
std::uint32_t full_segment(BackingFile& file, std::uint32_t objects = 1) {
  const auto claim = file.claim();
  EXPECT_TRUE(claim.has_value()) << claim.error().text();
  fill(file, claim->segment, objects);
  file.written(claim->segment);
  return claim->segment;
}

// -- on a simulated disk

struct BackingFileTest : ::testing::Test {
  std::unique_ptr<BackingFile> make(std::uint64_t segments, std::uint64_t free_min = 0) {
    return open_file(os, *state, "/anywhere", {segments * kSegment, free_min});
  }
  FakeOs os;
  std::unique_ptr<State> state = State::create(os).value();
};

TEST_F(BackingFileTest, SegmentsLiveAndDie) {
  const auto file = make(4);
  const auto claim = file->claim().value();
  EXPECT_EQ(file->used_bytes(), kSegment);
  EXPECT_EQ(file->generation(claim.segment), claim.generation);
  file->fill({claim.segment, 0}, 16);
  file->fill({claim.segment, 1}, 48);
  file->fill({claim.segment, 4}, 32);
  EXPECT_EQ(file->live_objects(), 3U);
  EXPECT_EQ(file->live_bytes(), 96U);
  EXPECT_EQ(file->live_bytes(claim.segment), 96U);
  file->release({claim.segment, 0}, 16);  // while it is being written
  EXPECT_EQ(file->validate(), nullptr);
  file->written(claim.segment);
  EXPECT_EQ(file->collect(), 0U);
  file->release({claim.segment, 1}, 48);
  EXPECT_EQ(file->collect(), 0U);
  EXPECT_EQ(file->used_bytes(), kSegment);
  file->release({claim.segment, 4}, 32);
  EXPECT_EQ(file->validate(), nullptr);
  EXPECT_EQ(file->live_objects(), 0U);
  EXPECT_EQ(file->live_bytes(), 0U);
  EXPECT_EQ(file->used_bytes(), kSegment);  // until it is collected
  EXPECT_EQ(file->collect(), 1U);
  EXPECT_EQ(file->used_bytes(), 0U);
  EXPECT_EQ(file->collect(), 0U);
  EXPECT_EQ(file->validate(), nullptr);
}

// The next daemon tries again, with the same two.
TEST_F(BackingFileTest, WhatCannotBeTakenOverStaysOpen) {
  static BackingFile* const dead = make(4).release();  // its descriptors are the next one's
  ASSERT_NE(dead, nullptr);
  const int file = state->header().files[kBackingFile].get();
  const int account = state->header().files[kBackingAccount].get();
  const std::uint32_t other = 999;
  const off_t version = sizeof(std::uint64_t);
  std::uint32_t was = 0;
  ASSERT_EQ(::pread(account, &was, sizeof(was), version), static_cast<ssize_t>(sizeof(was)));
  ASSERT_EQ(was, BackingFile::kVersion);
  ASSERT_EQ(::pwrite(account, &other, sizeof(other), version), static_cast<ssize_t>(sizeof(other)));
  EXPECT_FALSE(BackingFile::take_over(os, *state).has_value());
  EXPECT_GE(::fcntl(file, F_GETFD), 0);
  EXPECT_GE(::fcntl(account, F_GETFD), 0);
  ASSERT_EQ(::pwrite(account, &was, sizeof(was), version), static_cast<ssize_t>(sizeof(was)));
  EXPECT_TRUE(BackingFile::take_over(os, *state).has_value());
}

TEST_F(BackingFileTest, NothingIsUsedAgainBeforeItIsCollected) {
  const auto file = make(4);
  std::set<std::uint32_t> seen;
  for (int i = 0; i < 4; ++i) {
    const std::uint32_t segment = full_segment(*file);
    EXPECT_TRUE(seen.insert(segment).second);
    file->release({segment, 0}, kUnit);
  }
  EXPECT_EQ(file->claim().error().code, ENOSPC);
  EXPECT_EQ(file->collect(), 4U);
  EXPECT_TRUE(seen.contains(file->claim()->segment));
  EXPECT_EQ(file->validate(), nullptr);
}

TEST_F(BackingFileTest, DiesWhileItIsWritten) {
  const auto file = make(4);
  const auto claim = file->claim().value();
  file->fill({claim.segment, 0}, kUnit);
  file->release({claim.segment, 0}, kUnit);
  EXPECT_EQ(file->collect(), 0U);  // the write may still be under way
  file->written(claim.segment);
  EXPECT_EQ(file->validate(), nullptr);
  EXPECT_EQ(file->collect(), 1U);
}

TEST_F(BackingFileTest, AnAbandonedSegmentIsFreeAtOnce) {
  const auto file = make(1);
  const auto claim = file->claim().value();
  fill(*file, claim.segment, 32768);
  EXPECT_EQ(file->live_bytes(), kSegment);
  file->abandon(claim.segment);
  EXPECT_EQ(file->validate(), nullptr);
  EXPECT_EQ(file->live_bytes(), 0U);
  EXPECT_EQ(file->live_objects(), 0U);
  EXPECT_EQ(file->used_bytes(), 0U);
  const auto again = file->claim().value();
  EXPECT_EQ(again.segment, claim.segment);
  EXPECT_GT(again.generation, claim.generation);
  EXPECT_EQ(file->collect(), 0U);
}

TEST_F(BackingFileTest, GenerationsNeverRepeat) {
  std::set<std::uint64_t> seen;
  for (int daemon = 0; daemon < 3; ++daemon) {
    const auto file = make(4);
    for (int i = 0; i < 2500; ++i) {
      const auto claim = file->claim().value();
      ASSERT_TRUE(seen.insert(claim.generation).second);
      ASSERT_GT(claim.generation, 0U);
      ASSERT_GT(state->header().writeback.next_generation, claim.generation);  // reserved before
      file->abandon(claim.segment);
    }
    EXPECT_EQ(file->validate(), nullptr);
  }
  EXPECT_EQ(seen.size(), 7500U);
}

TEST_F(BackingFileTest, GrowsInStepsAndUsesWhatItHas) {
  const auto file = make(40);
  const std::uint32_t first = full_segment(*file);
  EXPECT_EQ(file->file_bytes(), 16 * kSegment);
  for (int i = 1; i < 16; ++i) full_segment(*file);
  EXPECT_EQ(file->file_bytes(), 16 * kSegment);
  file->release({first, 0}, kUnit);
  ASSERT_EQ(file->collect(), 1U);
  EXPECT_EQ(full_segment(*file), first);
  EXPECT_EQ(file->file_bytes(), 16 * kSegment);
  for (int i = 16; i < 40; ++i) full_segment(*file);
  EXPECT_EQ(file->file_bytes(), 40 * kSegment);  // the last step is cut at the maximum
  EXPECT_EQ(file->claim().error().code, ENOSPC);
  EXPECT_EQ(file->validate(), nullptr);
}

TEST_F(BackingFileTest, ShrinksWhenTheMaximumDoes) {
  const auto file = make(20);
  std::vector<std::uint32_t> segments;
  for (int i = 0; i < 20; ++i) segments.push_back(full_segment(*file));
  file->set_limits({10 * kSegment, 0});
  EXPECT_EQ(file->max_bytes(), 10 * kSegment);
  EXPECT_EQ(file->claim().error().code, ENOSPC);
  for (int i = 0; i < 8; ++i) file->release({segments[static_cast<std::size_t>(i)], 0}, kUnit);
  EXPECT_EQ(file->collect(), 8U);
  EXPECT_EQ(file->claim().error().code, ENOSPC);  // 12 are still in use
  file->give_back(100);                           // none beyond the maximum is kept
  EXPECT_EQ(file->file_bytes(), 12 * kSegment);
  for (int i = 8; i < 12; ++i) file->release({segments[static_cast<std::size_t>(i)], 0}, kUnit);
  EXPECT_EQ(file->collect(), 4U);
  file->give_back(100);
  EXPECT_EQ(file->file_bytes(), 10 * kSegment);
  full_segment(*file);
  full_segment(*file);
  EXPECT_EQ(file->claim().error().code, ENOSPC);
  EXPECT_EQ(file->file_bytes(), 10 * kSegment);
  file->set_limits({20 * kSegment, 0});
  for (int i = 0; i < 10; ++i) full_segment(*file);
  EXPECT_EQ(file->file_bytes(), 20 * kSegment);  // holes are filled before the file becomes longer
  EXPECT_EQ(file->claim().error().code, ENOSPC);
  EXPECT_EQ(file->validate(), nullptr);
}

TEST_F(BackingFileTest, NeighboursAreGivenBackTogether) {
  const auto file = make(16);
  for (int i = 0; i < 16; ++i) full_segment(*file);
  for (std::uint32_t i = 4; i < 16; ++i) file->release({i, 0}, kUnit);
  EXPECT_EQ(file->collect(), 12U);
  os.disk.fail_punches = {0, EIO};  // the second call would fail
  file->give_back(3);
  EXPECT_EQ(os.disk.fail_punches.size(), 1U);
  EXPECT_EQ(file->file_bytes(), 7 * kSegment);
  EXPECT_EQ(file->validate(), nullptr);
  file->give_back(0);
  EXPECT_EQ(file->file_bytes(), 7 * kSegment);  // nothing is lost by the failure
  EXPECT_EQ(file->validate(), nullptr);
  file->give_back(0);
  EXPECT_EQ(file->file_bytes(), 4 * kSegment);
  EXPECT_EQ(file->validate(), nullptr);
}

TEST_F(BackingFileTest, KeepsTheFileSystemsRoom) {
  os.disk.info.free_bytes = 10 * kSegment;
  const auto file = make(100, 4 * kSegment);
  for (int i = 0; i < 6; ++i) full_segment(*file);
  EXPECT_EQ(os.disk.info.free_bytes, 4 * kSegment);
  EXPECT_EQ(file->claim().error().code, ENOSPC);
  os.disk.info.free_bytes -= kSegment;  // somebody else's: what the file has is used on
  file->release({0, 0}, kUnit);
  EXPECT_EQ(file->collect(), 1U);
  EXPECT_EQ(full_segment(*file), 0U);
  EXPECT_EQ(file->claim().error().code, ENOSPC);
  file->set_limits({100 * kSegment, kSegment});
  full_segment(*file);
  EXPECT_EQ(file->validate(), nullptr);
}

TEST_F(BackingFileTest, AStepThatFindsNoRoomIsMadeSmaller) {
  const auto file = make(100);
  os.disk.fail_allocates = {ENOSPC, 0};  // the step, one segment
  full_segment(*file);
  EXPECT_EQ(file->file_bytes(), kSegment);
  os.disk.fail_allocates = {EIO};
  EXPECT_EQ(file->claim().error().code, EIO);
  EXPECT_EQ(file->used_bytes(), kSegment);
  EXPECT_EQ(file->validate(), nullptr);
  full_segment(*file);
  EXPECT_EQ(file->file_bytes(), 17 * kSegment);
}

TEST_F(BackingFileTest, DoesWithoutFallocate) {
  os.disk.has_allocate = os.disk.has_punch = false;
  const auto file = make(3);
  for (int i = 0; i < 3; ++i) full_segment(*file);
  EXPECT_EQ(file->claim().error().code, ENOSPC);
  file->release({1, 0}, kUnit);
  EXPECT_EQ(file->collect(), 1U);
  file->give_back(0);
  EXPECT_EQ(full_segment(*file), 1U);
  EXPECT_EQ(file->validate(), nullptr);
}

TEST_F(BackingFileTest, DoesWithoutDirect) {
  EXPECT_TRUE(make(1)->direct());
  os.disk.has_direct = false;
  EXPECT_FALSE(make(1)->direct());
}

TEST_F(BackingFileTest, TheMaximumIsWhatTheAccountHasRoomFor) {
  const auto file = make(1ULL << 30);
  EXPECT_EQ(file->max_bytes(), BackingFile::kMostSegments * kSegment);
  EXPECT_EQ(BackingFile::offset_of(BackingFile::kMostSegments - 1), (1ULL << 43) - kSegment);
  const std::uint64_t resident = file->resident_bytes();
  EXPECT_LE(resident, 4096U);
  full_segment(*file);
  EXPECT_EQ(file->resident_bytes(), resident + 4096 + 8192);
}

TEST_F(BackingFileTest, FindsTheSparsest) {
  const auto file = make(10);
  const std::uint32_t counts[] = {50, 10, 30, 20, 40, 1};
  for (const std::uint32_t objects : counts) full_segment(*file, objects);
  file->release({5, 0}, kUnit);  // dead: collect()'s, not worth reading
  (void)file->claim().value();
  using Numbers = std::vector<std::uint32_t>;
  const auto sparsest = [&](std::size_t most, std::uint32_t percent) {
    Numbers numbers;
    for (const BackingFile::Sparse& one : file->sparsest(most, percent)) {
      EXPECT_EQ(one.live, counts[one.segment] * kUnit);
      EXPECT_EQ(one.blocks, 1U);
      numbers.push_back(one.segment);
    }
    return numbers;
  };
  EXPECT_EQ(sparsest(2, 100), (Numbers{1, 3}));
  EXPECT_EQ(sparsest(10, 12), (Numbers{1, 3, 2}));  // 30 of a block's 256 units
  EXPECT_EQ(sparsest(10, 100), (Numbers{1, 3, 2, 4, 0}));
  EXPECT_EQ(sparsest(0, 100), Numbers{});
}

// -- blocks

// One object to a block.
std::uint32_t segment_of_blocks(BackingFile& file, std::uint32_t count) {
  const std::uint32_t segment = file.claim().value().segment;
  for (std::uint32_t i = 0; i < count; ++i) file.fill({segment, i * 256}, kBlock);
  file.written(segment);
  return segment;
}

TEST_F(BackingFileTest, DeadBlocksBecomeHolesAndCountNoMore) {
  const auto file = make(4);
  const std::uint32_t a = segment_of_blocks(*file, 128), b = segment_of_blocks(*file, 100);
  EXPECT_EQ(file->used_bytes(), 2 * kSegment);
  EXPECT_EQ(file->dead_bytes(), 28 * kBlock);  // what was not written
  for (std::uint32_t i = 10; i < 30; ++i) file->release({a, i * 256}, kBlock);
  EXPECT_EQ(file->dead_bytes(), 48 * kBlock);
  EXPECT_EQ(file->validate(), nullptr);
  EXPECT_EQ(file->make_holes(1), 20 * kBlock);  // a segment at a time
  EXPECT_EQ(file->used_bytes(), 2 * kSegment - 20 * kBlock);
  EXPECT_EQ(file->make_holes(kSegment), 28 * kBlock);
  EXPECT_EQ(file->make_holes(kSegment), 0U);
  EXPECT_EQ(file->dead_bytes(), 0U);
  EXPECT_EQ(file->used_bytes(), 2 * kSegment - 48 * kBlock);
  EXPECT_EQ(file->file_bytes(), 4 * kSegment - 48 * kBlock);
  EXPECT_EQ(file->validate(), nullptr);
  // All of it goes: its room is asked for anew when it is used again.
  for (std::uint32_t i = 0; i < 128; ++i) {
    if (i < 10 || i >= 30) file->release({a, i * 256}, kBlock);
  }
  EXPECT_EQ(file->collect(), 1U);
  EXPECT_EQ(file->used_bytes(), kSegment - 28 * kBlock);
  EXPECT_EQ(file->file_bytes(), 3 * kSegment - 28 * kBlock);
  EXPECT_EQ(file->validate(), nullptr);
  for (std::uint32_t i = 0; i < 100; ++i) file->release({b, i * 256}, kBlock);
  EXPECT_EQ(file->collect(), 1U);
  EXPECT_EQ(file->used_bytes(), 0U);
  EXPECT_EQ(file->validate(), nullptr);
}

TEST_F(BackingFileTest, ABlockLivesAsLongAsWhateverTouchesIt) {
  const auto file = make(1);
  const std::uint32_t segment = file->claim().value().segment;
  file->fill({segment, 0}, 4128);                // all of block 0, and into 1
  file->fill({segment, 258}, 4128);              // into 2
  file->fill({segment, 255 + 512}, 2 * kBlock);  // from the end of 2 over all of 3 into 4
  file->written(segment);
  EXPECT_EQ(file->dead_bytes(), 123 * kBlock);
  EXPECT_EQ(file->first_unit(segment, 0), 0U);
  EXPECT_EQ(file->first_unit(segment, 1), 258U);
  EXPECT_EQ(file->first_unit(segment, 3), std::nullopt);
  const auto whole = [&](unsigned blocks) {
    return file->with_whole_objects(segment, BackingFile::BlockSet(blocks)).to_ulong();
  };
  EXPECT_EQ(whole(0b1), 0b11U);
  EXPECT_EQ(whole(0b10), 0b111U);
  EXPECT_EQ(whole(0b1000000), 0U);  // nothing lives there
  file->release({segment, 0}, 4128);
  EXPECT_EQ(file->dead_bytes(), 124 * kBlock);
  file->release({segment, 255 + 512}, 2 * kBlock);
  EXPECT_EQ(file->dead_bytes(), 126 * kBlock);
  EXPECT_EQ(file->make_holes(~0ULL), 126 * kBlock);
  EXPECT_EQ(file->emptiest_blocks(segment), BackingFile::BlockSet(0b110));
  EXPECT_EQ(file->validate(), nullptr);
  file->release({segment, 258}, 4128);
  EXPECT_EQ(file->collect(), 1U);
  EXPECT_EQ(file->validate(), nullptr);
}

TEST_F(BackingFileTest, HolesMakeRoomForMoreSegments) {
  const auto file = make(4);
  for (int i = 0; i < 4; ++i) segment_of_blocks(*file, 128);
  EXPECT_EQ(file->claim().error().code, ENOSPC);
  for (std::uint32_t i = 0; i < 128; ++i) {
    if (i % 2 == 0) file->release({1, i * 256}, kBlock);
    if (i % 2 != 0) file->release({2, i * 256}, kBlock);
  }
  EXPECT_EQ(file->claim().error().code, ENOSPC);
  EXPECT_EQ(file->make_holes(kSegment), kSegment);
  segment_of_blocks(*file, 128);
  EXPECT_EQ(file->claim().error().code, ENOSPC);
  EXPECT_EQ(file->used_bytes(), 4 * kSegment);
  EXPECT_EQ(file->file_bytes(), 4 * kSegment);
  EXPECT_EQ(file->validate(), nullptr);
}

TEST_F(BackingFileTest, HolesThatCannotBeMadeAreNotCounted) {
  const auto file = make(4);
  const std::uint32_t segment = segment_of_blocks(*file, 128);
  for (std::uint32_t i = 0; i < 128; i += 2) file->release({segment, i * 256}, kBlock);
  os.disk.fail_punches = {0, EIO};
  EXPECT_EQ(file->make_holes(kSegment), kBlock);
  EXPECT_EQ(file->validate(), nullptr);
  EXPECT_EQ(file->make_holes(kSegment), 63 * kBlock);
  EXPECT_EQ(file->validate(), nullptr);
  const std::uint32_t other = segment_of_blocks(*file, 128);
  file->release({other, 0}, kBlock);
  os.disk.has_punch = false;
  EXPECT_EQ(file->make_holes(kSegment), 0U);
  EXPECT_EQ(file->dead_bytes(), 0U);  // none that could be used
  EXPECT_EQ(file->emptiest_blocks(other).count(), 127U);
  EXPECT_EQ(file->validate(), nullptr);
}

TEST_F(BackingFileTest, ReleasesWhileHolesAreMade) {
  constexpr std::uint32_t kSegments = 32;
  const auto file = make(kSegments);
  for (std::uint32_t i = 0; i < kSegments; ++i) segment_of_blocks(*file, 128);
  {
    std::vector<std::jthread> threads;
    for (std::uint32_t t = 0; t < 3; ++t) {
      threads.emplace_back([&, t] {
        for (std::uint32_t i = t; i < 128 * kSegments; i += 3)
          file->release({i % kSegments, i / kSegments * 256}, kBlock);
      });
    }
    std::uint32_t collected = 0;
    while (collected < kSegments) {
      (void)file->make_holes(kSegment);
      (void)file->sparsest(4, 100);
      collected += file->collect();
    }
  }
  EXPECT_EQ(file->used_bytes(), 0U);
  EXPECT_EQ(file->validate(), nullptr);
}

TEST_F(BackingFileTest, ReleasesFromManyThreadsAreAllCounted) {
  constexpr std::uint32_t kThreads = 4, kSegments = 64, kObjects = 400;
  const auto file = make(kSegments);
  std::vector<std::uint32_t> segments;
  for (std::uint32_t i = 0; i < kSegments; ++i) segments.push_back(full_segment(*file, kObjects));
  std::uint32_t collected = 0;
  {
    std::vector<std::jthread> threads;
    for (std::uint32_t t = 0; t < kThreads; ++t) {
      threads.emplace_back([&, t] {
        for (std::uint32_t i = t; i < kObjects; i += kThreads) {
          for (const std::uint32_t segment : segments) {
            EXPECT_GT(file->generation(segment), 0U);
            file->release({segment, i}, kUnit);
          }
        }
      });
    }
    while (collected < kSegments) collected += file->collect();
  }
  EXPECT_EQ(collected, kSegments);
  EXPECT_EQ(file->live_objects(), 0U);
  EXPECT_EQ(file->live_bytes(), 0U);
  EXPECT_EQ(file->used_bytes(), 0U);
  EXPECT_EQ(file->validate(), nullptr);
}

// The last object may go while written() says that the write has ended: one of the two finds the
// segment dead.
TEST_F(BackingFileTest, ReleaseAndWrittenAgreeOnWhoFoundItDead) {
  const auto file = make(1);
  for (int round = 0; round < 2000; ++round) {
    const auto claim = file->claim().value();
    file->fill({claim.segment, 0}, kUnit);
    std::jthread other([&] { file->release({claim.segment, 0}, kUnit); });
    file->written(claim.segment);
    other.join();
    ASSERT_EQ(file->collect(), 1U);
  }
  EXPECT_EQ(file->validate(), nullptr);
}

TEST_F(BackingFileTest, RefusesADiskWithoutRoom) {
  os.disk.info.free_bytes = 4 * kSegment - 1;
  const auto full = BackingFile::create(os, *state, "/some/where", {kSegment, 3 * kSegment});
  ASSERT_FALSE(full.has_value());
  EXPECT_EQ(full.error().code, ENOSPC);
  EXPECT_NE(full.error().text().find("/some/where"), std::string::npos);
  ASSERT_FALSE(BackingFile::create(os, *state, "/some/where", {kSegment, ~0ULL}).has_value());
  os.disk.info.free_bytes += 1;
  EXPECT_TRUE(BackingFile::create(os, *state, "/some/where", {kSegment, 3 * kSegment}).has_value());
}

// -- on the file system

struct BackingFileOnDisk : ::testing::Test {
  // The first place that is not in memory.
  void SetUp() override {
    for (const std::string& place :
         {::testing::TempDir(), std::string("/var/tmp/"), fs::current_path().string() + "/"}) {
      const auto there = real_os().file_system(place);
      if (!there || there->in_memory || there->free_bytes < 256 * kSegment) continue;
      std::string name = place + "foldswap-backing-XXXXXX";
      if (const char* made = ::mkdtemp(name.data()); made != nullptr) {
        directory = made;
        return;
      }
    }
    GTEST_SKIP() << "there is no disk with room";
  }
  void TearDown() override {
    if (directory.empty()) return;
    EXPECT_TRUE(fs::is_empty(directory));
    fs::remove_all(directory);
  }
  [[nodiscard]] std::string refusal(const std::string& place, BackingFile::Limits limits) const {
    const auto file = BackingFile::create(real_os(), *state, place, limits);
    EXPECT_FALSE(file.has_value());
    if (file) return {};
    EXPECT_NE(file.error().text().find(place), std::string::npos) << file.error().text();
    return file.error().text();
  }
  std::string directory;
  std::unique_ptr<State> state = State::create(real_os()).value();
};

TEST_F(BackingFileOnDisk, TakesBlocksAndGivesThemBack) {
  const auto file = open_file(real_os(), *state, directory, {32 * kSegment, 0});
  ASSERT_NE(file, nullptr);
  EXPECT_LT(file->file_bytes(), kSegment);
  for (int i = 0; i < 20; ++i) {
    const std::uint32_t segment = full_segment(*file);
    alignas(4096) static std::byte block[4096];
    block[0] = std::byte{1};
    ASSERT_EQ(::pwrite(file->fd(), block, sizeof(block),
                       static_cast<off_t>(BackingFile::offset_of(segment))),
              ssize_t{sizeof(block)});
  }
  const std::uint64_t full = file->file_bytes();
  EXPECT_GE(full, 32 * kSegment);
  for (std::uint32_t i = 2; i < 20; ++i) file->release({i, 0}, kUnit);
  EXPECT_EQ(file->collect(), 18U);
  file->give_back(1);
  EXPECT_LT(file->file_bytes(), 4 * kSegment);
  EXPECT_GE(file->file_bytes(), 3 * kSegment);
  EXPECT_EQ(file->validate(), nullptr);
}

TEST_F(BackingFileOnDisk, SaysWhatIsWrongWithADirectory) {
  const BackingFile::Limits limits{kSegment, 0};
  EXPECT_NE(refusal(directory + "/missing", limits).find("No such file"), std::string::npos);
  const std::string plain = directory + "/plain";
  {
    const UniqueFd made(::open(plain.c_str(), O_CREAT | O_RDWR | O_CLOEXEC, 0600));
    ASSERT_TRUE(made.valid());
  }
  EXPECT_NE(refusal(plain, limits).find("Not a directory"), std::string::npos);
  fs::remove(plain);
  EXPECT_NE(refusal("/dev/shm", limits).find("tmpfs"), std::string::npos);
  EXPECT_NE(refusal(directory, {kSegment, 1ULL << 60}).find("No space"), std::string::npos);
}

}  // namespace
}  // namespace foldswap
