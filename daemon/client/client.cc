#include "daemon/client/client.h"

#include <fcntl.h>
#include <sys/syscall.h>

#include <algorithm>
#include <csignal>
#include <utility>

#include "daemon/host/log.h"

namespace foldswap {

const char* to_string(ClientState state) {
  switch (state) {
    case ClientState::active:
      return "active";
    case ClientState::agentless:
      return "agentless";
    case ClientState::released:
      return "released";
    case ClientState::exiting:
      return "exiting";
  }
  return "unknown";
}

Status AgentParts::map(int mailbox_file, int transfer_file) {
  auto first = Mapping::shared(mailbox_file, wire::kMailboxBytes);
  if (!first) return std::unexpected(first.error());
  auto second = Mapping::shared(transfer_file, wire::kTransferBytes);
  if (!second) return std::unexpected(second.error());
  mailbox = std::move(*first);
  transfer = std::move(*second);
  return {};
}

Client::Client(ClientParts parts, Os& seam)
    : os(seam),
      record(*parts.record),
      id(parts.record->id),
      uid(parts.record->uid),
      map(std::move(parts.map)),
      uffd(std::move(parts.uffd)),
      quarantine(*parts.record),
      agent_(std::move(parts.agent)),
      pidfd_(agent_.pidfd.get()),
      pagemap_fd_(agent_.pagemap.get()) {
  pending.reserve(kMostPending);
  note_fds();
  record.fds.map.note(map->fd());
  record.fds.uffd.note(uffd.get(), parts.uffd_stamp);  // last: from here it is one (take_over.cc)
  if (agent_.mailbox.valid()) {
    transfer.publish(agent_.transfer.data());
    mailbox.publish(agent_.mailbox.as<wire::Mailbox>());
  } else {
    state_ = ClientState::agentless;
    // What a daemon that died knew of it stays until set_state().
    auto active = static_cast<std::uint32_t>(ClientState::active);
    (void)record.state.compare_exchange_strong(active,
                                               static_cast<std::uint32_t>(ClientState::agentless));
  }
}

// The mailbox last: who has one has the rest.
void Client::note_fds() {
  record.fds.pidfd.note(agent_.pidfd.get());
  record.fds.pagemap.note(agent_.pagemap.get());
  record.fds.lifeline.note(agent_.lifeline.get());
  record.fds.transfer.note(agent_.transfer_fd.get());
  record.fds.mailbox.note(agent_.mailbox_fd.get());
}

UniqueFd Client::release_lifeline() {
  record.fds.lifeline.note(-1);
  return std::move(agent_.lifeline);
}

void Client::take_agent() {
  {
    const RankedLock lock(mutex);  // see learn_pid()
    if (pidfd_.load() >= 0) {      // in use already: the same process, proved
      offer.parts.pidfd = std::move(agent_.pidfd);
      offer.parts.pagemap = std::move(agent_.pagemap);
    }
    agent_ = std::move(offer.parts);
    record.pid = offer.pid;
    pagemap_fd_ = agent_.pagemap.get();
    pidfd_ = agent_.pidfd.get();
  }
  record.staging = offer.staging;
  std::ranges::copy(offer.own, record.own);
  note_fds();
  transfer.publish(agent_.transfer.data());
  mailbox.publish(agent_.mailbox.as<wire::Mailbox>());
  ClientState agentless = ClientState::agentless;
  if (state_.compare_exchange_strong(agentless, ClientState::active))
    record.state = static_cast<std::uint32_t>(ClientState::active);
  if (doomed()) kill("");
}

std::string Client::label() const {
  return fmt::format("client {} ({}, pid {})", id, record.name[0] != 0 ? record.name : "unnamed",
                     pid());
}

void Client::set_state(ClientState state) {
  // `exiting` is final; `released` may become active again (resume), agentless only by
  // take_agent().
  ClientState seen = state_.load();
  do {
    if (seen == ClientState::exiting || seen == state) return;
    if (seen == ClientState::agentless && state != ClientState::exiting) return;
  } while (!state_.compare_exchange_weak(seen, state));
  record.state = static_cast<std::uint32_t>(state);
  if (mailbox == nullptr) return;
  const auto mode = state == ClientState::active     ? wire::ClientMode::active
                    : state == ClientState::released ? wire::ClientMode::released
                                                     : wire::ClientMode::agentless;
  store_word(mailbox->mode, static_cast<std::uint32_t>(mode));
  add_word(mailbox->to_agent);
  os.futex_wake(&mailbox->to_agent);
  os.futex_wake(&mailbox->request.served);
}

void Client::kill(const std::string& why) {
  record.doomed = 1;
  if (!doomed_.exchange(true)) log::error("{}: killed: {}", label(), why);
  if (pidfd() >= 0) (void)os.pidfd_signal(pidfd(), SIGKILL);
}

// What a posted command is about to register was not to be seen yet.
void Client::mappings_counted(std::uint64_t seen, std::uint64_t before) {
  std::uint64_t coming = 0;
  for (const Batch& b : batch) coming += b.phase == Batch::Phase::posted ? b.splits : 0;
  mappings_seen_ = seen;
  splits.fetch_sub(before - std::min(before, coming));
}

void Client::learn_pid(pid_t pid) {
  if (pid <= 0 || pidfd_.load() >= 0) return;
  UniqueFd pidfd(static_cast<int>(::syscall(SYS_pidfd_open, pid, 0)));
  if (!pidfd.valid()) return;
  UniqueFd pagemap(
      ::open(("/proc/" + std::to_string(pid) + "/pagemap").c_str(), O_RDONLY | O_CLOEXEC));
  {
    const RankedLock lock(mutex);  // its hello and its first fault may come at the same time
    if (pidfd_.load() >= 0) return;
    record.pid = pid;
    agent_.pagemap = std::move(pagemap);
    agent_.pidfd = std::move(pidfd);
    pagemap_fd_ = agent_.pagemap.get();
    pidfd_ = agent_.pidfd.get();
    record.fds.pagemap.note(pagemap_fd_);
    record.fds.pidfd.note(pidfd_);
  }
  if (doomed()) kill("");
}

LayoutTryLock::LayoutTryLock(Client& client, std::uint32_t incarnation, Side side)
    : mailbox_(client.mailbox) {
  if (mailbox_ == nullptr || client.state() == ClientState::agentless) {
    // Nobody on the other side. A dead agent may have left the word taken (HAZARDS 14).
    mailbox_ = nullptr;
    held_ = true;
    return;
  }
  rank_check::acquired(LockRank::layout);
  std::uint32_t free = wire::kLayoutFree;
  held_ = __atomic_compare_exchange_n(&mailbox_->layout, &free,
                                      (incarnation << 2) | wire::kLayoutDaemon, false,
                                      __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
  if (held_) return;
  rank_check::released(LockRank::layout);
  mailbox_ = nullptr;
  held_ = side == Side::reader && client.revoked && (free & 3) == wire::kLayoutAgent;
  past_agent_ = held_;
}

LayoutTryLock::~LayoutTryLock() {
  if (!held_ || mailbox_ == nullptr) return;
  store_word(mailbox_->layout, wire::kLayoutFree);
  rank_check::released(LockRank::layout);
}

}  // namespace foldswap
