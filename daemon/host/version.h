#pragma once

namespace foldswap {
// FOLDSWAP_VERSION comes from CMakeLists.txt (project VERSION).
inline constexpr const char* kVersion = FOLDSWAP_VERSION;
}  // namespace foldswap
