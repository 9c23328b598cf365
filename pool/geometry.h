// PoolGeometry: how a pool cuts its memory: `pool.frame` and `pool.buddies`.
//
//   frame   the unit in which memory is taken from and given back to the system; power of
//   two, 4..256 KiB buddy   one of the objects that share a frame; at most `buddies` of them chunk
//   the unit in which a frame's room is handed out: 8 bytes in every geometry. An object wastes 4
//           bytes on average (0.7 % at 600 bytes), and the chunks of the largest frame still fit 16
//           bits.
//   header  the object's id, before its bytes: what lies where in a frame is written in the frame
//           itself, so that nothing outside grows with the number of objects but their records
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
inline constexpr std::uint32_t kHeaderBytes = 4;
inline constexpr std::uint32_t kObjectChunksMax =
    (kHeaderBytes + kObjectBytesMax + kChunkBytes - 1) / kChunkBytes;
inline constexpr std::uint32_t kFrameBytesMin = 4096;
inline constexpr std::uint32_t kFrameBytesMax = 256 * 1024;
inline constexpr std::uint32_t kBuddiesMax = 4095;

// Frames without room (or without a slot) hang on list 0, empty ones on the last list.
inline constexpr std::uint32_t kClassFull = 0;
inline constexpr std::uint32_t kClassEmpty =
    kObjectChunksMax + kFrameBytesMax / kChunkBytes / kObjectChunksMax + 1;
inline constexpr std::uint32_t kClasses = kClassEmpty + 1;

struct PoolGeometry {
  // The default is the dense end: large enough that the room left over at a frame's end is little,
  // and no limit on buddies that a real heap would meet.
  std::uint32_t frame_bytes = 64 * 1024;
  std::uint32_t buddies = kBuddiesMax;

  // Error: names the field that is out of range.
  [[nodiscard]] Status check() const;

  [[nodiscard]] constexpr std::uint32_t frame_chunks() const { return frame_bytes / kChunkBytes; }
  // Objects of the largest size that an empty frame takes: what a reservation counts with.
  [[nodiscard]] constexpr std::uint32_t frame_room() const {
    return std::min(buddies, std::max(frame_chunks() / kObjectChunksMax, 1U));
  }
  // An object that no frame has room for beside its header (a whole page in 4 KiB frames) goes
  // without one, alone in a frame that names it in its FrameMeta.
  [[nodiscard]] constexpr std::uint32_t header_bytes(std::uint32_t bytes) const {
    return kHeaderBytes + bytes > frame_bytes ? 0 : kHeaderBytes;
  }
  // Of an object with so many bytes, its header included.
  [[nodiscard]] constexpr std::uint32_t chunks_for(std::uint32_t bytes) const {
    return (header_bytes(bytes) + bytes + kChunkBytes - 1) / kChunkBytes;
  }
  friend bool operator==(const PoolGeometry&, const PoolGeometry&) = default;
};

}  // namespace foldswap
