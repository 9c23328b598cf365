// Speaks the handshake of base/wire.h by hand and wrongly, one way per --mode; --socket is the
// daemon's client.sock. Prints what the daemon answered ("refused: REASON", "ready", "closed") or
// "sent", and ends; modes that hold something say "holding" and keep it until the test closes their
// input. Not linked with the library: what a stranger with a socket can do.
#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <functional>
#include <map>
#include <thread>

#include "base/uapi.h"
#include "base/wire.h"
#include "tests/programs/lib/common.h"

using namespace testprog;
namespace wire = foldswap::wire;

namespace {

std::string socket_path;

int connect_daemon() {
  const int fd = must(socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0), "socket");
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  socket_path.copy(static_cast<char*>(address.sun_path), sizeof(address.sun_path) - 1);
  if (connect(fd, reinterpret_cast<const sockaddr*>(&address), sizeof(address)) != 0) {
    close(fd);
    return -1;
  }
  return fd;
}

struct Received {
  std::vector<std::byte> bytes;
  std::vector<int> fds;
};

// Empty bytes: the daemon closed, reset or said nothing for ten seconds.
Received receive(int fd) {
  pollfd p{.fd = fd, .events = POLLIN, .revents = 0};
  if (poll(&p, 1, 10000) <= 0) {
    say("silent");
    return {};
  }
  Received out;
  out.bytes.resize(4096);
  alignas(cmsghdr) std::array<char, CMSG_SPACE(16 * sizeof(int))> control{};
  iovec part{.iov_base = out.bytes.data(), .iov_len = out.bytes.size()};
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  message.msg_control = control.data();
  message.msg_controllen = control.size();
  const ssize_t n = recvmsg(fd, &message, MSG_CMSG_CLOEXEC);
  out.bytes.resize(n > 0 ? static_cast<std::size_t>(n) : 0);
  for (cmsghdr* c = CMSG_FIRSTHDR(&message); n > 0 && c != nullptr; c = CMSG_NXTHDR(&message, c)) {
    out.fds.resize((c->cmsg_len - CMSG_LEN(0)) / sizeof(int));
    std::memcpy(out.fds.data(), CMSG_DATA(c), out.fds.size() * sizeof(int));
  }
  return out;
}

bool send_message(int fd, const void* data, std::size_t bytes, const std::vector<int>& fds) {
  iovec part{.iov_base = const_cast<void*>(data), .iov_len = bytes};
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  std::vector<char> control(CMSG_SPACE(std::max<std::size_t>(fds.size(), 1) * sizeof(int)), 0);
  if (!fds.empty()) {
    message.msg_control = control.data();
    message.msg_controllen = CMSG_SPACE(fds.size() * sizeof(int));
    cmsghdr* c = CMSG_FIRSTHDR(&message);
    c->cmsg_level = SOL_SOCKET;
    c->cmsg_type = SCM_RIGHTS;
    c->cmsg_len = CMSG_LEN(fds.size() * sizeof(int));
    std::memcpy(CMSG_DATA(c), fds.data(), fds.size() * sizeof(int));
  }
  return sendmsg(fd, &message, MSG_NOSIGNAL) == static_cast<ssize_t>(bytes);
}

void say_answer(int fd) {
  const Received answer = receive(fd);
  if (answer.bytes.size() < sizeof(wire::MessageHeader)) return say("closed");
  wire::MessageHeader header{};
  std::memcpy(&header, answer.bytes.data(), sizeof(header));
  if (header.type == static_cast<std::uint32_t>(wire::MessageType::ready)) return say("ready");
  if (answer.bytes.size() < sizeof(wire::Refused))
    return say("type " + std::to_string(header.type));
  wire::Refused refused{};
  std::memcpy(&refused, answer.bytes.data(), sizeof(refused));
  refused.reason[wire::kReasonBytes - 1] = 0;
  say("refused: " + std::string(static_cast<const char*>(refused.reason)));
}

// A connection after Welcome, with everything a good client would have prepared.
struct Session {
  int fd = -1;
  int userfault = -1;
  Received welcome;
  wire::Hello hello{};
};

Session begin() {
  Session s;
  s.fd = must(connect_daemon(), "connect");
  s.welcome = receive(s.fd);
  if (s.welcome.fds.size() != wire::kWelcomeFds) {
    errno = EPROTO;
    broken("Welcome");
  }
  s.userfault =
      ioctl(s.welcome.fds[wire::kFdUserfaultDevice], USERFAULTFD_IOC_NEW, O_CLOEXEC | O_NONBLOCK);
  if (s.userfault < 0) broken("USERFAULTFD_IOC_NEW");
  s.hello.header = {.magic = wire::kMagic,
                    .version = wire::kProtocolVersion,
                    .type = static_cast<std::uint32_t>(wire::MessageType::hello),
                    .bytes = sizeof(wire::Hello)};
  s.hello.kind = static_cast<std::uint32_t>(wire::HelloKind::register_client);
  s.hello.staging = reinterpret_cast<std::uint64_t>(map_aligned(wire::kStagingBytes));
  s.hello.resident_max_bytes = wire::kNoLimit;
  s.hello.group_max_bytes = wire::kNoLimit;
  std::strcpy(static_cast<char*>(s.hello.name), "hostile");
  return s;
}

