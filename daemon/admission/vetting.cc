#include "daemon/admission/vetting.h"

#include <fcntl.h>
#include <linux/close_range.h>
#include <poll.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>

#include <algorithm>
#include <array>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <ctime>
#include <string_view>
#include <vector>

#include "base/fd_message.h"
#include "base/mutex.h"
#include "daemon/admission/hello.h"

namespace foldswap {
namespace {

constexpr int kIdleHelpers = 2;
constexpr std::size_t kMostLost = 32;
constexpr std::int64_t kStuckMs = 1'000;  // a busy machine is no reason

struct Job {
  std::uint64_t token;
};
constexpr std::uint64_t kDispose = 0;  // no reply; tokens count from 1

struct Report {
  std::uint64_t token;
  std::uint32_t accepted, reserved;
  char reason[wire::kReasonBytes];
  wire::Hello hello;
};

// Helper -> zygote: what it is doing.
struct Note {
  pid_t pid;
  std::int32_t busy;
};

std::int64_t now_ms() {
  timespec ts{};
  ::clock_gettime(CLOCK_MONOTONIC, &ts);
  return static_cast<std::int64_t>(ts.tv_sec) * 1000 + ts.tv_nsec / 1'000'000;
}

bool is_userfaultfd(int fd) {
  std::array<char, 64> path{}, target{};
  std::snprintf(path.data(), path.size(), "/proc/self/fd/%d", fd);
  const ssize_t n = ::readlink(path.data(), target.data(), target.size() - 1);
  return n > 0 &&
         std::string_view(target.data(), static_cast<std::size_t>(n)) == "anon_inode:[userfaultfd]";
}

// Also when the parent has died before it could be asked for.
void die_with(pid_t parent) {
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (::getppid() != parent) ::_exit(1);
}

[[noreturn]] void run_helper(pid_t zygote, int jobs, int results, int notes) {
  die_with(zygote);
  const pid_t me = ::getpid();
  for (;;) {
    Job job{};
    FdList sockets;
    const ssize_t n = receive_with_fds(jobs, &job, sizeof(job), 0, sockets, nullptr);
    if (n <= 0) ::_exit(0);
    if (sockets.count == 0) continue;
    Note note{me, 1};
    (void)!::write(notes, &note, sizeof(note));
    if (job.token == kDispose) {
      // The second one is a pipe that ends when the daemon has closed its reference to the first:
      // ours is the last.
      char nothing = 0;
      if (sockets.count == 2) (void)!::read(sockets.fd[1], &nothing, 1);
      for (std::size_t i = 0; i < sockets.count; ++i) ::close(sockets.fd[i]);
      note.busy = 0;
      (void)!::write(notes, &note, sizeof(note));
      continue;
    }
    Report report{};
    report.token = job.token;
    FdList fds;
    int flags = 0;
    const ssize_t bytes = receive_with_fds(sockets.fd[0], &report.hello, sizeof(report.hello),
                                           MSG_DONTWAIT, fds, &flags);
    const bool is_ours = fds.count == 1 && is_userfaultfd(fds.fd[0]);
    const std::string reason =
        bytes < 0 ? "nothing to receive"
                  : check_message(report.hello, {bytes, flags, fds.count, is_ours});
    report.accepted = reason.empty() ? 1 : 0;
    std::snprintf(report.reason, sizeof(report.reason), "%s", reason.c_str());
    FdList passed;
    if (report.accepted != 0 && fds.count == 1) passed.push(fds.fd[0]);
    (void)send_with_fds(results, &report, sizeof(report), passed);
    // Whoever sent something bad may have sent something that cannot be closed: report first, die
    // then.
    if (report.accepted == 0) ::_exit(0);
    for (std::size_t i = 0; i < fds.count; ++i) ::close(fds.fd[i]);
    ::close(sockets.fd[0]);
    note.busy = 0;
    (void)!::write(notes, &note, sizeof(note));
  }
}

[[noreturn]] void run_zygote(pid_t daemon, int jobs, int results) {
  die_with(daemon);
  ::prctl(PR_SET_NAME, "foldswapd-vet");
  // Only what helpers need: in particular no userfaultfd of any client may live here.
  ::dup2(jobs, 3);
  ::dup2(results, 4);
  ::close_range(5, ~0U, 0);
  std::array<int, 2> notes{};
  if (::pipe2(notes.data(), O_CLOEXEC | O_NONBLOCK) != 0) ::_exit(1);
  // These are for the daemon, which ends us; whoever signals a whole group means it.
  for (const int signal : {SIGTERM, SIGINT, SIGUSR2, SIGHUP}) (void)::signal(signal, SIG_IGN);
  sigset_t none;
  sigemptyset(&none);
  ::sigprocmask(SIG_SETMASK, &none, nullptr);
  struct Helper {
    pid_t pid;
    std::int64_t busy_since;  // 0: idle
    bool lost;
  };
  std::vector<Helper> helpers;
  for (;;) {
    const auto lost = std::ranges::count(helpers, true, &Helper::lost);
    auto working = static_cast<int>(helpers.size()) - static_cast<int>(lost);
    for (; working < kIdleHelpers && static_cast<std::size_t>(lost) < kMostLost; ++working) {
      const pid_t self = ::getpid();
      const pid_t pid = ::fork();
      if (pid == 0) run_helper(self, 3, 4, notes[1]);
      if (pid < 0) break;
      helpers.push_back({pid, 0, false});
    }
    pollfd ready{notes[0], POLLIN, 0};
    (void)::poll(&ready, 1, 100);
    Note note{};
    while (::read(notes[0], &note, sizeof(note)) == static_cast<ssize_t>(sizeof(note))) {
      for (Helper& h : helpers) {
        if (h.pid == note.pid) h.busy_since = note.busy != 0 ? now_ms() : 0;
      }
    }
    for (Helper& h : helpers) {
      if (h.busy_since != 0 && now_ms() - h.busy_since > kStuckMs && !h.lost) {
        h.lost = true;
        ::kill(h.pid, SIGKILL);
      }
    }
    for (pid_t pid = 0; (pid = ::waitpid(-1, nullptr, WNOHANG)) > 0;) {
      std::erase_if(helpers, [&](const Helper& h) { return h.pid == pid; });
    }
  }
}

}  // namespace

struct Vetting::Kept {
  RankedMutex<LockRank::leaf> mutex;
  std::vector<UniqueFd> sockets FS_GUARDED_BY(mutex);
};

Vetting::Vetting() : kept_(std::make_unique<Kept>()) {}
Vetting::Vetting(Vetting&&) noexcept = default;
Vetting& Vetting::operator=(Vetting&&) noexcept = default;

Result<Vetting> Vetting::start() {
  std::array<int, 2> jobs{}, results{};
  if (::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, jobs.data()) != 0) {
    return fail_errno("socketpair failed");
  }
  UniqueFd jobs_here(jobs[0]), jobs_there(jobs[1]);
  if (::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, results.data()) != 0) {
    return fail_errno("socketpair failed");
  }
  UniqueFd results_here(results[0]), results_there(results[1]);
  const pid_t self = ::getpid();
  const pid_t pid = ::fork();
  if (pid < 0) return fail_errno("fork of the vetting helper failed");
  if (pid == 0) run_zygote(self, jobs_there.get(), results_there.get());
  Vetting vetting;
  vetting.jobs_ = std::move(jobs_here);
  vetting.results_ = std::move(results_here);
  vetting.zygote_pid_ = pid;
  return vetting;
}

