// Writeback on a disk that fails, lies and takes its time: what was to be written is never lost.
#include "daemon/writeback/writeback.h"

#include <cerrno>

#include "daemon/testing/disk_fixture.h"

namespace foldswap {
namespace {

class WritebackTest : public DiskFixture {};

TEST_F(WritebackTest, OutAndBack) {
  put(*client, kA, 500, 1);
  EXPECT_EQ(all_out(), 0U);
  const PoolStats stats = pool->stats();
  EXPECT_EQ(stats.outside, 500U);
  EXPECT_EQ(stats.objects, 0U);
  EXPECT_EQ(file->live_objects(), 500U);
  EXPECT_GE(file->live_bytes(), stats.outside_bytes);
  EXPECT_LE(file->live_bytes(), stats.outside_bytes + 500 * (kSealedOverhead + 15));
  EXPECT_GE(counters().disk_written_bytes.load(), file->live_bytes());
  EXPECT_EQ(client->record.pool_pages.load(), 500U);
  expect_conserved(*client);
  expect_valid();
  EXPECT_EQ(expect_everything_right(), 0U);
  EXPECT_EQ(counters().disk_errors.load(), 0U);
  EXPECT_EQ(counters().faults_total.load(), counters().faults_disk.load());
  EXPECT_EQ(counters().faults_disk.load() + counters().readahead_pages.load(), 500U);
  EXPECT_EQ(writeback->report(), "");
}

TEST_F(WritebackTest, AFullPoolMakesRoomByItself) {
  std::uint64_t stored = 0;
  for (std::uint64_t i = 0; i < 3'000; ++i) {
    if (!pool->can_reserve(kPage)) write_steps(3);
    ASSERT_TRUE(pool->can_reserve(kPage)) << i;
    put(*client, kA + i * kPage, page_of(4 * i));  // noise
    stored += kPage;
  }
  EXPECT_GT(stored, 2 * pool_config.limit_bytes);
  EXPECT_LE(pool->stats().frame_bytes, pool_config.limit_bytes);
  EXPECT_EQ(expect_everything_right(), 0U);
}

TEST_F(WritebackTest, NothingIsWrittenWhileThereIsRoom) {
  ASSERT_TRUE(pool->set_limit(64 * kMiB).has_value());
  put(*client, kA, 300, 1);
  write_steps(50);
  EXPECT_EQ(pool->stats().outside, 0U);
  EXPECT_EQ(counters().disk_written_bytes.load(), 0U);
  EXPECT_EQ(file->file_bytes(), 0U);
  expect_everything_right();
}

TEST_F(WritebackTest, PressureWrites) {
  pool_config.limit_bytes = 64 * kMiB;
  ASSERT_TRUE(pool->set_limit(64 * kMiB).has_value());
  for (std::uint64_t i = 0; i < 6'000; ++i) put(*client, kA + i * kPage, page_of(4 * i));
  tunables.available_low = kGiB;
  os.texts["/proc/meminfo"] = "MemAvailable:    900000 kB\n";
  write_steps(100);
  EXPECT_GT(pool->stats().outside, 100U);
  EXPECT_GT(pool->stats().compressed_bytes, 14 * kMiB);  // a floor
  EXPECT_LE(pool->stats().compressed_bytes, 17 * kMiB);
  const std::uint64_t outside = pool->stats().outside;
  put(*client, kA + 10'000 * kPage, 500, 0);
  os.texts["/proc/meminfo"] = "MemAvailable:   9000000 kB\n";
  os.clock_ns += 1'000'000'000;
  write_steps(20);
  EXPECT_LE(pool->stats().outside, outside + 500);
  expect_everything_right();
}

// -- while a write is under way

TEST_F(WritebackTest, WhatIsBeingWrittenCanBeReadAndFreed) {
  for (const bool read_first : {true, false}) {
    put(*client, kA, 300, 1);
    hold_io();
    all_out(5);
    ASSERT_GT(os.disk.under_way(), 0U);
    EXPECT_EQ(pool->stats().outside, 0U);  // not before it has ended
    for (std::uint64_t i = 0; i < 300; i += 3) {
      if (read_first) expect_right(*client, kA + i * kPage);
      unmap(*client, kA + (i + 1) * kPage, 1);
    }
    const std::size_t under_way = os.disk.under_way();
    EXPECT_EQ(complete(true), under_way);
    write_steps(2);
    EXPECT_GT(pool->stats().outside, 0U);
    EXPECT_LE(file->live_objects(), read_first ? 100U : 200U);
    expect_valid();
    expect_everything_right();
    unmap(*client, kA, 300);
  }
}

TEST_F(WritebackTest, APageThatComesBackAndLeavesAgainIsItsNewSelf) {
  put(*client, kA, 200, 1);
  hold_io();
  all_out(5);
  ASSERT_GT(os.disk.under_way(), 0U);
  for (std::uint64_t i = 0; i < 200; ++i) expect_right(*client, kA + i * kPage);
  put(*client, kA, 200, 1'000'000);  // most likely under the same ids, once those are free
  complete(true);
  write_steps(1);
  hold_io();
  expect_right(*client, kA + 7 * kPage);
  put(*client, kA + 7 * kPage, page_of(5));
  let_io_go();
  all_out();
  expect_everything_right();
}

TEST_F(WritebackTest, WritesEndInAnyOrder) {
  std::mt19937_64 random(3);
  put(*client, kA, 800, 4);
  ASSERT_TRUE(pool->set_limit(kLittle).has_value());
  hold_io();
  for (int round = 0; round < 60; ++round) {
    write_steps(1);
    for (std::uint64_t i = 0; i < 5; ++i) {
      const std::uint64_t page = kA + random() % 800 * kPage;
      if (truth.contains({client.get(), page}) && random() % 2 == 0)
        unmap(*client, page, 1);
      else if (truth.contains({client.get(), page}))
        expect_right(*client, page);
    }
    if (os.disk.under_way() != 0) os.disk.complete_at(random() % os.disk.under_way());
    expect_valid();
  }
  ASSERT_TRUE(pool->set_limit(pool_config.limit_bytes).has_value());
  expect_everything_right();
}

TEST_F(WritebackTest, OtherBytesMeanwhileAreNotReplacedByTheOld) {
  for (std::uint64_t i = 0; i < 60; ++i) put(*client, kA + i * kPage, page_of(4 * i + 1));
  hold_io();
  all_out(5);
  ASSERT_GT(os.disk.under_way(), 0U);
  for (std::uint64_t i = 0; i < 60; i += 2) {
    const ObjectId id{client->map->load(kA + i * kPage).object_id()};
    std::array<std::byte, kPage> packed;
    const FakeOs::PageBytes page = page_of(4 * i + 1);
    const Compressed other = codec->compress({Codec::lz4, 1}, page, packed);
    ASSERT_EQ(pool->replace(id, std::span(packed).first(other.length), other.codec),
              Replaced::done);
  }
  ASSERT_TRUE(pool->set_limit(64 * kMiB).has_value());
  complete(true);
  (void)writeback->step();
  EXPECT_EQ(pool->stats().outside, 30U);
  EXPECT_EQ(pool->stats().objects, 30U);
  EXPECT_EQ(file->live_objects(), 30U);
  let_io_go();
  expect_everything_right();
}

TEST_F(WritebackTest, TwoClientsOneObject) {
  Client& child = another_client();
  put(*client, kA, 90, 1);
  for (std::uint64_t i = 0; i < 30; ++i) share(*client, child, kA + i * kPage);
  hold_io();
  all_out(5);
  for (std::uint64_t i = 30; i < 60; ++i) share(*client, child, kA + i * kPage);  // meanwhile
  complete(true);
  let_io_go();
  EXPECT_EQ(all_out(), 0U);
  EXPECT_EQ(pool->stats().outside, 90U);
  for (std::uint64_t i = 60; i < 90; ++i) share(*client, child, kA + i * kPage);  // on disk
  for (std::uint64_t i = 0; i < 90; i += 2) unmap(*client, kA + i * kPage, 1);
  EXPECT_EQ(file->live_objects(), 90U);
  for (std::uint64_t i = 0; i < 90; i += 3) expect_right(child, kA + i * kPage);
  expect_valid();
  expect_everything_right();
}

TEST_F(WritebackTest, GoesAwayInTheMiddle) {
  put(*client, kA, 300, 1);
  hold_io();
  all_out(5);
  ASSERT_GT(os.disk.under_way(), 0U);
  const std::uint64_t objects = pool->stats().objects;
  writeback.reset();
  EXPECT_EQ(os.disk.under_way(), 0U);
  EXPECT_EQ(pool->stats().objects, objects);
  for (const auto& [key, bytes] : truth) expect_right(*key.first, key.second);
  EXPECT_EQ(pool->stats().objects, 0U);
}

// -- failures

TEST_F(WritebackTest, AWriteThatFailsOnceIsTriedAgain) {
  for (const int result : {-EIO, -EINTR, -EAGAIN, 4096}) {
    int left = 1;
    os.disk.on_io = [&](FakeIo& io) { return io.write && left-- > 0 ? result : 0; };
    put(*client, kA, 100, 1);
    const std::uint64_t before = counters().disk_errors.load();
    EXPECT_EQ(all_out(), 0U) << result;
    EXPECT_EQ(counters().disk_errors.load(), before + 1);
    EXPECT_EQ(writeback->report(), "");
    expect_everything_right();
    truth.clear();
    os.drop_range(fd(), kA, 100);
  }
}

TEST_F(WritebackTest, ADiskThatFailsForGoodStopsItAndItGoesOnLater) {
  for (const int result : {-EIO, -ENOSPC, -EDQUOT, 8192}) {
    bool broken = true;
    os.disk.on_io = [&](FakeIo& io) { return io.write && broken ? result : 0; };
    put(*client, kA, 600, 1);
    EXPECT_EQ(all_out(), 600U) << result;
    EXPECT_NE(writeback->report(), "") << result;
    EXPECT_FALSE(traffic.relief.load());
    EXPECT_EQ(pool->stats().outside, 0U);
    EXPECT_EQ(file->live_objects(), 0U);
    EXPECT_EQ(file->used_bytes(), 0U);
    expect_valid();
    // It is not tried again and again.
    const std::uint64_t errors = counters().disk_errors.load();
    EXPECT_LE(errors, 20U);
    counters().disk_errors.store(0);
    for (std::uint64_t i = 0; i < 50; ++i) expect_right(*client, kA + i * kPage);
    broken = false;
    os.clock_ns += 11'000'000'000;
    EXPECT_EQ(all_out(), 0U);
    EXPECT_EQ(writeback->report(), "");
    EXPECT_TRUE(traffic.relief.load());
    expect_everything_right();
    truth.clear();
    os.drop_range(fd(), kA, 600);
  }
}

TEST_F(WritebackTest, PlacesThatCannotBeWrittenAreNotTriedForEver) {
  for (const std::uint64_t bad : {1, 5}) {  // segments, from the first one on
    os.disk.on_io = [&](FakeIo& io) { return io.write && io.offset < bad * kSegment ? -EIO : 0; };
    put(*client, kA, 100, 1);  // one segment at a time
    for (int i = 0; i < 5 && all_out() != 0; ++i) os.clock_ns += 11'000'000'000;
    EXPECT_EQ(pool->stats().objects, 0U) << writeback->report();
    EXPECT_EQ(writeback->report(), "");
    const std::uint64_t errors = counters().disk_errors.load();
    put(*client, kA + 200 * kPage, 100, 1'000);
    EXPECT_EQ(all_out(), 0U);
    EXPECT_EQ(counters().disk_errors.load(), errors) << "there is room elsewhere";
    expect_everything_right();
    truth.clear();
    os.drop_range(fd(), kA, 300);
  }
}

TEST_F(WritebackTest, AFileSystemThatFillsUpUnderUs) {
  for (std::uint64_t i = 0; i < 800; ++i) put(*client, kA + i * kPage, page_of(4 * i));
  os.disk.info.free_bytes = 3 * kSegment + 100'000;
  EXPECT_GT(all_out(), 0U);
  EXPECT_GT(pool->stats().outside, 0U);
  EXPECT_NE(writeback->report(), "");
  EXPECT_FALSE(traffic.relief.load());
  EXPECT_LE(file->file_bytes(), 3 * kSegment + 100'000);
  expect_valid();
  for (std::uint64_t i = 0; i < 800; i += 16) expect_right(*client, kA + i * kPage);
  os.disk.info.free_bytes = 1ULL << 30;
  os.clock_ns += 11'000'000'000;
  EXPECT_EQ(all_out(), 0U);
  EXPECT_EQ(writeback->report(), "");
  expect_everything_right();
}

TEST_F(WritebackTest, NoRoomFoundOnlyByTheWrite) {
  os.disk.has_allocate = false;  // then the room is taken when it is written
  for (std::uint64_t i = 0; i < 800; ++i) put(*client, kA + i * kPage, page_of(4 * i));
  os.disk.info.free_bytes = 2 * kSegment;
  EXPECT_GT(all_out(), 0U);
  EXPECT_NE(writeback->report(), "");
  expect_valid();
  os.disk.info.free_bytes = 1ULL << 30;
  os.clock_ns += 11'000'000'000;
  EXPECT_EQ(all_out(), 0U);
  EXPECT_EQ(writeback->report(), "");
  expect_everything_right();
}

TEST_F(WritebackTest, AllocationFails) {
  os.disk.fail_allocates.assign(1000, EIO);
  put(*client, kA, 200, 1);
  EXPECT_EQ(all_out(20), 200U);
  EXPECT_NE(writeback->report(), "");
  os.disk.fail_allocates.clear();
  os.clock_ns += 11'000'000'000;
  EXPECT_EQ(all_out(), 0U);
  expect_everything_right();
}

TEST_F(WritebackTest, TheRingTakesNothingForAWhile) {
  os.disk.fail_submits.assign(40, EAGAIN);
  put(*client, kA, 400, 1);
  EXPECT_EQ(all_out(), 0U);
  os.disk.fail_submits.assign(5, EBUSY);
  expect_everything_right();
}

// It says "all well" only when it may write again.
TEST_F(WritebackTest, AWriteFromBeforeDoesNotEndAStop) {
  for (std::uint64_t i = 0; i < 400; ++i) put(*client, kA + i * kPage, page_of(4 * i));
  hold_io();
  tunables.writeback_per_day = kSegment;
  all_out(3);
  ASSERT_EQ(os.disk.under_way(), 1U);
  ASSERT_NE(writeback->report(), "");
  complete(true);
  (void)writeback->step();
  EXPECT_NE(writeback->report(), "");
  let_io_go();
  tunables.writeback_per_day = 0;
  os.clock_ns += 2'000'000'000;
  EXPECT_EQ(all_out(), 0U);
  EXPECT_EQ(writeback->report(), "");
  expect_everything_right();
}

TEST_F(WritebackTest, WhenNothingIsToBeWrittenAnyMoreNothingIsSaid) {
  os.disk.on_io = [&](FakeIo& io) { return io.write ? -EIO : 0; };
  put(*client, kA, 100, 1);
  all_out(20);
  EXPECT_NE(writeback->report(), "");
  os.disk.on_io = nullptr;
  expect_everything_right();
  EXPECT_EQ(writeback->report(), "");
}

// -- limits

TEST_F(WritebackTest, ABudgetPerDay) {
  constexpr std::uint64_t kHourNs = 3'600ULL * 1'000'000'000;
  const auto written = [&] {
    return static_cast<double>(counters().disk_written_bytes.load()) / double{kSegment};
  };
  for (std::uint64_t i = 0; i < 900; ++i) put(*client, kA + i * kPage, page_of(4 * i));
  os.clock_ns = 59 * kHourNs / 60;  // the day begins at the end of an hour
  tunables.writeback_per_day = 4 * kSegment;
  EXPECT_GT(all_out(100), 0U);
  EXPECT_LE(written(), 4);
  EXPECT_GE(written(), 3);
  EXPECT_NE(writeback->report(), "");
  EXPECT_FALSE(traffic.relief.load());
  os.clock_ns += 47 * kHourNs / 2;  // 23 and a half
  all_out(100);
  // The next daemon has no other day's worth.
  writeback.reset();
  writeback = Writeback::create(os, *state, *store, *file, *seal, traffic, tunables).value();
  all_out(100);
  EXPECT_LE(written(), 4) << "more than a day's budget within a day";
  os.clock_ns += 2 * kHourNs;
  all_out(100);
  EXPECT_LE(written(), 8);
  EXPECT_GE(written(), 6);
  for (std::uint64_t i = 0; i < 600; ++i) put(*client, kA + (1'000 + i) * kPage, page_of(4 * i));
  os.clock_ns += 240 * kHourNs;  // ten days: not ten budgets
  EXPECT_GT(all_out(200), 0U);
  EXPECT_LE(written(), 12);
  EXPECT_GE(written(), 9);
  tunables.writeback_per_day = 0;
  os.clock_ns += 2'000'000'000;
  EXPECT_EQ(all_out(), 0U);
  EXPECT_EQ(writeback->report(), "");
  expect_everything_right();
}

// What is not written is not paid for: segments that turn out empty, and their unused ends.
TEST_F(WritebackTest, TheBudgetIsForWhatIsWritten) {
  tunables.writeback_per_day = 8 * kSegment;
  for (std::uint64_t i = 0; i < 100; ++i) put(*client, kA + i * kPage, page_of(4 * i));
  hold_io();
  all_out(300);  // everything is on its way, and all the time somebody wants room
  ASSERT_EQ(os.disk.under_way(), 1U);
  let_io_go();
  EXPECT_EQ(all_out(), 0U);
  put(*client, kA + 100 * kPage, 600, 1);
  EXPECT_EQ(all_out(), 0U);
  EXPECT_EQ(writeback->report(), "");
  EXPECT_LE(counters().disk_written_bytes.load(), 8 * kSegment);
  expect_everything_right();
}

TEST_F(WritebackTest, AMaximumThatFallsStopsGrowth) {
  for (std::uint64_t i = 0; i < 600; ++i) put(*client, kA + i * kPage, page_of(4 * i));
  EXPECT_EQ(all_out(), 0U);
  const std::uint64_t used = file->used_bytes();
  tunables.writeback_max = 2 * kSegment;
  os.clock_ns += 1'000'000'000;
  write_steps(3);
  for (std::uint64_t i = 600; i < 900; ++i) put(*client, kA + i * kPage, page_of(4 * i));
  EXPECT_EQ(all_out(100), 300U);
  EXPECT_LE(file->used_bytes(), used);
  EXPECT_NE(writeback->report(), "");
  expect_valid();
  for (std::uint64_t i = 0; i < 300; ++i) expect_right(*client, kA + i * kPage);
  tunables.writeback_max = 32 * kSegment;
  os.clock_ns += 2'000'000'000;
  EXPECT_EQ(all_out(), 0U);
  expect_everything_right();
  EXPECT_EQ(writeback->report(), "");
}

TEST_F(WritebackTest, ReadsThatFaultsWaitForGoFirstButNotForEver) {
  put(*client, kA, 200, 1);
  ASSERT_TRUE(pool->set_limit(kLittle).has_value());
  traffic.demand = 1;
  (void)writeback->step();
  EXPECT_EQ(counters().disk_written_bytes.load(), 0U);
  write_steps(30);
  EXPECT_GT(counters().disk_written_bytes.load(), 0U);
  traffic.demand = 0;
  ASSERT_TRUE(pool->set_limit(pool_config.limit_bytes).has_value());
  expect_everything_right();
}

// A nonce is never used for two different things: whatever is written, with whatever result.
TEST_F(WritebackTest, NoNonceTwice) {
  std::map<std::tuple<std::uint64_t, std::uint32_t>, std::vector<std::byte>> sealed;
  std::mt19937_64 random(11);
  os.disk.on_io = [&](FakeIo& io) {
    if (!io.write) return 0;
    const auto segment = static_cast<std::uint32_t>(io.offset / kSegment);
    for (std::size_t at = 0; at + sizeof(DiskHeader) < io.from.size();) {
      DiskHeader header;
      std::memcpy(&header, io.from.data() + at, sizeof(header));
      if (header.length == 0) {
        at = block_floor(at) + BackingFile::kBlock;
        continue;
      }
      const auto bytes = io.from.subspan(at + sizeof(header), header.length + Seal::kTagBytes);
      const std::vector<std::byte> copy(bytes.begin(), bytes.end());
      const auto [found, fresh] = sealed.try_emplace(
          {file->generation(segment), static_cast<std::uint32_t>(at / 16)}, copy);
      EXPECT_TRUE(fresh || found->second == copy);
      at += disk_bytes(header.length);
    }
    return random() % 3 == 0 ? -EIO : 0;
  };
  for (std::uint64_t round = 0; round < 20; ++round) {
    put(*client, kA, 150, round * 1000);
    os.clock_ns += 11'000'000'000;
    all_out(50);
    for (std::uint64_t i = 0; i < 150; ++i) expect_right(*client, kA + i * kPage);
  }
  EXPECT_GT(sealed.size(), 1000U);
  os.disk.on_io = nullptr;
  expect_everything_right();
}

}  // namespace
}  // namespace foldswap
