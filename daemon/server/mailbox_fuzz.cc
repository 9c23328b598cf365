// libFuzzer target for the mailbox, which a client can write to whenever it likes. A client of the
// model machine is evicted and served while its mailbox and its transfer area are scribbled on.
// Whatever stands there, the pool and the page map stay whole, what the daemon counts is what there
// is, and it touches only pages of the client's address space.
#include <fcntl.h>

#include <cstring>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "base/testing/fuzz_input.h"
#include "daemon/evict/evictor.h"
#include "daemon/fault/fault_service.h"
#include "daemon/host/log.h"
#include "daemon/testing/fake_os.h"

namespace foldswap {
namespace {

constexpr std::uint64_t kHeap = 0x6000'0000'0000, kHeapPages = 48;
constexpr std::uint64_t kStaging = 0x7000'0000'0000;
constexpr pid_t kPid = 7, kAgent = 8;

UniqueFd nothing() {
  return UniqueFd(::open("/dev/null", O_RDWR | O_CLOEXEC));
}

std::string smaps_of(std::uint64_t start, std::uint64_t pages) {
  const unsigned long long from = start, to = start + pages * kPage, kib = pages * 4;
  char text[300];
  std::snprintf(text, sizeof(text),
                "%llx-%llx rw-p 00000000 00:00 0 \nAnonymous: %llu kB\nVmFlags: rd wr mr mw me \n",
                from, to, kib);
  return text;
}

class Machine final : public ForkHost {
 public:
  explicit Machine(FuzzInput& input) : input_(input) {
    const std::string process = "/proc/" + std::to_string(kPid);
    os_.texts[process + "/smaps"] =
        smaps_of(kHeap, kHeapPages) + smaps_of(kStaging, wire::kStagingBytes / kPage);
    os_.texts[process + "/statm"] = "100000 90000 100 0 0 0 0\n";
    os_.directories[process + "/task"] = {std::to_string(kPid), std::to_string(kAgent)};
    state_ = State::create(os_).value();
    PoolConfig config;
    config.limit_bytes = 2 * kMiB;
    config.frame_bytes_max = 16 * kMiB;
    config.objects_max = 1 << 12;
    pool_ = Pool::create(os_, config).value();
    store_ = std::make_unique<PageStore>(*pool_);
    service_ = std::make_unique<FaultService>(os_, *state_, *store_, *this, tunables_,
                                              PageCodec::make().value());
    evictor_ = std::make_unique<Evictor>(os_, *state_, *store_, budgets_, tunables_,
                                         PageCodec::make().value(), [](Client&) {});
    ClientParts parts;
    parts.record = state_->claim_record();
    parts.record->id = 1;
    parts.record->pid = kPid;
    parts.record->staging = kStaging;
    parts.record->resident_max_bytes = kMiB;
    parts.record->group_max_bytes = wire::kNoLimit;
    parts.map = PageMap::create(os_).value();
    parts.uffd = nothing();
    parts.agent.pidfd = nothing();
    parts.agent.pagemap = nothing();
    parts.agent.transfer_fd = os_.memory_file("transfer", wire::kTransferBytes).value();
    parts.agent.mailbox = Mapping::anonymous(wire::kMailboxBytes).value();
    parts.agent.transfer = Mapping::anonymous(wire::kTransferBytes).value();
    mailbox_ = parts.agent.mailbox.as<wire::Mailbox>();
    transfer_ = parts.agent.transfer.data();
    fd_ = parts.uffd.get();
    os_.pagemap_of[parts.agent.pagemap.get()] = fd_;
    os_.add_range(fd_, kStaging, wire::kStagingBytes / kPage);
    for (std::uint64_t i = 0; i < kHeapPages; ++i) {
      auto& page = os_.spaces[fd_].present[kHeap + i * kPage];
      page.fill(static_cast<std::byte>(i));
      for (std::size_t at = 0; i % 3 != 0 && at < kPage / 2; ++at)
        page[at] = static_cast<std::byte>(at * (i + 7) >> (i % 5));
    }
    for (const auto& [start, pages] :
         {std::pair{kHeap, kHeapPages}, std::pair{kStaging, wire::kStagingBytes / kPage}}) {
      uapi::ProcmapQuery mapping{};
      mapping.vma_start = start;
      mapping.vma_end = start + pages * kPage;
      mapping.vma_page_size = 4096;
      os_.mappings.push_back(mapping);
    }
    client_ = std::make_shared<Client>(std::move(parts), os_);
    mailbox_->agent_tid = kAgent;
  }

