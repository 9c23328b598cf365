// The agent: a raw thread inside the client (HAZARDS 11: no pthread). It moves pages for the
// daemon, follows the program's credentials, and leaves on request. Own stack, own descriptor
// table, own working directory, every signal blocked, inline system calls only; it touches Control,
// mailbox, transfer area and staging, nothing else.
#pragma once

#include "preload/state.h"

namespace foldswap::preload {

enum class AgentDuty {
  serve,   // the process is registered: everything in `control` is there
  attach,  // a forked child: become a client first (child.h)
};

// The agent of a process that runs already (arrival.h), which has come to its own stack: makes the
// process a client, and serves. When that cannot be it unmaps `control` and all around it, and
// ends.
[[noreturn]] void run_arrived_agent(Control& control);

// Starts the agent on `control`'s page and the stack below it, and waits until it has a descriptor
// table of its own and, to serve, staging is registered. False: it has not started, or has gone
// again; control.start_errno says why.
[[nodiscard]] bool start_agent(Control& control, AgentDuty duty);

// The agent's own, where it waits for anything else than requests.
void answer_requests(Control& control);

// Asks the agent and waits for the answer. False: there is no agent (any more).
// The caller holds the request lock and has signals blocked.
[[nodiscard]] bool ask_agent(Control& control, AgentOp op);

}  // namespace foldswap::preload
