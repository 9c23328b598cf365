// Executes one eviction command: moves the pages of its runs through a staging half into the
// transfer area (DESIGN §5). Runs on the agent only.
//
// Invariant (HAZARDS 4): whenever the layout lock is free, a page is either in the program or in
// the transfer area; staging is never the only copy then. Bounded: every loop ends by the number of
// pages, runs or turns, whatever the command says.
#pragma once

#include <cstdint>

#include "preload/state.h"

namespace foldswap::preload {

// Registers both staging halves. 0 or a negative errno.
[[nodiscard]] long arm_staging(Control& control);

// The command of half `half`, which must be posted; leaves it done, with results.
void execute_command(Control& control, std::uint32_t half);

}  // namespace foldswap::preload
