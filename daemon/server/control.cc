#include "daemon/server/control.h"

#include <poll.h>

#include <utility>

#include "daemon/host/log.h"

namespace foldswap {
namespace {

constexpr std::size_t kMostSessions = 32, kMostRequestBytes = 64 * 1024;

bool read_request(int fd, std::string& line, const std::atomic<bool>& stop) {
  constexpr int kPatienceMs = 10'000, kLookMs = 100;
  pollfd ready{fd, POLLIN, 0};
  while (line.size() < kMostRequestBytes) {
    int came = 0;
    for (int ms = 0; came == 0 && ms < kPatienceMs && !stop; ms += kLookMs)
      came = ::poll(&ready, 1, kLookMs);
    if (came <= 0) return false;
    char part[4096];
    const ssize_t n = ::recv(fd, part, sizeof(part), 0);
    if (n <= 0) return false;
    line.append(part, static_cast<std::size_t>(n));
    if (const std::size_t end = line.find('\n'); end != std::string::npos) {
      line.resize(end);
      return true;
    }
  }
  return false;
}

void write_reply(int fd, const std::string& text) {
  std::size_t sent = 0;
  while (sent < text.size()) {
    const ssize_t n = ::send(fd, text.data() + sent, text.size() - sent, MSG_NOSIGNAL);
    if (n <= 0) return;
    sent += static_cast<std::size_t>(n);
  }
}

}  // namespace

Control::~Control() {
  stop_ = true;
  reap(true);
}

void Control::reap(bool all) {
  for (auto it = sessions_.begin(); it != sessions_.end();) {
    if (!all && !it->done) {
      ++it;
      continue;
    }
    it->thread.join();
    it = sessions_.erase(it);
  }
}

void Control::accept_one(int listener) {
  UniqueFd socket(::accept4(listener, nullptr, nullptr, SOCK_CLOEXEC));
  if (!socket.valid()) return;
  reap(false);
  ucred peer{};
  socklen_t bytes = sizeof(peer);
  std::string refused;
  if (::getsockopt(socket.get(), SOL_SOCKET, SO_PEERCRED, &peer, &bytes) != 0) return;
  if (!access_.may_administer(peer)) {
    refused = "user " + std::to_string(peer.uid) + " may not administer foldswap (access.admins)";
    std::uint64_t unsaid = 0;
    if (log_limit_.allow(daemon_.now_us(), unsaid)) {
      if (unsaid != 0) log::warn("admin socket: {} refusals were not told here", unsaid);
      log::warn("admin socket: {}", refused);
    }
  } else if (sessions_.size() >= kMostSessions) {
    refused = "too many administrators at once";
  }
  if (!refused.empty()) {
    write_reply(socket.get(), AdminRequests::refusal(1, refused) + "\n");
    vetting_.dispose(std::move(socket));  // who knows what it holds (HAZARDS 8)
    return;
  }
  const timeval patience{10, 0};
  (void)::setsockopt(socket.get(), SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof(patience));
  Session& session = sessions_.emplace_back();
  session.thread = std::thread([this, &session, fd = std::move(socket)]() mutable {
    serve(std::move(fd));
    session.done = true;
  });
}

void Control::serve(UniqueFd socket) {
  std::string line;
  if (!read_request(socket.get(), line, stop_)) return;
  write_reply(socket.get(), requests_.answer(line) + "\n");
}

}  // namespace foldswap
