// Cleaning: what is left in sparse segments moves together; nothing is lost on the way, nothing is
// mistaken for something else, and the room comes back.
#include <cerrno>

#include "daemon/testing/disk_fixture.h"

namespace foldswap {
namespace {

class CleaningTest : public DiskFixture {
 protected:
  CleaningTest() { max_segments = 7; }

  // Noise pages, so that each has the same length and 127 fill a segment.
  static constexpr std::uint64_t kPerSegment = 127;
  void put_noise(std::uint64_t first, std::uint64_t pages, std::uint64_t seed) {
    for (std::uint64_t i = 0; i < pages; ++i)
      put(*client, kA + (first + i) * kPage, page_of(4 * (seed + i)));
  }
  // As many segments as writing may use, each with every `one_of`th page left in it. Of noise pages
  // each touches two blocks: with every second one no block is dead.
  void fill_and_thin(std::uint64_t one_of) {
    put_noise(0, 5 * kPerSegment, 1);
    ASSERT_EQ(all_out(), 0U);
    ASSERT_EQ(file->used_bytes(), 5 * kSegment);
    for (std::uint64_t i = 0; i < 5 * kPerSegment; ++i) {
      if (i % one_of != 0) unmap(*client, kA + i * kPage, 1);
    }
  }
  // A page of 2 to 4 KiB of noise.
  static FakeOs::PageBytes large_page(std::uint64_t seed) {
    std::mt19937_64 random(seed);
    FakeOs::PageBytes page{};
    const std::size_t noise = 2048 + random() % 2048;
    for (std::size_t i = 0; i < noise / 4 * 4; i += 4) {
      const auto word = static_cast<std::uint32_t>(random());
      std::memcpy(&page[i], &word, sizeof(word));
    }
    return page;
  }
  // What is still wanted finds no room, that is said, and nothing is read or written for it any
  // more.
  void stays_full() {
    const auto used = [&] {
      const Counters& c = counters();
      return std::tuple(c.disk_cleaned_bytes.load(), c.disk_written_bytes.load(),
                        c.disk_read_bytes.load());
    };
    const auto before = used();
    for (int i = 0; i < 10; ++i) {
      os.clock_ns += 2'000'000'000;
      EXPECT_NE(all_out(), 0U);
      EXPECT_NE(writeback->report().find("full"), std::string::npos) << writeback->report();
      ASSERT_EQ(used(), before) << i;
    }
  }
  // Wants more room than there is without cleaning.
  std::uint64_t press() {
    put_noise(1'000, 2 * kPerSegment, 10'000);
    return all_out();
  }
};

TEST_F(CleaningTest, SparseSegmentsMoveTogether) {
  fill_and_thin(2);
  EXPECT_EQ(press(), 0U);
  EXPECT_GT(counters().disk_cleaned_bytes.load(), 0U);
  EXPECT_LE(file->used_bytes(), 7 * kSegment);
  EXPECT_EQ(writeback->report(), "");
  expect_valid();
  EXPECT_EQ(expect_everything_right(), 0U);
  EXPECT_EQ(counters().disk_errors.load(), 0U);
}

// Small objects, a few left here and there: only where they are is read, and what the objects have
// in the blocks next to those.
TEST_F(CleaningTest, OnlyWhatIsVacatedIsRead) {
  constexpr std::uint64_t kPages = 700;
  std::mt19937_64 random(13);
  std::uint64_t next = 0, victims = 0;
  const auto fill = [&] {
    for (std::uint64_t i = 0; i < kPages; ++i, ++next)
      put(*client, kA + next * kPage, page_of(4 * next + 1 + next % 2));  // 1 and 2 KiB of noise
    return all_out();
  };
  ASSERT_EQ(fill() + fill(), 0U);
  for (std::uint64_t i = 0; i < next; ++i) {
    if (random() % 3 == 0) unmap(*client, kA + i * kPage, 1);
  }
  std::uint32_t last = UINT32_MAX;
  os.disk.on_io = [&](FakeIo& io) {
    const auto segment = static_cast<std::uint32_t>(io.offset / kSegment);
    if (!io.write && std::exchange(last, segment) != segment) ++victims;
    return 0;
  };
  (void)fill();
  os.disk.on_io = nullptr;
  EXPECT_GT(counters().disk_cleaned_bytes.load(), 0U);
  EXPECT_LT(counters().disk_read_bytes.load(), victims * kSegment / 2);
  expect_valid();
  EXPECT_EQ(expect_everything_right(), 0U);
  EXPECT_EQ(counters().disk_errors.load(), 0U);
}

// Segments that were cleaned and used again can be cleaned again, for as long as it goes on.
TEST_F(CleaningTest, ChurnGoesOnForEver) {
  std::mt19937_64 random(5);
  std::vector<std::uint64_t> there;
  std::uint64_t next = 0;
  for (int round = 0; round < 300; ++round) {
    for (int i = 0; i < 40; ++i) {
      put_noise(next, 1, next);
      there.push_back(next++);
    }
    while (there.size() > 4 * kPerSegment) {
      const std::size_t at = random() % there.size();
      unmap(*client, kA + there[at] * kPage, 1);
      there[at] = there.back();
      there.pop_back();
    }
    ASSERT_EQ(all_out(400), 0U) << "round " << round << ": " << writeback->report();
  }
  expect_valid();
  EXPECT_GT(counters().disk_cleaned_bytes.load(), 0U);
  EXPECT_EQ(expect_everything_right(), 0U);
}

// Where whole blocks are dead nothing has to be moved for the room.
TEST_F(CleaningTest, DeadBlocksAreRoomWithoutMoving) {
  fill_and_thin(4);
  EXPECT_EQ(press(), 0U);
  EXPECT_EQ(counters().disk_cleaned_bytes.load(), 0U);
  EXPECT_EQ(counters().disk_read_bytes.load(), 0U);
  EXPECT_LE(file->file_bytes(), 7 * kSegment);
  expect_valid();
  EXPECT_EQ(expect_everything_right(), 0U);
}

// A file system without holes: whole segments are cleaned.
TEST_F(CleaningTest, WithoutHoles) {
  os.disk.has_punch = false;
  fill_and_thin(4);
  EXPECT_EQ(press(), 0U);
  EXPECT_GT(counters().disk_cleaned_bytes.load(), 0U);
  expect_valid();
  EXPECT_EQ(expect_everything_right(), 0U);
}

TEST_F(CleaningTest, HolesThatFailNowAndThen) {
  std::mt19937_64 random(21);
  fill_and_thin(3);
  for (int i = 0; i < 1'000; ++i) os.disk.fail_punches.push_back(random() % 3 == 0 ? EIO : 0);
  EXPECT_EQ(press(), 0U);
  expect_valid();
  os.disk.fail_punches.clear();
  EXPECT_EQ(expect_everything_right(), 0U);
}

// Pages of all sizes, in a file that is nearly full: blocks with something live between holes, and
// objects over the borders of blocks, go through one cleaning after another.
TEST_F(CleaningTest, AllSizesGoOnForEver) {
  std::mt19937_64 random(6);
  std::vector<std::uint64_t> there;
  std::uint64_t next = 0, bytes = 0;
  std::map<std::uint64_t, std::uint64_t> length;
  for (int round = 0; round < 250; ++round) {
    for (int i = 0; i < 150; ++i) {
      put(*client, kA + next * kPage, page_of(next));
      const ObjectId id{client->map->load(kA + next * kPage).object_id()};
      bytes += length[next] = disk_bytes(pool->info(id).length);
      there.push_back(next++);
    }
    while (bytes > 35 * kSegment / 10) {
      const std::size_t at = random() % there.size();
      unmap(*client, kA + there[at] * kPage, 1);
      bytes -= length[there[at]];
      there[at] = there.back();
      there.pop_back();
    }
    ASSERT_EQ(all_out(400), 0U) << "round " << round << ": " << writeback->report();
    if (round % 25 == 0) expect_right(*client, kA + there[random() % there.size()] * kPage);
    expect_valid();
  }
  EXPECT_LE(file->file_bytes(), 7 * kSegment);
  EXPECT_GT(counters().disk_cleaned_bytes.load(), 0U);
  EXPECT_EQ(expect_everything_right(), 0U);
  EXPECT_EQ(counters().disk_errors.load(), 0U);
}

TEST_F(CleaningTest, FullIsFullAndSaysSo) {
  put_noise(0, 6 * kPerSegment, 1);  // one segment is cleaning's
  ASSERT_EQ(all_out(), 0U);
  put_noise(1'000, 3 * kPerSegment, 5'000);
  EXPECT_EQ(all_out(100), 3 * kPerSegment);
  EXPECT_NE(writeback->report().find("full"), std::string::npos) << writeback->report();
  EXPECT_FALSE(traffic.relief.load());
  EXPECT_EQ(counters().disk_cleaned_bytes.load(), 0U);
  for (std::uint64_t i = 0; i < 2 * kPerSegment; ++i) expect_right(*client, kA + i * kPage);
  os.clock_ns += 2'000'000'000;
  all_out();
  EXPECT_GT(pool->stats().outside, 3 * kPerSegment);
  expect_everything_right();
}

// What is dead lies together, and every other block is full: nothing would be gained by moving.
TEST_F(CleaningTest, WhatGainsNothingIsNotMoved) {
  put_noise(0, 5 * kPerSegment, 1);
  ASSERT_EQ(all_out(), 0U);
  ASSERT_EQ(file->used_bytes(), 5 * kSegment);
  unmap(*client, kA, kPerSegment / 2);
  unmap(*client, kA + 2 * kPerSegment * kPage, kPerSegment / 4);
  EXPECT_NE(press(), 0U);
  stays_full();
  EXPECT_EQ(counters().disk_cleaned_bytes.load(), 0U);
  // A little more dies: that is room.
  unmap(*client, kA + 3 * kPerSegment * kPage, kPerSegment);
  const std::uint64_t outside = pool->stats().outside;
  os.clock_ns += 2'000'000'000;
  all_out();
  EXPECT_EQ(pool->stats().outside, outside + kPerSegment);
  EXPECT_EQ(counters().disk_cleaned_bytes.load(), 0U);
  EXPECT_EQ(counters().disk_read_bytes.load(), 0U);
  expect_valid();
  EXPECT_EQ(expect_everything_right(), 0U);
}

// Objects of more than half a block, which do not fill blocks however they are put, and dead ones
// everywhere: what there is to gain is gained, and that is the end of it.
TEST_F(CleaningTest, LargeObjectsAreNotMovedForEver) {
  for (const bool holes : {true, false}) {
    os.disk.has_punch = holes;
    std::mt19937_64 random(31);
    const std::uint64_t from = holes ? 0 : 10'000;
    for (std::uint64_t i = 0; i < 1'500; ++i) {
      put(*client, kA + (from + i) * kPage, large_page(from + i));
      if (i % 300 == 299) (void)all_out();
    }
    EXPECT_NE(pool->stats().objects, 0U);
    for (const std::uint64_t one_of : {16U, 12U, 3U}) {
      for (std::uint64_t i = 0; i < 1'500; ++i) {
        if (random() % one_of == 0 && truth.contains({client.get(), kA + (from + i) * kPage}))
          unmap(*client, kA + (from + i) * kPage, 1);
      }
      const std::uint64_t outside = pool->stats().outside;
      os.clock_ns += 2'000'000'000;
      (void)all_out();
      stays_full();
      EXPECT_TRUE(one_of != 3 || pool->stats().outside > outside);
      expect_valid();
    }
    EXPECT_GT(counters().disk_cleaned_bytes.load(), 0U);
    ASSERT_EQ(expect_everything_right(), 0U);
    unmap(*client, kA + from * kPage, 1'500);
  }
}

TEST_F(CleaningTest, WhatIsBeingMovedCanBeReadAndFreed) {
  fill_and_thin(2);
  put_noise(1'000, 2 * kPerSegment, 10'000);
  ASSERT_TRUE(pool->set_limit(kLittle).has_value());
  hold_io();
  std::mt19937_64 random(8);
  for (int step = 0; step < 200; ++step) {
    write_steps(1);
    const std::uint64_t page = kA + random() % (5 * kPerSegment) * kPage;
    if (truth.contains({client.get(), page}) && step % 4 == 0) {
      // Read ahead of this: everything that ends, ends in its own time.
      random() % 2 == 0 ? unmap(*client, page, 1) : expect_right(*client, page);
    }
    if (os.disk.under_way() != 0) os.disk.complete_at(random() % os.disk.under_way());
    expect_valid();
  }
  EXPECT_GT(counters().disk_cleaned_bytes.load(), 0U);
  ASSERT_TRUE(pool->set_limit(pool_config.limit_bytes).has_value());
  EXPECT_EQ(expect_everything_right(), 0U);
}

// Its place changes while it is read, and what lay there is overwritten: looked up anew, and no
// error, however often that happens.
TEST_F(CleaningTest, MovedWhileItIsRead) {
  fill_and_thin(2);
  hold_io();
  const std::uint64_t page = kA + 4 * kPage;
  const SegmentPlace before = place(*client, page);
  os.fault(fd(), page, false);
  (void)service->step(*client);
  ASSERT_EQ(os.disk.under_way(), 1U);
  put_noise(1'000, 2 * kPerSegment, 10'000);
  ASSERT_TRUE(pool->set_limit(kLittle).has_value());
  for (int i = 0; i < 400 && pool->stats().objects != 0; ++i) {
    write_steps(1);
    for (std::size_t io = os.disk.under_way(); io-- > 1;) os.disk.complete_at(io);  // not the first
  }
  ASSERT_TRUE(pool->set_limit(pool_config.limit_bytes).has_value());
  ASSERT_NE(place(*client, page), before);
  ASSERT_EQ(look(*client, page), Got::nothing);
  EXPECT_EQ(expect_everything_right(), 0U);
  EXPECT_EQ(counters().disk_errors.load(), 0U);
}

TEST_F(CleaningTest, MovedAgainAndAgainWhileItIsRead) {
  put_noise(0, 40, 1);
  ASSERT_EQ(all_out(), 0U);
  unmap(*client, kA + kPage, 39);
  hold_io();
  os.fault(fd(), kA, false);
  (void)service->step(*client);
  const ObjectId id{client->map->load(kA).object_id()};
  for (int i = 0; i < 12; ++i) {
    ASSERT_EQ(os.disk.under_way(), 1U);
    // As cleaning does it, but with what is read overwritten already.
    const ObjectInfo info = pool->info(id);
    const auto claim = file->claim().value();
    file->fill({claim.segment, 0}, disk_bytes(info.length));
    file->written(claim.segment);
    ASSERT_TRUE(pool->move_elsewhere(id, info.place, {claim.segment, 0}));
    file->release(info.place, disk_bytes(info.length));
    ASSERT_EQ(file->collect(), 1U);
    os.disk.on_io = [](FakeIo& io) {
      io.flip_bit = 8 * 100;
      return 0;
    };
    os.disk.complete_io();
    (void)service->step(*client);
    ASSERT_EQ(look(*client, kA), Got::nothing) << i;
  }
  EXPECT_EQ(counters().disk_errors.load(), 0U);
  // (Nothing lies at the last place: what was never wrong is poisoned only now.)
  let_io_go();
  expect_poisoned(*client, kA);
  EXPECT_EQ(expect_everything_right(), 1U);
}

// A victim dies while it is read, and its place is used again: what was read is not taken for what
// lies there now, though id, place and length be the same.
TEST_F(CleaningTest, TheVictimIsUsedAgainMeanwhile) {
  os.disk.has_punch = false;  // a segment that had holes is not the first to be used again
  put_noise(0, 5 * kPerSegment, 1);
  ASSERT_EQ(all_out(), 0U);
  for (std::uint64_t i = 0; i < 5 * kPerSegment; ++i) {
    // The first segment is the sparsest, and the second sparse enough to be cleaned with it.
    const std::uint32_t segment = place(*client, kA + i * kPage).segment;
    const bool keep = segment == 0 ? i % 16 == 0 : segment == 1 ? i % 8 == 0 : i % 8 != 0;
    if (!keep) unmap(*client, kA + i * kPage, 1);
  }
  std::vector<std::uint64_t> victims;
  for (const auto& [key, bytes] : truth) {
    if (place(*client, key.second).segment == 0) victims.push_back(key.second);
  }
  ASSERT_FALSE(victims.empty());
  put_noise(1'000, 2 * kPerSegment, 10'000);
  ASSERT_TRUE(pool->set_limit(kLittle).has_value());
  hold_io();
  std::size_t read = SIZE_MAX;
  for (int i = 0; i < 50 && read == SIZE_MAX; ++i) {
    for (std::size_t io = 0; io < os.disk.under_way(); ++io) {
      if (!os.disk.io(io).write && os.disk.io(io).offset == 0) read = io;
    }
    if (read != SIZE_MAX) break;
    complete(true);
    write_steps(1);
  }
  ASSERT_NE(read, SIZE_MAX) << "the first segment is not cleaned";
  // Every object of it goes; the same ids come to lie at the same places, with other bytes.
  std::map<std::uint64_t, SegmentPlace> places;
  for (const std::uint64_t page : victims) {
    places[client->map->load(page).object_id()] = place(*client, page);
    unmap(*client, page, 1);
  }
  ASSERT_EQ(file->live_bytes(0), 0U);
  (void)file->collect();
  const auto claim = file->claim().value();
  ASSERT_EQ(claim.segment, 0U);
  std::vector<std::uint64_t> pages;
  std::uint32_t live = 0;
  for (std::uint64_t i = 0; i < 400 && live < places.size(); ++i) {
    const std::uint64_t page = kA + (5'000 + i) * kPage;
    put(*client, page, page_of(4 * (90'000 + i)));
    if (places.contains(client->map->load(page).object_id())) {
      pages.push_back(page);
      ++live;
    }
  }
  ASSERT_GT(live, 0U) << "ids are not given out again";
  for (const std::uint64_t page : pages)
    file->fill(places[client->map->load(page).object_id()], disk_bytes(kPage));
  file->written(claim.segment);
  std::vector<std::byte> raw(kSegment);
  std::array<std::byte, kPage> packed;
  for (const std::uint64_t page : pages) {
    const ObjectId id{client->map->load(page).object_id()};
    const auto loaded = pool->load(id, packed).value();
    ASSERT_EQ(loaded.length, kPage);
    const SegmentPlace at = places[static_cast<std::uint64_t>(id)];
    std::byte* const into = raw.data() + at.unit * BackingFile::kUnit;
    const DiskHeader header{static_cast<std::uint32_t>(id), kPage,
                            static_cast<std::uint16_t>(disk_units(kPage))};
    std::memcpy(into, &header, sizeof(header));
    seal->close({static_cast<std::uint64_t>(id), claim.generation, at.unit}, packed,
                {into + sizeof(header), kPage + Seal::kTagBytes});
    ASSERT_TRUE(pool->move_out(id, loaded, at));
  }
  // The read ends with what lay there before; then comes the new.
  os.disk.complete_at(read);
  bool used_again = false;  // after it was cleaned: there is something else now
  os.disk.on_io = [&](FakeIo& io) {
    used_again = used_again || (io.write && io.offset < kSegment);
    if (!io.write && io.offset < kSegment && !used_again) {
      std::memcpy(io.into.data(), raw.data() + io.offset, io.bytes());
      io.moved = 0;
    }
    return 0;
  };
  for (int i = 0; i < 100; ++i) {
    os.disk.complete_io();
    write_steps(1);
  }
  ASSERT_TRUE(pool->set_limit(pool_config.limit_bytes).has_value());
  EXPECT_EQ(expect_everything_right(), 0U);
}

TEST_F(CleaningTest, AVictimThatDoesNotOpenIsLeftAlone) {
  fill_and_thin(2);
  std::uint64_t reads = 0;
  os.disk.on_io = [&](FakeIo& io) {
    if (io.write || io.offset >= kSegment) return 0;
    ++reads;
    io.flip_bit = 8 * 100;  // in the first object that is read
    return 0;
  };
  EXPECT_EQ(press(), 0U);
  EXPECT_GT(reads, 0U);
  EXPECT_LE(reads, 6 * Writeback::kMostReads);  // for as long as something else of it moves
  os.disk.on_io = nullptr;
  EXPECT_EQ(expect_everything_right(), 0U);
}

TEST_F(CleaningTest, AVictimThatCannotBeReadIsLeftAlone) {
  fill_and_thin(2);
  std::map<std::uint64_t, int> reads;
  os.disk.on_io = [&](FakeIo& io) {
    if (io.write) return 0;
    ++reads[io.offset];
    return -EIO;
  };
  EXPECT_GT(press(), 0U);
  EXPECT_FALSE(reads.empty());
  EXPECT_NE(writeback->report(), "");
  for (const auto& [offset, times] : reads) EXPECT_LE(times, 2) << offset;
  os.disk.on_io = nullptr;
  EXPECT_EQ(expect_everything_right(), 0U);
}

// One of its reads fails, or ends early: what the others brought is moved.
TEST_F(CleaningTest, AShortReadOfAVictimLosesNothing) {
  fill_and_thin(2);
  std::uint64_t reads = 0;
  os.disk.on_io = [&](FakeIo& io) {
    if (io.write || ++reads % 3 == 0) return 0;
    return reads % 3 == 1 ? -EIO : static_cast<int>(io.bytes() / 2);
  };
  press();
  EXPECT_GT(counters().disk_cleaned_bytes.load(), 0U);
  EXPECT_GT(reads, 2U);
  expect_valid();
  os.disk.on_io = nullptr;
  EXPECT_EQ(expect_everything_right(), 0U);
}

TEST_F(CleaningTest, MovesThatCannotBeWrittenAreMadeLater) {
  fill_and_thin(2);
  bool broken = true;
  os.disk.on_io = [&](FakeIo& io) { return io.write && broken ? -EIO : 0; };
  put_noise(1'000, 2 * kPerSegment, 10'000);
  EXPECT_GT(all_out(200), 0U);
  EXPECT_NE(writeback->report(), "");
  EXPECT_EQ(counters().disk_cleaned_bytes.load(), 0U);
  expect_valid();
  broken = false;
  for (int i = 0; i < 3 && pool->stats().objects != 0; ++i) {
    os.clock_ns += 11'000'000'000;
    all_out(200);
  }
  EXPECT_EQ(pool->stats().objects, 0U) << writeback->report();
  EXPECT_EQ(writeback->report(), "");
  EXPECT_EQ(expect_everything_right(), 0U);
}

// Headers are hints: whatever they say, nothing is lost or mixed up.
TEST_F(CleaningTest, HeadersThatLie) {
  std::mt19937_64 random(17);
  std::uint64_t lies = 0;
  fill_and_thin(2);
  os.disk.on_io = [&](FakeIo& io) {
    if (io.write) return 0;
    const std::uint64_t begin = io.offset % kSegment, bytes = disk_bytes(kPage);
    const std::uint64_t object = (begin + bytes - 1) / bytes + random() % 20;
    const std::uint64_t field = std::array{0, 1, 3, 4, 5, 6, 7}[random() % 7];
    if (object * bytes >= begin + io.bytes()) return 0;
    ++lies;
    io.flip_bit = static_cast<std::int64_t>(8 * (object * bytes + field - begin) + random() % 8);
    return 0;
  };
  press();
  EXPECT_GT(lies, 0U);
  expect_valid();
  os.disk.on_io = nullptr;
  EXPECT_EQ(expect_everything_right(), 0U);
}

TEST_F(CleaningTest, ATornVictimKeepsWhatIsWhole) {
  put_noise(0, 5 * kPerSegment, 1);
  os.disk.on_io = [&](FakeIo& io) {
    if (io.write && io.offset == 0) io.moved = 300 * 1024;
    return 0;
  };
  ASSERT_EQ(all_out(), 0U);
  os.disk.on_io = nullptr;
  for (std::uint64_t i = 0; i < 5 * kPerSegment; ++i) {
    const SegmentPlace at = place(*client, kA + i * kPage);
    if (i % 4 != 0) {
      unmap(*client, kA + i * kPage, 1);
    } else if (at.segment == 0 && at.unit * BackingFile::kUnit + disk_bytes(kPage) > 300 * 1024) {
      may_be_poisoned.insert({client.get(), kA + i * kPage});
    }
  }
  press();
  const std::size_t torn = may_be_poisoned.size();
  ASSERT_GT(torn, 0U);
  EXPECT_EQ(expect_everything_right(), torn);
}

// A maximum that falls below what is used: cleaning gets what it needs to come down to it.
TEST_F(CleaningTest, AMaximumThatFallsBelowWhatIsUsed) {
  tunables.writeback_max = 16 * kSegment;
  write_steps(1);
  put_noise(0, 6 * kPerSegment, 1);
  ASSERT_EQ(all_out(), 0U);
  put_noise(6 * kPerSegment, 4 * kPerSegment, 5'000);
  ASSERT_EQ(all_out(), 0U);
  for (std::uint64_t i = 0; i < 10 * kPerSegment; i += 2) unmap(*client, kA + i * kPage, 1);
  const std::uint64_t used = file->used_bytes();
  ASSERT_GE(used, 10 * kSegment);
  tunables.writeback_max = 9 * kSegment;
  put_noise(2'000, kPerSegment / 2, 20'000);
  EXPECT_EQ(all_out(), 0U) << writeback->report();
  EXPECT_GT(counters().disk_cleaned_bytes.load(), 0U);
  EXPECT_LE(file->used_bytes(), 9 * kSegment);
  EXPECT_EQ(expect_everything_right(), 0U);
}

// With free room only what is dead is given back; what lives stays where it is until little is left
// of it, be it for the maximum or for what the file system must keep.
TEST_F(CleaningTest, WithoutNeedNothingIsMovedForAsLongAsThereIsRoom) {
  for (const bool by_file_system : {false, true}) {
    tunables.writeback_max = 512 * kSegment;
    tunables.writeback_free_min = 0;
    os.clock_ns += 1'000'000'000;
    write_steps(1);
    constexpr std::uint64_t kRounds = 14, kPages = 1'700;
    const std::uint64_t first = by_file_system ? 100'000 : 0;
    for (std::uint64_t i = 0; i < kRounds * kPages; ++i) {
      put(*client, kA + (first + i) * kPage, page_of(4 * i + 2));  // 1 KiB of noise
      if (i % kPages == kPages - 1) {
        ASSERT_EQ(all_out(), 0U);
      }
    }
    const std::uint64_t full = file->used_bytes();
    for (std::uint64_t i = 0; i < kRounds * kPages; ++i) {
      if (i % 7 != 0) unmap(*client, kA + (first + i) * kPage, 1);
    }
    ASSERT_TRUE(pool->set_limit(64 * kMiB).has_value());  // nobody needs anything
    const std::uint64_t cleaned = counters().disk_cleaned_bytes.load();
    write_steps(2'000);
    const std::uint64_t used = file->used_bytes();
    EXPECT_LT(used, full * 3 / 4);
    EXPECT_EQ(counters().disk_cleaned_bytes.load(), cleaned);
    if (by_file_system) {
      tunables.writeback_free_min = os.disk.info.free_bytes - kSegment;
    } else {
      tunables.writeback_max = used / 16 * 17;
    }
    write_steps(2'000);
    EXPECT_LT(file->used_bytes(), used * 3 / 4);
    EXPECT_GT(counters().disk_cleaned_bytes.load(), cleaned);
    ASSERT_EQ(expect_everything_right(), 0U);
    unmap(*client, kA + first * kPage, kRounds * kPages);
    truth.clear();
    ASSERT_TRUE(pool->set_limit(pool_config.limit_bytes).has_value());
  }
}

TEST_F(CleaningTest, WithoutNeedItGivesRoomBackToo) {
  max_segments = 512;
  tunables.writeback_max = 512 * kSegment;
  os.clock_ns += 1'000'000'000;
  write_steps(1);
  for (std::uint64_t round = 0; round < 14; ++round) {
    put_noise(round * 1'000, 7 * kPerSegment, 1 + round * 1'000);
    ASSERT_EQ(all_out(), 0U);
  }
  const std::uint64_t used = file->used_bytes();
  for (std::uint64_t round = 0; round < 14; ++round) {
    for (std::uint64_t i = 0; i < 7 * kPerSegment; ++i) {
      if (i % 5 != 0) unmap(*client, kA + (round * 1'000 + i) * kPage, 1);
    }
  }
  ASSERT_TRUE(pool->set_limit(64 * kMiB).has_value());  // nobody needs anything
  write_steps(2'000);
  EXPECT_LT(file->used_bytes(), used - 5 * kMiB);
  EXPECT_LT(file->file_bytes(), used);
  EXPECT_EQ(expect_everything_right(), 0U);
}

}  // namespace
}  // namespace foldswap
