// The constructor: makes this process a client, or leaves it alone (DESIGN §4). Reads top to
// bottom: may we, who are we, connect, make the userfaultfd, map the areas, register, start the
// agent. Before registration everything fails open: one line on stderr and the program runs as if
// we were not there.
#include <dlfcn.h>
#include <fcntl.h>
#include <gnu/libc-version.h>
#include <stdlib.h>
#include <sys/auxv.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/utsname.h>
#include <unistd.h>

#include <cerrno>

#include "preload/agent.h"
#include "preload/areas.h"
#include "preload/fork.h"
#include "preload/handshake.h"
#include "preload/settings.h"

namespace foldswap::preload {

constinit Library library{};

namespace {

// Debian 12's headers have it; older ones do not.
constexpr unsigned long kUserfaultfdNew = _IO(0xAA, 0x00);
constexpr int kRequireFailed = 125;
constexpr long kWelcomeLimitMs = 2000, kReadyLimitMs = 5000;
constexpr std::uint64_t kOldestMajor = 6, kOldestMinor = 8;  // UFFDIO_MOVE

bool new_enough(Reason& reason) {
  utsname system{};
  if (uname(&system) != 0) return true;
  char* rest = nullptr;
  const std::uint64_t major = strtoull(system.release, &rest, 10);
  const std::uint64_t minor = *rest == '.' ? strtoull(rest + 1, nullptr, 10) : 0;
  if (major > kOldestMajor || (major == kOldestMajor && minor >= kOldestMinor)) return true;
  reason << "the kernel is " << system.release << ", Linux 6.8 or newer is needed";
  return false;
}

bool may_run(const Settings& settings, Reason& reason) {
  if (settings.disabled) {
    reason << "FOLDSWAP_DISABLE is set";
    return false;
  }
  if (getauxval(AT_SECURE) != 0) {
    reason << "the program runs with raised privileges";
    return false;
  }
  // A filter would apply to the agent's calls as well. Refusing even to tell is a filter, too.
  if (prctl(PR_GET_SECCOMP) != 0 && errno != EINVAL) {
    reason << "a seccomp filter is in force";
    return false;
  }
  return new_enough(reason);
}

// Chunk headers may be read only when pointers come from glibc's own malloc.
bool next_realloc_is_glibc() {
  void* const next = dlsym(RTLD_NEXT, "realloc");
  return next != nullptr && same_module(next, reinterpret_cast<void*>(&gnu_get_libc_version));
}

bool check_areas(const Greeting& greeting, Reason& reason) {
  if (greeting.welcome.mailbox_bytes >= wire::kMailboxBytes &&
      greeting.welcome.transfer_bytes >= wire::kTransferBytes) {
    return true;
  }
  reason << "foldswapd's mailbox or transfer area is too small";
  return false;
}

bool make_userfaultfd(const Greeting& greeting, UniqueFd& uffd, Reason& reason) {
  const long fd = sys::call(SYS_ioctl, greeting.fds[wire::kFdUserfaultDevice].get(),
                            kUserfaultfdNew, O_CLOEXEC | O_NONBLOCK);
  if (fd < 0) {
    reason.error("making a userfaultfd", fd);
    return false;
  }
  uffd.reset(static_cast<int>(fd));
  return true;
}

void fill_control(Control& control, const Areas& areas) {
  control.mailbox = reinterpret_cast<wire::Mailbox*>(areas.mailbox.start());
  control.staging = areas.staging.start();
  control.transfer = areas.transfer.start();
  control.pid = static_cast<pid_t>(sys::call(SYS_getpid));
  control.own[0] = own_data();
  control.own[1] = areas.own.range();
  control.own[2] = areas.mailbox.range();
  control.own[3] = areas.transfer.range();
}

wire::Hello fill_hello(const Settings& settings, const Control& control) {
  wire::Hello hello = make_hello(wire::HelloKind::register_client);
  hello.staging = reinterpret_cast<std::uint64_t>(control.staging);
  hello.resident_max_bytes = settings.resident_max_bytes;
  hello.group_max_bytes = settings.group_max_bytes;
  sys::copy_bytes(hello.own, control.own, sizeof(hello.own));
  sys::copy_bytes(hello.name, settings.name, sizeof(hello.name));
  sys::copy_bytes(hello.group, settings.group, sizeof(hello.group));
  return hello;
}

// What the interposed functions need, and last of all the word that they look at first.
void go_live(const Settings& settings, const Greeting& greeting, const Areas& areas) {
  library.control = areas.control();
  library.client_id = greeting.welcome.client_id;
  library.glibc_realloc = next_realloc_is_glibc();
  sys::copy_bytes(library.socket_path, settings.socket_path, sizeof(library.socket_path));
  install_fork_handlers();
  sys::store(*areas.alive(), 1U);
  __atomic_store_n(&library.alive, areas.alive(), __ATOMIC_RELEASE);
}

bool become_client(Settings& settings, Reason& reason) {
  if (!may_run(settings, reason) || !read_settings(settings, reason)) return false;
  Greeting greeting;
  if (!greet(settings.socket_path, kWelcomeLimitMs, greeting, reason)) return false;
  UniqueFd uffd;
  Areas areas;
  if (!check_areas(greeting, reason) || !make_userfaultfd(greeting, uffd, reason) ||
      !map_areas(greeting.fds[wire::kFdMailbox].get(), greeting.fds[wire::kFdTransfer].get(), areas,
                 reason)) {
    return false;
  }
  Control& control = *areas.control();
  fill_control(control, areas);
  control.uffd = uffd.get();
  control.lifeline = greeting.socket.get();
  export_group(settings);
  if (!introduce(greeting, fill_hello(settings, control), uffd.get(), kReadyLimitMs, reason)) {
    return false;
  }
  if (!start_agent(control)) {
    reason.error("starting the agent", -static_cast<long>(control.start_errno));
    return false;
  }
  go_live(settings, greeting, areas);
  areas.keep();
  return true;  // our descriptors close here; the agent's table has its own
}

[[gnu::constructor]] void start() {
  const int saved = errno;
  Settings settings;
  read_switches(settings);
  Reason reason;
  if (!become_client(settings, reason)) {
    const bool disabled_quietly = settings.disabled && !settings.required;
    if (settings.required || (!settings.quiet && !disabled_quietly)) {
      Reason line;
      line << "foldswap: " << (settings.required ? "cannot manage" : "not managing")
           << " this program: " << reason.text() << "\n";
      line.print(STDERR_FILENO);
    }
    if (settings.required) sys::call(SYS_exit_group, kRequireFailed);
  }
  errno = saved;
}

}  // namespace
}  // namespace foldswap::preload
