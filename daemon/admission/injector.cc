#include "daemon/admission/injector.h"

#include <fcntl.h>
#include <linux/close_range.h>
#include <poll.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>

#include <array>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <ctime>
#include <utility>
#include <vector>

namespace foldswap {
namespace {

constexpr int kLookMs = 2'000, kSendMs = 3'000;  // then the worker is killed

std::int64_t now_ms() {
  timespec ts{};
  ::clock_gettime(CLOCK_MONOTONIC, &ts);
  return static_cast<std::int64_t>(ts.tv_sec) * 1000 + ts.tv_nsec / 1'000'000;
}

void die_with(pid_t parent) {
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (::getppid() != parent) ::_exit(1);
}

template <typename T>
bool send_one(int socket, const T& message) {
  ssize_t sent = 0;
  // NOLINTNEXTLINE(clang-analyzer-unix.StdCLibraryFunctions): callers have it open
  do sent = ::send(socket, &message, sizeof(message), MSG_NOSIGNAL);
  while (sent < 0 && errno == EINTR);
  return sent == static_cast<ssize_t>(sizeof(message));
}

template <typename T>
bool receive_one(int socket, T& message, int flags) {
  ssize_t got = 0;
  do got = ::recv(socket, &message, sizeof(message), flags);
  while (got < 0 && errno == EINTR);
  return got == static_cast<ssize_t>(sizeof(message));
}

void set_reason(InjectorReport& report, const std::string& reason) {
  std::snprintf(report.reason, sizeof(report.reason), "%s", reason.c_str());
}

std::uint32_t first_number(std::string_view text) {
  std::uint32_t value = 0;
  for (const char c : text) {
    if (c < '0' || c > '9') break;
    value = value * 10 + static_cast<std::uint32_t>(c - '0');
  }
  return value;
}

std::string_view without_newline(std::string_view text) {
  while (text.ends_with('\n')) text.remove_suffix(1);
  return text;
}

Status look(const Stranger& stranger, InjectorReport& report) {
  constexpr std::size_t kMostEnvironment = 1 << 20;
  const auto identity = stranger.identity();
  if (!identity) return std::unexpected(identity.error());
  report.job.identity = *identity;
  if (!stranger.library()) return {};
  const auto status = stranger.read("status"),
             environment = stranger.read("environ", kMostEnvironment),
             command = stranger.read("comm");
  if (!status) return std::unexpected(status.error());
  if (!environment) return std::unexpected(environment.error());
  report.uid = first_number(status_value(*status, "Uid"));
  report.gid = first_number(status_value(*status, "Gid"));
  report.wishes = parse_wishes(*environment, command ? without_newline(*command) : "?");
  const auto again = stranger.identity();  // all of it is of one program
  if (!again || *again != *identity) return fail("it is another program");
  report.found = InjectorReport::Found::library;
  return {};
}

InjectorReport work(const InjectorJob& job) {
  InjectorReport report{};
  report.job = job;
  report.found = InjectorReport::Found::nothing;
  report.sent = Sent::gone;
  const auto stranger = Stranger::open(job.pid);
  if (!stranger) {
    set_reason(report, stranger.error().text());
  } else if (job.kind == InjectorJob::Kind::look) {
    if (const auto done = look(*stranger, report); !done) set_reason(report, done.error().text());
  } else {
    const SentAnswer answer = send_agent(*stranger, job.identity);
    report.sent = answer.outcome;
    set_reason(report, answer.reason);
  }
  return report;
}

[[noreturn]] void run_worker(pid_t keeper, int channel) {
  die_with(keeper);
  InjectorJob job{};
  while (receive_one(channel, job, 0)) {
    if (!send_one(channel, work(job)) || job.kind == InjectorJob::Kind::send) break;
  }
  ::_exit(0);
}

class Worker {
 public:
  [[nodiscard]] bool start() {
    std::array<int, 2> ends{};
    if (::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends.data()) != 0) return false;
    UniqueFd there(ends[1]);
    channel_.reset(ends[0]);
    const pid_t self = ::getpid();
    pid_ = ::fork();
    if (pid_ == 0) {
      channel_.reset();
      run_worker(self, there.get());
    }
    return pid_ > 0;
  }
  // Its number stays its own until it is reaped, and it may take long to die.
  void end() {
    if (pid_ > 0) {
      ::kill(pid_, SIGKILL);
      dying_.push_back(pid_);
    }
    std::erase_if(dying_, [](pid_t pid) { return ::waitpid(pid, nullptr, WNOHANG) != 0; });
    pid_ = -1;
    channel_.reset();
  }
  // While so many of them hang there is no point in another.
  [[nodiscard]] bool may_start() const { return dying_.size() < kMostDying; }
  [[nodiscard]] bool runs() const { return pid_ > 0; }
  [[nodiscard]] int channel() const { return channel_.get(); }

