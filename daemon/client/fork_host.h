// What the address space of a client tells others of a fork: ForkHost makes the Client of a child,
// DescriptorCopies is told of descriptors that must not be lost. Only interfaces: the registry is
// the one, the service manager's store (descriptor_store.h) the other; the simulator has its own.
// Thread safety: calls come from the readers of the clients concerned, several at a time.
#pragma once

#include <linux/userfaultfd.h>

#include <cstdint>
#include <memory>
#include <utility>

#include "base/unique_fd.h"
#include "daemon/state/state.h"

namespace foldswap {

class Client;

// The descriptor of a FORK, with the stamp that it has had since it was read (NotedFd in state.h).
struct ForkedUffd {
  UniqueFd fd;
  std::uint64_t stamp = 0;
  ForkedUffd(UniqueFd uffd, std::uint64_t its_stamp = 0) : fd(std::move(uffd)), stamp(its_stamp) {}
  explicit ForkedUffd(const uffd_msg& message)
      : fd(static_cast<int>(message.arg.fork.ufd)), stamp(message.arg.reserved.reserved3) {}
};

// Who makes the Client of a forked child; the registry, in the daemon.
class ForkHost {
 public:
  virtual ~ForkHost() = default;
  // nullptr: it could not be made (table full, no memory); it was doomed.
  virtual std::shared_ptr<Client> adopt_child(Client& parent, ForkedUffd uffd,
                                              std::uint32_t fork_seq) = 0;
  // The child's page map is complete: it may be served.
  virtual void child_ready(std::shared_ptr<Client> child) = 0;
  // Nobody can say what the child of this descriptor should read: SIGBUS, never zeros.
  virtual void doom(ForkedUffd uffd) = 0;
  // A FORK was read this moment, and its descriptor exists nowhere else.
  virtual void fork_read(uffd_msg& message) = 0;
};

// Who keeps copies of what the state notes.
class DescriptorCopies {
 public:
  virtual ~DescriptorCopies() = default;
  // A FORK event that was just read: its descriptor is nowhere else.
  virtual void fork_read(uffd_msg& message) = 0;
  // A note of the state has that descriptor now, or whatever came of it.
  virtual void settled(int number, std::uint64_t stamp) = 0;
  // All of a client's, by whoever makes it, before it is told that it is one.
  virtual void push(const ClientRecord& record) = 0;
};

}  // namespace foldswap
