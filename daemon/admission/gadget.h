// Gadget: where in libfoldswap.so the code is that starts an agent in a process that runs already
// (preload/gadget.cc). A note in the file says so, and nothing that a process says of itself is
// believed. Thread safety: pure functions.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "base/result.h"

namespace foldswap {

// Offsets in the file.
struct Gadget {
  std::uint64_t call = 0, user = 0, end = 0;
};

// `file`: the first bytes of the library, at least up to where its code ends. Error: it is no such
// library, or of a version that this daemon does not know.
[[nodiscard]] Result<Gadget> find_gadget(std::span<const std::byte> file);

// The most that is read of a library.
inline constexpr std::size_t kMostLibraryBytes = 1 << 20;

}  // namespace foldswap
