#include "preload/request.h"

#include <signal.h>
#include <sys/wait.h>

#include <cerrno>

#include "preload/agent.h"

namespace foldswap::preload {
namespace {
constexpr long kSliceMs = 100;
// The evictor's longest pause between two commands is 5 ms.
constexpr int kPatienceSlices = 75;
constexpr std::uint32_t kPatienceSliceUs = 200;
constexpr int kMostTries = 1'000;
}  // namespace

bool thread_is_over(std::uint32_t tid) {
  if (sys::call(SYS_tkill, tid, 0) == -ESRCH) return true;
  siginfo_t info{};
  return sys::call(SYS_waitid, P_PID, tid, &info, WEXITED | WNOHANG | WNOWAIT | __WALL, nullptr) ==
             0 &&
         info.si_pid == static_cast<pid_t>(tid);
}

bool RequestLock::acquire() {
  const auto me = static_cast<std::uint32_t>(sys::call(SYS_gettid));
  std::uint32_t& word = library.alive->request_lock;
  for (;;) {
    const std::uint32_t holder = sys::load(word);
    if (holder == 0) {
      if (sys::exchange_if(word, 0, me)) return true;
      continue;
    }
    if (holder == me) return false;
    const long why = sys::futex_wait(word, holder, sys::Scope::own, kSliceMs);
    if (why == -ETIMEDOUT && thread_is_over(holder) && sys::exchange_if(word, holder, me)) {
      return true;
    }
  }
}

void RequestLock::release() {
  std::uint32_t& word = library.alive->request_lock;
  sys::store(word, 0U);
  sys::futex_wake(word, sys::Scope::own);
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

namespace {

// The number of the request.
std::uint32_t post(wire::Mailbox& box, wire::RequestOp op, std::uint64_t start,
                   std::uint64_t bytes) {
  wire::Request& request = box.request;
  request.op = static_cast<std::uint32_t>(op);
  request.start = page_floor(start);
  request.bytes = page_ceil(start + bytes) - page_floor(start);
  // Not `served` + 1: that may be the number of one whose caller was killed, and is still under
  // way.
  const std::uint32_t seq = sys::load(request.seq) + 1;
  sys::store(request.seq, seq);
  sys::add(box.to_daemon, 1);
  sys::futex_wake(box.to_daemon, sys::Scope::shared);
  return seq;
}

enum class Answer { yes, no, not_yet };

// One wait for the answer to request `seq`, or none if it is there.
Answer await(const Control& control, std::uint32_t seq, long ms) {
  const wire::Request& request = control.mailbox->request;
  const std::uint32_t served = sys::load(request.served);
  if (served == seq) return sys::load(request.status) == 0 ? Answer::yes : Answer::no;
  if (agentless(control)) return Answer::no;
  sys::futex_wait(request.served, served, sys::Scope::shared, ms);
  return Answer::not_yet;
}

// Of a request that was answered with `no`.
std::uint32_t error_of(const Control& control, std::uint32_t seq) {
  const wire::Request& request = control.mailbox->request;
  return sys::load(request.served) == seq ? sys::load(request.status) : EOWNERDEAD;
}

std::uint64_t now_ms() {
  timespec now{};
  sys::call(SYS_clock_gettime, CLOCK_MONOTONIC, &now);
  return static_cast<std::uint64_t>(now.tv_sec) * 1000 +
         static_cast<std::uint64_t>(now.tv_nsec) / 1'000'000;
}

}  // namespace

std::uint32_t ask_daemon(Control& control, wire::RequestOp op, std::uint64_t start,
                         std::uint64_t bytes) {
  const std::uint32_t seq = post(*control.mailbox, op, start, bytes);
  Answer answer = Answer::not_yet;
  while (answer == Answer::not_yet) answer = await(control, seq, kSliceMs);
  return answer == Answer::yes ? 0 : error_of(control, seq);
}

// The daemon looks at the request again at each of its steps: one that is given up is cut down to
// its first page, and soon answered.
Released ask_for_release(Control& control, std::uint64_t start, std::uint64_t bytes,
                         const SignalBlock& signals, long patience_ms) {
  const std::uint32_t seq = post(*control.mailbox, wire::RequestOp::release, start, bytes);
  const std::uint64_t end = now_ms() + static_cast<std::uint64_t>(patience_ms);
  bool given_up = false;
  for (;;) {
    const long slice_ms = given_up || patience_ms > kSliceMs ? kSliceMs : patience_ms;
    const Answer answer = await(control, seq, slice_ms);
    if (answer == Answer::no) {
      return error_of(control, seq) == EAGAIN ? Released::not_now : Released::nobody_answers;
    }
    if (answer == Answer::yes) return given_up ? Released::given_up : Released::all;
    if (!given_up && now_ms() >= end && signals.one_waits()) {
      given_up = true;
      sys::store(control.mailbox->request.bytes, std::uint64_t{kPage});
    }
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
    // The daemon may be waiting until nobody is in such a call (HAZARDS 39).
    if (sys::load(box.layout_daemon) != 0) {
      sys::add(box.layout_busy, ~0U);
      while (sys::load(box.layout_daemon) != 0 && !agentless(control)) backoff.next();
      sys::add(box.layout_busy, 1);
      continue;
    }
    backoff.next();
  }
}

void Announcement::end(Control& control) {
  sys::add(control.mailbox->layout_busy, ~0U);
}

bool LayoutSection::nothing_to_prepare() const {
  return sys::load(control_.mailbox->registered) == 0 ||
         sys::load(control_.mailbox->mode) ==
             static_cast<std::uint32_t>(wire::ClientMode::released);
}

// The daemon cannot do it while anybody is in such a call, and asks all to stand back.
void LayoutSection::stand_back() {
  Announcement::end(control_);
  sys::sleep_us(kPatienceSliceUs);
  Announcement::begin(control_);
}

bool LayoutSection::prepare(wire::RequestOp op, std::uint64_t start, std::uint64_t bytes) {
  for (int tries = 0; tries < kMostTries; ++tries) {
    if (nothing_to_prepare()) return true;
    std::uint32_t error = 0;
    {
      const RequestLock lock;
      error = ask_daemon(control_, op, start, bytes);
    }
    if (error != EAGAIN) return error == 0;
    stand_back();
  }
  return false;
}

Released LayoutSection::release(std::uint64_t start, std::uint64_t bytes,
                                const SignalBlock& signals, long patience_ms) {
  for (int tries = 0; tries < kMostTries; ++tries) {
    if (nothing_to_prepare()) return Released::all;
    Released released = Released::all;
    {
      const RequestLock lock;
      released = ask_for_release(control_, start, bytes, signals, patience_ms);
    }
    if (released != Released::not_now) return released;
    stand_back();
  }
  return Released::nobody_answers;
}

}  // namespace foldswap::preload
