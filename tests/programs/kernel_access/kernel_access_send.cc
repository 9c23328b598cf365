// Calls that keep references to the program's pages after they have returned: vmsplice and
// MSG_ZEROCOPY. Their references are no pins (HAZARDS 17): the pages can be taken out while the
// kernel still reads from them.
#include <arpa/inet.h>
#include <fcntl.h>
#include <linux/errqueue.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdio>
#include <vector>

#include "tests/programs/kernel_access/kernel_access.h"

namespace kernel_access {
namespace {

std::vector<std::byte> copy_of(const Memory& memory) {
  return {memory.base(), memory.base() + memory.bytes()};
}

// What lies in the pipe are the bytes as they were at the call, whatever becomes of the pages.
// (Without us, a program that writes to its buffer later changes what is in the pipe. Once the page
// was out, it does not: the limit that docs/LIMITS.md names.)
void vmsplice_source() {
  Memory from(64);
  const Memory to(64);
  const std::vector<std::byte> at_the_call = copy_of(from);
  const Pipe pipe;
  const iovec all{.iov_base = from.base(), .iov_len = from.bytes()};
  evict({from.span()});
  whole(vmsplice(pipe.in, &all, 1, 0), from.bytes(), "vmsplice");
  press();
  std::size_t left = 0;
  for (std::size_t i = 0; i < from.pages(); ++i) {
    if (pages_in({from.page(i), kPage}) != 0) continue;
    ++left;
    if (i % 2 == 0) from.write(i);
  }
  std::fprintf(stderr, "note: %zu of %zu pages left while the pipe referred to them\n", left,
               from.pages());
  evict({to.span()});
  whole(read(pipe.out, to.base(), to.bytes()), to.bytes(), "read");
  same(to.base(), at_the_call.data(), to.bytes(), "what vmsplice put into the pipe");
  from.check_all();
  evict({from.span()});
  from.check_all();
}

// The other direction copies: from the pipe into memory that is out.
void vmsplice_target() {
  const Memory from(64), to(64);
  const Pipe pipe;
  whole(write(pipe.in, from.base(), from.bytes()), from.bytes(), "write");
  const iovec all{.iov_base = to.base(), .iov_len = to.bytes()};
  evict({from.span(), to.span()});
  whole(vmsplice(pipe.out, &all, 1, 0), to.bytes(), "vmsplice");
  same(to.base(), from.base(), to.bytes(), "what vmsplice took out of the pipe");
  from.check_all();
}

struct Connection {
  int sender = -1, receiver = -1;
  ~Connection() {
    close(sender);
    close(receiver);
  }
};

// TCP on loopback. The receiver takes little before it reads, so that most of what is sent waits
// with the sender, as references to its pages.
void connect_tcp(Connection& connection) {
  const int listener = must(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), "socket");
  const int small = 16 * 1024, large = 8 << 20, on = 1;
  must(setsockopt(listener, SOL_SOCKET, SO_RCVBUF, &small, sizeof(small)), "SO_RCVBUF");
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t length = sizeof(address);
  auto* any = reinterpret_cast<sockaddr*>(&address);
  must(bind(listener, any, length), "bind");
  must(getsockname(listener, any, &length), "getsockname");
  must(listen(listener, 1), "listen");
  connection.sender = must(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), "socket");
  must(setsockopt(connection.sender, SOL_SOCKET, SO_SNDBUF, &large, sizeof(large)), "SO_SNDBUF");
  if (setsockopt(connection.sender, SOL_SOCKET, SO_ZEROCOPY, &on, sizeof(on)) != 0) {
    skip("this kernel has no SO_ZEROCOPY");
  }
  must(connect(connection.sender, any, length), "connect");
  connection.receiver = must(accept4(listener, nullptr, nullptr, SOCK_CLOEXEC), "accept4");
  close(listener);
}

// Completions come by the error queue. Header and control data are read into `where`, which is out.
std::uint32_t completed(int socket, const Memory& where) {
  pollfd ready{.fd = socket, .events = 0, .revents = 0};
  if (must(poll(&ready, 1, 30'000), "poll") == 0) wrong("no completion of a zero-copy send");
  auto* header = where.at<msghdr>(0);
  std::memset(where.base(), 0, where.bytes());
  auto* control = where.across<std::byte>(1, 48);
  header->msg_control = control;
  header->msg_controllen = 256;
  evict({where.span()});
  must(recvmsg(socket, header, MSG_ERRQUEUE), "recvmsg(MSG_ERRQUEUE)");
  const cmsghdr* message = CMSG_FIRSTHDR(header);
  if (message == nullptr || message->cmsg_level != SOL_IP || message->cmsg_type != IP_RECVERR) {
    wrong("no completion in the error queue");
  }
  sock_extended_err what{};
  std::memcpy(&what, CMSG_DATA(message), sizeof(what));
  if (what.ee_origin != SO_EE_ORIGIN_ZEROCOPY || what.ee_errno != 0) wrong("another message");
  return what.ee_data + 1;  // sends completed so far
}

void zerocopy_send() {
  constexpr std::uint32_t kSends = 8;
  const Memory from(32 * kSends), to(32 * kSends), queue(4);
  Connection connection;
  connect_tcp(connection);
  evict({from.span()});
  const std::size_t piece = from.bytes() / kSends;
  for (std::uint32_t n = 0; n < kSends; ++n) {
    const long sent = send(connection.sender, from.base() + n * piece, piece,
                           MSG_ZEROCOPY | MSG_DONTWAIT | MSG_NOSIGNAL);
    if (sent < 0 && errno == ENOBUFS) skip("the limit of locked memory allows no zero-copy send");
    whole(sent, piece, "send");
  }
  press();
  std::fprintf(stderr, "note: %zu of %zu pages stayed while sends were under way\n",
               pages_in(from.span()), from.pages());
  evict({to.span()});
  whole(recv(connection.receiver, to.base(), to.bytes(), MSG_WAITALL), to.bytes(), "recv");
  same(to.base(), from.base(), to.bytes(), "what was sent without a copy");
  std::uint32_t done = 0;
  while (done < kSends) done = std::max(done, completed(connection.sender, queue));
  from.check_all();
  evict({from.span()});  // nothing refers to them any more
  from.check_all();
}

constexpr Case kCases[] = {{"vmsplice_source", vmsplice_source},
                           {"vmsplice_target", vmsplice_target},
                           {"zerocopy_send", zerocopy_send}};

}  // namespace

std::span<const Case> send_cases() {
  return kCases;
}

}  // namespace kernel_access