using Change = std::function<void(Session&)>;

// Sends the Hello as the change left it and says what came of it.
void with_hello(const Change& change) {
  Session s = begin();
  change(s);
  send_message(s.fd, &s.hello, sizeof(s.hello), {s.userfault});
  say_answer(s.fd);
}

void with_fds(const std::function<std::vector<int>(Session&)>& fds) {
  Session s = begin();
  const std::vector<int> sent = fds(s);
  send_message(s.fd, &s.hello, sizeof(s.hello), sent);
  say_answer(s.fd);
}

void with_bytes(std::size_t bytes) {
  Session s = begin();
  std::vector<std::byte> data(std::max(bytes, sizeof(s.hello)));
  std::memcpy(data.data(), &s.hello, sizeof(s.hello));
  send_message(s.fd, data.data(), bytes, {s.userfault});
  say_answer(s.fd);
}

int pipe_end() {
  std::array<int, 2> fds{};
  must(pipe2(fds.data(), O_CLOEXEC), "pipe2");
  return fds[0];
}

int initialised(int userfault) {
  uffdio_api api{.api = UFFD_API, .features = 0, .ioctls = 0};
  must(ioctl(userfault, UFFDIO_API, &api), "UFFDIO_API");
  return userfault;
}

void raise_descriptor_limit() {
  rlimit limit{};
  must(getrlimit(RLIMIT_NOFILE, &limit), "getrlimit");
  limit.rlim_cur = limit.rlim_max;
  must(setrlimit(RLIMIT_NOFILE, &limit), "setrlimit");
}

void hold() {
  say("holding");
  while (!next_command().empty()) {
  }
}

void hold_connections() {
  raise_descriptor_limit();
  for (int n = 0; n < 600; ++n) static_cast<void>(connect_daemon());  // kept open until we end
  hold();
}

void flood_of_connects() {
  for (int n = 0; n < 3000; ++n) {
    const int fd = connect_daemon();
    if (fd >= 0) close(fd);
  }
  say("sent");
}

// Many processes' worth of good registrations from one process: each has a userfaultfd of its own.
void many_registrations() {
  for (int n = 0; n < 40; ++n) {
    Session s = begin();
    send_message(s.fd, &s.hello, sizeof(s.hello), {s.userfault});
    say_answer(s.fd);
    for (const int fd : s.welcome.fds) close(fd);
    close(s.userfault);
    close(s.fd);
  }
  say("sent");
}

void flood_of_bytes() {
  Session s = begin();
  send_message(s.fd, &s.hello, sizeof(s.hello), {s.userfault});
  say_answer(s.fd);
  std::vector<std::byte> garbage(8192, std::byte{0x5a});
  const int flags = must(fcntl(s.fd, F_GETFL), "F_GETFL");
  must(fcntl(s.fd, F_SETFL, flags | O_NONBLOCK), "F_SETFL");
  const double end = seconds_now() + 3;
  while (seconds_now() < end) {
    if (send(s.fd, garbage.data(), garbage.size(), MSG_NOSIGNAL) < 0 && errno == EPIPE) break;
    send_message(s.fd, garbage.data(), 16, {s.userfault, s.userfault, s.userfault});
  }
  say("sent");
}

// The description is shared: what we clear here is cleared for the daemon's descriptor too.
void clear_nonblock() {
  Session s = begin();
  send_message(s.fd, &s.hello, sizeof(s.hello), {s.userfault});
  say_answer(s.fd);
  const int flags = must(fcntl(s.userfault, F_GETFL), "F_GETFL");
  must(fcntl(s.userfault, F_SETFL, flags & ~O_NONBLOCK), "F_SETFL");
  hold();
}

// Memory files given to clients must not shrink: the daemon would get SIGBUS.
void truncate_memfds() {
  Session s = begin();
  for (const std::size_t which : {wire::kFdMailbox, wire::kFdTransfer}) {
    const int fd = s.welcome.fds[which];
    if (ftruncate(fd, 0) == 0 || ftruncate(fd, 1L << 30) == 0)
      wrong("a memory file can change its size");
    if (fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE) == 0) wrong("a memory file can be sealed by a client");
    if (fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, 4096) != 0 && errno != EPERM) {
      broken("punch");
    }
  }
  send_message(s.fd, &s.hello, sizeof(s.hello), {s.userfault});
  say_answer(s.fd);
}

