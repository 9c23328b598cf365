#include "pool/geometry.h"

#include <bit>
#include <string>

namespace foldswap {

Status PoolGeometry::check() const {
  if (!std::has_single_bit(frame_bytes) || frame_bytes < kFrameBytesMin ||
      frame_bytes > kFrameBytesMax) {
    return fail("pool.frame " + std::to_string(frame_bytes) +
                " is no power of two from 4096 to 262144 bytes");
  }
  if (buddies < 1 || buddies > kBuddiesMax) {
    return fail("pool.buddies " + std::to_string(buddies) + " is not in 1 to 4095");
  }
  return {};
}

}  // namespace foldswap
