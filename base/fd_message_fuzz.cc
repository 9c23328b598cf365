// libFuzzer target for messages with descriptors: any number of bytes and of descriptors, into a
// buffer of any size. What is received is what was sent, or its beginning, and says so; every
// descriptor that arrived is in the list and closes on exec; none is lost, and none stays open.
#include "base/fd_message.h"

#include <fcntl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <string>

#include "base/testing/fuzz_input.h"
#include "base/unique_fd.h"

namespace foldswap {
namespace {

// The lowest free number tells whether one stayed open.
int lowest_free() {
  return UniqueFd(::open("/dev/null", O_RDONLY | O_CLOEXEC)).get();
}

bool same_file(int a, int b) {
  struct stat of_a{}, of_b{};
  return ::fstat(a, &of_a) == 0 && ::fstat(b, &of_b) == 0 && of_a.st_ino == of_b.st_ino &&
         of_a.st_dev == of_b.st_dev;
}

// As a stranger would, who need not keep to FdList::kMost, and may say who he is besides.
bool send_any(int socket, const std::string& text, std::size_t fds, int fd, bool credentials) {
  alignas(cmsghdr) std::array<char, 256> control{};
  iovec vec{const_cast<char*>(text.data()), text.size()};
  msghdr message{};
  message.msg_iov = &vec;
  message.msg_iovlen = 1;
  message.msg_control = control.data();
  message.msg_controllen = control.size();
  cmsghdr* header = CMSG_FIRSTHDR(&message);
  std::size_t used = 0;
  if (credentials) {
    const ucred me{::getpid(), ::getuid(), ::getgid()};
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_CREDENTIALS;
    header->cmsg_len = CMSG_LEN(sizeof(me));
    std::memcpy(CMSG_DATA(header), &me, sizeof(me));
    used += CMSG_SPACE(sizeof(me));
    header = CMSG_NXTHDR(&message, header);
  }
  if (fds != 0) {
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof(int) * fds);
    for (std::size_t i = 0; i < fds; ++i)
      std::memcpy(CMSG_DATA(header) + i * sizeof(int), &fd, sizeof(int));
    used += CMSG_SPACE(sizeof(int) * fds);
  }
  message.msg_controllen = used;
  return ::sendmsg(socket, &message, MSG_DONTWAIT | MSG_NOSIGNAL) ==
         static_cast<ssize_t>(text.size());
}

void check(FuzzInput& input) {
  std::array<int, 2> ends{};
  if (::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends.data()) != 0)
    wrong("no sockets");
  const UniqueFd here(ends[0]), there(ends[1]);
  const UniqueFd sent_fd(::open("/dev/null", O_RDONLY | O_CLOEXEC));
  while (!input.empty()) {
    const int before = lowest_free();
    const std::uint32_t bits = input.byte();
    const std::size_t fds = input.byte() % 8, room = input.byte();
    std::string text = input.text(200);
    if (text.empty()) text += 'x';  // nothing is what a closed socket says
    const bool ours = (bits & 1) != 0 && fds <= FdList::kMost;
    if (ours) {
      FdList list;
      for (std::size_t i = 0; i < fds; ++i) list.push(sent_fd.get());
      if (!send_with_fds(there.get(), text.data(), text.size(), list)) wrong("not sent");
    } else if (!send_any(there.get(), text, fds, sent_fd.get(), (bits & 2) != 0)) {
      wrong("not sent");
    }
    std::string buffer(room, '?');
    FdList got;
    int flags = 0;
    const ssize_t n = receive_with_fds(here.get(), buffer.data(), room, MSG_DONTWAIT, got, &flags);
    if (n != static_cast<ssize_t>(std::min(room, text.size()))) wrong("another length");
    if (text.compare(0, static_cast<std::size_t>(n), buffer, 0, static_cast<std::size_t>(n)) != 0)
      wrong("other bytes");
    if (((flags & MSG_TRUNC) != 0) != (text.size() > room)) wrong("truncated, or not, untold");
    if (got.count != std::min(fds, FdList::kMost)) wrong("another number of descriptors");
    if (((flags & MSG_CTRUNC) != 0) != (fds > FdList::kMost)) wrong("descriptors missing, untold");
    for (std::size_t i = 0; i < got.count; ++i) {
      if ((::fcntl(got.fd[i], F_GETFD) & FD_CLOEXEC) == 0) wrong("it stays open on exec");
      if (!same_file(got.fd[i], sent_fd.get())) wrong("another file");
      ::close(got.fd[i]);
    }
    if (lowest_free() != before) wrong("a descriptor that nobody knows");
  }
}

}  // namespace
}  // namespace foldswap

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t bytes) {
  foldswap::FuzzInput input(data, bytes);
  foldswap::check(input);
  return 0;
}