// Our own half-built fault storm: ranges registered by ourselves on the context that the daemon
// serves.
void register_everything() {
  Session s = begin();
  send_message(s.fd, &s.hello, sizeof(s.hello), {s.userfault});
  say_answer(s.fd);
  constexpr std::size_t kBytes = 64U << 20;
  std::byte* memory = map_bytes(kBytes);
  uffdio_register range{};
  range.range = {.start = reinterpret_cast<std::uint64_t>(memory), .len = kBytes};
  range.mode = UFFDIO_REGISTER_MODE_MISSING;
  if (ioctl(s.userfault, UFFDIO_REGISTER, &range) != 0) return say("not registered");
  for (std::size_t i = 0; i < 2000; ++i) check_zero(memory + i * kPage);
  say("served");
}

// A socket whose last close() blocks for a minute: it lingers over bytes that nobody takes.
int lingering_socket() {
  const int listener = must(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), "socket");
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t bytes = sizeof(address);
  must(bind(listener, reinterpret_cast<const sockaddr*>(&address), bytes), "bind");
  must(listen(listener, 1), "listen");
  must(getsockname(listener, reinterpret_cast<sockaddr*>(&address), &bytes), "getsockname");
  const int fd = must(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), "socket");
  must(connect(fd, reinterpret_cast<const sockaddr*>(&address), bytes), "connect");
  const std::vector<char> data(1 << 20, 'x');
  while (send(fd, data.data(), data.size(), MSG_DONTWAIT) > 0) {
  }
  const linger patience{1, 60};
  must(setsockopt(fd, SOL_SOCKET, SO_LINGER, &patience, sizeof(patience)), "setsockopt");
  return fd;  // the listener stays open: with it gone the bytes would be, too
}

// Leaves the trap to whoever closes `fd` last. Should that have happened already, a thread of ours
// falls into it.
void leave(int fd, int trap) {
  if (!send_message(fd, "trap", 4, {trap})) say("refused");
  std::thread([trap] { close(trap); }).detach();
}

// Behind a good Hello lies a message that the daemon never receives, and must never close.
void linger_behind_hello(wire::HelloKind kind) {
  Session s = begin();
  s.hello.kind = static_cast<std::uint32_t>(kind);
  const bool child = kind == wire::HelloKind::child;
  send_message(s.fd, &s.hello, sizeof(s.hello),
               child ? std::vector<int>{} : std::vector<int>{s.userfault});
  leave(s.fd, lingering_socket());
  say_answer(s.fd);
  close(s.fd);
  hold();  // our listener keeps the bytes alive meanwhile
}

void linger_at_the_admin_socket() {
  std::string path = socket_path.substr(0, socket_path.rfind('/')) + "/admin.sock";
  must(setresuid(65534, 65534, 65534), "setresuid");  // who may not administer
  const int fd = must(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0), "socket");
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  path.copy(static_cast<char*>(address.sun_path), sizeof(address.sun_path) - 1);
  const int trap = lingering_socket();  // at hand, because we are refused at once
  must(connect(fd, reinterpret_cast<const sockaddr*>(&address), sizeof(address)), "connect");
  leave(fd, trap);
  close(fd);
  hold();
}

// SO_PEERCRED names this process, but the userfaultfd is a child's: whose memory would be shown?
void uffd_of_another_process() {
  Session s = begin();
  int ends[2];
  must(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, ends), "socketpair");
  const pid_t child = must(fork(), "fork");
  if (child == 0) {
    const int own =
        ioctl(s.welcome.fds[wire::kFdUserfaultDevice], USERFAULTFD_IOC_NEW, O_CLOEXEC | O_NONBLOCK);
    send_message(ends[1], "u", 1, {own});
    sleep_ms(10'000);
    _exit(0);
  }
  const Received got = receive(ends[0]);
  send_message(s.fd, &s.hello, sizeof(s.hello), {got.fds.at(0)});
  say_answer(s.fd);
  kill(child, SIGKILL);
  waitpid(child, nullptr, 0);
}

