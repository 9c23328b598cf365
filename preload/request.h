// Requests of the program's threads to the daemon, and the announcement that keeps daemon and agent
// from changing what is registered under a call (HAZARDS 12, 13).
//
// Thread safety: for the program's threads; never the agent. RequestLock is process-local, and a
// fork child finds it free (Life in state.h). Its word is the holder's thread id: whoever holds it
// may ask for it again, and a waiter takes it over from a holder that no longer exists (a vfork
// child killed half-way). Errors: a request that cannot be answered, because the agent is gone or
// the daemon says so, is false.
#pragma once

#include <cstdint>

#include "preload/signals.h"
#include "preload/state.h"

namespace foldswap::preload {

// Whether a thread has ended, of this process or of a vfork child that shares its memory: that may
// wait to be reaped, by whoever asks.
[[nodiscard]] bool thread_is_over(std::uint32_t tid);

// Held with asynchronous signals blocked: its holder is needed by others. For processes that are,
// or become, a client.
class RequestLock {
 public:
  RequestLock() : taken_(acquire()) {}
  RequestLock(const RequestLock&) = delete;
  RequestLock& operator=(const RequestLock&) = delete;
  ~RequestLock() {
    if (taken_) release();
  }

  // Without a scope: across fork(). acquire() is false when the calling thread held it already, and
  // must not release it then.
  [[nodiscard]] static bool acquire();
  static void release();

 private:
  SignalBlock signals_{SignalBlock::Set::asynchronous};
  const bool taken_;
};

// Posts the request and waits until the daemon has served it. 0, or an errno value; EOWNERDEAD:
// nobody serves it. The caller holds the request lock.
[[nodiscard]] std::uint32_t ask_daemon(Control& control, wire::RequestOp op, std::uint64_t start,
                                       std::uint64_t bytes);

// `release` of a range of any size, which the caller's signals may end: once it has taken
// `patience_ms` and one of those waits that `signals` blocks, it is given up. What has come back by
// then stays, unless it is taken out again. `not_now`: the daemon wants all callers to stand back.
enum class Released { all, given_up, not_now, nobody_answers };
[[nodiscard]] Released ask_for_release(Control& control, std::uint64_t start, std::uint64_t bytes,
                                       const SignalBlock& signals, long patience_ms);

// The control page of this process as a client, which a forked child that is still attaching
// becomes now, if it can. Null: it is none.
[[nodiscard]] Control* live_or_attached();

// Whether nobody will answer: the agent is gone, or the daemon thinks so.
[[nodiscard]] bool agentless(const Control& control);

// While one exists, neither agent nor daemon registers or moves anything of this process by
// themselves.
class Announcement {
 public:
  explicit Announcement(Control& control) : control_(control) { begin(control); }
  Announcement(const Announcement&) = delete;
  Announcement& operator=(const Announcement&) = delete;
  ~Announcement() { end(control_); }

  // Without a scope: across fork().
  static void begin(Control& control);
  static void end(Control& control);

 private:
  Control& control_;
};

// Counts a call for as long as it lives. It makes no system call.
class CountedCall {
 public:
  explicit CountedCall(std::uint32_t& count) : count_(count), forks_(sys::load(library.forks)) {
    sys::add(count_, 1);
  }
  CountedCall(const CountedCall&) = delete;
  CountedCall& operator=(const CountedCall&) = delete;
  ~CountedCall() {
    // Not in a child of a fork in a handler meanwhile, which began to count anew.
    if (sys::load(library.forks) == forks_) sys::add(count_, ~0U);
  }

 private:
  std::uint32_t& count_;
  const std::uint32_t forks_;
};

// Brackets an interposed call in a process that is not live, but may become so at any moment (its
// agent arrives, or it is a forked child that is attaching). The agent goes live first and then
// waits until no such call is left, before it does anything. So: make one, look at live() again,
// and go the live way if it answers. Where a signal handler leaves the call half-way, and never
// comes back, no agent will come to the process any more.
class QuietCall : CountedCall {
 public:
  QuietCall() : CountedCall(library.quiet_calls) {}
};

// Around whatever looks at live() and then uses what that answers: while one exists the agent does
// not unmap it. Not around a wait for the agent's end.
class LiveCall : CountedCall {
 public:
  LiveCall() : CountedCall(library.live_calls) {}
};

// An announced call over a range, with asynchronous signals blocked: no handler may leave it
// half-way.
class LayoutSection {
 public:
  explicit LayoutSection(Control& control) : announcement_(control), control_(control) {}
  LayoutSection(const LayoutSection&) = delete;
  LayoutSection& operator=(const LayoutSection&) = delete;
  ~LayoutSection() = default;

  // Brings [start, start + bytes) into the state that `op` names, rounded to pages. True at once
  // when nothing is registered.
  [[nodiscard]] bool prepare(wire::RequestOp op, std::uint64_t start, std::uint64_t bytes);
  // Likewise, as ask_for_release().
  [[nodiscard]] Released release(std::uint64_t start, std::uint64_t bytes,
                                 const SignalBlock& signals, long patience_ms);

 private:
  [[nodiscard]] bool nothing_to_prepare() const;
  void stand_back();

  SignalBlock signals_{SignalBlock::Set::asynchronous};
  Announcement announcement_;
  Control& control_;
};

}  // namespace foldswap::preload
