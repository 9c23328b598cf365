// Gives up rights of its own, in one way: gives_up WAY. Says "ready", waits for a line, does it,
// checks its memory for two seconds while anything may be taken out of it, and says one line for
// each thread of the process:
//   NAME UID CAPPRM CAPBND NNP SECCOMP
// then "done". WAY: capset prctl nnp setuid raw_setuid raw_capset filter filter_tsync chroot
// namespace Filters allow what this program itself calls, and kill the process for anything else.
#include <dirent.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <stddef.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <fstream>
#include <iostream>
#include <map>
#include <sstream>
#include <string>
#include <vector>

#include "tests/programs/lib/common.h"

using namespace testprog;

namespace {

long raw(long number, long a, long b = 0, long c = 0) {
  long result = number;
  asm volatile("syscall" : "+a"(result) : "D"(a), "S"(b), "d"(c) : "rcx", "r11", "memory");
  return result;
}

void drop_capabilities(bool by_itself) {
  __user_cap_header_struct header{_LINUX_CAPABILITY_VERSION_3, 0};
  __user_cap_data_struct nothing[2] = {};
  if (by_itself) {
    must(static_cast<int>(
             raw(SYS_capset, reinterpret_cast<long>(&header), reinterpret_cast<long>(nothing))),
         "capset");
  } else {
    must(static_cast<int>(syscall(SYS_capset, &header, nothing)), "capset");
  }
}

// What says() and the checks of memory do.
void filter(unsigned flags) {
  const std::vector<long> allowed{SYS_read,
                                  SYS_write,
                                  SYS_openat,
                                  SYS_close,
                                  SYS_getdents64,
                                  SYS_fstat,
                                  SYS_newfstatat,
                                  SYS_lseek,
                                  SYS_brk,
                                  SYS_mmap,
                                  SYS_munmap,
                                  SYS_nanosleep,
                                  SYS_clock_nanosleep,
                                  SYS_restart_syscall,
                                  SYS_exit_group,
                                  SYS_futex,
                                  SYS_exit,
                                  SYS_rt_sigreturn,
                                  SYS_madvise,
                                  SYS_readv,
                                  SYS_writev,
                                  SYS_mprotect,
                                  SYS_mremap,
                                  SYS_ioctl};
  std::vector<sock_filter> program{BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, nr))};
  for (const long number : allowed) {
    program.push_back(BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, static_cast<unsigned>(number), 0, 1));
    program.push_back(BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW));
  }
  program.push_back(BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS));
  const sock_fprog all{static_cast<unsigned short>(program.size()), program.data()};
  must(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs");
  if (flags == 0) {
    must(prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &all), "prctl");
  } else {
    must(static_cast<int>(syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, flags, &all)), "seccomp");
  }
}

bool give_up(const std::string& way) {
  constexpr uid_t kSomebody = 65534;
  if (way == "capset") {
    drop_capabilities(false);
  } else if (way == "raw_capset") {
    drop_capabilities(true);
  } else if (way == "prctl") {
    for (int bit = 0; bit <= 40; ++bit) must(prctl(PR_CAPBSET_DROP, bit, 0, 0, 0), "bounding set");
  } else if (way == "nnp") {
    must(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs");
  } else if (way == "setuid") {
    must(setresuid(kSomebody, kSomebody, kSomebody), "setresuid");
    must(prctl(PR_SET_DUMPABLE, 1, 0, 0, 0), "dumpable");
  } else if (way == "raw_setuid") {
    must(static_cast<int>(raw(SYS_setresuid, kSomebody, kSomebody, kSomebody)), "setresuid");
    must(prctl(PR_SET_DUMPABLE, 1, 0, 0, 0), "dumpable");
  } else if (way == "filter") {
    filter(0);
  } else if (way == "filter_tsync") {
    filter(SECCOMP_FILTER_FLAG_TSYNC);
  } else if (way == "chroot") {
    must(chroot("/proc/self/cwd"), "chroot");
  } else if (way == "namespace") {
    must(unshare(CLONE_NEWUTS), "unshare");
  } else {
    return false;
  }
  return true;
}

// "name uid ..." of each thread, by readdir(3) and read(2): also under a filter.
void show_threads() {
  DIR* const list = opendir("/proc/self/task");
  if (list == nullptr) broken("/proc/self/task");
  while (const dirent* entry = readdir(list)) {
    if (entry->d_name[0] == '.') continue;
    std::ifstream status("/proc/self/task/" + std::string(entry->d_name) + "/status");
    std::map<std::string, std::string> fields;
    for (std::string line; std::getline(status, line);) {
      const std::size_t colon = line.find(':');
      if (colon == std::string::npos) continue;
      std::istringstream value(line.substr(colon + 1));
      value >> fields[line.substr(0, colon)];
    }
    say(fields["Name"] + " " + fields["Uid"] + " " + fields["CapPrm"] + " " + fields["CapBnd"] +
        " " + fields["NoNewPrivs"] + " " + fields["Seccomp"]);
  }
  closedir(list);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 2) return 2;
  constexpr std::size_t kBytes = 16U << 20;
  Region region(map_bytes(kBytes), kBytes / kPage, 7, Kind::heap);
  region.write_all();
  say("ready");
  std::string line;
  std::getline(std::cin, line);
  if (!give_up(argv[1])) return 2;
  for (int i = 0; i < 20; ++i) {
    region.check_all();
    usleep(100'000);
  }
  if (std::string(argv[1]) != "chroot") show_threads();
  say("done");
  return 0;
}
