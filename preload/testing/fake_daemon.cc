#include "preload/testing/fake_daemon.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <linux/futex.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstring>

#include "base/fd_message.h"
#include "base/uapi.h"

namespace foldswap::preload_test {
namespace {

using wire::kPageBytes;
constexpr int kPatienceMs = 10'000;
constexpr std::uint64_t kClientId = 4242;
constexpr std::uint32_t kIncarnation = 7;

template <typename T>
std::atomic_ref<T> shared(T& word) {
  return std::atomic_ref<T>(word);
}

void wake(std::uint32_t& word) {
  shared(word).fetch_add(1);
  ::syscall(SYS_futex, &word, FUTEX_WAKE, 1 << 20, nullptr, nullptr, 0);
}

UniqueFd memory(const char* name, std::uint64_t bytes) {
  UniqueFd fd(::memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING));
  if (::ftruncate(fd.get(), static_cast<off_t>(bytes)) != 0) fd.reset();
  return fd;
}

wire::MessageHeader header(wire::MessageType type, std::size_t bytes) {
  return {wire::kMagic, wire::kProtocolVersion, static_cast<std::uint32_t>(type),
          static_cast<std::uint32_t>(bytes)};
}

FdList fd_list(std::initializer_list<int> fds) {
  FdList list;
  for (const int fd : fds) list.push(fd);
  return list;
}

bool receive_hello(int socket, wire::Hello& hello, UniqueFd& uffd) {
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
  iovec data{&hello, sizeof(hello)};
  msghdr message{};
  message.msg_iov = &data;
  message.msg_iovlen = 1;
  message.msg_control = control;
  message.msg_controllen = sizeof(control);
  pollfd ready{socket, POLLIN, 0};
  if (::poll(&ready, 1, kPatienceMs) != 1) return false;
  if (::recvmsg(socket, &message, MSG_CMSG_CLOEXEC) != sizeof(hello)) return false;
  if (const cmsghdr* item = CMSG_FIRSTHDR(&message); item != nullptr) {
    int fd = -1;
    std::memcpy(&fd, CMSG_DATA(item), sizeof(fd));
    uffd.reset(fd);
  }
  return true;
}

bool set_up(int uffd) {
  uffdio_api api{};
  api.api = UFFD_API;
  api.features = UFFD_FEATURE_EVENT_FORK | UFFD_FEATURE_EVENT_REMAP | UFFD_FEATURE_EVENT_REMOVE |
                 UFFD_FEATURE_EVENT_UNMAP | UFFD_FEATURE_THREAD_ID;
  return ::ioctl(uffd, UFFDIO_API, &api) == 0;
}

bool copy_page(int uffd, std::uint64_t address, const PageBytes& bytes) {
  uffdio_copy copy{};
  copy.dst = address;
  copy.src = reinterpret_cast<std::uint64_t>(bytes.data());
  copy.len = kPageBytes;
  return ::ioctl(uffd, UFFDIO_COPY, &copy) == 0;
}

}  // namespace

FakeClient::FakeClient(UniqueFd socket, UniqueFd uffd, const wire::Hello& hello, Mapping mailbox,
                       Mapping transfer)
    : socket_(std::move(socket)),
      hello_(hello),
      mailbox_(std::move(mailbox)),
      transfer_(std::move(transfer)) {
  spaces_.push_back(std::make_unique<Space>());
  spaces_[0]->uffd = std::move(uffd);
  thread_ = std::jthread([this](const std::stop_token& stop) { serve(stop); });
}

FakeClient::~FakeClient() {
  thread_.request_stop();
  thread_.join();
}

bool FakeClient::agent_gone(int wait_ms) const {
  pollfd line{socket_.get(), POLLIN, 0};
  return ::poll(&line, 1, wait_ms) == 1 && (line.revents & POLLHUP) != 0;
}

wire::Command FakeClient::evict(std::uint32_t half, std::uint64_t start, std::uint32_t pages) {
  return evict(half, {{start, pages, 0}}, {{start, pages * kPageBytes}}, shared(box().epoch).load(),
               shared(box().threads_created).load());
}

