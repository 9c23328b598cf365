// Versions of what the state leads to and rooms above it lay out. One is raised when a daemon could
// not read what one of before has written; then the one has to be drained before the other starts
// (State::fits). Beside their layouts: State::kVersion, PageMap::kVersion, PoolHeader::kVersion,
// wire::kProtocolVersion.
#pragma once

#include <cstdint>

namespace foldswap {

// Of the backing file's account, and of how objects lie in its segments (backing_file.h).
inline constexpr std::uint32_t kDiskVersion = 2;

}  // namespace foldswap
