// Injection: has one thread of a running process run the library's gadget (preload/gadget.cc),
// which starts the agent. The process stands still for some tens of microseconds, and sees nothing
// of it: no signal, no EINTR that it would not have had, no changed register.
//
// The thread is stopped by ptrace where it waits in a system call that can be made again, or in its
// own code. What it runs completes by itself: this process may be killed at any point. Client
// memory is never read or written, only registers. For the injector's process, which has one thread
// (injector.h): a wait for a thread that does not stop ends with the death of this process, because
// nothing else lets go of it.
#pragma once

#include <string>

#include "daemon/admission/stranger.h"

namespace foldswap {

enum class Sent : std::uint8_t {
  sent,     // a thread has been started in it; whether it becomes a client is another question
  late,     // a thread of it did not stop in time, or is still where it was sent
  not_now,  // no thread of it is where this can be done; or it is being traced
  refused,  // it cannot be done in this process
  gone,     // it has ended, or is another program
};

struct SentAnswer {
  Sent outcome;
  std::string reason;  // unless it was sent
};

// Ends this process, with status kLate, when a thread does not stop in time.
inline constexpr int kLate = 3;
[[nodiscard]] SentAnswer send_agent(const Stranger& stranger, const Identity& identity);

// What /proc/PID/task/TID/syscall says: which system call the thread waits in, or -1: none;
// nullopt: it runs, or waits in the kernel elsewhere.
struct Waiting {
  long call;
  std::uint64_t pc;
};
[[nodiscard]] std::optional<Waiting> parse_waiting(std::string_view text);

// How fit a thread is to be stopped: 0 best; nullopt: not at all.
[[nodiscard]] std::optional<int> fitness_of_call(long call);

}  // namespace foldswap
