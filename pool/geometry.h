// PoolGeometry: how a pool cuts its memory: `pool.frame` and `pool.buddies`.
//
//   frame   the unit in which memory is taken from and given back to the system; power of
//   two, 4..256 KiB buddy   one of the objects that share a frame; at most `buddies` of them chunk
//   the unit in which a frame's room is handed out: 8 bytes in every geometry. An object wastes 4
//           bytes on average (0.7 % at 600 bytes), and the chunks of the largest frame still fit 16
//           bits.
//   class   a list of frames by free chunks. Exact up to the largest object (512 chunks), so that
//   best
//           fit is the first list that is not empty; above that in steps of 512 chunks.
//
// 4 KiB / 3 is z3fold, 4 KiB / 2 is zbud. Units: bytes where the name says so, else chunks.
// Thread safety: plain values.
#pragma once

#include <algorithm>
#include <cstdint>

#include "base/result.h"

namespace foldswap {

inline constexpr std::uint32_t kObjectBytesMax = 4096;
inline constexpr std::uint32_t kChunkBytes = 8;
inline constexpr std::uint32_t kObjectChunksMax = kObjectBytesMax / kChunkBytes;
inline constexpr std::uint32_t kFrameBytesMin = 4096;
inline constexpr std::uint32_t kFrameBytesMax = 256 * 1024;
inline constexpr std::uint32_t kBuddiesMax = 4095;

// Frames without room (or without a slot) hang on list 0, empty ones on the last list.
inline constexpr std::uint32_t kClassFull = 0;
inline constexpr std::uint32_t kClassEmpty =
    kObjectChunksMax + kFrameBytesMax / kChunkBytes / kObjectChunksMax;
inline constexpr std::uint32_t kClasses = kClassEmpty + 1;

[[nodiscard]] constexpr std::uint32_t chunks_for(std::uint32_t bytes) {
  return (bytes + kChunkBytes - 1) / kChunkBytes;
}

struct PoolGeometry {
  // The default is the dense end: large enough that the room left over at a frame's end is little,
  // and no limit on buddies that a real heap would meet. Slots cost memory only where objects are.
  std::uint32_t frame_bytes = 16 * 1024;
  std::uint32_t buddies = 512;

  // Error: names the field that is out of range.
  [[nodiscard]] Status check() const;

  [[nodiscard]] constexpr std::uint32_t frame_chunks() const { return frame_bytes / kChunkBytes; }
  // Objects of the largest size that an empty frame takes: what a reservation counts with.
  [[nodiscard]] constexpr std::uint32_t frame_room() const {
    return std::min(buddies, frame_bytes / kObjectBytesMax);
  }
  friend bool operator==(const PoolGeometry&, const PoolGeometry&) = default;
};

}  // namespace foldswap
