// The program that the tests run as a client: obeys one command a line on stdin, answers one line
// on stdout. Knows nothing of foldswap, and is built without sanitizers, since it runs with
// LD_PRELOAD.
//   probe               obeys commands
//   probe seccomp       puts itself under a seccomp filter that allows all, then becomes `probe`
//   with
//                       LD_PRELOAD taken from PROBE_PRELOAD
#include <fcntl.h>
#include <grp.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>

namespace {

constexpr std::size_t kPage = 4096;

struct Command {
  char name[32];
  unsigned long a, b, c, d;
};

std::uint64_t* at(unsigned long address) {
  return reinterpret_cast<std::uint64_t*>(address);
}

std::uint64_t word(std::size_t index, unsigned long seed) {
  return (index + seed * 1'000'003) * 0x9e3779b97f4a7c15ULL;
}

void fill(unsigned long address, std::size_t bytes, unsigned long seed) {
  for (std::size_t i = 0; i < bytes / 8; ++i) at(address)[i] = word(i, seed);
}

// 0, or the number of the first wrong page plus one.
std::size_t check(unsigned long address, std::size_t bytes, unsigned long seed) {
  for (std::size_t i = 0; i < bytes / 8; ++i) {
    if (at(address)[i] != word(i, seed)) return i * 8 / kPage + 1;
  }
  return 0;
}

void answer(long value) {
  printf("%ld\n", value);
}
void answer_pointer(const void* pointer) {
  if (pointer == MAP_FAILED) return answer(-errno);
  printf("%lu\n", reinterpret_cast<unsigned long>(pointer));
}
long status_of(int result) {
  return result == 0 ? 0 : -errno;
}

void answer_child(pid_t child) {
  int status = 0;
  if (child < 0 || waitpid(child, &status, 0) != child) return answer(-errno);
  answer(WIFEXITED(status) ? WEXITSTATUS(status) : 1000 + WTERMSIG(status));
}

// Checks, moves and checks again in a child, whichever way it was made.
[[noreturn]] void child_work(const Command& c) {
  if (check(c.a, c.b, c.d) != 0) _exit(1);
  if (c.c != 0) {
    void* const moved = mremap(at(c.a), c.b, c.c, MREMAP_MAYMOVE);
    if (moved == MAP_FAILED) _exit(2);
    const auto address = reinterpret_cast<unsigned long>(moved);
    if (check(address, c.b < c.c ? c.b : c.c, c.d) != 0) _exit(3);
    if (c.c > c.b && at(address)[c.b / 8] != 0) _exit(4);
  }
  setuid(getuid());
  if (fcntl(3, F_GETFD) != -1) _exit(5);
  _exit(0);
}

void* hold_forever(void*) {
  for (;;) pause();
}
void* nothing(void*) {
  return nullptr;
}

// Reads a range without end, and lets the kernel think in between that nobody does: the words of
// the page table change all the time.
struct Touched {
  unsigned long address, bytes;
};
void* touch_forever(void* range) {
  const Touched touched = *static_cast<Touched*>(range);
  for (;;) {
    madvise(at(touched.address), touched.bytes, MADV_COLD);
    for (unsigned long page = 0; page < touched.bytes; page += kPage) {
      (void)*static_cast<volatile unsigned long*>(at(touched.address + page));
    }
  }
}

void list_descriptors() {
  for (int fd = 3; fd < 1024; ++fd) {
    if (fcntl(fd, F_GETFD) != -1) printf("%d ", fd);
  }
  printf("\n");
}

void signal_mask() {
  sigset_t mask;
  sigprocmask(SIG_BLOCK, nullptr, &mask);
  int count = 0;
  for (int signal = 1; signal < 65; ++signal) count += sigismember(&mask, signal) == 1 ? 1 : 0;
  answer(count);
}

void robust_mutex() {
  auto* const mutex = new pthread_mutex_t;
  pthread_mutexattr_t attributes;
  pthread_mutexattr_init(&attributes);
  pthread_mutexattr_setrobust(&attributes, PTHREAD_MUTEX_ROBUST);
  const int error = pthread_mutex_init(mutex, &attributes);
  if (error != 0) return answer(-error);
  answer_pointer(mutex);
}

void setns_mount() {
  const int fd = open("/proc/self/ns/mnt", O_RDONLY | O_CLOEXEC);
  answer(status_of(setns(fd, CLONE_NEWNS)));
  close(fd);
}

void vfork_setuid(uid_t user) {
  const pid_t child = vfork();
  if (child == 0) {
    const int result = setuid(user);
    _exit(result == 0 ? 0 : 1);
  }
  answer_child(child);
}

// The grandchild tells its pid and ends with the child, which ends with us.
void fork_twice() {
  const pid_t child = fork();
  if (child == 0) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    const pid_t grandchild = fork();
    if (grandchild == 0) {
      prctl(PR_SET_PDEATHSIG, SIGKILL);
      hold_forever(nullptr);
    }
    answer(grandchild);
    hold_forever(nullptr);
  }
}

