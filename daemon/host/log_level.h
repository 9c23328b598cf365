// Of messages, from the least important on.
#pragma once

#include <cstdint>

namespace foldswap {

enum class LogLevel : std::uint8_t { trace, debug, info, warn, error };

}  // namespace foldswap
