// What of a range is registered with a userfaultfd, for processes of whom nobody can be asked any
// more: only there pages can be out. The kernel knows (VmFlags of /proc/thread-self/smaps).
//
// Thread safety: any thread of the program; others may change the mappings meanwhile, and what they
// change counts or does not. Allocates nothing.
#pragma once

#include <cstdint>

#include "base/wire.h"
#include "preload/proc_text.h"

namespace foldswap::preload {

// The parts of [start, end) that are registered, in order of addresses, in one pass over the file.
class RegisteredParts {
 public:
  enum class Next { part, end, unknown };
  RegisteredParts(std::uint64_t start, std::uint64_t end);
  // `unknown`: it cannot be known, and nothing was told before.
  [[nodiscard]] Next next(wire::Range& part);

 private:
  ProcText smaps_;
  const std::uint64_t start_, end_;
  std::uint64_t from_ = 0, to_ = 0;  // the mapping whose lines are being read
  bool flags_seen_ = false, over_ = false;
};

// Reads everything in that can be out in [start, end), bit by bit: signals of the program that are
// not blocked come through in between. Nothing else is touched; what cannot be read stays.
void bring_in(std::uint64_t start, std::uint64_t end);

}  // namespace foldswap::preload