 private:
  static constexpr std::size_t kMostDying = 32;
  pid_t pid_ = -1;
  std::vector<pid_t> dying_;
  UniqueFd channel_;
};

// One job: with the worker, or for want of an answer by ourselves.
InjectorReport have_it_done(Worker& worker, const InjectorJob& job) {
  InjectorReport report{};
  if ((worker.runs() || (worker.may_start() && worker.start())) &&
      send_one(worker.channel(), job)) {
    const std::int64_t until = now_ms() + (job.kind == InjectorJob::Kind::look ? kLookMs : kSendMs);
    for (std::int64_t left = until - now_ms(); left > 0; left = until - now_ms()) {
      pollfd ready{worker.channel(), POLLIN, 0};
      if (::poll(&ready, 1, static_cast<int>(left)) <= 0) continue;
      if (!receive_one(worker.channel(), report, 0)) break;
      // A thread that was traced may have made others with CLONE_PTRACE: they are traced as long as
      // this worker lives.
      if (job.kind == InjectorJob::Kind::send) worker.end();
      return report;
    }
  }
  worker.end();
  report = {};
  report.job = job;
  report.sent = Sent::late;
  set_reason(report, "it does not stop in time");
  return report;
}

[[noreturn]] void run_keeper(pid_t daemon, int jobs, int results) {
  die_with(daemon);
  ::prctl(PR_SET_NAME, "foldswapd-inj");
  ::prctl(PR_SET_DUMPABLE, 0);
  // No descriptor of a client may live here.
  ::dup2(jobs, 3);
  ::dup2(results, 4);
  ::close_range(5, ~0U, 0);
  for (const int signal : {SIGTERM, SIGINT, SIGUSR2, SIGHUP}) (void)::signal(signal, SIG_IGN);
  sigset_t none;
  sigemptyset(&none);
  ::sigprocmask(SIG_SETMASK, &none, nullptr);
  Worker worker;
  InjectorJob job{};
  while (receive_one(3, job, 0)) {
    if (!send_one(4, have_it_done(worker, job))) break;
  }
  worker.end();
  ::_exit(0);
}

}  // namespace

Result<Injector> Injector::start() {
  std::array<int, 2> jobs{}, results{};
  if (::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, jobs.data()) != 0)
    return fail_errno("socketpair failed");
  UniqueFd jobs_here(jobs[0]), jobs_there(jobs[1]);
  if (::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, results.data()) != 0)
    return fail_errno("socketpair failed");
  UniqueFd results_here(results[0]), results_there(results[1]);
  const pid_t self = ::getpid();
  const pid_t pid = ::fork();
  if (pid < 0) return fail_errno("fork of the injector failed");
  if (pid == 0) run_keeper(self, jobs_there.get(), results_there.get());
  Injector injector;
  injector.jobs_ = std::move(jobs_here);
  injector.results_ = std::move(results_here);
  injector.keeper_pid_ = pid;
  return injector;
}

Injector::Injector(Injector&& other) noexcept
    : jobs_(std::move(other.jobs_)),
      results_(std::move(other.results_)),
      waiting_(other.waiting_),
      keeper_pid_(std::exchange(other.keeper_pid_, -1)) {}

Injector::~Injector() {
  if (keeper_pid_ <= 0) return;  // moved from
  ::kill(keeper_pid_, SIGKILL);
  ::waitpid(keeper_pid_, nullptr, 0);
}

bool Injector::submit(const InjectorJob& job) {
  if (waiting_ >= kMostWaiting) return false;
  ssize_t sent = 0;
  do sent = ::send(jobs_.get(), &job, sizeof(job), MSG_NOSIGNAL | MSG_DONTWAIT);
  while (sent < 0 && errno == EINTR);
  if (sent != static_cast<ssize_t>(sizeof(job))) return false;
  ++waiting_;
  return true;
}

std::optional<InjectorReport> Injector::take() {
  InjectorReport report{};
  ssize_t got = 0;
  do got = ::recv(results_.get(), &report, sizeof(report), MSG_DONTWAIT);
  while (got < 0 && errno == EINTR);
  if (got == 0) ended_ = true;
  if (got != static_cast<ssize_t>(sizeof(report))) return std::nullopt;
  if (waiting_ != 0) --waiting_;
  return report;
}

}  // namespace foldswap
