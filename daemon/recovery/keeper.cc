#include "daemon/recovery/keeper.h"

#include <dirent.h>
#include <fcntl.h>
#include <linux/close_range.h>
#include <poll.h>
#include <sched.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <climits>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <optional>
#include <string>
#include <utility>

#include "base/os.h"
#include "base/unique_fd.h"
#include "daemon/host/notify.h"
#include "daemon/recovery/hand_over.h"

namespace foldswap {
namespace {

constexpr long kFirstPauseMs = 10, kLongestPauseMs = 1'000;
constexpr std::uint64_t kHangUs = 30'000'000;  // without the manager's watchdog
constexpr int kLooks = 4;                      // without a sign of life, and it hangs
constexpr int kMostProbeMs = 20'000;
// From a keeper to the program that it executes: "STATE_FD FIRST_FD"; to one that is to judge: the
// state file's number.
constexpr const char* kKeptVariable = "FOLDSWAP_KEPT";
constexpr const char* kJudgeVariable = "FOLDSWAP_JUDGE";

// As fork(2), but with one descriptor table for both. The C library is told its new thread id
// through the word where it keeps it.
pid_t clone_sharing_files() {
  unsigned long tid_word = 0;
  unsigned long flags = CLONE_FILES | SIGCHLD;
  if (::prctl(PR_GET_TID_ADDRESS, &tid_word, 0, 0, 0) == 0 && tid_word != 0)
    flags |= CLONE_CHILD_SETTID | CLONE_CHILD_CLEARTID;
  return static_cast<pid_t>(::syscall(SYS_clone, flags, 0UL, 0UL, tid_word, 0UL));
}

void say(const std::string& text) {
  say_now("foldswapd (keeper): " + text);
}

// One past the highest descriptor that is open.
int descriptors_end() {
  int end = STDERR_FILENO + 1;
  for (int fd = 0; fd < 1024; ++fd) {
    if (::fcntl(fd, F_GETFD) >= 0) end = std::max(end, fd + 1);
  }
  return end;
}

// Every number below `first` is taken, so that none of the daemon's descriptors gets one.
bool fill_below(int first) {
  const UniqueFd nothing(::open("/dev/null", O_RDWR | O_CLOEXEC));
  for (int fd = 0; fd < first; ++fd) {
    if (::fcntl(fd, F_GETFD) < 0 && ::dup3(nothing.get(), fd, O_CLOEXEC) != fd) return false;
  }
  return nothing.valid();
}

std::string how(int status) {
  return WIFSIGNALED(status) ? "signal " + std::to_string(WTERMSIG(status))
                             : "an error, with status " + std::to_string(WEXITSTATUS(status));
}

void pause_for(long ms) {
  const timespec pause{ms / 1'000, ms % 1'000 * 1'000'000};
  ::nanosleep(&pause, nullptr);
}

std::uint64_t now_us() {
  timespec now{};
  ::clock_gettime(CLOCK_MONOTONIC, &now);
  return static_cast<std::uint64_t>(now.tv_sec) * 1'000'000 +
         static_cast<std::uint64_t>(now.tv_nsec) / 1'000;
}

// Of the manager's watchdog, for this process. 0: it has none.
std::uint64_t watchdog_us() {
  const char* const pid = std::getenv("WATCHDOG_PID");
  const char* const us = std::getenv("WATCHDOG_USEC");
  if (us == nullptr || (pid != nullptr && std::strtol(pid, nullptr, 10) != ::getpid())) return 0;
  return std::strtoull(us, nullptr, 10);
}

void set_close_on_exec(int fd, bool close) {
  (void)::fcntl(fd, F_SETFD, close ? FD_CLOEXEC : 0);
}

// All that are open from `first` on stay open in the program that is executed next. False: they do
// not.
bool pass_on_from(int first) {
  DIR* const directory = ::opendir("/proc/self/fd");
  if (directory == nullptr) return false;
  while (const dirent* entry = ::readdir(directory)) {
    const int fd = std::atoi(entry->d_name);
    if (fd >= first && fd != ::dirfd(directory)) set_close_on_exec(fd, false);
  }
  ::closedir(directory);
  return true;
}

class Keeper {
 public:
  explicit Keeper(const KeeperSetup& setup) : setup_(setup) {}
  int run();

