// mremap over a range that the kernel would refuse, or half move, because parts of it are
// registered and nobody can change that any more: in fork children, and when the daemon has lost
// the agent (HAZARDS 13).
//
// Thread safety: any thread of the program; as with mremap itself nobody else may use the range
// meanwhile. Allocates nothing but the new mapping.
#pragma once

#include <cstddef>
#include <cstdint>

namespace foldswap::preload {

struct RemapCall {
  void* address;
  std::size_t old_bytes;
  std::size_t new_bytes;
  int flags;
};

// Does what the call asks for by copying; false when the call is not of that kind (one VMA, not
// private anonymous, MREMAP_FIXED, ...) and the kernel should be asked as usual. `moved`: mremap's
// answer, MAP_FAILED with `error` set to an errno value.
[[nodiscard]] bool remap_by_copy(const RemapCall& call, void* target, void*& moved, int& error);

// Whether [start, start + bytes) is private anonymous memory of equal rights in more than one VMA.
// `protection`: those rights.
[[nodiscard]] bool spans_vmas(std::size_t start, std::size_t bytes, int& protection);

// Whether more than one mapping lies in the range.
[[nodiscard]] bool several_vmas(std::uint64_t start, std::size_t bytes);

}  // namespace foldswap::preload