Vetting::~Vetting() {
  if (zygote_pid_ <= 0 || !jobs_.valid()) return;  // moved from
  ::kill(zygote_pid_, SIGKILL);
  ::waitpid(zygote_pid_, nullptr, 0);
}

Status Vetting::submit(std::uint64_t token, int client_socket) {
  const Job job{token};
  FdList fds;
  fds.push(client_socket);
  if (!send_with_fds(jobs_.get(), &job, sizeof(job), fds))
    return fail_errno("the vetting helpers are busy");
  return {};
}

bool Vetting::hand_over(UniqueFd& client_socket) {
  std::array<int, 2> ends{};
  if (::pipe2(ends.data(), O_CLOEXEC) != 0) return false;
  const UniqueFd read_end(ends[0]);
  const UniqueFd write_end(ends[1]);
  const Job job{kDispose};
  FdList fds;
  fds.push(client_socket.get());
  fds.push(read_end.get());
  if (!send_with_fds(jobs_.get(), &job, sizeof(job), fds)) return false;
  client_socket.reset();  // before write_end goes, and not the last reference
  return true;
}

void Vetting::dispose(UniqueFd client_socket) {
  if (!client_socket.valid() || hand_over(client_socket)) return;
  const RankedLock lock(kept_->mutex);
  kept_->sockets.push_back(std::move(client_socket));
}

void Vetting::retry_disposals() {
  std::vector<UniqueFd> sockets;
  {
    const RankedLock lock(kept_->mutex);
    sockets.swap(kept_->sockets);
  }
  for (UniqueFd& socket : sockets) dispose(std::move(socket));
}

std::optional<VettedHello> Vetting::take() {
  Report report{};
  FdList fds;
  const ssize_t n =
      receive_with_fds(results_.get(), &report, sizeof(report), MSG_DONTWAIT, fds, nullptr);
  if (n != static_cast<ssize_t>(sizeof(report))) return std::nullopt;
  VettedHello vetted;
  vetted.token = report.token;
  vetted.accepted = report.accepted != 0;
  report.reason[sizeof(report.reason) - 1] = 0;
  vetted.reason = report.reason;
  vetted.hello = report.hello;
  if (fds.count == 1) vetted.uffd.reset(fds.fd[0]);
  return vetted;
}

}  // namespace foldswap
