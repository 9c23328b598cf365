// What of a range is registered with a userfaultfd, for processes of whom nobody can be asked any
// more: only there pages can be out. The kernel knows (VmFlags of /proc/thread-self/smaps).
//
// Thread safety: any thread of the program; others may change the mappings meanwhile, and what they
// change counts or does not. Allocates nothing.
#pragma once

#include <cstdint>

#include "base/wire.h"

namespace foldswap::preload {

// The first parts of [start, end) that are registered, in order of addresses, into `parts`; how
// many these are. As many as there is room for: there may be more behind the last. -1: it cannot be
// known.
inline constexpr int kMostParts = 32;
[[nodiscard]] int registered_parts(std::uint64_t start, std::uint64_t end,
                                   wire::Range (&parts)[kMostParts]);

// Reads everything in that can be out in [start, end), bit by bit: signals of the program that are
// not blocked come through in between. Nothing else is touched; what cannot be read stays.
void bring_in(std::uint64_t start, std::uint64_t end);

}  // namespace foldswap::preload
