// Packing: in which order objects go to the disk, so that they fill whole blocks. An object should
// not cross from one block into the next (it would keep both from becoming holes), and what is left
// empty at a block's end is written for nothing, and fills the file.
//
// Technique: exact subset sums, by dynamic programming over bit sets (Bellman 1957), for one block
// at a time: its first object is the oldest that is left; then come those of the next few that fill
// the rest best. So each is the oldest, and goes, after kLookAhead blocks at most, and what is
// about as old still lies together.
//
// Thread safety: none needed. No errors.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace foldswap {

inline constexpr std::size_t kLookAhead = 24;

// `sizes`, above 0, of objects from the oldest on; `block` is one's size, 256 at most, in the same
// unit. Returns their indices, each once. What is larger than a block goes when it is the oldest.
[[nodiscard]] std::vector<std::size_t> packing_order(std::span<const std::uint32_t> sizes,
                                                     std::uint32_t block);

}  // namespace foldswap
