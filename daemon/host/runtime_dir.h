// The directory of the sockets, and the lock in it: one daemon at a time works there, and on the
// state. Thread safety: free functions without state.
#pragma once

#include <string>

#include "base/result.h"
#include "base/unique_fd.h"

namespace foldswap {

// As long as the descriptor is open. It gets no number below `lowest`. Error: somebody has it.
[[nodiscard]] Result<UniqueFd> lock_runtime_dir(const std::string& directory, int lowest = 0);

}  // namespace foldswap
