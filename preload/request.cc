#include "preload/request.h"

#include <cerrno>

#include "preload/agent.h"

namespace foldswap::preload {
namespace {
constexpr long kSliceMs = 100;
// The evictor's longest pause between two commands is 5 ms.
constexpr int kPatienceSlices = 75;
constexpr std::uint32_t kPatienceSliceUs = 200;
}  // namespace

void RequestLock::acquire() {
  const auto me = static_cast<std::uint32_t>(sys::call(SYS_gettid));
  std::uint32_t& word = library.request_lock;
  for (;;) {
    const std::uint32_t holder = sys::load(word);
    if (holder == 0) {
      if (sys::exchange_if(word, 0, me)) return;
      continue;
    }
    const long why = sys::futex_wait(word, holder, sys::Scope::own, kSliceMs);
    if (why == -ETIMEDOUT && sys::call(SYS_tkill, holder, 0) == -ESRCH &&
        sys::exchange_if(word, holder, me)) {
      return;
    }
  }
}

void RequestLock::release() {
  sys::store(library.request_lock, 0U);
  sys::futex_wake(library.request_lock, sys::Scope::own);
}

Control* live_or_attached() {
  if (Control* const control = live()) return control;
  Control* const control = attaching();
  if (control == nullptr) return nullptr;
  const RequestLock lock;
  if (attaching() != nullptr) (void)ask_agent(*control, AgentOp::attach);
  return live();
}

bool agentless(const Control& control) {
  return sys::load(control.tid) == 0 || sys::load(control.mailbox->mode) ==
                                            static_cast<std::uint32_t>(wire::ClientMode::agentless);
}

bool ask_daemon(Control& control, wire::RequestOp op, std::uint64_t start, std::uint64_t bytes) {
  wire::Mailbox& box = *control.mailbox;
  wire::Request& request = box.request;
  request.op = static_cast<std::uint32_t>(op);
  request.start = page_floor(start);
  request.bytes = page_ceil(start + bytes) - page_floor(start);
  const std::uint32_t seq = sys::load(request.served) + 1;
  sys::store(request.seq, seq);
  sys::add(box.to_daemon, 1);
  sys::futex_wake(box.to_daemon, sys::Scope::shared);
  for (;;) {
    const std::uint32_t served = sys::load(request.served);
    if (served == seq) return sys::load(request.status) == 0;
    if (agentless(control)) return false;
    sys::futex_wait(request.served, served, sys::Scope::shared, kSliceMs);
  }
}

void Announcement::begin(Control& control) {
  wire::Mailbox& box = *control.mailbox;
  sys::add(control.announced, 1);
  for (int slices = 0; sys::load(control.agent_waits) != 0; ++slices) {
    if (slices == kPatienceSlices || agentless(control)) {
      sys::store(control.agent_waits, 0U);
      break;
    }
    sys::sleep_us(kPatienceSliceUs);
  }
  sys::add(box.layout_busy, 1);
  sys::Backoff backoff;
  while (sys::load(box.layout_agent) != 0 || sys::load(box.layout_daemon) != 0) {
    if (agentless(control)) break;
    backoff.next();
  }
}

void Announcement::end(Control& control) {
  sys::add(control.mailbox->layout_busy, ~0U);
}

bool LayoutSection::prepare(wire::RequestOp op, std::uint64_t start, std::uint64_t bytes) {
  if (sys::load(control_.mailbox->registered) == 0) return true;
  if (sys::load(control_.mailbox->mode) == static_cast<std::uint32_t>(wire::ClientMode::released)) {
    return true;
  }
  const RequestLock lock;
  return ask_daemon(control_, op, start, bytes);
}

}  // namespace foldswap::preload