wire::Command FakeClient::evict(std::uint32_t half, const std::vector<wire::Run>& runs,
                                const std::vector<wire::Range>& regs, std::uint32_t epoch,
                                std::uint32_t threads) {
  wire::Command& command = box().commands[half];
  command.epoch = epoch;
  command.threads_created = threads;
  command.nruns = static_cast<std::uint32_t>(runs.size());
  command.nregs = static_cast<std::uint32_t>(regs.size());
  command.cpu = ~0U;
  command.pages = 0;
  std::ranges::copy(regs, command.regs);
  for (std::size_t i = 0; i < runs.size(); ++i) {
    command.runs[i] = runs[i];
    command.pages += runs[i].pages;
  }
  std::memset(command.result, 0xff, sizeof(command.result));
  {
    const std::lock_guard lock(mutex_);
    registered_.insert(registered_.end(), regs.begin(), regs.end());
    in_flight_ = true;
  }
  shared(command.state).store(static_cast<std::uint32_t>(wire::CommandState::posted));
  wake(box().to_agent);
  const auto done = static_cast<std::uint32_t>(wire::CommandState::done);
  for (int waited = 0; shared(command.state).load() != done && waited < kPatienceMs; ++waited) {
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  EXPECT_EQ(shared(command.state).load(), done) << "the agent never finished";
  const wire::Command answer = command;
  take(half, answer);
  shared(command.state).store(static_cast<std::uint32_t>(wire::CommandState::idle));
  return answer;
}

void FakeClient::take(std::uint32_t half, const wire::Command& command) {
  const std::lock_guard lock(mutex_);
  in_flight_ = false;
  std::uint32_t slot = 0;
  for (std::uint32_t r = 0; r < command.nruns; ++r) {
    for (std::uint32_t p = 0; p < command.runs[r].pages && slot < wire::kHalfPages; ++p, ++slot) {
      if (command.result[slot] != static_cast<std::uint8_t>(wire::PageResult::moved)) continue;
      const std::uint64_t address = command.runs[r].start + p * kPageBytes;
      for (auto& space : spaces_) {
        if (space != spaces_[0] && !space->born_in_flight) continue;
        std::memcpy(space->store[address].data(),
                    transfer() + half * wire::kHalfBytes + slot * kPageBytes, kPageBytes);
      }
    }
  }
  for (auto& space : spaces_) space->born_in_flight = false;
}

UniqueFd FakeClient::latest_child() {
  const std::lock_guard lock(mutex_);
  return spaces_.size() < 2 ? UniqueFd() : UniqueFd(::dup(spaces_.back()->uffd.get()));
}

std::size_t FakeClient::stored() {
  const std::lock_guard lock(mutex_);
  return spaces_[0]->store.size();
}

std::vector<ServedRequest> FakeClient::requests() {
  const std::lock_guard lock(mutex_);
  return requests_;
}

unsigned FakeClient::events(unsigned kind) {
  const std::lock_guard lock(mutex_);
  return events_[kind];
}

void FakeClient::set_mode(wire::ClientMode mode) {
  shared(box().mode).store(static_cast<std::uint32_t>(mode));
}

bool FakeClient::lock_layout() {
  std::uint32_t free = wire::kLayoutFree;
  const bool locked =
      shared(box().layout).compare_exchange_strong(free, kIncarnation << 2 | wire::kLayoutDaemon);
  shared(box().reader_waits).store(locked ? 0 : 1);
  return locked;
}

void FakeClient::unlock_layout() {
  shared(box().layout).store(wire::kLayoutFree);
}

void FakeClient::serve(const std::stop_token& stop) {
  while (!stop.stop_requested()) {
    pollfd ready{spaces_[0]->uffd.get(), POLLIN, 0};
    ::poll(&ready, 1, 1);
    const std::lock_guard lock(mutex_);
    serve_request();
    for (std::size_t i = 0; i < spaces_.size(); ++i) serve_space(*spaces_[i], i == 0);
  }
}

void FakeClient::serve_space(Space& space, bool with_layout) {
  if (with_layout && !lock_layout()) return;
  std::array<uffd_msg, 16> messages{};
  const ssize_t got = ::read(space.uffd.get(), messages.data(), sizeof(messages));
  const std::size_t count = got > 0 ? static_cast<std::size_t>(got) / sizeof(uffd_msg) : 0;
  std::vector<uffd_msg> faults;
  std::swap(faults, space.parked);
  for (std::size_t i = 0; i < count; ++i) {
    if (messages[i].event == UFFD_EVENT_PAGEFAULT) {
      faults.push_back(messages[i]);
    } else {
      event(space, messages[i]);
      shared(box().epoch).fetch_add(1);
    }
  }
  if (with_layout) unlock_layout();
  for (const uffd_msg& message : faults) fault(space, message);
}

void FakeClient::fault(Space& space, const uffd_msg& message) {
  const std::uint64_t address = message.arg.pagefault.address & ~(kPageBytes - 1);
  const auto found = space.store.find(address);
  const bool staging = address >= hello_.staging && address < hello_.staging + wire::kStagingBytes;
  bool done = false;
  if (found == space.store.end() && in_flight_ && !staging) {
    space.parked.push_back(message);
    return;
  }
  if (found != space.store.end()) {
    done = copy_page(space.uffd.get(), address, found->second);
    if (done) space.store.erase(found);
  } else {
    uffdio_zeropage zero{};
    zero.range = {address, kPageBytes};
    done = ::ioctl(space.uffd.get(), UFFDIO_ZEROPAGE, &zero) == 0;
  }
  if (done) return;
  if (errno == EAGAIN) {
    space.parked.push_back(message);
    return;
  }
  uffdio_range range{address, kPageBytes};
  ::ioctl(space.uffd.get(), UFFDIO_WAKE, &range);
}

void FakeClient::event(Space& space, const uffd_msg& message) {
  ++events_[message.event];
  if (message.event == UFFD_EVENT_FORK) {
    auto child = std::make_unique<Space>();
    child->uffd.reset(static_cast<int>(message.arg.fork.ufd));
    child->store = space.store;
    child->born_in_flight = in_flight_;
    spaces_.push_back(std::move(child));
  } else if (message.event == UFFD_EVENT_REMAP) {
    std::map<std::uint64_t, PageBytes> moved;
    for (const auto& [address, bytes] : space.store) {
      const bool inside = address >= message.arg.remap.from &&
                          address < message.arg.remap.from + message.arg.remap.len;
      moved[inside ? address - message.arg.remap.from + message.arg.remap.to : address] = bytes;
    }
    space.store = std::move(moved);
  } else {
    std::erase_if(space.store, [&](const auto& page) {
      return page.first >= message.arg.remove.start && page.first < message.arg.remove.end;
    });
  }
}

void FakeClient::serve_request() {
  wire::Request& request = box().request;
  const std::uint32_t seq = shared(request.seq).load();
  const auto agentless = static_cast<std::uint32_t>(wire::ClientMode::agentless);
  if (seq == shared(request.served).load() || shared(box().mode).load() == agentless) return;
  requests_.push_back({static_cast<wire::RequestOp>(request.op), request.start, request.bytes});
  shared(request.status).store(refuse_requests ? EBUSY : answer(request));
  shared(request.served).store(seq);
  ::syscall(SYS_futex, &request.served, FUTEX_WAKE, 1 << 20, nullptr, nullptr, 0);
}

std::uint32_t FakeClient::answer(const wire::Request& request) {
  Space& client = *spaces_[0];
  uffdio_range range{request.start, request.bytes};
  switch (static_cast<wire::RequestOp>(request.op)) {
    case wire::RequestOp::unify: {
      uffdio_register reg{};
      reg.range = range;
      reg.mode = UFFDIO_REGISTER_MODE_MISSING;
      return ::ioctl(client.uffd.get(), UFFDIO_REGISTER, &reg) == 0 ? 0 : EIO;
    }
    case wire::RequestOp::release:
      bring_back(client, request.start, request.bytes);
      return ::ioctl(client.uffd.get(), UFFDIO_UNREGISTER, &range) == 0 ? 0 : EIO;
    case wire::RequestOp::retire:
      bring_back(client, 0, ~std::uint64_t{0});
      for (const wire::Range& r : registered_) {
        range = {r.start, r.bytes};
        ::ioctl(client.uffd.get(), UFFDIO_UNREGISTER, &range);
      }
      shared(box().registered).store(0);
      return 0;
    case wire::RequestOp::none:
      break;
  }
  return EINVAL;
}

void FakeClient::bring_back(Space& space, std::uint64_t start, std::uint64_t bytes) {
  std::erase_if(space.store, [&](const auto& page) {
    return page.first >= start && page.first - start < bytes &&
           copy_page(space.uffd.get(), page.first, page.second);
  });
}

FakeDaemon::FakeDaemon() {
  char path[] = "/tmp/foldswap-preload-XXXXXX";
  if (::mkdtemp(path) == nullptr) return;
  directory_ = path;
  ::chmod(path, 0755);
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  const std::string socket = directory_ + "/client.sock";
  std::memcpy(address.sun_path, socket.c_str(), socket.size() + 1);
  listener_.reset(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
  EXPECT_EQ(::bind(listener_.get(), reinterpret_cast<sockaddr*>(&address), sizeof(address)), 0);
  EXPECT_EQ(::listen(listener_.get(), 16), 0);
}

FakeDaemon::~FakeDaemon() {
  ::unlink((directory_ + "/client.sock").c_str());
  ::rmdir(directory_.c_str());
}

UniqueFd FakeDaemon::next() const {
  pollfd ready{listener_.get(), POLLIN, 0};
  if (::poll(&ready, 1, kPatienceMs) != 1) return {};
  return UniqueFd(::accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC));
}

bool FakeDaemon::welcome(int socket, int mailbox, int transfer) const {
  const UniqueFd device(::open("/dev/userfaultfd", O_RDWR | O_CLOEXEC));
  const wire::Welcome text{header(wire::MessageType::welcome, sizeof(wire::Welcome)), kClientId, 0,
                           wire::kMailboxBytes, wire::kTransferBytes};
  return send_with_fds(socket, &text, sizeof(text), fd_list({device.get(), mailbox, transfer}));
}

UniqueFd FakeDaemon::die_over_hello() {
  const UniqueFd socket = next();
  const UniqueFd mailbox = memory("mailbox", wire::kMailboxBytes);
  const UniqueFd transfer = memory("transfer", wire::kTransferBytes);
  wire::Hello hello{};
  UniqueFd uffd;
  if (!socket.valid() || !welcome(socket.get(), mailbox.get(), transfer.get()) ||
      !receive_hello(socket.get(), hello, uffd) || !set_up(uffd.get())) {
    return {};
  }
  uffdio_register staging{};
  staging.range = {hello.staging, wire::kStagingBytes};
  staging.mode = UFFDIO_REGISTER_MODE_MISSING;
  if (::ioctl(uffd.get(), UFFDIO_REGISTER, &staging) != 0) return {};
  return uffd;
}

std::unique_ptr<FakeClient> FakeDaemon::accept() {
  UniqueFd socket = next();
  const UniqueFd mailbox_fd = memory("mailbox", wire::kMailboxBytes);
  const UniqueFd transfer_fd = memory("transfer", wire::kTransferBytes);
  auto mailbox = Mapping::shared(mailbox_fd.get(), wire::kMailboxBytes);
  auto transfer = Mapping::shared(transfer_fd.get(), wire::kTransferBytes);
  wire::Hello hello{};
  UniqueFd uffd;
  if (!socket.valid() || !mailbox || !transfer) return nullptr;
  auto& box = *mailbox->as<wire::Mailbox>();
  box.magic = wire::kMagic;
  box.version = wire::kProtocolVersion;
  box.client_id = kClientId;
  box.incarnation = kIncarnation;
  if (!welcome(socket.get(), mailbox_fd.get(), transfer_fd.get()) ||
      !receive_hello(socket.get(), hello, uffd) || !uffd.valid()) {
    return nullptr;
  }
  if (!set_up(uffd.get())) return nullptr;
  const wire::Ready ready{header(wire::MessageType::ready, sizeof(wire::Ready)), kClientId};
  auto client = std::make_unique<FakeClient>(UniqueFd(::dup(socket.get())), std::move(uffd), hello,
                                             std::move(*mailbox), std::move(*transfer));
  if (::send(socket.get(), &ready, sizeof(ready), MSG_NOSIGNAL) != sizeof(ready)) return nullptr;
  return client;
}

ChildHello FakeDaemon::accept_child(FakeClient& parent) {
  ChildHello child;
  lifeline_ = next();
  const UniqueFd mailbox_fd = memory("mailbox", wire::kMailboxBytes);
  const UniqueFd transfer_fd = memory("transfer", wire::kTransferBytes);
  auto mailbox = Mapping::shared(mailbox_fd.get(), wire::kMailboxBytes);
  UniqueFd none;
  if (!lifeline_.valid() || !mailbox ||
      !welcome(lifeline_.get(), mailbox_fd.get(), transfer_fd.get()) ||
      !receive_hello(lifeline_.get(), child.hello, none)) {
    return child;
  }
  child.mailbox = std::move(*mailbox);
  child.box().incarnation = kIncarnation;
  const UniqueFd uffd = parent.latest_child();
  const wire::Ready ready{header(wire::MessageType::ready, sizeof(wire::Ready)), kClientId + 1};
  child.came =
      uffd.valid() && send_with_fds(lifeline_.get(), &ready, sizeof(ready), fd_list({uffd.get()}));
  return child;
}

void FakeDaemon::refuse(const char* reason) {
  const UniqueFd socket = next();
  wire::Refused refused{header(wire::MessageType::refused, sizeof(wire::Refused)), {}};
  std::strncpy(refused.reason, reason, wire::kReasonBytes - 1);
  ::send(socket.get(), &refused, sizeof(refused), MSG_NOSIGNAL);
}

void FakeDaemon::speak_version(std::uint32_t version) {
  const UniqueFd socket = next();
  wire::Welcome text{};
  text.header = header(wire::MessageType::welcome, sizeof(text));
  text.header.version = version;
  ::send(socket.get(), &text, sizeof(text), MSG_NOSIGNAL);
}

std::string missing_requirement() {
  if (::geteuid() != 0) return "these tests need root";
  const UniqueFd device(::open("/dev/userfaultfd", O_RDWR | O_CLOEXEC));
  return device.valid() ? "" : "these tests need /dev/userfaultfd";
}

}  // namespace foldswap::preload_test
