// The size of a page, for all rooms. Unit: bytes. Linux on x86-64 has no other.
#pragma once

#include <cstdint>

namespace foldswap {

inline constexpr std::uint64_t kPageBytes = 4096;

}  // namespace foldswap
