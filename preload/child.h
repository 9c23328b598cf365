// How a child of fork() becomes a client (DESIGN §6): like any other, with its own agent, but the
// program must not wait for it, and most children are another program, or gone, in a moment.
//
//   begin_child()  in the child's fork handler: a private area and an agent that does nothing yet
//   attach_child() on that agent, kChildDelayMs later or when somebody asks (AgentOp::attach): maps
//                  the other areas, says Hello, and makes the process live
//
// If its parent had anything registered, the kernel has made the child a userfaultfd of its own,
// which nobody but the daemon has; it sends it with Ready. If not, the child makes one, like a
// fresh process. Until it is live the child is served (what it inherited is registered) and never
// evicted. If it cannot become a client it stays like that; nothing fails. Thread safety: as said.
#pragma once

#include "preload/state.h"

namespace foldswap::preload {

inline constexpr long kChildDelayMs = 50, kChildAgainMs = 1'000;

// In the child, which has one thread.
void begin_child();

// The agent's of a process that runs already (arrival.h): as attach_child(), at once, and in one
// try. What is left to do then is tell_of_agent().
[[nodiscard]] bool attach_arrived(Control& control);
// The agent's, last of all: from here on there are commands. One that was waiting while a quiet
// call waits for a fault would keep that fault from being answered.
void tell_of_agent(const Control& control);

// The agent's: false when this process will not be a client.
[[nodiscard]] bool attach_child(Control& control);

}  // namespace foldswap::preload
