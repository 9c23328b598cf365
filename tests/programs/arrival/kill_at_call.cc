// Runs a program and kills it at its N-th stop by a system call, of which each call has two:
// kill_at_call N CMD... Says "killed", or "ended STATUS after STOPS stops" when it came to fewer.
// What the program traces itself is let go by its death, at just that point.
#include <signal.h>
#include <sys/ptrace.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>

int main(int argc, char** argv) {
  if (argc < 3) return 2;
  const long last = std::atol(argv[1]);
  const pid_t child = fork();
  if (child < 0) return 1;
  if (child == 0) {
    if (ptrace(PTRACE_TRACEME, 0, nullptr, nullptr) != 0) _exit(120);
    execv(argv[2], argv + 2);
    _exit(121);
  }
  int status = 0;
  if (waitpid(child, &status, 0) != child || !WIFSTOPPED(status)) return 1;
  ptrace(PTRACE_SETOPTIONS, child, nullptr, PTRACE_O_TRACESYSGOOD | PTRACE_O_EXITKILL);
  long stops = 0;
  long signal = 0;
  for (;;) {
    if (stops == last) {
      kill(child, SIGKILL);
      waitpid(child, &status, 0);
      std::printf("killed\n");
      return 0;
    }
    if (ptrace(PTRACE_SYSCALL, child, nullptr, signal) != 0) return 1;
    if (waitpid(child, &status, 0) != child) return 1;
    if (!WIFSTOPPED(status)) break;
    signal = 0;
    if (WSTOPSIG(status) == (SIGTRAP | 0x80)) {
      ++stops;
    } else {
      signal = WSTOPSIG(status);
    }
  }
  std::printf("ended %d after %ld stops\n", status, stops);
  return 0;
}