bool memory_command(const Command& c) {
  if (strcmp(c.name, "map") == 0) {
    answer_pointer(mmap(nullptr, c.a, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  } else if (strcmp(c.name, "mapshared") == 0) {
    answer_pointer(
        mmap(at(c.a), c.b, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_FIXED, -1, 0));
  } else if (strcmp(c.name, "fill") == 0) {
    fill(c.a, c.b, c.c);
    answer(0);
  } else if (strcmp(c.name, "check") == 0) {
    answer(static_cast<long>(check(c.a, c.b, c.c)));
  } else if (strcmp(c.name, "mremap") == 0) {
    answer_pointer(mremap(at(c.a), c.b, c.c, MREMAP_MAYMOVE));
  } else if (strcmp(c.name, "malloc") == 0) {
    answer_pointer(malloc(c.a));
  } else if (strcmp(c.name, "realloc") == 0) {
    answer_pointer(realloc(at(c.a), c.b));
  } else if (strcmp(c.name, "madvise") == 0) {
    answer(status_of(madvise(at(c.a), c.b, static_cast<int>(c.c))));
  } else if (strcmp(c.name, "munmap") == 0) {
    answer(status_of(munmap(at(c.a), c.b)));
  } else if (strcmp(c.name, "mlockall") == 0) {
    answer(status_of(mlockall(MCL_CURRENT)));
  } else if (strcmp(c.name, "munlockall") == 0) {
    answer(status_of(munlockall()));
  } else {
    return false;
  }
  return true;
}

bool process_command(const Command& c) {
  if (strcmp(c.name, "fork") == 0) {  // address, bytes, new bytes (0: no mremap), seed
    const pid_t child = fork();
    if (child == 0) child_work(c);
    answer_child(child);
  } else if (strcmp(c.name, "rawfork") == 0) {
    const auto child = static_cast<pid_t>(syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0));
    if (child == 0) child_work(c);
    answer_child(child);
  } else if (strcmp(c.name, "forkhold") == 0) {
    const pid_t child = fork();
    if (child == 0) hold_forever(nullptr);
    answer(child);
  } else if (strcmp(c.name, "forktwice") == 0) {
    fork_twice();
  } else if (strcmp(c.name, "forkend") == 0) {
    kill(static_cast<pid_t>(c.a), SIGKILL);
    answer_child(static_cast<pid_t>(c.a));
  } else if (strcmp(c.name, "vforksetuid") == 0) {
    vfork_setuid(static_cast<uid_t>(c.a));
  } else if (strcmp(c.name, "rawexit") == 0) {
    syscall(SYS_exit, static_cast<int>(c.a));
  } else if (strcmp(c.name, "pthreadexit") == 0) {
    pthread_exit(nullptr);
  } else if (strcmp(c.name, "exit") == 0) {
    exit(static_cast<int>(c.a));
  } else {
    return false;
  }
  return true;
}

bool credential_command(const Command& c) {
  if (strcmp(c.name, "setuid") == 0) {
    answer(status_of(setuid(static_cast<uid_t>(c.a))));
  } else if (strcmp(c.name, "seteuid") == 0) {
    answer(status_of(seteuid(static_cast<uid_t>(c.a))));
  } else if (strcmp(c.name, "setgid") == 0) {
    answer(status_of(setgid(static_cast<gid_t>(c.a))));
  } else if (strcmp(c.name, "setgroups") == 0) {
    gid_t groups[200];
    for (unsigned i = 0; i < 200; ++i) groups[i] = 5000 + i;
    answer(status_of(setgroups(c.a, groups)));
  } else if (strcmp(c.name, "unshare") == 0) {
    answer(status_of(unshare(static_cast<int>(c.a))));
  } else if (strcmp(c.name, "setnsmount") == 0) {
    setns_mount();
  } else {
    return false;
  }
  return true;
}

bool other_command(const Command& c) {
  if (strcmp(c.name, "thread") == 0) {
    pthread_t thread;
    pthread_create(&thread, nullptr, nothing, nullptr);
    answer(pthread_join(thread, nullptr));
  } else if (strcmp(c.name, "threadhold") == 0) {
    pthread_t thread;
    answer(pthread_create(&thread, nullptr, hold_forever, nullptr));
  } else if (strcmp(c.name, "touch") == 0) {
    pthread_t thread;
    answer(pthread_create(&thread, nullptr, touch_forever, new Touched{c.a, c.b}));
  } else if (strcmp(c.name, "robust") == 0) {
    robust_mutex();
  } else if (strcmp(c.name, "fds") == 0) {
    list_descriptors();
  } else if (strcmp(c.name, "closeall") == 0) {
    answer(status_of(close_range(3, ~0U, 0)));
  } else if (strcmp(c.name, "mask") == 0) {
    signal_mask();
  } else if (strcmp(c.name, "environment") == 0) {
    for (char** variable = environ; *variable != nullptr; ++variable) printf("%s;", *variable);
    printf("\n");
  } else if (strcmp(c.name, "errno") == 0) {
    answer(errno);
  } else {
    return false;
  }
  return true;
}

int obey() {
  setvbuf(stdout, nullptr, _IOLBF, kPage);
  char line[200];
  while (fgets(line, sizeof(line), stdin) != nullptr) {
    Command c{};
    if (sscanf(line, "%31s %lu %lu %lu %lu", c.name, &c.a, &c.b, &c.c, &c.d) < 1) return 2;
    if (!memory_command(c) && !process_command(c) && !credential_command(c) && !other_command(c)) {
      return 2;
    }
  }
  return 0;
}

int under_seccomp(char* self) {
  sock_filter allow = BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
  const sock_fprog program{1, &allow};
  if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0 ||
      prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) != 0) {
    return 3;
  }
  setenv("LD_PRELOAD", getenv("PROBE_PRELOAD"), 1);
  char* const arguments[] = {self, nullptr};
  execv(self, arguments);
  return 3;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc > 1 && strcmp(argv[1], "seccomp") == 0) return under_seccomp(argv[0]);
  return obey();
}
