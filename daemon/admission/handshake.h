// Handshake: how a stranger on client.sock becomes a client (DESIGN §4). Welcome (with descriptors)
// -> Hello, received by the vetting helper -> checks, UFFDIO_API, page map -> Ready. The agent of a
// forked child says which FORK event its process is: when every event that was read before has been
// applied, it is attached to the client that came of it, or told that there was none. Also keeps
// the lifelines: HUP means "no agent" (HAZARDS 7). Thread safety: the control thread's. Bounded: at
// most 256 handshakes, 64 per user (the oldest gives way), each with a deadline. Every refusal is
// told to the stranger and logged once.
#pragma once

#include <sys/socket.h>

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>

#include "daemon/admission/access.h"
#include "daemon/admission/vetting.h"
#include "daemon/client/registry.h"
#include "daemon/config/tunables.h"
#include "daemon/host/log_limit.h"
#include "daemon/recovery/descriptor_store.h"

namespace foldswap {

class Handshake {
 public:
  struct Limits {
    std::atomic<std::uint64_t> clients_per_user{256};
  };
  Handshake(Os& os, Registry& registry, Vetting& vetting, const Access& access,
            const Tunables& tunables, Limits& limits, std::atomic<bool>& draining, State& state);
  ~Handshake();

  // Before the first; nullptr: there is none.
  void keep_in(DescriptorStore* store) { descriptors_ = store; }
  // The listening socket has a connection.
  void accept_one(int listener, int epoll);
  // A socket of ours has something (token = what was given to epoll).
  void on_socket(std::uint64_t token, std::uint32_t events);
  void on_vetted();
  void expire(std::uint64_t now_us);
  // Forked children whose agents wait for an answer, and what else waits for the control thread.
  // True: call again soon.
  bool settle();
  // Its lifeline is closed, by a helper: nobody knows what descriptors the client left in it. Any
  // thread.
  void retire(std::shared_ptr<Client> client);

  // The lifeline of a client that a daemon before this one had.
  void watch_again(Client& client, int epoll);

 private:
  struct Pending {
    UniqueFd socket, mailbox_fd, transfer_fd, pidfd;
    ucred peer{};
    std::uint64_t deadline_us = 0;
    bool submitted = false;
    std::optional<wire::Hello> child;      // the agent of a forked child waits for its userfaultfd
    std::shared_ptr<Client> offered;       // to this one
    std::vector<std::uint64_t> not_these;  // clients that it turned out not to be
    bool barrier_asked = false;
    std::uint32_t barrier =
        0;  // of the parent's reader: when it has passed, there is no more event
  };
  void make_room(std::uint32_t uid);
  Status welcome(Pending& pending, std::uint64_t token);
  void refuse(std::uint64_t token, const std::string& reason);
  void drop(std::uint64_t token);
  Status finish(std::uint64_t token, Pending& pending, VettedHello& vetted);
  Status offer_agent(Pending& pending, const std::shared_ptr<Client>& child);
  void bury_retired();
  Status settle_child(std::uint64_t token, Pending& pending, bool& waits);
  [[nodiscard]] bool lost_with_its_fork(const Pending& pending) const;
  void watch_lifeline(const Client& client);
  void attach(Client& client);
  static void send_ready(const Client& client, bool with_userfaultfd);
  [[nodiscard]] Status map_agent(Pending& pending, AgentParts& parts);
  void lifeline_hup(std::uint64_t token);

  Os& os_;
  Registry& registry_;
  Vetting& vetting_;
  const Access& access_;
  const Tunables& tunables_;
  Limits& limits_;
  std::atomic<bool>& draining_;
  State& state_;
  DescriptorStore* descriptors_ = nullptr;
  UniqueFd device_;  // /dev/userfaultfd
  int epoll_ = -1;
  std::map<std::uint64_t, Pending> pending_;
  LogLimit log_limit_;
  RankedMutex<LockRank::leaf> retired_mutex_;
  std::vector<std::shared_ptr<Client>> retired_ FS_GUARDED_BY(retired_mutex_);
};

// Whether this kernel can do it: userfaultfd device, UFFDIO_MOVE and POISON, PAGEMAP_SCAN. Error:
// one line that says what is missing.
[[nodiscard]] Status check_kernel(Os& os);

}  // namespace foldswap
