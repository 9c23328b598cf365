// The set*id family: the agent follows, because libc changes only the threads it knows (HAZARDS
// 11). A program that gave up its rights must not keep a thread that has them. Raw set*id system
// calls, and setfsuid/setfsgid, change one thread only and are left alone.
#include <grp.h>
#include <sys/mman.h>
#include <unistd.h>

#include "preload/agent.h"
#include "preload/next.h"
#include "preload/retire.h"

namespace foldswap::preload {
namespace {

constexpr std::uint32_t kSmallGroups = 64;

// Gives the agent the calling thread's credentials and waits until it has them, or is gone.
void hand_over(Control& control, std::uint32_t* groups, std::uint32_t room) {
  Credentials& want = control.credentials;
  sys::call(SYS_getresuid, &want.uid[0], &want.uid[1], &want.uid[2]);
  sys::call(SYS_getresgid, &want.gid[0], &want.gid[1], &want.gid[2]);
  const long count = sys::call(SYS_getgroups, room, groups);
  want.ngroups = count > 0 ? static_cast<std::uint32_t>(count) : 0;
  want.groups = groups;
  (void)ask_agent(control, AgentOp::credentials);  // no agent: nobody to follow
}

void agent_follows() {
  const LiveCall use;
  Control* const control = own_control();
  if (control == nullptr) return;
  const RequestLock lock;
  const long count = sys::call(SYS_getgroups, 0, nullptr);
  if (count <= static_cast<long>(kSmallGroups)) {
    std::uint32_t groups[kSmallGroups];
    hand_over(*control, groups, kSmallGroups);
    return;
  }
  const std::size_t bytes = page_ceil(static_cast<std::size_t>(count) * sizeof(std::uint32_t));
  const long map = sys::call(SYS_mmap, nullptr, bytes, PROT_READ | PROT_WRITE,
                             MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
  if (map < 0 && map > -4096) {
    (void)ask_agent(*control, AgentOp::leave);
    return;
  }
  hand_over(*control, reinterpret_cast<std::uint32_t*>(map), static_cast<std::uint32_t>(count));
  sys::call(SYS_munmap, map, bytes);
}

constinit Next<int(uid_t)> next_setuid{"setuid"}, next_seteuid{"seteuid"};
constinit Next<int(gid_t)> next_setgid{"setgid"}, next_setegid{"setegid"};
constinit Next<int(uid_t, uid_t)> next_setreuid{"setreuid"};
constinit Next<int(gid_t, gid_t)> next_setregid{"setregid"};
constinit Next<int(uid_t, uid_t, uid_t)> next_setresuid{"setresuid"};
constinit Next<int(gid_t, gid_t, gid_t)> next_setresgid{"setresgid"};
constinit Next<int(std::size_t, const gid_t*)> next_setgroups{"setgroups"};
constinit Next<int(const char*, gid_t)> next_initgroups{"initgroups"};

}  // namespace

void find_all_of_cred() {
  find_all(next_setuid, next_seteuid, next_setgid, next_setegid, next_setreuid, next_setregid,
           next_setresuid, next_setresgid, next_setgroups, next_initgroups);
}

}  // namespace foldswap::preload

using namespace foldswap::preload;

FOLDSWAP_EXPORT int setuid(uid_t user) noexcept {
  return followed([&] { return next_setuid(user); }, agent_follows);
}
FOLDSWAP_EXPORT int seteuid(uid_t user) noexcept {
  return followed([&] { return next_seteuid(user); }, agent_follows);
}
FOLDSWAP_EXPORT int setgid(gid_t group) noexcept {
  return followed([&] { return next_setgid(group); }, agent_follows);
}
FOLDSWAP_EXPORT int setegid(gid_t group) noexcept {
  return followed([&] { return next_setegid(group); }, agent_follows);
}
FOLDSWAP_EXPORT int setreuid(uid_t real, uid_t effective) noexcept {
  return followed([&] { return next_setreuid(real, effective); }, agent_follows);
}
FOLDSWAP_EXPORT int setregid(gid_t real, gid_t effective) noexcept {
  return followed([&] { return next_setregid(real, effective); }, agent_follows);
}
FOLDSWAP_EXPORT int setresuid(uid_t real, uid_t effective, uid_t saved) noexcept {
  return followed([&] { return next_setresuid(real, effective, saved); }, agent_follows);
}
FOLDSWAP_EXPORT int setresgid(gid_t real, gid_t effective, gid_t saved) noexcept {
  return followed([&] { return next_setresgid(real, effective, saved); }, agent_follows);
}
FOLDSWAP_EXPORT int setgroups(size_t count, const gid_t* groups) noexcept {
  return followed([&] { return next_setgroups(count, groups); }, agent_follows);
}
FOLDSWAP_EXPORT int initgroups(const char* user, gid_t group) {
  return followed([&] { return next_initgroups(user, group); }, agent_follows);
}
