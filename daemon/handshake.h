// Handshake: how a stranger on client.sock becomes a client (DESIGN §4). Welcome (with descriptors)
// -> Hello, received by the vetting helper -> checks, UFFDIO_API, page map -> Ready. Also keeps the
// lifelines: HUP means "no agent" (HAZARDS 7). Thread safety: the control thread's. Bounded: at
// most 256 handshakes, 64 per user (the oldest gives way), each with a deadline. Every refusal is
// told to the stranger and logged once.
#pragma once

#include <sys/socket.h>

#include <cstdint>
#include <map>
#include <memory>
#include <string>

#include "daemon/access.h"
#include "daemon/registry.h"
#include "daemon/tunables.h"
#include "daemon/vetting.h"

namespace foldswap {

class Handshake {
 public:
  struct Limits {
    std::atomic<std::uint64_t> clients_per_user{256};
  };
  Handshake(Os& os, Registry& registry, Vetting& vetting, const Access& access,
            const Tunables& tunables, Limits& limits, std::atomic<bool>& draining, State& state);
  ~Handshake();

  // The listening socket has a connection.
  void accept_one(int listener, int epoll);
  // A socket of ours has something (token = what was given to epoll).
  void on_socket(std::uint64_t token, std::uint32_t events);
  void on_vetted();
  void expire(std::uint64_t now_us);
  // Its lifeline is closed by a helper: nobody knows what descriptors the client left in it. Any
  // thread.
  void dispose(const Client& client) { vetting_.dispose(client.lifeline.get()); }

 private:
  struct Pending {
    UniqueFd socket, mailbox_fd, transfer_fd, pidfd;
    ucred peer{};
    std::uint64_t deadline_us = 0;
    bool submitted = false;
  };
  void make_room(std::uint32_t uid);
  Status welcome(Pending& pending, std::uint64_t token);
  void refuse(std::uint64_t token, const std::string& reason);
  void drop(std::uint64_t token);
  Status finish(std::uint64_t token, Pending& pending, VettedHello& vetted);
  Status finish_child(Pending& pending, const VettedHello& vetted);
  void lifeline_hup(std::uint64_t token);

  Os& os_;
  Registry& registry_;
  Vetting& vetting_;
  const Access& access_;
  const Tunables& tunables_;
  Limits& limits_;
  std::atomic<bool>& draining_;
  State& state_;
  UniqueFd device_;  // /dev/userfaultfd
  int epoll_ = -1;
  std::map<std::uint64_t, Pending> pending_;
  std::uint64_t said_at_us_ = 0;
  std::uint64_t unsaid_ = 0;  // refusals since, over the rate that is logged
};

// Whether this kernel can do it: userfaultfd device, UFFDIO_MOVE and POISON, PAGEMAP_SCAN. Error:
// one line that says what is missing.
[[nodiscard]] Status check_kernel(Os& os);

}  // namespace foldswap
