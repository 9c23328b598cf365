#include "daemon/admission/handshake.h"

#include <fcntl.h>
#include <sys/epoll.h>
#include <sys/syscall.h>

#include <algorithm>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <utility>

#include "base/fd_message.h"
#include "base/mutation.h"
#include "daemon/admission/hello.h"
#include "daemon/host/log.h"
#include "daemon/host/proc_reader.h"
#include "daemon/host/proof.h"

namespace foldswap {
namespace {

constexpr std::size_t kMostHandshakes = 256, kMostHandshakesPerUser = 64;
constexpr std::uint64_t kDeadlineUs = 5'000'000;
constexpr std::uint64_t kFeatures = UFFD_FEATURE_EVENT_FORK | UFFD_FEATURE_EVENT_REMAP |
                                    UFFD_FEATURE_EVENT_REMOVE | UFFD_FEATURE_EVENT_UNMAP |
                                    UFFD_FEATURE_THREAD_ID;
constexpr int kSoPeerPidfd = 77;
// A token of a client's lifeline has this bit; the rest is the client's id.
constexpr std::uint64_t kLifeline = 1ULL << 62;

template <typename T>
T message(wire::MessageType type) {
  T m{};
  m.header = {wire::kMagic, wire::kProtocolVersion, static_cast<std::uint32_t>(type), sizeof(T)};
  return m;
}

UniqueFd pidfd_of(int socket, pid_t pid) {
  int fd = -1;
  socklen_t bytes = sizeof(fd);
  if (::getsockopt(socket, SOL_SOCKET, kSoPeerPidfd, &fd, &bytes) == 0) return UniqueFd(fd);
  return UniqueFd(static_cast<int>(::syscall(SYS_pidfd_open, pid, 0)));
}

}  // namespace

Handshake::Handshake(Os& os, Registry& registry, Vetting& vetting, const Access& access,
                     const Tunables& tunables, Limits& limits, std::atomic<bool>& draining,
                     State& state)
    : os_(os),
      registry_(registry),
      vetting_(vetting),
      access_(access),
      tunables_(tunables),
      limits_(limits),
      draining_(draining),
      state_(state),
      device_(::open("/dev/userfaultfd", O_RDWR | O_CLOEXEC)) {}

Handshake::~Handshake() = default;

void Handshake::make_room(std::uint32_t uid) {
  const auto of_user = static_cast<std::size_t>(
      std::ranges::count_if(pending_, [&](const auto& p) { return p.second.peer.uid == uid; }));
  if (of_user < kMostHandshakesPerUser && pending_.size() < kMostHandshakes) return;
  // The oldest of the same user gives way; of anybody when the table is full of others.
  const auto oldest = std::ranges::find_if(
      pending_, [&](const auto& p) { return p.second.peer.uid == uid || of_user == 0; });
  if (oldest != pending_.end()) refuse(oldest->first, "too many handshakes at once");
}

void Handshake::accept_one(int listener, int epoll) {
  epoll_ = epoll;
  UniqueFd socket(::accept4(listener, nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
  if (!socket.valid()) {
    if (errno == EMFILE || errno == ENFILE)
      log::warn("out of descriptors: a new client has to wait");
    return;
  }
  Pending pending;
  socklen_t bytes = sizeof(pending.peer);
  if (::getsockopt(socket.get(), SOL_SOCKET, SO_PEERCRED, &pending.peer, &bytes) != 0) return;
  make_room(pending.peer.uid);
  pending.socket = std::move(socket);
  pending.deadline_us = os_.now_us() + kDeadlineUs;
  const std::uint64_t token = state_.header().next_client_id.fetch_add(1);
  auto& stored = pending_.emplace(token, std::move(pending)).first->second;
  if (!access_.may_be_client(stored.peer)) {
    refuse(token, "this user may not be a client (access.users, access.groups)");
    return;
  }
  if (draining_) {
    refuse(token, "the daemon is drained; 'foldswap resume' lets clients in again");
    return;
  }
  if (registry_.count_of_user(stored.peer.uid) >= limits_.clients_per_user) {
    refuse(token, "this user has as many clients as quota.clients_per_user allows");
    return;
  }
  if (const auto sent = welcome(stored, token); !sent) {
    // Who connects only to see whether we are there is no event worth a line.
    log::debug("a connection ended before its welcome: {}", sent.error().text());
    drop(token);
    return;
  }
  epoll_event event{};
  event.events = EPOLLIN | EPOLLRDHUP;
  event.data.u64 = token;
  if (::epoll_ctl(epoll_, EPOLL_CTL_ADD, stored.socket.get(), &event) != 0) drop(token);
}

Status Handshake::welcome(Pending& pending, std::uint64_t token) {
  auto mailbox = os_.memory_file("foldswap-mailbox", wire::kMailboxBytes);
  if (!mailbox) return std::unexpected(mailbox.error());
  auto transfer = os_.memory_file("foldswap-transfer", wire::kTransferBytes);
  if (!transfer) return std::unexpected(transfer.error());
  pending.mailbox_fd = std::move(*mailbox);
  pending.transfer_fd = std::move(*transfer);
  wire::Mailbox head{};
  head.magic = wire::kMagic;
  head.version = wire::kProtocolVersion;
  head.client_id = token;
  head.incarnation = tunables_.incarnation;
  if (::pwrite(pending.mailbox_fd.get(), &head, offsetof(wire::Mailbox, exclusions), 0) < 0) {
    return fail_errno("writing the mailbox failed");
  }
  auto hello = message<wire::Welcome>(wire::MessageType::welcome);
  hello.client_id = token;
  hello.capabilities = wire::kCapabilities;
  hello.mailbox_bytes = wire::kMailboxBytes;
  hello.transfer_bytes = wire::kTransferBytes;
  FdList fds;
  fds.push(device_.get());
  fds.push(pending.mailbox_fd.get());
  fds.push(pending.transfer_fd.get());
  if (!send_with_fds(pending.socket.get(), &hello, sizeof(hello), fds))
    return fail_errno("sending the welcome failed");
  return {};
}

void Handshake::on_socket(std::uint64_t token, std::uint32_t events) {
  if ((token & kLifeline) != 0) {
    if ((events & (EPOLLHUP | EPOLLRDHUP | EPOLLERR)) != 0) lifeline_hup(token);
    return;
  }
  const auto it = pending_.find(token);
  if (it == pending_.end()) return;
  if ((events & EPOLLIN) != 0 && !it->second.submitted) {
    // Not a byte is read here: that is for the helper (HAZARDS 8).
    if ((events & EPOLLHUP) != 0) {
      drop(token);  // came to look, or gave up
      return;
    }
    it->second.submitted = true;
    (void)::epoll_ctl(epoll_, EPOLL_CTL_DEL, it->second.socket.get(), nullptr);
    if (const auto sent = vetting_.submit(token, it->second.socket.get()); !sent) {
      refuse(token, sent.error().message);
    }
    return;
  }
  if ((events & (EPOLLHUP | EPOLLRDHUP | EPOLLERR)) != 0) drop(token);
}

void Handshake::on_vetted() {
  while (auto vetted = vetting_.take()) {
    const auto it = pending_.find(vetted->token);
    if (it == pending_.end()) continue;  // its deadline passed meanwhile
    if (!vetted->accepted) {
      refuse(vetted->token, vetted->reason);
      continue;
    }
    if (vetted->hello.kind == static_cast<std::uint32_t>(wire::HelloKind::child)) {
      it->second.child = vetted->hello;
      if (const auto good = check_ranges(vetted->hello); !good)
        refuse(vetted->token, good.error().text());
      continue;
    }
    if (const Status done = finish(vetted->token, it->second, *vetted); !done) {
      refuse(vetted->token, done.error().text());
      continue;
    }
    pending_.erase(it);
  }
}

void Handshake::retire(std::shared_ptr<Client> client) {
  const RankedLock lock(retired_mutex_);
  retired_.push_back(std::move(client));
}

void Handshake::bury_retired() {
  std::vector<std::shared_ptr<Client>> retired;
  {
    const RankedLock lock(retired_mutex_);
    retired.swap(retired_);
  }
  for (const auto& client : retired) {
    if (client->lifeline() >= 0)
      (void)::epoll_ctl(epoll_, EPOLL_CTL_DEL, client->lifeline(), nullptr);
    vetting_.dispose(client->release_lifeline());
  }
}

bool Handshake::settle() {
  bury_retired();
  vetting_.retry_disposals();
  bool waits = false;
  std::vector<std::uint64_t> tokens;
  for (const auto& [token, pending] : pending_) {
    if (pending.child) tokens.push_back(token);
  }
  for (const std::uint64_t token : tokens) {
    const Status done = settle_child(token, pending_.at(token), waits);
    if (!done) refuse(token, done.error().text());
  }
  return waits;
}

// The FORK event has been read before the child ran at all: its parent's fork() waits for that. So
// when the reader has applied all that it had read by now, either there is a child or there was no
// event.
Status Handshake::settle_child(std::uint64_t token, Pending& pending, bool& waits) {
  const wire::Hello& hello = *pending.child;
  if (pending.offered != nullptr) {
    Client& child = *pending.offered;
    switch (child.offer_state.load()) {
      case AgentOffer::State::refused:
        vetting_.dispose(std::move(child.offer.parts.lifeline));
        pending.mailbox_fd = std::move(child.offer.parts.mailbox_fd);
        pending.transfer_fd = std::move(child.offer.parts.transfer_fd);
        child.offer_state = AgentOffer::State::none;
        pending.not_these.push_back(child.id);
        pending.offered = nullptr;
        waits = true;
        return {};
      case AgentOffer::State::taken:
        break;
      default:
        waits = true;
        return {};
    }
    watch_lifeline(child);
    attach(child);
    send_ready(child, true);
    registry_.kick(child);
    log::debug("{}: has an agent", child.label());
    vetting_.dispose(std::move(pending.socket));
    pending_.erase(token);
    return {};
  }
  if (const auto child =
          registry_.forked_child(hello.parent_id, hello.fork_seq, pending.not_these)) {
    if (child->mailbox != nullptr || child->offer_state != AgentOffer::State::none)
      return fail("the child of that fork has an agent already");
    waits = true;
    return offer_agent(pending, child);
  }
  const auto parent = registry_.by_id(hello.parent_id);
  if (parent != nullptr && !parent->reader_done) {
    if (!pending.barrier_asked) {
      pending.barrier_asked = true;
      pending.barrier = parent->barrier_wanted.fetch_add(1) + 1;
      registry_.kick(*parent);
    }
    if (static_cast<std::int32_t>(parent->barrier_passed.load() - pending.barrier) < 0) {
      waits = true;
      return {};
    }
    if (registry_.forked_child(hello.parent_id, hello.fork_seq, pending.not_these) != nullptr) {
      waits = true;
      return {};
    }
  }
  if (!pending.not_these.empty()) return fail("the descriptor of that fork is not this process's");
  if (lost_with_its_fork(pending)) {
    const UniqueFd pidfd = pidfd_of(pending.socket.get(), pending.peer.pid);
    if (pidfd.valid()) (void)os_.pidfd_signal(pidfd.get(), SIGKILL);
    return fail(
        "killed: it is a forked child, and what it has of its parent was lost with a daemon and "
        "its "
        "keeper");
  }
  // There was no event: nothing was registered. It registers like a fresh process, on this socket.
  auto ready = message<wire::Ready>(wire::MessageType::ready);
  (void)send_with_fds(pending.socket.get(), &ready, sizeof(ready), {});
  pending.child.reset();
  pending.submitted = false;
  pending.barrier_asked = false;
  epoll_event event{};
  event.events = EPOLLIN | EPOLLRDHUP;
  event.data.u64 = token;
  if (::epoll_ctl(epoll_, EPOLL_CTL_ADD, pending.socket.get(), &event) != 0)
    return fail_errno("epoll_ctl failed");
  return {};
}

// There may have been an event, of which nobody knows any more.
bool Handshake::lost_with_its_fork(const Pending& pending) const {
  const std::uint64_t lost_ns = state_.header().forks_lost_ns;
  if (lost_ns == 0) return false;
  const auto began_ns = read_start_ns(os_, pending.peer.pid);
  return !began_ns || *began_ns <= lost_ns;
}

Status Handshake::map_agent(Pending& pending, AgentParts& parts) {
  parts.pidfd = pidfd_of(pending.socket.get(), pending.peer.pid);
  if (!parts.pidfd.valid()) return fail("the process is gone");
  // The memory first: what is proved by the page map holds for it, too, since a process that has
  // executed another program in between has another address space for good.
  const std::string directory = "/proc/" + std::to_string(pending.peer.pid);
  parts.memory.reset(::open((directory + "/mem").c_str(), O_RDONLY | O_CLOEXEC));
  parts.pagemap.reset(::open((directory + "/pagemap").c_str(), O_RDONLY | O_CLOEXEC));
  if (!parts.pagemap.valid()) return fail_errno("cannot open its pagemap");
  if (os_.pidfd_signal(parts.pidfd.get(), 0) != 0) return fail("the process is gone");
  return parts.map(pending.mailbox_fd.get(), pending.transfer_fd.get());
}

Status Handshake::offer_agent(Pending& pending, const std::shared_ptr<Client>& child) {
  AgentOffer& offer = child->offer;
  if (auto mapped = map_agent(pending, offer.parts); !mapped) return mapped;
  offer.parts.mailbox.as<wire::Mailbox>()->client_id = child->id;
  offer.parts.mailbox_fd = std::move(pending.mailbox_fd);
  offer.parts.transfer_fd = std::move(pending.transfer_fd);
  // A copy: if the offer is refused there must be somebody to tell it.
  offer.parts.lifeline.reset(::fcntl(pending.socket.get(), F_DUPFD_CLOEXEC, 0));
  if (!offer.parts.lifeline.valid()) return fail_errno("no descriptor for its lifeline");
  offer.pid = pending.peer.pid;
  offer.staging = pending.child->staging;
  std::ranges::copy(pending.child->own, offer.own.begin());
  pending.offered = child;
  child->offer_state = AgentOffer::State::made;
  registry_.kick(*child);
  return {};
}

// Before anything of it may be in our hands alone.
void Handshake::attach(Client& client) {
  if (descriptors_ != nullptr) descriptors_->push(client.record);
  client.record.attached = 1;
}

void Handshake::watch_again(Client& client, int epoll) {
  epoll_ = epoll;
  if (client.lifeline() < 0) return;
  watch_lifeline(client);
  // Its agent may still wait for what the daemon that died had not sent. If it does not, one Ready
  // more stays unread, and a descriptor that it did not wait for is closed.
  if (client.mailbox == nullptr || load_word(client.mailbox->agent_tid) != 0) return;
  attach(client);
  send_ready(client, client.record.parent_id != 0);
}

void Handshake::send_ready(const Client& client, bool with_userfaultfd) {
  auto ready = message<wire::Ready>(wire::MessageType::ready);
  ready.client_id = client.id;
  FdList fds;
  if (with_userfaultfd) fds.push(client.uffd.get());
  (void)send_with_fds(client.lifeline(), &ready, sizeof(ready), fds);
}

void Handshake::watch_lifeline(const Client& client) {
  epoll_event event{};
  event.events = EPOLLRDHUP;  // never EPOLLIN: whatever is sent on a lifeline stays there
  event.data.u64 = kLifeline | client.id;
  (void)::epoll_ctl(epoll_, EPOLL_CTL_ADD, client.lifeline(), &event);
}

Status Handshake::finish(std::uint64_t token, Pending& pending, VettedHello& vetted) {
  const wire::Hello& hello = vetted.hello;
  if (draining_) return fail("the daemon is drained; 'foldswap resume' lets clients in again");
  if (auto good = check_ranges(hello); !good) return good;
  AgentParts agent;
  if (auto mapped = map_agent(pending, agent); !mapped) return mapped;
  // It must poll, whatever the client did to the description.
  const int flags = ::fcntl(vetted.uffd.get(), F_GETFL);
  if (::fcntl(vetted.uffd.get(), F_SETFL, flags | O_NONBLOCK) != 0)
    return fail_errno("fcntl of the userfaultfd failed");
  if (const int error = os_.uffd_api(vetted.uffd.get(), kFeatures); error != 0) {
    return fail_errno(error == -EINVAL
                          ? "the userfaultfd was initialised before, or the kernel lacks its events"
                          : "UFFDIO_API failed",
                      -error);
  }
  // SO_PEERCRED names who connected; whose userfaultfd this is only the kernel can say.
  if (prove_address_space(os_, vetted.uffd.get(), agent.pagemap.get(), hello.staging) !=
      Proof::proved) {
    return fail("the userfaultfd is not of the process that connected");
  }
  auto map = PageMap::create(os_);
  if (!map) return std::unexpected(map.error());
  ClientRecord* record = registry_.claim_record();
  if (record == nullptr) return fail("the client table is full");
  record->id = token;
  record->pid = pending.peer.pid;
  record->uid = pending.peer.uid;
  record->staging = hello.staging;
  record->resident_max_bytes = hello.resident_max_bytes;
  record->group_max_bytes = hello.group_max_bytes;
  std::ranges::copy(hello.own, record->own);
  copy_name(record->name, hello.name);
  copy_name(record->group, hello.group);

  // A forked child of which there was no event has its parent's budget as that is now.
  if (const auto parent = hello.parent_id != 0 ? registry_.by_id(hello.parent_id) : nullptr;
      parent != nullptr && parent->uid == pending.peer.uid) {
    record->parent_id = hello.parent_id;
    record->resident_max_bytes = parent->record.resident_max_bytes.load();
    record->group_max_bytes = parent->record.group_max_bytes.load();
  }

  agent.mailbox_fd = std::move(pending.mailbox_fd);
  agent.transfer_fd = std::move(pending.transfer_fd);
  agent.lifeline = std::move(pending.socket);
  ClientParts parts;
  parts.record = record;
  parts.map = std::move(*map);
  parts.uffd = std::move(vetted.uffd);
  parts.agent = std::move(agent);
  const auto client = registry_.make_client(std::move(parts));
  if (record->parent_id != 0) client->may_share = true;
  attach(*client);
  registry_.add(client);
  watch_lifeline(*client);
  send_ready(*client, false);
  log::debug("{}: registered", client->label());
  return {};
}

void Handshake::lifeline_hup(std::uint64_t token) {
  const auto client = registry_.by_id(token & ~kLifeline);
  if (client == nullptr) return;
  (void)::epoll_ctl(epoll_, EPOLL_CTL_DEL, client->lifeline(), nullptr);
  // Its library has let its agent go: nothing of it is out or registered, and it is like any
  // process that may become a client.
  const bool retired = client->retire_wanted && client->state() == ClientState::released &&
                       client->map->out_total() == 0;
  // Most often the whole process ended; if not, it goes on being served without its agent.
  client->set_state(retired || os_.uffd_probe(client->uffd.get(), kPage) == Probe::gone ||
                            mutated(Mutation::h07_hup_is_no_death)
                        ? ClientState::exiting
                        : ClientState::agentless);
}

void Handshake::refuse(std::uint64_t token, const std::string& reason) {
  const auto it = pending_.find(token);
  if (it == pending_.end()) return;
  auto refused = message<wire::Refused>(wire::MessageType::refused);
  std::snprintf(refused.reason, sizeof(refused.reason), "%s", reason.c_str());
  (void)send_with_fds(it->second.socket.get(), &refused, sizeof(refused), {});
  std::uint64_t unsaid = 0;
  if (log_limit_.allow(os_.now_us(), unsaid)) {
    if (unsaid != 0) log::warn("{} refused registrations were not told here", unsaid);
    log::warn("refused a registration of pid {} (uid {}): {}", it->second.peer.pid,
              it->second.peer.uid, reason);
  }
  drop(token);
}

void Handshake::drop(std::uint64_t token) {
  const auto it = pending_.find(token);
  if (it == pending_.end()) return;
  vetting_.dispose(std::move(it->second.socket));
  pending_.erase(it);
}

void Handshake::expire(std::uint64_t now_us) {
  std::vector<std::uint64_t> late;
  for (const auto& [token, pending] : pending_) {
    if (now_us > pending.deadline_us) late.push_back(token);
  }
  for (const std::uint64_t token : late)
    refuse(token, "the handshake was not finished within 5 seconds");
}

Status check_kernel(Os& os) {
  UniqueFd device(::open("/dev/userfaultfd", O_RDWR | O_CLOEXEC));
  if (!device.valid()) return fail_errno("cannot open /dev/userfaultfd");
  UniqueFd uffd(::ioctl(device.get(), USERFAULTFD_IOC_NEW, O_CLOEXEC | O_NONBLOCK));
  if (!uffd.valid()) return fail_errno("cannot make a userfaultfd from /dev/userfaultfd");
  if (const int error = os.uffd_api(uffd.get(), kFeatures); error != 0) {
    return fail_errno(error == -EPERM ? "userfaultfd fork events need CAP_SYS_PTRACE"
                                      : "this kernel lacks a userfaultfd feature (fork, remap, "
                                        "remove, unmap events, thread ids)",
                      -error);
  }
  auto area = Mapping::anonymous(2 * kPage);
  if (!area) return std::unexpected(area.error());
  const auto address = reinterpret_cast<std::uint64_t>(area->data());
  if (os.uffd_register(uffd.get(), address, 2 * kPage) != 0)
    return fail_errno("UFFDIO_REGISTER failed");
  uapi::UffdMove move{address, address + kPage, kPage, 0, 0};
  const bool moved = ::ioctl(uffd.get(), uapi::kUffdioMove, &move) == 0;
  const int error = errno;
  (void)os.uffd_unregister(uffd.get(), address, 2 * kPage);
  // An empty source page answers ENOENT where MOVE exists; ENOTTY or EINVAL where it does not.
  if (!moved && error != ENOENT)
    return fail("this kernel has no UFFDIO_MOVE (Linux 6.8 or newer is needed)");
  UniqueFd pagemap(::open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC));
  uapi::PmScanArg arg{};
  arg.size = sizeof(arg);
  arg.start = address;
  arg.end = address + kPage;
  arg.category_mask = arg.return_mask = uapi::kPageIsPresent;
  uapi::PageRegion region{};
  arg.vec = reinterpret_cast<std::uint64_t>(&region);
  arg.vec_len = 1;
  if (!pagemap.valid() || os.pagemap_scan(pagemap.get(), arg) < 0) {
    return fail("this kernel has no PAGEMAP_SCAN (Linux 6.7 or newer is needed)");
  }
  return {};
}

}  // namespace foldswap
