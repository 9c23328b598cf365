// checksum28: the checksum that an object's record carries over the codec's output, so that a
// damaged object is told from a good one before a decompressor sees it. XXH3 (xxHash, inline from
// Debian's libxxhash-dev) cut to the 28 bits that a record has room for: a random change goes
// unseen once in 2^28. It guards against faults, not against an attacker. Thread safety: a pure
// function. The value outlives a process: never change what it computes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#define XXH_INLINE_ALL
#include <xxhash.h>

namespace foldswap {

inline constexpr unsigned kChecksumBits = 28;

[[nodiscard]] inline std::uint32_t checksum28(std::span<const std::byte> bytes) {
  return static_cast<std::uint32_t>(XXH3_64bits(bytes.data(), bytes.size()) &
                                    ((std::uint64_t{1} << kChecksumBits) - 1));
}

}  // namespace foldswap