  void step() {
    switch (input_.byte() % 10) {
      case 0:
        return scribble();
      case 1:
        return ask();
      case 2:
      case 3:
        return agent();
      case 4:
        return fault();
      case 5:
      case 6:
        (void)evictor_->step(*client_);
        return;
      case 7:
        (void)service_->step(*client_);
        return;
      case 8:
        os_.clock_ns += input_.number(2) * 100'000;
        return;
      default:
        return order();
    }
  }

  void check() {
    if (const Status valid = pool_->validate(); !valid) wrong(valid.error().text());
    if (pool_->stats().misuses != 0) wrong("the pool was misused");
    std::uint64_t objects = 0, same = 0;
    const PageMap& map = *client_->map;
    for (auto page = map.next_out(0, kAddressEnd); page < kAddressEnd;
         page = map.next_out(page + kPage, kAddressEnd)) {
      if (!is_heap(page)) wrong("a page is out that was none of the client's");
      const PageState state = map.load(page).state();
      objects += state == PageState::object ? 1 : 0;
      same += state == PageState::same || state == PageState::same_record ? 1 : 0;
    }
    if (client_->record.pool_pages.load() != objects) wrong("the number of pages in the pool");
    if (client_->record.same_filled_pages.load() != same) wrong("the number of same-filled pages");
    const auto& space = os_.spaces[fd_];
    for (const auto& [page, bytes] : space.present)
      if (!is_heap(page)) wrong("a page was brought to where none was");
    for (const std::uint64_t page : space.registered)
      if (!is_heap(page) && !is_staging(page)) wrong("what is not the client's is registered");
    // But while it is kept from an agent that is stopped (HAZARDS 38).
    if (!client_->revoked && space.registered.lower_bound(kStaging) == space.registered.end())
      wrong("staging is not registered any more");
  }

  // A mailbox that lies no more; then everything can be brought back.
  void finish() {
    check();
    if (client_->gone() || client_->doomed()) return;
    mailbox_->layout = wire::kLayoutFree;
    mailbox_->layout_busy = mailbox_->layout_agent = 0;
    mailbox_->request.served = mailbox_->request.seq;
    client_->restore_wanted = true;
    for (int turns = 0; turns < 3'000 && client_->restore_wanted && !client_->doomed(); ++turns) {
      answer(false);
      os_.clock_ns += 1'000'000;
      (void)evictor_->step(*client_);
      (void)service_->step(*client_);
    }
    if (client_->restore_wanted && !client_->doomed() && !client_->gone())
      wrong("what is out does not come back");
    check();
  }

  // -- ForkHost: nobody forks
  std::shared_ptr<Client> adopt_child(Client&, ForkedUffd, std::uint32_t) override {
    wrong("nobody has forked");
  }
  void child_ready(std::shared_ptr<Client>) override { wrong("nobody has forked"); }
  void doom(ForkedUffd) override { wrong("nobody has forked"); }
  void fork_read(uffd_msg&) override { wrong("nobody has forked"); }

 private:
  static bool is_heap(std::uint64_t page) {
    return page % kPage == 0 && page >= kHeap && page < kHeap + kHeapPages * kPage;
  }
  static bool is_staging(std::uint64_t page) {
    return page % kPage == 0 && page >= kStaging && page < kStaging + wire::kStagingBytes;
  }

