// Pages that must not be evicted because robust mutexes lie in them (HAZARDS 9). The library keeps
// the list (state.h); a mailbox holds a copy. It only ever grows, and past its end everything of
// this process stays. Thread safety: any thread, the agent too. Callers have asynchronous signals
// blocked.
#pragma once

#include <cstdint>

#include "base/wire.h"

namespace foldswap::preload {

// In the list, and in the mailbox if this process is live.
void exclude_page(std::uint64_t page);
// Everything that is in the list.
void publish_exclusions(wire::Mailbox& box);

}  // namespace foldswap::preload
