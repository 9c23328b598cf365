#include "daemon/client.h"

#include <fcntl.h>
#include <spdlog/spdlog.h>
#include <sys/syscall.h>

#include <csignal>
#include <utility>

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

Client::Client(ClientParts parts, Os& seam)
    : os(seam),
      record(*parts.record),
      id(parts.record->id),
      uid(parts.record->uid),
      map(std::move(parts.map)),
      uffd(std::move(parts.uffd)),
      lifeline(std::move(parts.lifeline)),
      mailbox_fd(std::move(parts.mailbox_fd)),
      transfer_fd(std::move(parts.transfer_fd)),
      mailbox_mapping(std::move(parts.mailbox)),
      transfer_mapping(std::move(parts.transfer)),
      mailbox(mailbox_mapping.valid() ? mailbox_mapping.as<wire::Mailbox>() : nullptr),
      transfer(transfer_mapping.data()),
      quarantine(*parts.record),
      pidfd_owner_(std::move(parts.pidfd)),
      pagemap_owner_(std::move(parts.pagemap)),
      pidfd_(pidfd_owner_.get()),
      pagemap_fd_(pagemap_owner_.get()) {
  pending.reserve(kMostPending);
  if (mailbox == nullptr) state_ = ClientState::agentless;
}

std::string Client::label() const {
  return fmt::format("client {} ({}, pid {})", id, record.name[0] != 0 ? record.name : "unnamed",
                     pid());
}

void Client::set_state(ClientState state) {
  // `exiting` is final; `released` may become active again (resume), agentless never does.
  ClientState seen = state_.load();
  do {
    if (seen == ClientState::exiting || seen == state) return;
    if (seen == ClientState::agentless && state != ClientState::exiting) return;
  } while (!state_.compare_exchange_weak(seen, state));
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
  if (!doomed_.exchange(true)) spdlog::error("{}: killed: {}", label(), why);
  if (pidfd() >= 0) (void)os.pidfd_signal(pidfd(), SIGKILL);
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
    pagemap_owner_ = std::move(pagemap);
    pidfd_owner_ = std::move(pidfd);
    pagemap_fd_ = pagemap_owner_.get();
    pidfd_ = pidfd_owner_.get();
  }
  if (doomed()) kill("");
}

LayoutTryLock::LayoutTryLock(Client& client, std::uint32_t incarnation) : mailbox_(client.mailbox) {
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
  if (!held_) rank_check::released(LockRank::layout);
}

LayoutTryLock::~LayoutTryLock() {
  if (!held_ || mailbox_ == nullptr) return;
  store_word(mailbox_->layout, wire::kLayoutFree);
  rank_check::released(LockRank::layout);
}

}  // namespace foldswap
