// capset, prctl, chroot, and what of that and of others comes through syscall(): the program gives
// something up, and so must its agent. Capabilities, bounding set and no_new_privs it follows;
// before a filter or another root it leaves (retire.h).
#include <linux/capability.h>
#include <linux/prctl.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <stdarg.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "preload/agent.h"
#include "preload/next.h"
#include "preload/retire.h"

// Where syscall() below goes on.
extern "C" void* foldswap_next_syscall __attribute__((visibility("hidden")));

namespace foldswap::preload {
namespace {

constinit Next<int(void*, const void*)> next_capset{"capset"};
constinit Next<int(int, unsigned long, unsigned long, unsigned long, unsigned long)> next_prctl{
    "prctl"};
constinit Next<int(const char*)> next_chroot{"chroot"};
constinit Next<long(long, long, long, long, long, long, long)> next_syscall{"syscall"};

constexpr long kLandlockRestrictSelf = 446;  // not in older headers

// The agent gives up what the leader does not have (rights.h).
void agent_gives_up() {
  const LiveCall use;
  Control* const control = own_control();
  if (control == nullptr) return;
  const RequestLock lock;
  (void)ask_agent(*control, AgentOp::rights);  // no agent: nobody to follow
}

bool gives_up_rights(long option) {
  switch (option) {
    case PR_CAPBSET_DROP:
    case PR_SET_NO_NEW_PRIVS:
    case PR_SET_SECUREBITS:
    case PR_SET_KEEPCAPS:
    case PR_CAP_AMBIENT:
      return true;
    default:
      return false;
  }
}

// With what the program is about to get, or lose, the agent would not go on.
bool ends_agent(long number, long option) {
  constexpr long kStrict = SECCOMP_SET_MODE_STRICT, kFilter = SECCOMP_SET_MODE_FILTER;
  return (number == SYS_seccomp && (option == kStrict || option == kFilter)) ||
         number == kLandlockRestrictSelf || number == SYS_chroot ||
         (number == SYS_prctl && option == PR_SET_SECCOMP);
}

template <typename Call>
auto watched(long number, long option, Call call) {
  if (inert()) return call();
  if (ends_agent(number, option)) {
    const WithoutAgent without(false);
    return call();
  }
  if (number == SYS_capset || (number == SYS_prctl && gives_up_rights(option)))
    return followed(call, agent_gives_up);
  return call();
}

}  // namespace

// Of syscall(), below: those calls that something is to be done about.
extern "C" [[gnu::used, gnu::visibility("hidden")]] long foldswap_watched_syscall(long number,
                                                                                  long a, long b,
                                                                                  long c, long d,
                                                                                  long e, long f) {
  switch (number) {
    case SYS_unshare:
      return unshare(static_cast<int>(a));
    case SYS_setns:
      return setns(static_cast<int>(a), static_cast<int>(b));
    case SYS_ioctl:
      return ioctl(static_cast<int>(a), static_cast<unsigned long>(b), c);
    default:
      return watched(number, a, [&] { return next_syscall(number, a, b, c, d, e, f); });
  }
}

// The next syscall(), looked up once.
extern "C" [[gnu::used, gnu::visibility("hidden")]] void* foldswap_find_syscall() {
  return reinterpret_cast<void*>(next_syscall.get());
}

void find_all_of_rights() {
  find_all(next_capset, next_prctl, next_chroot, next_syscall);
  foldswap_next_syscall = reinterpret_cast<void*>(next_syscall.get());
}

}  // namespace foldswap::preload

using namespace foldswap::preload;

FOLDSWAP_EXPORT int capset(cap_user_header_t header, cap_user_data_t data) noexcept {
  return watched(SYS_capset, 0, [&] { return next_capset(header, data); });
}

FOLDSWAP_EXPORT int chroot(const char* path) noexcept {
  return watched(SYS_chroot, 0, [&] { return next_chroot(path); });
}

FOLDSWAP_EXPORT int prctl(int option, ...) noexcept {
  va_list rest;
  va_start(rest, option);
  const auto a = va_arg(rest, unsigned long);
  const auto b = va_arg(rest, unsigned long);
  const auto c = va_arg(rest, unsigned long);
  const auto d = va_arg(rest, unsigned long);
  va_end(rest);
  return watched(SYS_prctl, option, [&] { return next_prctl(option, a, b, c, d); });
}

// syscall(): all but a few go on to the next one as they came, with the stack as it was, because
// some of them return twice (clone, vfork).
asm(R"(
  .text
  .globl syscall
  .type syscall, @function
syscall:
  endbr64
  cmpq $16, %rdi                        # ioctl
  je 1f
  cmpq $126, %rdi                       # capset
  je 1f
  cmpq $157, %rdi                       # prctl
  je 1f
  cmpq $161, %rdi                       # chroot
  je 1f
  cmpq $272, %rdi                       # unshare
  je 1f
  cmpq $308, %rdi                       # setns
  je 1f
  cmpq $317, %rdi                       # seccomp
  je 1f
  cmpq $446, %rdi                       # landlock_restrict_self
  je 1f
  jmp *foldswap_next_syscall(%rip)
1:
  jmp foldswap_watched_syscall
  .size syscall, . - syscall

foldswap_first_syscall:
  pushq %rdi
  pushq %rsi
  pushq %rdx
  pushq %rcx
  pushq %r8
  pushq %r9
  subq $8, %rsp
  call foldswap_find_syscall
  addq $8, %rsp
  popq %r9
  popq %r8
  popq %rcx
  popq %rdx
  popq %rsi
  popq %rdi
  movq %rax, foldswap_next_syscall(%rip)
  jmp *%rax

  .data
  .balign 8
  .globl foldswap_next_syscall
  .hidden foldswap_next_syscall
foldswap_next_syscall:
  .quad foldswap_first_syscall
  .text
)");
static_assert(SYS_ioctl == 16 && SYS_capset == 126 && SYS_prctl == 157 && SYS_chroot == 161 &&
              SYS_unshare == 272 && SYS_setns == 308 && SYS_seccomp == 317);