const std::map<std::string, std::function<void()>>& modes() {
  static const std::map<std::string, std::function<void()>> table{
      {"wrong_version", [] { with_hello([](Session& s) { s.hello.header.version += 7; }); }},
      {"wrong_magic", [] { with_hello([](Session& s) { s.hello.header.magic ^= 1; }); }},
      {"wrong_type", [] { with_hello([](Session& s) { s.hello.header.type = 99; }); }},
      {"wrong_length", [] { with_hello([](Session& s) { s.hello.header.bytes = 1U << 30; }); }},
      {"wrong_kind", [] { with_hello([](Session& s) { s.hello.kind = 77; }); }},
      {"short", [] { with_bytes(24); }},
      {"one_byte", [] { with_bytes(1); }},
      {"oversized", [] { with_bytes(60000); }},
      {"no_fd", [] { with_fds([](Session&) { return std::vector<int>{}; }); }},
      {"fd_pipe", [] { with_fds([](Session&) { return std::vector<int>{pipe_end()}; }); }},
      {"fd_file",
       [] { with_fds([](Session&) { return std::vector<int>{open("/etc/passwd", O_RDONLY)}; }); }},
      {"fd_eventfd", [] { with_fds([](Session&) { return std::vector<int>{eventfd(0, 0)}; }); }},
      {"fd_socket", [] { with_fds([](Session&) { return std::vector<int>{connect_daemon()}; }); }},
      {"fd_device",
       [] { with_fds([](Session& s) { return std::vector<int>{s.welcome.fds[0]}; }); }},
      {"many_fds", [] { with_fds([](Session& s) { return std::vector<int>(8, s.userfault); }); }},
      {"most_fds", [] { with_fds([](Session& s) { return std::vector<int>(253, s.userfault); }); }},
      {"api_done",
       [] { with_fds([](Session& s) { return std::vector<int>{initialised(s.userfault)}; }); }},
      {"staging_zero", [] { with_hello([](Session& s) { s.hello.staging = 0; }); }},
      {"staging_unaligned", [] { with_hello([](Session& s) { s.hello.staging += 4096; }); }},
      {"staging_kernel",
       [] { with_hello([](Session& s) { s.hello.staging = 0xffff800000000000ULL; }); }},
      {"staging_end", [] { with_hello([](Session& s) { s.hello.staging = ~0ULL << 21; }); }},
      {"staging_overlap",
       [] {
         with_hello([](Session& s) {
           s.hello.own[0] = {.start = s.hello.staging + 4096, .bytes = wire::kStagingBytes};
         });
       }},
      {"own_wraps",
       [] {
         with_hello([](Session& s) { s.hello.own[1] = {.start = ~0ULL - 4095, .bytes = ~0ULL}; });
       }},
      {"huge_limits",
       [] {
         with_hello([](Session& s) {
           s.hello.resident_max_bytes = ~0ULL - 1;
           s.hello.group_max_bytes = 1;
         });
       }},
      {"name_unterminated",
       [] {
         with_hello([](Session& s) { std::memset(s.hello.name, 'A', sizeof(s.hello.name)); });
       }},
      {"name_control",
       [] { with_hello([](Session& s) { std::strcpy(s.hello.name, "a\n\"\\\x1b[2J\xff"); }); }},
      {"child_of_nobody",
       [] {
         with_hello([](Session& s) {
           s.hello.kind = static_cast<std::uint32_t>(wire::HelloKind::child);
           s.hello.parent_id = 123456789;
         });
       }},
      {"reconnect",
       [] {
         with_hello([](Session& s) {
           s.hello.kind = static_cast<std::uint32_t>(wire::HelloKind::reconnect);
         });
       }},
      {"connect_close", [] { close(connect_daemon()), say("sent"); }},
      {"welcome_close", [] { close(begin().fd), say("sent"); }},
      {"hello_close",
       [] {
         Session s = begin();
         send_message(s.fd, &s.hello, sizeof(s.hello), {s.userfault});
         say("sent");
       }},
      {"connect_hang", [] { static_cast<void>(connect_daemon()), hold(); }},
      {"welcome_hang", [] { static_cast<void>(begin()), hold(); }},
      {"hold_connections", hold_connections},
      {"flood_of_connects", flood_of_connects},
      {"many_registrations", many_registrations},
      {"flood_of_bytes", flood_of_bytes},
      {"clear_nonblock", clear_nonblock},
      {"truncate_memfds", truncate_memfds},
      {"register_everything", register_everything},
      {"linger_behind_child", [] { linger_behind_hello(wire::HelloKind::child); }},
      {"linger_behind_client", [] { linger_behind_hello(wire::HelloKind::register_client); }},
      {"linger_at_admin", linger_at_the_admin_socket},
      {"uffd_of_another", uffd_of_another_process},
  };
  return table;
}

}  // namespace

int main(int argc, char** argv) {
  const Options options(argc, argv);
  socket_path = options.text("socket", "");
  const auto mode = modes().find(options.text("mode", ""));
  if (mode == modes().end()) {
    errno = EINVAL;
    broken("--mode");
  }
  mode->second();
  return 0;
}
