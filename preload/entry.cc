// The constructor: has the agent come later (arrival.h); where FOLDSWAP_REQUIRE asks for it, makes
// this process a client at once; or leaves it alone (DESIGN §4). Reads top to bottom: may we, who
// are we, connect, make the userfaultfd, map the areas, register, start the agent.
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
#include "preload/arrival.h"
#include "preload/enlist.h"
#include "preload/exclusions.h"
#include "preload/fork.h"
#include "preload/handshake.h"
#include "preload/next.h"
#include "preload/settings.h"
#include "preload/signals.h"

#pragma weak gnu_get_libc_version  // another C library has none

namespace foldswap::preload {

constinit Library library{};

namespace {

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

bool may_ever_run(const Settings& settings, Reason& reason) {
  if (settings.disabled) {
    reason << "FOLDSWAP_DISABLE is set";
    return false;
  }
  if (&gnu_get_libc_version == nullptr) {
    reason << "its C library is not glibc";
    return false;
  }
  if (getauxval(AT_SECURE) != 0) {
    reason << "the program runs with raised privileges";
    return false;
  }
  return true;
}

bool may_run_now(Reason& reason) {
  // A filter would apply to the agent's calls as well. Refusing even to tell is a filter, too.
  if (prctl(PR_GET_SECCOMP) != 0 && errno != EINVAL) {
    reason << "a seccomp filter is in force";
    return false;
  }
  return new_enough(reason);
}

// Chunk headers may be read only when pointers come from glibc's own malloc.
bool next_realloc_is_glibc() {
  if (&gnu_get_libc_version == nullptr) return false;
  void* const next = find_next("realloc");
  return next != nullptr && same_module(next, reinterpret_cast<void*>(&gnu_get_libc_version));
}

void fill_control(Control& control, const Areas& areas) {
  control.mailbox = reinterpret_cast<wire::Mailbox*>(areas.mailbox.start());
  control.pid = static_cast<pid_t>(sys::call(SYS_getpid));
  control.own[0] = library.own_data;
  control.own[1] = areas.own.range();
  note_areas(control, areas);
}

wire::Hello fill_hello(const Settings& settings) {
  wire::Hello hello = make_hello(wire::HelloKind::register_client);
  hello.resident_max_bytes = settings.resident_max_bytes;
  hello.group_max_bytes = settings.group_max_bytes;
  sys::copy_bytes(hello.name, settings.name, sizeof(hello.name));
  sys::copy_bytes(hello.group, settings.group, sizeof(hello.group));
  return hello;
}

// What the interposed functions need, and then the word that they look at first. Threads of other
// constructors may be in the middle of one of them; and what they have noted must be in the mailbox
// before there is any command.
void go_live(const Settings& settings, const wire::Hello& hello, std::uint64_t client_id,
             const Areas& areas) {
  library.control = areas.control();
  library.client_id = client_id;
  library.identity = hello;
  library.glibc_realloc = next_realloc_is_glibc();
  sys::copy_bytes(library.socket_path, settings.socket_path, sizeof(library.socket_path));
  install_fork_handlers();
  sys::store(areas.alive()->presence, static_cast<std::uint32_t>(Presence::live));
  move_notes_lock(*areas.alive());
  while (sys::load(library.quiet_calls) != 0) sys::sleep_us(50);
  wire::Mailbox& box = *library.control->mailbox;
  sys::store(box.can_leave, 1U);
  {
    const SignalBlock signals(SignalBlock::Set::asynchronous);
    publish_exclusions(box);
  }
  sys::store(box.agent_tid, sys::load(library.control->tid));
}

bool register_with_daemon(Settings& settings, Reason& reason) {
  Greeting greeting;
  if (!greet(settings.socket_path, kWelcomeLimitMs, greeting, reason)) return false;
  Fd uffd;
  Areas areas;
  if (!check_areas(greeting, reason) || !make_userfaultfd(greeting, uffd, reason) ||
      !map_private(areas, Locked::yes, reason) ||
      !map_shared(greeting.fds[wire::kFdMailbox].get(), greeting.fds[wire::kFdTransfer].get(),
                  areas, reason)) {
    return false;
  }
  library.own_data = own_data();
  Control& control = *areas.control();
  fill_control(control, areas);
  control.uffd = uffd.get();
  control.lifeline = greeting.socket.get();
  export_group(settings);
  wire::Hello hello = fill_hello(settings);
  hello.staging = reinterpret_cast<std::uint64_t>(control.staging);
  sys::copy_bytes(hello.own, control.own, sizeof(hello.own));
  wire::Ready ready{};
  if (!introduce(greeting, hello, uffd.get(), kReadyLimitMs, ready, nullptr, reason)) {
    withdraw(uffd, areas);
    return false;
  }
  if (!start_agent(control, AgentDuty::serve)) {
    reason.error("starting the agent", -static_cast<long>(control.start_errno));
    withdraw(uffd, areas);
    return false;
  }
  go_live(settings, hello, ready.client_id, areas);
  areas.keep();
  return true;  // our descriptors close here; the agent's table has its own
}

// Or what an agent that comes later will need. Only who requires it has the agent at start, and
// waits for that.
bool become_client(Settings& settings, Reason& reason) {
  if (!may_ever_run(settings, reason) || !read_settings(settings, reason)) return false;
  if (!settings.required) {
    export_group(settings);
    library.glibc_realloc = next_realloc_is_glibc();
    await_arrival(settings, fill_hello(settings));
    return true;
  }
  if (!may_run_now(reason)) return false;
  sys::store(library.arriving, static_cast<std::uint32_t>(sys::call(SYS_getpid)));
  long waited_ms = 0;
  while (!register_with_daemon(settings, reason)) {
    if (!comes_back(settings.socket_path, reason, waited_ms)) return false;
    reason.clear();
  }
  sys::store(library.arriving, 0U);
  sys::store(library.ready, 1U);
  return true;
}

[[gnu::constructor]] void start() {
  const int saved = errno;
  find_all_of_cred();
  find_all_of_fork();
  find_all_of_memory();
  find_all_of_rights();
  find_all_of_thread();
  Settings settings;
  read_switches(settings);
  Reason reason;
  if (!become_client(settings, reason)) {
    sys::store(library.never, 1U);
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
