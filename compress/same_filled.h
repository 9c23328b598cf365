// Same-filled pages: those that repeat one 8-byte word (zero pages above all). They cost no object.
// Technique: zram and zswap; both look at words, as here, because fills by 1, 2, 4 or 8 bytes all
// show as a repeated word. Thread safety: pure functions. Alignment: none needed.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>

#include "base/page.h"

namespace foldswap {

// The word that the page repeats, or nothing.
[[nodiscard]] std::optional<std::uint64_t> same_filled(std::span<const std::byte, kPageBytes> page);

// Writes the word again and again; a tail shorter than eight bytes gets the word's first bytes.
void fill_pattern(std::span<std::byte> out, std::uint64_t word);

}  // namespace foldswap
