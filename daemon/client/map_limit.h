// MapLimit: how many mappings a client may have on our account. The kernel lets a process have
// vm.max_map_count of them; registering or unregistering a part of one makes two or three of it.
// Half of the limit is the program's alone: nothing of ours splits a mapping when there would be
// more than half of it afterwards (HAZARDS 32). From a half of that half on we already take
// fewer and longer ranges, so that there is room left for what cannot do without a split.
//
// How many there are: Client::mappings. Thread safety: for one thread; who needs it has its own.
// Errors: a limit that cannot be read counts as the kernel's default.
#pragma once

#include <cstdint>

#include "base/os.h"

namespace foldswap {

class MapLimit {
 public:
  explicit MapLimit(Os& os) : os_(os) {}
  // Never more mappings than this, if it is we who make them.
  [[nodiscard]] std::uint64_t most() { return limit() / 2; }
  // From here on splits are to be spared.
  [[nodiscard]] std::uint64_t sparing() { return limit() / 4; }

 private:
  [[nodiscard]] std::uint64_t limit();

  Os& os_;
  std::uint64_t limit_ = 0, read_us_ = 0;
};

}  // namespace foldswap
