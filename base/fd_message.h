// Messages with descriptors over UNIX sockets (SCM_RIGHTS), bounded and without allocation.
// Thread safety: free functions. Received descriptors are close-on-exec and the caller's to close.
#pragma once

#include <sys/types.h>

#include <array>
#include <cstddef>

namespace foldswap {

struct FdList {
  static constexpr std::size_t kMost = 4;
  std::array<int, kMost> fd{};
  std::size_t count = 0;
  void push(int value) {
    if (count < kMost) fd[count++] = value;
  }
};

// True when all of it was sent. Never blocks, never raises SIGPIPE.
[[nodiscard]] bool send_with_fds(int socket, const void* data, std::size_t bytes,
                                 const FdList& fds);
// As recvmsg(2); `flags_out` (may be null) gets MSG_TRUNC and MSG_CTRUNC.
[[nodiscard]] ssize_t receive_with_fds(int socket, void* data, std::size_t bytes, int flags,
                                       FdList& fds, int* flags_out);

}  // namespace foldswap
