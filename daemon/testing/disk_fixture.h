// CoreFixture with a disk: a small pool, a simulated disk, and writeback that is stepped by hand.
// Remembers what every page should hold, and looks at all of them at the end.
#pragma once

#include <map>
#include <random>
#include <set>
#include <utility>

#include "daemon/disk/disk_traffic.h"
#include "daemon/testing/core_fixture.h"
#include "daemon/writeback/writeback.h"

namespace foldswap {

class DiskFixture : public CoreFixture {
 protected:
  static constexpr std::uint64_t kA = 0x7f0000000000;
  static constexpr std::uint64_t kSegment = BackingFile::kSegmentBytes;
  static constexpr std::uint64_t kLittle = 256 * kKiB;  // of pool: everything has to leave
  using Key = std::pair<Client*, std::uint64_t>;

  void SetUp() override {
    pool_config.limit_bytes = 4 * kMiB;
    CoreFixture::SetUp();
    everybody.push_back(client);
    tunables.writeback_max = max_segments * kSegment;
    file = BackingFile::create(os, *state, "/anywhere", {tunables.writeback_max, 0}).value();
    std::array<std::byte, Seal::kKeyBytes> key{std::byte{7}};
    seal = Seal::make(Seal::best_encryption(), key).value();
    writeback = Writeback::create(os, *state, *store, *file, *seal, traffic, tunables).value();
    store->set_backing(file.get(), keep_copies);
    service->read_from(
        DiskReader::create(os, *store, *file, *seal, traffic, state->counters()).value());
  }
  void TearDown() override {
    service.reset();
    writeback.reset();
    store->set_backing(nullptr);
    EXPECT_EQ(traffic.demand.load(), 0U);
    EXPECT_FALSE(traffic.relief.load());
  }
  Counters& counters() { return state->counters(); }
  DiskReader& reader() { return *service->reader(); }

  // -- contents
  static FakeOs::PageBytes page_of(std::uint64_t seed) {
    constexpr std::size_t kNoise[] = {kPage, 2048, 1024, 300};  // the rest is zeros
    FakeOs::PageBytes page{};
    std::mt19937_64 random(seed);
    for (std::size_t i = 0; i < kNoise[seed % 4]; i += 4) {
      const auto word = static_cast<std::uint32_t>(random());
      std::memcpy(&page[i], &word, sizeof(word));
    }
    return page;
  }
  static FakeOs::PageBytes same_of(std::uint64_t seed) {
    FakeOs::PageBytes page{};
    page.fill(static_cast<std::byte>(seed));
    return page;
  }

  // -- pages that leave
  void put(Client& c, std::uint64_t page, const FakeOs::PageBytes& bytes) {
    evict(c, page, bytes);
    truth[{&c, page}] = bytes;
  }
  void put(Client& c, std::uint64_t first, std::uint64_t pages, std::uint64_t seed) {
    for (std::uint64_t i = 0; i < pages; ++i) put(c, first + i * kPage, page_of(seed + i));
  }
  [[nodiscard]] bool on_disk(Client& c, std::uint64_t page) {
    return store->on_disk(c.map->load(page)).has_value();
  }
  [[nodiscard]] SegmentPlace place(Client& c, std::uint64_t page) {
    const auto info = store->on_disk(c.map->load(page));
    EXPECT_TRUE(info.has_value());
    return info ? info->place : SegmentPlace{};
  }
  void write_steps(int steps) {
    for (int i = 0; i < steps; ++i) {
      (void)writeback->step();
      os.clock_ns += 2'000'000;
    }
  }
  // A pool that may hold next to nothing: all that can leave, leaves. How many objects stayed.
  std::uint64_t all_out(int most_steps = 400) {
    EXPECT_TRUE(pool->set_limit(kLittle).has_value());
    for (int i = 0; i < most_steps && pool->stats().objects != 0; ++i) write_steps(1);
    EXPECT_TRUE(pool->set_limit(pool_config.limit_bytes).has_value());
    return pool->stats().objects;
  }

  // -- I/O that was held back
  void hold_io() { os.disk.auto_complete = false; }
  std::size_t complete(bool writes) {
    std::size_t count = 0;
    for (std::size_t i = 0; i < os.disk.under_way();) {
      if (os.disk.io(i).write == writes) {
        os.disk.complete_at(i);
        ++count;
      } else {
        ++i;
      }
    }
    return count;
  }
  void let_io_go() {
    os.disk.auto_complete = true;
    os.disk.complete_io();
  }