  void scribble() {
    const std::uint32_t kind = input_.byte();
    auto* const bytes = reinterpret_cast<std::byte*>(mailbox_);
    // Most of the mailbox is lists; what is before them is looked at most.
    const std::size_t most =
        kind % 2 == 0 ? offsetof(wire::Mailbox, exclusions) + 8 : sizeof(wire::Mailbox);
    std::size_t at = input_.number(2) % most;
    const std::string text = input_.text(16);
    for (const char c : text)
      if (at < sizeof(wire::Mailbox)) bytes[at++] = static_cast<std::byte>(c);
    const std::size_t where = input_.number(3) % wire::kTransferBytes;
    transfer_[where] = static_cast<std::byte>(kind);
  }

  // A request of an interposed call, with any numbers.
  void ask() {
    wire::Request& request = mailbox_->request;
    const std::uint32_t kind = input_.byte();
    request.op = kind % 5;
    request.start = (kind & 8) != 0 ? input_.number(8) : kHeap + input_.number(1) * 2048;
    request.bytes = (kind & 16) != 0 ? input_.number(8) : input_.number(2) * 512;
    ++request.seq;
  }

  void agent() { answer(true); }
  // Some commands are carried out, some are lied about.
  void answer(bool may_lie) {
    for (std::uint32_t h = 0; h < wire::kHalves; ++h) {
      wire::Command& command = mailbox_->commands[h];
      if (command.state != static_cast<std::uint32_t>(wire::CommandState::posted)) continue;
      const std::uint32_t lie = may_lie ? input_.byte() : 1;
      std::uint32_t slot = 0;
      auto& present = os_.spaces[fd_].present;
      for (std::uint32_t r = 0; r < command.nruns && r < wire::kMaxRuns; ++r) {
        const wire::Run run = command.runs[r];
        for (std::uint32_t i = 0; i < run.pages && slot < wire::kHalfPages; ++i, ++slot) {
          const std::uint64_t page = run.start + i * kPage;
          const auto it = present.find(page);
          command.result[slot] = static_cast<std::uint8_t>(wire::PageResult::hole);
          if (it == present.end() || (lie & 3) == 1) continue;
          os_.add_range(fd_, page, 1);
          std::memcpy(transfer_ + std::size_t{h} * wire::kHalfBytes + slot * kPage,
                      it->second.data(), kPage);
          command.result[slot] = static_cast<std::uint8_t>(wire::PageResult::moved);
          if ((lie & 3) != 2) present.erase(it);  // says that it has moved, and it has not
        }
      }
      command.aborted = (lie & 4) != 0 ? lie >> 3 : 0;
      command.state = static_cast<std::uint32_t>(wire::CommandState::done);
    }
  }

  void fault() {
    const std::uint64_t page = kHeap + input_.byte() % kHeapPages * kPage;
    const auto& space = os_.spaces[fd_];
    if (space.registered.contains(page) && !space.present.contains(page))
      os_.fault(fd_, page, input_.byte() % 2 != 0);
  }

  void order() {
    switch (input_.byte() % 3) {
      case 0:
        client_->reclaim_pages = ~std::uint64_t{0};
        client_->reclaim_fresh = true;
        client_->reclaim_running = true;
        return;
      case 1:
        client_->restore_wanted = true;
        return;
      default: {
        const RankedLock lock(client_->mutex);
        client_->unregister_requests = {{kHeap, kHeapPages * kPage}};
      }
    }
  }

  FuzzInput& input_;
  FakeOs os_;
  Tunables tunables_;
  BudgetBook budgets_{os_};
  std::unique_ptr<State> state_;
  std::unique_ptr<Pool> pool_;
  std::unique_ptr<PageStore> store_;
  std::unique_ptr<FaultService> service_;
  std::unique_ptr<Evictor> evictor_;
  std::shared_ptr<Client> client_;
  wire::Mailbox* mailbox_ = nullptr;
  std::byte* transfer_ = nullptr;
  int fd_ = -1;
};

}  // namespace
}  // namespace foldswap

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t bytes) {
  foldswap::log::set_level(foldswap::LogLevel::error);
  foldswap::FuzzInput input(data, bytes);
  foldswap::Machine machine(input);
  for (int steps = 1; !input.empty(); ++steps) {
    machine.step();
    if (steps % 16 == 0) machine.check();
  }
  machine.finish();
  return 0;
}
