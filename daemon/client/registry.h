// Registry: all clients, and which threads care for each. Owns the life cycle: added after the
// handshake (or a FORK event), removed when the kernel says that the address space is gone and both
// its threads have let go. Thread safety: any thread (a leaf mutex inside; never held while
// anything else is called).
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/mutex.h"
#include "daemon/client/client.h"
#include "daemon/client/fork_host.h"
#include "daemon/host/log_limit.h"

namespace foldswap {

class Registry final : public ForkHost {
 public:
  using Placer = std::function<void(std::shared_ptr<Client>)>;  // hands a client to its two threads
  using Kicker = std::function<void(Client&)>;                  // has both look at it again

  // The descriptors that the state notes as doomed are its own from here.
  Registry(Os& os, State& state);
  void set_placer(Placer placer, Kicker kicker) {
    placer_ = std::move(placer);
    kicker_ = std::move(kicker);
  }
  // Before any thread is started; nullptr: there is none.
  void keep_in(DescriptorCopies* copies) { descriptors_ = copies; }
  void kick(Client& client) { kicker_(client); }

  // The client is complete: from here it is served.
  void add(std::shared_ptr<Client> client);
  void remove(const Client& client);
  [[nodiscard]] std::vector<std::shared_ptr<Client>> all() const;
  // By pid or name; every one that fits.
  [[nodiscard]] std::vector<std::shared_ptr<Client>> find(const std::string& pid_or_name) const;
  [[nodiscard]] std::shared_ptr<Client> by_id(std::uint64_t id) const;
  [[nodiscard]] std::size_t size() const;
  [[nodiscard]] std::size_t count_of_user(std::uint32_t uid) const;
  // The child of that fork, with or without an agent; nullptr: there is none (any more). Children
  // by raw clone() may bear the same number: `not_these` are ids of such.
  [[nodiscard]] std::shared_ptr<Client> forked_child(
      std::uint64_t parent_id, std::uint32_t fork_seq,
      const std::vector<std::uint64_t>& not_these) const;

  std::shared_ptr<Client> adopt_child(Client& parent, ForkedUffd uffd,
                                      std::uint32_t fork_seq) override;
  void child_ready(std::shared_ptr<Client> child) override;

  // A forked child that can never be served: its descriptor is held, so that it cannot read zeros.
  void doom(ForkedUffd uffd) override;
  void fork_read(uffd_msg& message) override;
  [[nodiscard]] std::size_t doomed_count() const;
  // Gives those SIGBUS for whatever they touch that is not there. Control thread, now and then.
  void reap_doomed();

  // Record table access is serialised here: handshakes and forks both claim.
  [[nodiscard]] ClientRecord* claim_record();
  // The last reference to it gives the record back.
  [[nodiscard]] std::shared_ptr<Client> make_client(ClientParts parts);

  // Of the kMostClients records; the rest is for others.
  static constexpr std::size_t kMostOfOneUser = kMostClients - kMostClients / 4;

 private:
  void note_doomed(UniqueFd uffd, std::uint64_t stamp);

  Os& os_;
  State& state_;
  DescriptorCopies* descriptors_ = nullptr;
  Placer placer_;
  Kicker kicker_;
  mutable RankedMutex<LockRank::leaf> mutex_;
  std::vector<UniqueFd> doomed_ FS_GUARDED_BY(mutex_);
  LogLimit doom_limit_ FS_GUARDED_BY(mutex_);
  std::vector<std::shared_ptr<Client>> clients_ FS_GUARDED_BY(mutex_);
};

}  // namespace foldswap