 private:
  // 0, or the status to end with.
  int prepare();
  int find_descriptors();
  int place(const Given& given);
  bool start_next();
  bool take_pulse();
  std::optional<int> on_end(int status);
  void restart(const std::string& why);
  [[nodiscard]] bool stopping() const {
    return inherited_.asked == SIGTERM || inherited_.asked == SIGINT;
  }
  void on_signal();
  void look();
  // The manager's queue may be full: then what it must hear is said again soon.
  void tell(const std::string& message) { (void)notify_now(manager_.get(), message); }
  void tell_ready();
  void write_pid(pid_t pid);
  std::optional<int> hand_over();
  bool next_program_can();
  void execute_next();

  const KeeperSetup& setup_;
  std::string program_;  // its file, as it was called when this process began
  Inherited inherited_;
  sigset_t old_mask_{};
  UniqueFd manager_, signals_;
  pid_t pid_ = -1;
  long pause_ms_ = 0;
  bool ready_ = false;   // this daemon has served
  bool served_ = false;  // there may be clients: their descriptors must not be closed
  int silent_looks_ = 0;
  bool killed_ = false;
  bool told_ready_ = false;
  std::uint64_t look_us_ = 0, next_look_us_ = 0;
};

void Keeper::write_pid(pid_t pid) {
  const std::string path = setup_.runtime_dir + "/keeper.pid";
  const UniqueFd fd(
      ::open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0644));
  const std::string text = std::to_string(pid) + "\n";
  if (fd.valid()) (void)!::write(fd.get(), text.data(), text.size());
}

// In a process of its own: this one maps nothing.
int Keeper::place(const Given& given) {
  const pid_t pid = clone_sharing_files();
  if (pid < 0) return 1;
  if (pid == 0) {
    const auto done = place_given(real_os(), given, setup_.runtime_dir);
    if (!done) say_now("foldswapd: " + done.error().text());
    ::_exit(done ? 0 : kRefused);
  }
  int status = 0;
  while (::waitpid(pid, &status, 0) != pid) {
  }
  return WIFEXITED(status) ? WEXITSTATUS(status) : 1;
}

// What a program before this one has left, in the store or in this process' own table; or nothing
// yet.
int Keeper::find_descriptors() {
  int first = kFirstNoted;
  Given given;
  if (const char* const kept = std::getenv(kKeptVariable)) {
    if (std::sscanf(kept, "%d %d", &inherited_.state_fd, &first) != 2) return 1;
    ::unsetenv(kKeptVariable);
    ::close_range(STDERR_FILENO + 1, ~0U, CLOSE_RANGE_CLOEXEC);
    served_ = inherited_.after_a_death = true;
  } else {
    auto taken = take_from_store();
    if (!taken) {
      say(taken.error().text());
      return kRefused;
    }
    given = std::move(*taken);
    inherited_.state_fd = given.state_fd;
    served_ = inherited_.after_a_death = given.state_fd >= 0;
  }
  if (inherited_.state_fd < 0) {
    inherited_.state_fd = ::memfd_create("foldswap-state", MFD_CLOEXEC);
    if (inherited_.state_fd < 0 ||
        ::ftruncate(inherited_.state_fd, static_cast<off_t>(setup_.state_bytes)) != 0) {
      say("no memory for the state file");
      return 1;
    }
  }
  manager_ = manager_socket();
  sigset_t signals;
  sigemptyset(&signals);
  for (const int signal : {SIGCHLD, SIGTERM, SIGINT, SIGUSR2}) sigaddset(&signals, signal);
  ::sigprocmask(SIG_BLOCK, &signals, &old_mask_);
  // A keeper that executed this program has left them blocked.
  for (const int signal : {SIGCHLD, SIGTERM, SIGINT, SIGUSR2}) sigdelset(&old_mask_, signal);
  signals_.reset(::signalfd(-1, &signals, SFD_CLOEXEC | SFD_NONBLOCK));
  inherited_.pulse_fd = ::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  if (!signals_.valid() || inherited_.pulse_fd < 0) return 1;
  const bool others = inherited_.after_a_death;
  inherited_.first_fd = others ? first : std::max(kFirstNoted, descriptors_end());
  if (!fill_below(inherited_.first_fd)) return 1;
  return given.state_fd >= 0 ? place(given) : 0;
}

int Keeper::prepare() {
  std::array<char, PATH_MAX> path{};
  const ssize_t bytes = ::readlink("/proc/self/exe", path.data(), path.size() - 1);
  if (bytes > 0) program_.assign(path.data(), static_cast<std::size_t>(bytes));
  inherited_.keeper_pid = ::getpid();
  const std::uint64_t manager_us = watchdog_us();
  look_us_ =
      std::max<std::uint64_t>((manager_us != 0 ? manager_us / 2 : kHangUs) / kLooks, 500'000);
  ::prctl(PR_SET_NAME, "foldswap-keeper");
  // Neither a terminal nor a reader of the log that goes takes the descriptors along; and a parent
  // that ignores its children does not keep us from ours.
  for (const int signal : {SIGHUP, SIGPIPE}) (void)::signal(signal, SIG_IGN);
  (void)::signal(SIGCHLD, SIG_DFL);
  return find_descriptors();
}

bool Keeper::start_next() {
  ready_ = killed_ = false;
  silent_looks_ = 0;
  (void)take_pulse();  // the one before it
  pid_ = clone_sharing_files();
  if (pid_ != 0) return pid_ > 0;
  // One that comes before the daemon waits for it is not lost. When the keeper dies it is told, as
  // if it were to hand over.
  sigset_t blocked = old_mask_;
  for (const int signal : {SIGTERM, SIGINT, SIGUSR2}) sigaddset(&blocked, signal);
  ::sigprocmask(SIG_SETMASK, &blocked, nullptr);
  ::prctl(PR_SET_NAME, "foldswapd");
  ::prctl(PR_SET_PDEATHSIG, SIGUSR2);
  if (::getppid() != inherited_.keeper_pid) (void)::raise(SIGUSR2);
  ::_exit(setup_.daemon(inherited_));
}

bool Keeper::take_pulse() {
  std::uint64_t count = 0;
  return ::read(inherited_.pulse_fd, &count, sizeof(count)) == sizeof(count);
}

// The manager has everything now, or the program is executed anew. Unless we have been told to stop
// meanwhile: then the next daemon does that.
std::optional<int> Keeper::hand_over() {
  if (stopping()) {
    inherited_.after_a_death = true;
    return std::nullopt;
  }
  if (manager_.valid()) {
    write_pid(1);  // it is whom everybody waits for now
    say("handed over to the service manager");
    return kHandedOver;
  }
  if (next_program_can()) execute_next();
  say("this version goes on");
  inherited_.asked = 0;
  inherited_.after_a_death = true;
  return std::nullopt;
}

// In a process of its own: whatever is wrong with the program file, the clients are safe.
bool Keeper::next_program_can() {
  const pid_t pid = ::fork();
  if (pid < 0) return false;
  if (pid == 0) {
    ::sigprocmask(SIG_SETMASK, &old_mask_, nullptr);
    set_close_on_exec(inherited_.state_fd, false);
    ::setenv(kJudgeVariable, std::to_string(inherited_.state_fd).c_str(), 1);
    ::execv(program_.c_str(), setup_.arguments);
    ::_exit(127);
  }
  int status = 0;
  for (int ms = 0; ::waitpid(pid, &status, WNOHANG) != pid; ms += 10) {
    if (ms >= kMostProbeMs) (void)::kill(pid, SIGKILL);
    pause_for(10);
  }
  if (WIFEXITED(status) && WEXITSTATUS(status) == 0) return true;
  say(program_ + " cannot take over (" + how(status) + ")");
  return false;
}

// The signals stay blocked: until the next program takes them, one that ended this process would
// take every descriptor along.
void Keeper::execute_next() {
  if (!pass_on_from(inherited_.first_fd)) return say("no descriptor to hand over with");
  say("handing over to " + program_);
  const std::string kept =
      std::to_string(inherited_.state_fd) + " " + std::to_string(inherited_.first_fd);
  ::setenv(kKeptVariable, kept.c_str(), 1);
  set_close_on_exec(inherited_.state_fd, false);
  ::execv(program_.c_str(), setup_.arguments);
  say("cannot execute it");
  ::unsetenv(kKeptVariable);
}

// The status to end with, or nothing: the next one has been started.
std::optional<int> Keeper::on_end(int status) {
  ready_ = take_pulse() || ready_;
  served_ = served_ || ready_;
  const int code = WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  const std::string pid_file = setup_.runtime_dir + "/keeper.pid";
  if (code == 0 || (code > 0 && code != kHandedOver && !served_)) {
    (void)::unlink(pid_file.c_str());
    return code;
  }
  if (code == kHandedOver) {
    if (const auto end = hand_over()) return end;
    restart("");
    return std::nullopt;
  }
  restart("the daemon was ended by " + how(status));
  return std::nullopt;
}

void Keeper::restart(const std::string& why) {
  if (!why.empty()) {
    say(why + ": starting the next one, which takes its clients over");
    tell("STATUS=" + why + "; the next one starts");
  }
  inherited_.after_a_death = true;
  bool well = ready_;
  do {
    pause_ms_ = well ? 0 : std::clamp(2 * pause_ms_, kFirstPauseMs, kLongestPauseMs);
    well = false;
    pause_for(pause_ms_);
  } while (!start_next());
}

void Keeper::on_signal() {
  signalfd_siginfo info{};
  while (::read(signals_.get(), &info, sizeof(info)) == sizeof(info)) {
    const int signal = static_cast<int>(info.ssi_signo);
    if (signal == SIGCHLD) continue;
    // Who stops does not hand over any more: a manager that is told to stop us gives up its store.
    if (signal == SIGUSR2 && stopping()) continue;
    inherited_.asked = signal;
    if (signal != SIGUSR2) tell("STOPPING=1\nSTATUS=giving every page back to the clients");
    (void)::kill(pid_, signal);
  }
}

// Now and then. A daemon that has stopped serving is killed; while it starts it has more time.
// Looks are counted, not seconds: when all of us were stopped, none was missed.
void Keeper::look() {
  constexpr int kLooksAtStart = 20 * kLooks;
  next_look_us_ = now_us() + look_us_;
  tell("WATCHDOG=1");
  silent_looks_ = take_pulse() ? 0 : silent_looks_ + 1;
  if (silent_looks_ < (ready_ ? kLooks : kLooksAtStart) || killed_) return;
  say("the daemon shows no sign of life: it is killed");
  (void)::kill(pid_, SIGKILL);
  killed_ = true;
}

void Keeper::tell_ready() {
  if (!ready_ || told_ready_) return;
  told_ready_ = !manager_.valid() || notify_now(manager_.get(), "READY=1\nSTATUS=serving");
}

int Keeper::run() {
  if (const int status = prepare(); status != 0) return status;
  while (!start_next()) {
    say("cannot start the daemon");
    if (!served_) return 1;
    pause_for(kLongestPauseMs);
  }
  next_look_us_ = now_us() + look_us_;
  for (;;) {
    int status = 0;
    if (::waitpid(pid_, &status, WNOHANG) == pid_) {
      if (const auto end = on_end(status)) return *end;
      continue;
    }
    const std::uint64_t now = now_us();
    if (now >= next_look_us_) look();
    const bool soon = ready_ && !told_ready_;
    const std::uint64_t left_us = soon ? 5'000 : next_look_us_ - std::min(now, next_look_us_);
    std::array<pollfd, 2> waits{pollfd{signals_.get(), POLLIN, 0},
                                pollfd{ready_ ? -1 : inherited_.pulse_fd, POLLIN, 0}};
    (void)::poll(waits.data(), waits.size(), static_cast<int>(left_us / 1'000) + 1);
    if (!ready_ && take_pulse()) {
      ready_ = served_ = true;
      pause_ms_ = 0;
      write_pid(::getpid());
      told_ready_ = false;
    }
    tell_ready();
    on_signal();
  }
}

}  // namespace

void tell_alive(const Inherited& inherited) {
  const std::uint64_t one = 1;
  if (inherited.pulse_fd >= 0) (void)!::write(inherited.pulse_fd, &one, sizeof(one));
}

int run_keeper(const KeeperSetup& setup) {
  Keeper keeper(setup);
  return keeper.run();
}

int state_to_judge() {
  const char* const text = std::getenv(kJudgeVariable);
  return text != nullptr ? std::atoi(text) : -1;
}

}  // namespace foldswap
