#include "daemon/keeper.h"

#include <fcntl.h>
#include <sched.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <cstdio>
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

}  // namespace

int run_keeper(const std::string& runtime_dir, const std::function<int()>& daemon) {
  sigset_t signals, old;
  sigemptyset(&signals);
  for (const int signal : {SIGCHLD, SIGTERM, SIGINT, SIGUSR2}) sigaddset(&signals, signal);
  ::sigprocmask(SIG_BLOCK, &signals, &old);
  const pid_t pid = clone_sharing_files();
  if (pid < 0) {
    say("cannot start the daemon");
    return 1;
  }
  if (pid == 0) {
    ::sigprocmask(SIG_SETMASK, &old, nullptr);
    ::_exit(daemon());
  }
  ::prctl(PR_SET_NAME, "foldswap-keeper");
  const std::string pid_file = runtime_dir + "/keeper.pid";
  write_pid(pid_file);
  bool daemon_lives = true;
  for (;;) {
    int status = 0;
    if (daemon_lives && ::waitpid(pid, &status, WNOHANG) == pid) {
      daemon_lives = false;
      if (WIFEXITED(status)) {
        (void)::unlink(pid_file.c_str());
        return WEXITSTATUS(status);
      }
      say("the daemon was ended by signal " + std::to_string(WTERMSIG(status)) +
          "; its clients wait, and their descriptors are held here; taking them over is not "
          "possible yet. "
          "To end this, end the clients, then the keeper (SIGTERM)");
    }
    siginfo_t info{};
    if (::sigwaitinfo(&signals, &info) < 0 || info.si_signo == SIGCHLD) continue;
    if (daemon_lives) {
      (void)::kill(pid, info.si_signo);
    } else if (info.si_signo != SIGUSR2) {
      (void)::unlink(pid_file.c_str());
      return 1;
    }
  }
}

}  // namespace foldswap
