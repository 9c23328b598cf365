#include "preload/child.h"

#include <sys/mman.h>

#include "base/uapi.h"
#include "preload/agent.h"
#include "preload/areas.h"
#include "preload/arrival.h"
#include "preload/enlist.h"
#include "preload/exclusions.h"
#include "preload/handshake.h"
#include "preload/hidden.h"
#include "preload/mover.h"
#include "preload/rights.h"

namespace foldswap::preload {
namespace {

constexpr long kLimitMs = 2000;

wire::Hello hello_of(const Control& control, wire::HelloKind kind) {
  wire::Hello hello = library.identity;
  hello.kind = static_cast<std::uint32_t>(kind);
  hello.fork_seq = library.fork_seq;
  hello.parent_id = library.client_id;
  hello.staging = reinterpret_cast<std::uint64_t>(control.staging);
  sys::copy_bytes(hello.own, control.own, sizeof(hello.own));
  return hello;
}

// Which userfaultfd is this process's? The daemon's, when its parent had something registered.
bool settle_userfaultfd(const Greeting& greeting, const Control& control, wire::Ready& ready,
                        Fd& uffd, Reason& reason) {
  if (!library.nothing_registered) {
    const wire::Hello hello = hello_of(control, wire::HelloKind::child);
    if (!introduce(greeting, hello, -1, kLimitMs, ready, &uffd, reason)) return false;
    if (ready.client_id != 0) return uffd.valid();
  }
  const wire::Hello hello = hello_of(control, wire::HelloKind::register_client);
  return make_userfaultfd(greeting, uffd, reason) &&
         introduce(greeting, hello, uffd.get(), kLimitMs, ready, nullptr, reason);
}

// The daemon may have proved with a page of it whose userfaultfd this is.
void empty_staging(const Control& control) {
  uffdio_range range{reinterpret_cast<std::uint64_t>(control.staging), wire::kStagingBytes};
  sys::call(SYS_ioctl, control.uffd, UFFDIO_UNREGISTER, &range);
  sys::call(SYS_madvise, control.staging, wire::kStagingBytes, uapi::kMadvDontneedLocked);
}

// From here the interposed functions use the mailbox. Calls that began before are waited for, and
// what was seen and planned while they ran is void.
void go_live(Control& control, wire::Mailbox& box, std::uint64_t client_id) {
  library.client_id = client_id;
  library.control = &control;
  sys::store(control.mailbox, &box);
  if (sys::load(library.alive) == nullptr) move_notes_lock(*life_beside(control));
  publish_exclusions(box);
  sys::store(box.can_leave, 1U);
  sys::store(library.alive->presence, static_cast<std::uint32_t>(Presence::live));
  while (sys::load(library.quiet_calls) != 0) {
    answer_requests(
        control);  // a signal handler may have interrupted such a call, and ask for something
    sys::sleep_us(50);
  }
  library.nothing_registered = false;  // nothing is yet, but may be soon, and raw forks are careful
  publish_exclusions(box);
  look_anew(control);
}

}  // namespace

void tell_of_agent(const Control& control) {
  sys::store(control.mailbox->agent_tid, static_cast<std::uint32_t>(sys::call(SYS_gettid)));
}

namespace {

bool try_to_attach(Control& control, Reason& reason) {
  Greeting greeting;
  Areas areas;
  wire::Ready ready{};
  Fd uffd;
  if (!greet(library.socket_path, kLimitMs, greeting, reason) || !check_areas(greeting, reason) ||
      !map_shared(greeting.fds[wire::kFdMailbox].get(), greeting.fds[wire::kFdTransfer].get(),
                  areas, reason)) {
    return false;
  }
  note_areas(control, areas);
  if (!settle_userfaultfd(greeting, control, ready, uffd, reason)) {
    withdraw(uffd, areas);
    return false;
  }
  control.uffd = uffd.get();
  empty_staging(control);
  if (arm_staging(control) != 0) {
    withdraw(uffd, areas);
    return false;
  }
  auto& box = *reinterpret_cast<wire::Mailbox*>(areas.mailbox.start());
  if (!library.nothing_registered) sys::store(box.registered, 1U);
  go_live(control, box, ready.client_id);
  (void)uffd.release();
  control.lifeline = greeting.socket.release();
  areas.keep();
  return true;
}

}  // namespace

void begin_child() {
  const auto pid = static_cast<pid_t>(sys::call(SYS_getpid));
  // One that the daemon has just sent makes it a client as well as ours would.
  if (!sys::exchange_if(library.arriving, 0, static_cast<std::uint32_t>(pid))) return;
  Areas areas;
  Reason unused;
  if (!map_private(areas, Locked::yes, unused)) {
    sys::store(library.arriving, 0U);
    return;
  }
  Control& control = *areas.control();
  control.pid = pid;
  control.own[0] = library.own_data;
  control.own[1] = areas.own.range();
  const Life* const old = library.alive;
  library.control = &control;
  sys::store(areas.alive()->presence, static_cast<std::uint32_t>(Presence::attaching));
  sys::store(library.alive, areas.alive());
  sys::call(SYS_munmap, page_floor(reinterpret_cast<std::uint64_t>(old)), kPage);
  const bool started = start_agent(control, AgentDuty::attach);
  if (!started) {
    sys::store(areas.alive()->presence, static_cast<std::uint32_t>(Presence::none));
    sys::store(library.arriving, 0U);
  }
  areas.keep();
}

bool attach_arrived(Control& control) {
  constexpr int kTurns = 10'000;
  // A call that a signal handler has left for good never ends, and then this will be no client.
  for (int turn = 0; sys::load(library.quiet_calls) != 0; ++turn) {
    if (turn == kTurns || nobody_may_arrive()) return false;
    sys::sleep_us(200);
  }
  Reason unused;
  if (nobody_may_arrive() || !give_up_rights() || !try_to_attach(control, unused)) return false;
  sys::store(library.arriving, 0U);
  sys::store(control.start, static_cast<std::uint32_t>(AgentStart::running));
  return true;
}

bool attach_child(Control& control) {
  long waited_ms = 0;
  for (;;) {
    Reason reason;
    if (try_to_attach(control, reason)) {
      tell_of_agent(control);
      return true;
    }
    if (!comes_back(library.socket_path, reason, waited_ms)) return false;
  }
}

}  // namespace foldswap::preload
