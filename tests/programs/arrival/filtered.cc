// Executes a program under a seccomp filter that allows every call: filtered CMD...
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/prctl.h>
#include <unistd.h>

#include "tests/programs/lib/common.h"

int main(int argc, char** argv) {
  if (argc < 2) return 2;
  sock_filter allow[] = {{BPF_RET | BPF_K, 0, 0, SECCOMP_RET_ALLOW}};
  const sock_fprog program{1, allow};
  testprog::must(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs");
  testprog::must(prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program), "seccomp");
  execv(argv[1], argv + 1);
  return 126;
}
