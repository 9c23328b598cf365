#include "base/fd_message.h"

#include <sys/socket.h>
#include <sys/uio.h>

#include <cerrno>
#include <cstring>

namespace foldswap {

bool send_with_fds(int socket, const void* data, std::size_t bytes, const FdList& fds) {
  iovec vec{const_cast<void*>(data), bytes};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int) * FdList::kMost)] = {};
  msghdr message{};
  message.msg_iov = &vec;
  message.msg_iovlen = 1;
  if (fds.count != 0) {
    message.msg_control = control;
    message.msg_controllen = CMSG_SPACE(sizeof(int) * fds.count);
    cmsghdr* header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof(int) * fds.count);
    std::memcpy(CMSG_DATA(header), fds.fd.data(), sizeof(int) * fds.count);
  }
  return ::sendmsg(socket, &message, MSG_NOSIGNAL | MSG_DONTWAIT) == static_cast<ssize_t>(bytes);
}

ssize_t receive_with_fds(int socket, void* data, std::size_t bytes, int flags, FdList& fds,
                         int* flags_out) {
  iovec vec{data, bytes};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int) * FdList::kMost)] = {};
  msghdr message{};
  message.msg_iov = &vec;
  message.msg_iovlen = 1;
  message.msg_control = control;
  message.msg_controllen = sizeof(control);
  ssize_t n = 0;
  do {
    n = ::recvmsg(socket, &message, flags | MSG_CMSG_CLOEXEC);
  } while (n < 0 && errno == EINTR);
  if (n < 0) return n;
  if (flags_out != nullptr) *flags_out = message.msg_flags;
  for (cmsghdr* header = CMSG_FIRSTHDR(&message); header != nullptr;
       header = CMSG_NXTHDR(&message, header)) {
    if (header->cmsg_level != SOL_SOCKET || header->cmsg_type != SCM_RIGHTS) continue;
    const std::size_t count = (header->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    for (std::size_t i = 0; i < count; ++i) {
      int fd = -1;
      std::memcpy(&fd, CMSG_DATA(header) + i * sizeof(int), sizeof(int));
      fds.push(fd);
    }
  }
  return n;
}

}  // namespace foldswap
