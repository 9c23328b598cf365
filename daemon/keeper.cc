#include "daemon/keeper.h"

#include <fcntl.h>
#include <sched.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <ctime>
#include <string>

namespace foldswap {
namespace {

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
  const std::string line = "foldswapd (keeper): " + text + "\n";
  (void)!::write(STDERR_FILENO, line.data(), line.size());
}

void write_pid(const std::string& path) {
  const int fd = ::open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0644);
  if (fd < 0) return;
  const std::string text = std::to_string(::getpid()) + "\n";
  (void)!::write(fd, text.data(), text.size());
  ::close(fd);
}

// One past the highest descriptor that is open.
int descriptors_end() {
  int end = STDERR_FILENO + 1;
  for (int fd = 0; fd < 1024; ++fd) {
    if (::fcntl(fd, F_GETFD) >= 0) end = std::max(end, fd + 1);
  }
  return end;
}

pid_t start(const Inherited& inherited, const sigset_t& signals,
            const std::function<int(const Inherited&)>& daemon) {
  const pid_t pid = clone_sharing_files();
  if (pid != 0) return pid;
  // One that comes before the daemon waits for it is not lost.
  sigset_t blocked = signals;
  for (const int signal : {SIGTERM, SIGINT}) sigaddset(&blocked, signal);
  ::sigprocmask(SIG_SETMASK, &blocked, nullptr);
  ::_exit(daemon(inherited));
}

std::string how(int status) {
  return WIFSIGNALED(status) ? "signal " + std::to_string(WTERMSIG(status))
                             : "an error, with status " + std::to_string(WEXITSTATUS(status));
}

void pause_for(long ms) {
  const timespec pause{ms / 1'000, ms % 1'000 * 1'000'000};
  ::nanosleep(&pause, nullptr);
}

bool was_ready(const Inherited& inherited) {
  std::uint64_t count = 0;
  return ::read(inherited.ready_fd, &count, sizeof(count)) == sizeof(count);
}

}  // namespace

void tell_ready(const Inherited& inherited) {
  const std::uint64_t one = 1;
  if (inherited.ready_fd >= 0) (void)!::write(inherited.ready_fd, &one, sizeof(one));
}

int run_keeper(const std::string& runtime_dir, std::uint64_t state_bytes,
               const std::function<int(const Inherited&)>& daemon) {
  constexpr long kFirstPauseMs = 10, kLongestPauseMs = 1'000;
  sigset_t signals, old;
  sigemptyset(&signals);
  for (const int signal : {SIGCHLD, SIGTERM, SIGINT, SIGUSR2}) sigaddset(&signals, signal);
  ::sigprocmask(SIG_BLOCK, &signals, &old);
  Inherited inherited;
  inherited.state_fd = ::memfd_create("foldswap-state", MFD_CLOEXEC);
  inherited.ready_fd = ::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  if (inherited.state_fd < 0 || inherited.ready_fd < 0 ||
      ::ftruncate(inherited.state_fd, static_cast<off_t>(state_bytes)) != 0) {
    say("no memory for the state file");
    return 1;
  }
  inherited.first_fd = descriptors_end();
  ::prctl(PR_SET_NAME, "foldswap-keeper");
  pid_t pid = start(inherited, old, daemon);
  if (pid < 0) {
    say("cannot start the daemon");
    return 1;
  }
  const std::string pid_file = runtime_dir + "/keeper.pid";
  long pause_ms = 0;
  bool served = false;  // there may be clients: their descriptors must not be closed
  for (bool written = false;;) {
    int status = 0;
    if (::waitpid(pid, &status, WNOHANG) == pid) {
      const bool ready = was_ready(inherited);
      served = served || ready;
      if (WIFEXITED(status) && (!served || WEXITSTATUS(status) == 0)) {
        (void)::unlink(pid_file.c_str());
        return WEXITSTATUS(status);
      }
      say("the daemon was ended by " + how(status) +
          ": starting the next one, which takes its clients over");
      inherited.after_a_death = true;
      do {
        pause_ms = ready && pid > 0 ? 0 : std::clamp(2 * pause_ms, kFirstPauseMs, kLongestPauseMs);
        pause_for(pause_ms);
        pid = start(inherited, old, daemon);
      } while (pid < 0);
    }
    if (!written) write_pid(pid_file);
    written = true;
    siginfo_t info{};
    if (::sigwaitinfo(&signals, &info) < 0 || info.si_signo == SIGCHLD) continue;
    (void)::kill(pid, info.si_signo);
  }
}

}  // namespace foldswap
