#include "preload/handshake.h"

#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

namespace foldswap::preload {
namespace {

template <typename T, std::size_t Count>
struct ControlBuffer {
  alignas(cmsghdr) char bytes[CMSG_SPACE(sizeof(T) * Count)];
};

union Message {
  wire::MessageHeader header;
  wire::Welcome welcome;
  wire::Refused refused;
  wire::Ready ready;
};

void limit_waiting(int socket, long ms) {
  const timeval time{ms / 1000, (ms % 1000) * 1000};
  sys::call(SYS_setsockopt, socket, SOL_SOCKET, SO_RCVTIMEO, &time, sizeof(time));
  sys::call(SYS_setsockopt, socket, SOL_SOCKET, SO_SNDTIMEO, &time, sizeof(time));
}

// Takes descriptors out of `header` whatever the message is: they must be closed in any case.
void take_descriptors(msghdr& header, Fd* fds, std::uint32_t room) {
  std::uint32_t taken = 0;
  for (cmsghdr* item = CMSG_FIRSTHDR(&header); item != nullptr; item = CMSG_NXTHDR(&header, item)) {
    // NOLINTNEXTLINE(clang-analyzer-core.UndefinedBinaryOperatorResult): the call has filled it
    if (item->cmsg_level != SOL_SOCKET || item->cmsg_type != SCM_RIGHTS) continue;
    const std::size_t count = (item->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    for (std::size_t i = 0; i < count; ++i) {
      int fd = -1;
      sys::copy_bytes(&fd, CMSG_DATA(item) + i * sizeof(int), sizeof(fd));
      if (taken < room) {
        fds[taken++].reset(fd);
      } else {
        sys::call(SYS_close, fd);
      }
    }
  }
}

bool explain(long got, const Message& message, wire::MessageType wanted, std::size_t bytes,
             Reason& reason) {
  if (got == -EAGAIN) {
    reason << "foldswapd does not answer";
    return false;
  }
  if (got < 0) {
    if (got == -ECONNRESET || got == -EPIPE) reason.gone();
    reason.error("receiving from foldswapd", got);
    return false;
  }
  if (got == 0) reason.gone();
  const wire::MessageHeader& header = message.header;
  if (got < static_cast<long>(sizeof(header)) || header.magic != wire::kMagic) {
    reason << (got == 0 ? "foldswapd closed the connection" : "what answers is not foldswapd");
    return false;
  }
  if (header.version != wire::kProtocolVersion) {
    reason << "foldswapd speaks protocol version " << header.version << ", this library "
           << wire::kProtocolVersion;
    return false;
  }
  const auto type = static_cast<wire::MessageType>(header.type);
  if (type == wire::MessageType::refused && got >= static_cast<long>(sizeof(wire::Refused))) {
    char text[wire::kReasonBytes + 1] = {};
    std::copy_n(message.refused.reason, wire::kReasonBytes, text);
    (reason << "foldswapd refused: ").quote(text);
    return false;
  }
  if (type != wanted || got < static_cast<long>(bytes)) {
    reason << "foldswapd sent an unexpected message";
    return false;
  }
  return true;
}

// Receives one message of type `wanted` into `message`, and at most `room` descriptors into `fds`.
bool receive(int socket, wire::MessageType wanted, std::size_t bytes, Message& message, Fd* fds,
             std::uint32_t room, Reason& reason) {
  ControlBuffer<int, wire::kWelcomeFds> control;
  iovec data{&message, sizeof(message)};
  msghdr header{};
  header.msg_iov = &data;
  header.msg_iovlen = 1;
  header.msg_control = control.bytes;
  header.msg_controllen = sizeof(control.bytes);
  long got = 0;
  do got = sys::call(SYS_recvmsg, socket, &header, MSG_CMSG_CLOEXEC);
  while (got == -EINTR);
  if (got >= 0) take_descriptors(header, fds, room);
  return explain(got, message, wanted, bytes, reason);
}

bool connect_to(const char* path, Fd& socket, long limit_ms, Reason& reason) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::size_t bytes = 1;
  while (path[bytes - 1] != '\0') ++bytes;
  if (path[0] != '/') {
    reason << "the runtime directory has no absolute path";
    return false;
  }
  if (bytes > sizeof(address.sun_path)) {
    reason << "the path of the runtime directory is too long";
    return false;
  }
  std::copy_n(path, bytes, address.sun_path);
  const long fd = sys::call(SYS_socket, AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
  if (fd < 0) {
    reason.error("socket", fd);
    return false;
  }
  socket.reset(static_cast<int>(fd));
  limit_waiting(socket.get(), limit_ms);
  const long error = sys::call(SYS_connect, socket.get(), &address, sizeof(address));
  if (error == 0) return true;
  if (error == -ECONNREFUSED || error == -ENOENT) reason.gone();
  (reason << "no foldswapd at ").quote(path)
      << " (error " << static_cast<std::uint64_t>(-error) << ")";
  return false;
}

}  // namespace

bool greet(const char* socket_path, long limit_ms, Greeting& greeting, Reason& reason) {
  if (!connect_to(socket_path, greeting.socket, limit_ms, reason)) return false;
  Message message{};
  if (!receive(greeting.socket.get(), wire::MessageType::welcome, sizeof(wire::Welcome), message,
               greeting.fds, wire::kWelcomeFds, reason)) {
    return false;
  }
  greeting.welcome = message.welcome;
  for (const Fd& fd : greeting.fds) {
    if (fd.valid()) continue;
    reason << "foldswapd's welcome came without its descriptors (no descriptor left here?)";
    return false;
  }
  return true;
}

bool introduce(const Greeting& greeting, const wire::Hello& hello, int attached, long limit_ms,
               wire::Ready& ready, Fd* came, Reason& reason) {
  limit_waiting(greeting.socket.get(), limit_ms);
  ControlBuffer<int, 1> control{};
  iovec data{const_cast<wire::Hello*>(&hello), sizeof(hello)};
  msghdr header{};
  header.msg_iov = &data;
  header.msg_iovlen = 1;
  if (attached >= 0) {
    header.msg_control = control.bytes;
    header.msg_controllen = sizeof(control.bytes);
    cmsghdr* const item = CMSG_FIRSTHDR(&header);
    item->cmsg_level = SOL_SOCKET;
    item->cmsg_type = SCM_RIGHTS;
    item->cmsg_len = CMSG_LEN(sizeof(int));
    sys::copy_bytes(CMSG_DATA(item), &attached, sizeof(attached));
  }
  const long sent = sys::call(SYS_sendmsg, greeting.socket.get(), &header, MSG_NOSIGNAL);
  if (sent != static_cast<long>(sizeof(hello))) {
    // Refused may have come meanwhile, and says more.
    if (sent != -EPIPE && sent != -ECONNRESET) {
      reason.error("sending to foldswapd", sent);
      return false;
    }
  }
  Message message{};
  if (!receive(greeting.socket.get(), wire::MessageType::ready, sizeof(wire::Ready), message, came,
               came == nullptr ? 0 : 1, reason)) {
    return false;
  }
  ready = message.ready;
  return true;
}

bool comes_back(const char* socket_path, const Reason& reason, long& waited_ms) {
  constexpr long kMostMs = 5'000, kPauseMs = 20;
  constexpr char kName[] = "keeper.pid";
  if (!reason.is_gone() || waited_ms >= kMostMs) return false;
  char path[sizeof(sockaddr_un::sun_path) + sizeof(kName)] = {};
  std::size_t end = 0, name = 0;
  for (; socket_path[end] != '\0' && end < sizeof(sockaddr_un::sun_path); ++end) {
    path[end] = socket_path[end];
    if (path[end] == '/') name = end + 1;
  }
  std::copy_n(kName, sizeof(kName), path + name);
  if (sys::call(SYS_access, path, F_OK) != 0) return false;
  sys::sleep_us(kPauseMs * 1'000);
  waited_ms += kPauseMs;
  return true;
}

wire::Hello make_hello(wire::HelloKind kind) {
  wire::Hello hello{};
  hello.header = {wire::kMagic, wire::kProtocolVersion,
                  static_cast<std::uint32_t>(wire::MessageType::hello), sizeof(hello)};
  hello.kind = static_cast<std::uint32_t>(kind);
  hello.capabilities = wire::kCapabilities;
  hello.resident_max_bytes = wire::kNoLimit;
  hello.group_max_bytes = wire::kNoLimit;
  return hello;
}

}  // namespace foldswap::preload