  // -- pages that come back
  enum class Got { page, poisoned, nothing };
  Got look(Client& c, std::uint64_t page) {
    const auto& s = os.spaces[c.uffd.get()];
    if (s.present.contains(page)) return Got::page;
    return s.poisoned.contains(page) ? Got::poisoned : Got::nothing;
  }
  // Reads end; writes only if nothing is held back.
  Got touch(Client& c, std::uint64_t page, bool write = false) {
    if (look(c, page) == Got::nothing) os.fault(c.uffd.get(), page, write);
    for (int i = 0; i < 60 && look(c, page) == Got::nothing; ++i) {
      (void)service->step(c);
      complete(false);
      os.clock_ns += 1'000'000;
    }
    return look(c, page);
  }
  void expect_right(Client& c, std::uint64_t page) {
    const Got got = touch(c, page);
    ASSERT_EQ(got, Got::page) << std::hex << page;
    EXPECT_TRUE((os.spaces[c.uffd.get()].present[page] == truth.at({&c, page})))
        << "wrong bytes at " << std::hex << page;
  }
  void expect_poisoned(Client& c, std::uint64_t page) {
    EXPECT_EQ(touch(c, page), Got::poisoned) << std::hex << page;
    may_be_poisoned.insert({&c, page});
  }
  // Every page is what it should be; afterwards nothing is left of any of them. How many were
  // poisoned, of those that may be.
  std::size_t expect_everything_right() {
    let_io_go();
    std::size_t poisoned = 0;
    for (const auto& [key, bytes] : truth) {
      const Got got = touch(*key.first, key.second);
      if (got == Got::poisoned) {
        ++poisoned;
        EXPECT_TRUE(may_be_poisoned.contains(key)) << "lost: " << std::hex << key.second;
        continue;
      }
      EXPECT_EQ(got, Got::page) << "hangs: " << std::hex << key.second;
      if (got == Got::page) {
        EXPECT_TRUE((os.spaces[key.first->uffd.get()].present[key.second] == bytes))
            << "wrong bytes at " << std::hex << key.second;
      }
    }
    expect_nothing_left();
    return poisoned;
  }
  void expect_nothing_left() {
    for (const auto& one : everybody) (void)store->forget_copies(*one);
    os.clock_ns += 20'000'000'000;  // no stop lasts longer
    write_steps(20);
    for (const auto& one : everybody) {
      expect_conserved(*one);
      EXPECT_EQ(one->record.pool_pages.load(), 0U);
    }
    const PoolStats stats = pool->stats();
    EXPECT_EQ(stats.objects, 0U);
    EXPECT_EQ(stats.pattern_objects, 0U);
    EXPECT_EQ(stats.outside, 0U);
    EXPECT_EQ(stats.misuses, 0U);
    EXPECT_EQ(file->live_objects(), 0U);
    EXPECT_EQ(file->live_bytes(), 0U);
    EXPECT_EQ(file->used_bytes(), 0U);
    EXPECT_EQ(traffic.demand.load(), 0U);
    EXPECT_TRUE(reader().idle());
    expect_valid();
  }
  void expect_valid() {
    const Status pool_ok = pool->validate();
    EXPECT_TRUE(pool_ok.has_value()) << pool_ok.error().text();
    const char* const wrong = file->validate();
    EXPECT_EQ(wrong, nullptr) << wrong;
  }
  Client& another_client() {
    everybody.push_back(make_client());
    return *everybody.back();
  }
  // The other client gets the same page, as after a fork.
  void share(Client& from, Client& to, std::uint64_t page) {
    os.add_range(to.uffd.get(), page, 1);
    ASSERT_TRUE(store->share(to, page, from.map->load(page)));
    truth[{&to, page}] = truth.at({&from, page});
  }
  void unmap(Client& c, std::uint64_t page, std::uint64_t pages) {
    os.drop_range(c.uffd.get(), page, pages);
    os.range_event(c.uffd.get(), UFFD_EVENT_UNMAP, page, page + pages * kPage);
    for (std::uint64_t i = 0; i < pages; ++i) truth.erase({&c, page + i * kPage});
    (void)service->step(c);
  }

  std::uint32_t max_segments = 32;
  bool keep_copies = false;
  DiskTraffic traffic;
  std::unique_ptr<BackingFile> file;
  std::unique_ptr<Seal> seal;
  std::unique_ptr<Writeback> writeback;
  std::map<Key, FakeOs::PageBytes> truth;
  std::set<Key> may_be_poisoned;
  std::vector<std::shared_ptr<Client>> everybody;
};

}  // namespace foldswap
