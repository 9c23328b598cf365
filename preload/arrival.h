// A process whose agent comes late: nothing is done at start, and no system call is made, until the
// daemon finds that something of it should leave. Then its injector has one of the threads run the
// gadget (gadget.cc), which starts the agent; the agent makes the process a client by itself, like
// that of a forked child (child.h).
//
// A process without an agent makes no system call of ours. Its interposed calls count themselves
// (QuietCall), and an agent that has come waits until none is left that began before it.
//
// Thread safety: as each says.
#pragma once

#include <cstdint>

#include "preload/request.h"
#include "preload/settings.h"

namespace foldswap::preload {

// The constructor's: from here on an agent may come.
void await_arrival(const Settings& settings, const wire::Hello& hello);

// An agent that has not made the process a client yet is to go again.
[[nodiscard]] bool nobody_may_arrive();

// Around a call that the kernel refuses to processes of several threads: no agent comes meanwhile,
// and one that has just come, and is not the process's agent yet, has gone again. Any thread.
class Alone : CountedCall {
 public:
  Alone();
};

// In a forked child: an agent that was arriving in its parent does not arrive here.
void forget_arrival();

}  // namespace foldswap::preload
