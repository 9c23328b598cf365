#include "daemon/host/notify.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <charconv>
#include <cstddef>
#include <cstdlib>
#include <cstring>

namespace foldswap {
namespace {

// 0: there is none, or it cannot be one.
socklen_t manager_address(sockaddr_un& address) {
  const char* const text = std::getenv("NOTIFY_SOCKET");
  const std::string_view path = text != nullptr ? text : "";
  if (path.size() < 2 || path.size() >= sizeof(address.sun_path)) return 0;
  if (path[0] != '/' && path[0] != '@') return 0;
  address = {};
  address.sun_family = AF_UNIX;
  std::ranges::copy(path, address.sun_path);
  if (path[0] == '@') address.sun_path[0] = '\0';  // an abstract one
  return static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + path.size());
}

bool send(int socket, std::string_view message, int fd, int flags) {
  sockaddr_un address{};
  const socklen_t bytes = manager_address(address);
  if (bytes == 0 || socket < 0) return false;
  iovec text{const_cast<char*>(message.data()), message.size()};
  alignas(cmsghdr) std::array<char, CMSG_SPACE(sizeof(int))> control{};
  msghdr datagram{};
  datagram.msg_name = &address;
  datagram.msg_namelen = bytes;
  datagram.msg_iov = &text;
  datagram.msg_iovlen = 1;
  if (fd >= 0) {
    datagram.msg_control = control.data();
    datagram.msg_controllen = control.size();
    cmsghdr* const header = CMSG_FIRSTHDR(&datagram);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof(int));
    std::memcpy(CMSG_DATA(header), &fd, sizeof(fd));
  }
  ssize_t sent = 0;
  do {
    sent = ::sendmsg(socket, &datagram, flags | MSG_NOSIGNAL);
  } while (sent < 0 && errno == EINTR);
  return sent == static_cast<ssize_t>(message.size());
}

}  // namespace

std::optional<unsigned> number_in_environment(const char* name) {
  const char* const text = std::getenv(name);
  if (text == nullptr) return std::nullopt;
  const std::string_view view(text);
  unsigned number = 0;
  const auto [end, code] = std::from_chars(view.data(), view.data() + view.size(), number);
  if (code != std::errc{} || end != view.data() + view.size()) return std::nullopt;
  return number;
}

bool manager_listens() {
  sockaddr_un address{};
  return manager_address(address) != 0;
}

UniqueFd manager_socket(int patience_ms) {
  UniqueFd fd(manager_listens() ? ::socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0) : -1);
  const timeval limit{patience_ms / 1000, patience_ms % 1000 * 1000L};
  if (fd.valid()) (void)::setsockopt(fd.get(), SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof(limit));
  return fd;
}

bool notify(int socket, std::string_view message, int fd) {
  return send(socket, message, fd, 0);
}

bool notify_now(int socket, std::string_view message, int fd) {
  return send(socket, message, fd, MSG_DONTWAIT);
}

void say_now(const std::string& line) {
  const std::string text = line + "\n";
  pollfd room{STDERR_FILENO, POLLOUT, 0};
  if (::poll(&room, 1, 0) == 1 && (room.revents & POLLOUT) != 0)
    (void)!::write(STDERR_FILENO, text.data(), text.size());
}

// The manager closes the descriptor when it comes to it.
bool notify_barrier(int socket, int timeout_ms) {
  std::array<int, 2> ends{};
  if (::pipe2(ends.data(), O_CLOEXEC) != 0) return false;
  const UniqueFd read_end(ends[0]);
  UniqueFd write_end(ends[1]);
  if (!notify(socket, "BARRIER=1", write_end.get())) return false;
  write_end.reset();
  pollfd closed{read_end.get(), 0, 0};
  int ready = 0;
  do {
    ready = ::poll(&closed, 1, timeout_ms);
  } while (ready < 0 && errno == EINTR);
  return ready == 1 && (closed.revents & POLLHUP) != 0;
}

}  // namespace foldswap
