// Sizes as people write them: "512M", "2G", "64K", plain bytes; powers of 1024, optional trailing
// B.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "base/result.h"

namespace foldswap {

inline constexpr std::uint64_t kKiB = 1024;
inline constexpr std::uint64_t kMiB = 1024 * kKiB;
inline constexpr std::uint64_t kGiB = 1024 * kMiB;

// Error: names the text that is no size, or that does not fit in 63 bits.
[[nodiscard]] Result<std::uint64_t> parse_size(std::string_view text);
// "512.0 MiB", for people.
[[nodiscard]] std::string human_size(std::uint64_t bytes);

}  // namespace foldswap
