// Clients for the hazards around fork and the end of processes; --row=NN is the row of HAZARDS.md.
//   4   generations: the parent forks and is gone at once, the child verifies and goes on
//   6   parent and child stand still until the test lets them verify
//   7   --how=leader: a CLONE_VM relative outlives the leader;  --how=agent: seccomp kills the
//   agent alone 20  pages out are moved by mremap and shared by fork, then read on all sides
#include <fcntl.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstddef>

#include "base/uapi.h"
#include "tests/programs/lib/common.h"

using namespace testprog;

namespace {

Region make_region(const Options& options) {
  const std::size_t pages = options.number("mb", 32) * 256;
  Region region(map_aligned(pages * kPage), pages, options.number("seed", 1), Kind::mixed);
  region.write_all();
  return region;
}

int generations(const Options& options) {
  Region region = make_region(options);
  Random random(options.number("seed", 1));
  say("ready");
  sleep_ms(static_cast<unsigned>(options.number("delay_ms", 0)));
  for (std::uint64_t n = 0; n < options.number("generations", 6); ++n) {
    if (must(fork(), "fork") != 0) _exit(0);
    region.diverge(n);
    region.check_random(random, region.pages() / 4);
    for (int i = 0; i < 200; ++i) region.write(random.below(region.pages()));
  }
  region.check_all();
  say("done");
  return 0;
}

// The parent verifies when told to on its input, the child when it gets SIGUSR1.
int stand_still(const Options& options) {
  const Region region = make_region(options);
  sigset_t usr1;
  sigemptyset(&usr1);
  sigaddset(&usr1, SIGUSR1);
  must(sigprocmask(SIG_BLOCK, &usr1, nullptr), "sigprocmask");
  say("ready");
  static_cast<void>(next_command());  // everything is out by now
  const pid_t child = must(fork(), "fork");
  if (child == 0) {
    say("child " + std::to_string(getpid()));
    int signal = 0;
    sigwait(&usr1, &signal);
    region.check_all();
    say("child ok");
    _exit(0);
  }
  while (next_command() == "verify") {
    region.check_all();
    say("ok");
  }
  return 0;
}

Region* relative_region = nullptr;

// Runs in the leader's memory, as a process of its own.
int relative(void*) {
  sleep_ms(500);  // the leader is gone by now
  relative_region->check_all();
  for (std::size_t i = 0; i < relative_region->pages(); i += 5) relative_region->write(i);
  relative_region->check_all();
  say("done");
  syscall(SYS_exit, 0);
  return 0;
}

int outlive_leader(const Options& options) {
  static Region region = make_region(options);
  relative_region = &region;
  say("ready");
  static_cast<void>(next_command());
  constexpr std::size_t kStack = 256 * 1024;
  std::byte* stack = map_bytes(kStack);
  must(clone(relative, stack + kStack, CLONE_VM | CLONE_FS | SIGCHLD, nullptr), "clone");
  syscall(SYS_exit_group, 0);
  return 0;
}

// Threads that ask for UFFDIO_REGISTER or MOVE are killed alone. Only the agent does.
void kill_whoever_moves_pages() {
  const auto low = [](unsigned long command) { return static_cast<std::uint32_t>(command); };
  std::array<sock_filter, 7> code{{
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, nr)),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_ioctl, 0, 3),
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, args[1])),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, low(UFFDIO_REGISTER), 2, 0),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, low(foldswap::uapi::kUffdioMove), 1, 0),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_THREAD),
  }};
  sock_fprog program{.len = code.size(), .filter = code.data()};
  must(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs");
  // Past the C library, or the agent would leave first.
  long result = SYS_seccomp;
  asm volatile("syscall"
               : "+a"(result)
               : "D"(SECCOMP_SET_MODE_FILTER), "S"(SECCOMP_FILTER_FLAG_TSYNC), "d"(&program)
               : "rcx", "r11", "memory");
  if (result != 0) wrong("seccomp");
}

int lose_agent(const Options& options) {
  Region region = make_region(options);
  say("ready");
  static_cast<void>(next_command());  // half of it is out by now
  kill_whoever_moves_pages();
  say("filtered");
  static_cast<void>(next_command());  // and the agent has been asked for more
  region.check_all();
  for (std::size_t i = 0; i < region.pages(); i += 5) region.write(i);
  const pid_t child = must(fork(), "fork");
  if (child == 0) {
    region.check_all();
    _exit(0);
  }
  int status = 0;
  must(waitpid(child, &status, 0), "waitpid");
  if (status != 0) wrong("the child failed");
  region.check_all();
  say("done");
  return 0;
}

int owner_seal(const Options& options) {
  Region region = make_region(options);
  for (std::uint64_t round = 0; round < 4; ++round) {
    say("round");
    static_cast<void>(next_command());  // everything is out by now
    std::byte* target = map_aligned(region.bytes());
    void* moved = mremap(region.base(), region.bytes(), region.bytes(),
                         MREMAP_MAYMOVE | MREMAP_FIXED, target);
    if (moved == MAP_FAILED) broken("mremap");
    region.moved_to(target);
    const pid_t child = must(fork(), "fork");
    if (child == 0) {
      const pid_t grandchild = must(fork(), "fork");
      region.check_all();
      if (grandchild == 0) _exit(0);
      int status = 0;
      must(waitpid(grandchild, &status, 0), "waitpid");
      _exit(status == 0 ? 0 : kExitWrongBytes);
    }
    region.check_all();
    int status = 0;
    must(waitpid(child, &status, 0), "waitpid");
    if (status != 0) wrong("a child failed");
    region.write_all();
  }
  say("done");
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  const Options options(argc, argv);
  switch (options.number("row", 0)) {
    case 4:
      return generations(options);
    case 6:
      return stand_still(options);
    case 7:
      return options.text("how", "leader") == "leader" ? outlive_leader(options)
                                                       : lose_agent(options);
    case 20:
      return owner_seal(options);
    default:
      errno = EINVAL;
      broken("--row");
  }
}
