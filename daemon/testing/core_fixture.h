// A client of FakeOs with its page map, a real pool and codecs: what tests of the core step by
// hand.
#pragma once

#include <gtest/gtest.h>
#include <unistd.h>

#include <memory>

#include "daemon/fault/address_space.h"
#include "daemon/fault/fault_service.h"
#include "daemon/testing/fake_os.h"

namespace foldswap {

class CoreFixture : public ::testing::Test, public ForkHost {
 protected:
  void SetUp() override {
    state = State::create(os).value();
    pool = Pool::create(os, pool_config).value();
    store = std::make_unique<PageStore>(*pool);
    codec = PageCodec::make().value();
    service = std::make_unique<FaultService>(os, *state, *store, *this, tunables,
                                             PageCodec::make().value());
    client = make_client();
  }

  // Descriptors are real numbers (of /dev/null), so that UniqueFd may close them; FakeOs tells
  // spaces apart by them.
  std::shared_ptr<Client> make_client(UniqueFd uffd = UniqueFd(::dup(0)),
                                      bool with_mailbox = false) {
    ClientParts parts;
    parts.record = state->claim_record();
    parts.record->pid = 1;
    parts.map = PageMap::create(os).value();
    parts.uffd = std::move(uffd);
    parts.agent.pidfd = UniqueFd(::dup(0));
    parts.agent.pagemap = UniqueFd(::dup(0));
    if (with_mailbox) {
      parts.agent.mailbox = Mapping::anonymous(wire::kMailboxBytes).value();
      parts.agent.transfer = Mapping::anonymous(wire::kTransferBytes).value();
    }
    os.pagemap_of[parts.agent.pagemap.get()] = parts.uffd.get();
    return std::make_shared<Client>(std::move(parts), os);
  }
  std::shared_ptr<Client> adopt_child(Client&, ForkedUffd uffd, std::uint32_t) override {
    if (refuse_children) return nullptr;
    children.push_back(make_client(std::move(uffd.fd)));
    return children.back();
  }
  void child_ready(std::shared_ptr<Client>) override { ++children_ready; }
  void doom(ForkedUffd uffd) override { doomed.push_back(std::move(uffd.fd)); }
  void fork_read(uffd_msg&) override {}

  [[nodiscard]] int fd() const { return client->uffd.get(); }
  FakeOs::Space& space() { return os.spaces[fd()]; }

  static FakeOs::PageBytes bytes_of(std::uint64_t seed) {
    FakeOs::PageBytes page{};
    for (std::size_t i = 0; i < page.size(); ++i) {
      page[i] = static_cast<std::byte>((seed * 2654435761U + (i / 16) * 40503U) >> 7);
    }
    return page;
  }
  // The page's bytes leave the (modelled) client for the pool.
  Entry evict(Client& c, std::uint64_t page, const FakeOs::PageBytes& bytes) {
    os.add_range(c.uffd.get(), page, 1);
    os.spaces[c.uffd.get()].present.erase(page);
    const Entry entry =
        store->put(std::span<const std::byte, kPage>(bytes), {Codec::zstd, 1}, *codec).value();
    {
      const RankedLock lock(c.mutex);
      EXPECT_NE(c.map->ensure(page), nullptr);
    }
    const Entry out = Entry::out(0, 0, 1);
    EXPECT_TRUE(c.map->replace(page, c.map->load(page), out));
    EXPECT_TRUE(store->publish(c, page, out, entry));
    return entry;
  }
  // Faults on the page and expects exactly these bytes.
  void expect_reads(Client& c, std::uint64_t page, const FakeOs::PageBytes& bytes,
                    bool write = false) {
    const int f = c.uffd.get();
    if (!os.spaces[f].present.contains(page)) os.fault(f, page, write);  // else read ahead
    for (int i = 0; i < 10 && !os.spaces[f].present.contains(page); ++i) (void)service->step(c);
    ASSERT_TRUE(os.spaces[f].present.contains(page)) << std::hex << page;
    EXPECT_TRUE(os.spaces[f].present[page] == bytes) << std::hex << page;
    EXPECT_EQ(c.map->load(page).state(), PageState::none);
  }
  // Conservation: what the counts say is what the map holds.
  void expect_conserved(Client& c) {
    std::uint64_t pool_pages = 0, same = 0;
    for (auto p = c.map->next_out(0, kAddressEnd); p < kAddressEnd;
         p = c.map->next_out(p + kPage, kAddressEnd)) {
      pool_pages += c.map->load(p).state() == PageState::object ? 1 : 0;
      same += c.map->load(p).state() == PageState::same ||
                      c.map->load(p).state() == PageState::same_record
                  ? 1
                  : 0;
    }
    EXPECT_EQ(c.record.pool_pages.load(), pool_pages);
    EXPECT_EQ(c.record.same_filled_pages.load(), same);
  }

  static constexpr FakeOs::PageBytes kZeros{};
  FakeOs os;
  PoolConfig pool_config;  // before SetUp()
  Tunables tunables;
  std::unique_ptr<State> state;
  std::unique_ptr<Pool> pool;
  std::unique_ptr<PageStore> store;
  std::unique_ptr<PageCodec> codec;
  std::unique_ptr<FaultService> service;
  std::shared_ptr<Client> client;
  std::vector<std::shared_ptr<Client>> children;
  std::vector<UniqueFd> doomed;
  int children_ready = 0;
  bool refuse_children = false;
};

}  // namespace foldswap
