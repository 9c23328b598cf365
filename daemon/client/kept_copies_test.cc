// Copies of resident pages that stay on disk: what is remembered (KeptCopies), and that no page
// ever becomes what is kept of it unless it holds exactly that.
#include "daemon/client/kept_copies.h"

#include "daemon/testing/disk_fixture.h"

namespace foldswap {
namespace {

constexpr std::uint64_t kHeap = 0x550000000000, kWrap = KeptCopies::kSlots * kPage;

TEST(PageTagger, EveryBitCounts) {
  const PageTagger tagger;
  std::array<std::byte, kPage> page{};
  const auto before = tagger(page);
  for (std::size_t bit = 0; bit < kPage * 8; ++bit) {
    page[bit / 8] ^= std::byte{1} << (bit % 8);
    EXPECT_NE(tagger(page), before) << bit;
    page[bit / 8] ^= std::byte{1} << (bit % 8);
  }
  EXPECT_EQ(tagger(page), before);
}

TEST(PageTagger, KeysDiffer) {
  const std::array<std::byte, kPage> page{};
  EXPECT_NE(PageTagger()(page), PageTagger()(page));
}

TEST(KeptCopies, GivesBackWhatWasPutThereOnce) {
  KeptCopies kept;
  EXPECT_EQ(kept.put(kHeap, ObjectId{7}, {1, 2}), ObjectId::none);
  EXPECT_EQ(kept.size(), 1U);
  EXPECT_FALSE(kept.take(kHeap + kPage).has_value());
  const auto taken = kept.take(kHeap);
  ASSERT_TRUE(taken.has_value());
  EXPECT_EQ(taken->object, ObjectId{7});
  EXPECT_EQ(taken->tag, (KeptCopies::Tag{1, 2}));
  EXPECT_FALSE(kept.take(kHeap).has_value());
  EXPECT_EQ(kept.size(), 0U);
}

TEST(KeptCopies, TheLaterOfTwoPagesHasTheSlot) {
  KeptCopies kept;
  EXPECT_EQ(kept.put(kHeap, ObjectId{1}, {}), ObjectId::none);
  EXPECT_FALSE(kept.take(kHeap + kWrap).has_value()) << "another page's";
  EXPECT_EQ(kept.put(kHeap + kWrap, ObjectId{2}, {}), ObjectId{1});
  EXPECT_EQ(kept.put(kHeap + kWrap, ObjectId{3}, {}), ObjectId{2});
  EXPECT_EQ(kept.size(), 1U);
  EXPECT_FALSE(kept.take(kHeap).has_value());
  EXPECT_EQ(kept.take(kHeap + kWrap)->object, ObjectId{3});
}

TEST(KeptCopies, ARangeIsEmptiedAndNothingElse) {
  KeptCopies kept;
  // Over the table's end, so that the range is in two parts of it.
  const std::uint64_t first = 4 * kWrap - 600 * kPage;
  for (std::uint64_t i = 0; i < 1'300; ++i)
    EXPECT_EQ(kept.put(first + i * kPage, ObjectId{i + 1}, {}), ObjectId::none);
  std::set<ObjectId> taken;
  for (auto some = kept.take_some(first + kPage, first + 1'299 * kPage); !some.empty();
       some = kept.take_some(first + kPage, first + 1'299 * kPage))
    taken.insert(some.begin(), some.end());
  EXPECT_EQ(taken.size(), 1'298U);
  EXPECT_EQ(kept.size(), 2U);
  EXPECT_TRUE(kept.take_some(first + kWrap, first + kWrap + kPage).empty()) << "another page's";
  EXPECT_EQ(kept.take_some(0, kAddressEnd).size(), 2U);
  EXPECT_EQ(kept.size(), 0U);
}

TEST(KeptCopies, TheWholeOfAnAddressIsCompared) {
  KeptCopies kept;
  const std::uint64_t last = kAddressEnd - kPage;
  EXPECT_EQ(kept.put(last, ObjectId{(1ULL << 40) - 1}, {}), ObjectId::none);
  EXPECT_FALSE(kept.take(last % kWrap).has_value());
  EXPECT_EQ(kept.take(last)->object, ObjectId{(1ULL << 40) - 1});
}

class KeptCopiesTest : public DiskFixture {
 protected:
  static constexpr std::uint64_t kFiller = kA + (64ULL << 20), kFillers = 300;
  void SetUp() override {
    keep_copies = true;
    DiskFixture::SetUp();
  }
  // As the evictor does it, with what the page holds now. True: it went the short way.
  bool leave(Client& c, std::uint64_t page) {
    auto& present = os.spaces[c.uffd.get()].present;
    const FakeOs::PageBytes bytes = present.at(page);
    EXPECT_TRUE(bytes == truth.at({&c, page}));
    const std::span<const std::byte, kPage> span(bytes);
    const auto unchanged = store->reuse(c, page, span);
    const Entry entry = unchanged ? *unchanged : store->put(span, {Codec::zstd, 1}, *codec).value();
    const Entry out = Entry::out(0, 0, 1);
    {
      const RankedLock lock(c.mutex);
      EXPECT_NE(c.map->ensure(page), nullptr);
    }
    EXPECT_TRUE(c.map->replace(page, c.map->load(page), out));
    present.erase(page);
    EXPECT_TRUE(store->publish(c, page, out, entry));
    return unchanged.has_value();
  }
  void change(Client& c, std::uint64_t page, std::size_t at) {
    auto& bytes = os.spaces[c.uffd.get()].present.at(page);
    bytes[at] ^= std::byte{1};
    truth[{&c, page}] = bytes;
  }
  // Pages that have been to the disk and are resident again.
  void bring(std::uint64_t pages, std::uint64_t seed = 1) {
    put(*client, kA, pages, seed);
    put(*client, kFiller, kFillers, seed + 1'000'000);  // so that the pool is too small
    ASSERT_EQ(all_out(), 0U);
    for (std::uint64_t i = 0; i < pages; ++i) expect_right(*client, kA + i * kPage);
    ASSERT_EQ(client->kept.size(), pages);
  }
};

TEST_F(KeptCopiesTest, APageThatWasOnlyReadLeavesWithoutAWord) {
  bring(40);
  const auto written = counters().disk_written_bytes.load();
  for (std::uint64_t i = 0; i < 40; ++i) {
    EXPECT_TRUE(leave(*client, kA + i * kPage));
    EXPECT_TRUE(on_disk(*client, kA + i * kPage));
  }
  EXPECT_EQ(client->kept.size(), 0U);
  EXPECT_EQ(client->record.pool_pages.load(), 40U + kFillers);
  EXPECT_EQ(pool->stats().objects, 0U) << "something went through the pool";
  write_steps(10);
  EXPECT_EQ(counters().disk_written_bytes.load(), written);
  expect_everything_right();
}

TEST_F(KeptCopiesTest, OneBitThatChangedIsNotLost) {
  bring(40);
  const std::uint64_t before = file->live_objects();
  for (std::uint64_t i = 0; i < 40; ++i) change(*client, kA + i * kPage, i * 105);
  for (std::uint64_t i = 0; i < 40; ++i) EXPECT_FALSE(leave(*client, kA + i * kPage));
  EXPECT_EQ(file->live_objects(), before - 40) << "what nobody can want any more is kept";
  expect_everything_right();
}

TEST_F(KeptCopiesTest, SomeChangeAndSomeDoNotRoundAfterRound) {
  bring(60);
  std::mt19937_64 random(5);
  for (int round = 0; round < 30; ++round) {
    for (std::uint64_t i = 0; i < 60; ++i) {
      if (random() % 3 == 0) continue;  // stays resident
      const bool changes = random() % 2 == 0;
      if (changes) change(*client, kA + i * kPage, random() % kPage);
      EXPECT_FALSE(leave(*client, kA + i * kPage) && changes);
    }
    if (round % 3 == 0) (void)all_out();
    for (std::uint64_t i = 0; i < 60; ++i) expect_right(*client, kA + i * kPage);
    expect_valid();
  }
  expect_everything_right();
}

TEST_F(KeptCopiesTest, WhatCameFromThePoolIsNotKept) {
  put(*client, kA, 10, 1);
  for (std::uint64_t i = 0; i < 10; ++i) expect_right(*client, kA + i * kPage);
  EXPECT_EQ(client->kept.size(), 0U);
  expect_everything_right();
}

// In one order with what is on disk.
TEST_F(KeptCopiesTest, OfAWindowOnlyWhatCameFromDiskIsKept) {
  put(*client, kA, 8, 1);
  put(*client, kFiller, kFillers, 1'000'000);
  ASSERT_EQ(all_out(), 0U);
  unmap(*client, kA + 3 * kPage, 2);
  put(*client, kA + 3 * kPage, page_of(1));  // in the pool
  put(*client, kA + 4 * kPage, same_of(5));
  std::uint32_t pages = 0;
  ASSERT_EQ(reader().begin(*client, kA, 8, DiskReader::Purpose::ahead, pages),
            DiskReader::Begun::reading);
  ASSERT_EQ(pages, 8U);
  (void)service->step(*client);
  for (std::uint64_t i = 0; i < 8; ++i) EXPECT_EQ(look(*client, kA + i * kPage), Got::page);
  EXPECT_EQ(client->kept.size(), 6U);
  EXPECT_EQ(pool->stats().objects, 0U);
  expect_everything_right();
}

TEST_F(KeptCopiesTest, WhatIsReadToBeWrittenToIsNotKept) {
  constexpr std::uint64_t kFar = 1ULL << 20;  // nothing is read ahead
  for (std::uint64_t i = 0; i < 8; ++i) put(*client, kA + i * kFar, 1, i);
  put(*client, kFiller, kFillers, 1'000'000);
  ASSERT_EQ(all_out(), 0U);
  for (std::uint64_t i = 0; i < 8; ++i) {
    ASSERT_EQ(touch(*client, kA + i * kFar, i % 2 == 0), Got::page);
    if (i % 2 == 0) change(*client, kA + i * kFar, i);
  }
  EXPECT_EQ(client->kept.size(), 4U);
  EXPECT_EQ(file->live_objects(), kFillers + 4) << "room that nobody needs is not free";
  for (std::uint64_t i = 0; i < 8; ++i) EXPECT_EQ(leave(*client, kA + i * kFar), i % 2 != 0);
  expect_everything_right();
}

TEST_F(KeptCopiesTest, AChildHasWhatItsParentHasOnDisk) {
  bring(10);
  Client& child = another_client();
  for (std::uint64_t i = 0; i < 10; ++i) {
    EXPECT_TRUE(leave(*client, kA + i * kPage));
    share(*client, child, kA + i * kPage);
    expect_right(*client, kA + i * kPage);
    change(*client, kA + i * kPage, i);
    EXPECT_FALSE(leave(*client, kA + i * kPage));
    expect_right(child, kA + i * kPage);
    EXPECT_TRUE(leave(child, kA + i * kPage)) << "what it read is what is there";
  }
  expect_everything_right();
}

TEST_F(KeptCopiesTest, RoomComesBackWhenThePageGoes) {
  bring(10);
  unmap(*client, kA, 4);
  EXPECT_EQ(client->kept.size(), 6U);
  EXPECT_EQ(file->live_objects(), 6U + kFillers);
  expect_everything_right();
}

// A bounded amount of work in each step: others' faults wait for it.
TEST_F(KeptCopiesTest, MuchIsForgottenInSlices) {
  constexpr std::uint64_t kMany = 200'000;
  for (const bool whole : {false, true}) {
    for (std::uint64_t i = 0; i < kMany; ++i) {
      const ObjectId id = pool->store_pattern(i).value();
      ASSERT_EQ(client->kept.put(kA + i * kPage, id, {}), ObjectId::none);
    }
    if (whole) {
      client->restore_wanted = true;
    } else {
      os.range_event(fd(), UFFD_EVENT_UNMAP, kA, kA + kMany * kPage);
    }
    std::uint64_t left = kMany;
    for (int i = 0; i < 100 && left != 0; ++i) {
      const StepResult result = service->step(*client);
      EXPECT_LE(left - client->kept.size(), 20'000U);
      left = client->kept.size();
      EXPECT_TRUE(left == 0 || result.again || result.retry_us != 0);
      EXPECT_EQ(client->restore_wanted, whole && left != 0);
    }
    EXPECT_EQ(left, 0U);
    EXPECT_EQ(pool->stats().pattern_objects, 0U);
  }
}

TEST_F(KeptCopiesTest, RoomComesBackWhenTheClientEnds) {
  bring(10);
  client->set_state(ClientState::exiting);
  for (int i = 0; i < 10 && !client->reader_done; ++i) (void)service->step(*client);
  EXPECT_TRUE(client->reader_done);
  EXPECT_EQ(client->kept.size(), 0U);
  EXPECT_EQ(file->live_objects(), 0U);
}

TEST_F(KeptCopiesTest, NothingIsKeptOfWhatIsRestored) {
  bring(20);
  for (std::uint64_t i = 0; i < 10; ++i) EXPECT_TRUE(leave(*client, kA + i * kPage));
  client->restore_wanted = true;
  for (int i = 0; i < 60 && client->restore_wanted; ++i) {
    (void)service->step(*client);
    complete(false);
    os.clock_ns += 1'000'000;
  }
  EXPECT_FALSE(client->restore_wanted);
  EXPECT_EQ(client->kept.size(), 0U);
  EXPECT_EQ(file->live_objects(), 0U);
  expect_everything_right();
}

TEST_F(KeptCopiesTest, KeptWhileHalfOfTheFileIsFree) {
  bring(10);
  EXPECT_TRUE(store->keeps_copies());
  file->set_limits({2 * kSegment, 0});
  EXPECT_FALSE(store->keeps_copies());
  for (std::uint64_t i = 0; i < 10; ++i) EXPECT_TRUE(leave(*client, kA + i * kPage));
  for (std::uint64_t i = 0; i < 10; ++i) expect_right(*client, kA + i * kPage);
  EXPECT_EQ(client->kept.size(), 0U) << "the file has no room for it";
  EXPECT_EQ(file->live_objects(), kFillers);
  expect_everything_right();
}

TEST_F(KeptCopiesTest, WhatIsKeptMayMove) {
  bring(200);
  for (std::uint64_t i = 0; i < 200; i += 2) {  // a segment that is half dead
    change(*client, kA + i * kPage, i);
    EXPECT_FALSE(leave(*client, kA + i * kPage));
  }
  tunables.writeback_max = 4 * kSegment;
  for (int i = 0; i < 40 && counters().disk_cleaned_bytes.load() == 0; ++i) {
    unmap(*client, kFiller, kFillers);
    put(*client, kFiller, kFillers, 10'000 + 1'000 * i);
    (void)all_out();
  }
  EXPECT_GT(counters().disk_cleaned_bytes.load(), 0U);
  for (std::uint64_t i = 1; i < 200; i += 2) EXPECT_TRUE(leave(*client, kA + i * kPage));
  expect_everything_right();
}

}  // namespace
}  // namespace foldswap
