// ObjectId and Record: the name of an object, and the 16 bytes that are known about it.
//
//   location word                            meta word
//   63..62  tier                             63..36  checksum over the codec's output
//   61      settled: not worth packing again 35..33  codec
//   58..27  frame or segment number          32..20  length of the codec's output, bytes
//   26..15  age: the shard's tick at store   19..0   reference count; 0: the record is free
//   14..0   chunk within the frame, or unit within the segment
// A segment is of a file that the pool knows nothing else about (Tier::segment). The location word
// of a Codec::pattern object is the pattern itself, all 64 bits of it. A record without a tier is
// of an object that was lost: it cannot be loaded, but its references are counted.
//
// Invariant: a move, be it to another frame or out to a segment, changes the location word and
// nothing else, with one atomic store, after the bytes are where the word will point: whoever looks
// at a record after a crash at any instruction finds the object. Only replacing an object's bytes
// changes both words; it is noted before (Replacing in layout.h). Whoever takes over
// (take_over.h) finishes that first, moves objects out of the scratch frames, and counts references
// anew from the page maps: one may be held by whoever died while replacing. Publish order: bytes in
// the frame, location word, meta word (release); only then is the id returned. Thread safety: words
// are atomic; they change under the shard's lock only. Lives in a memory file that outlives a
// process: positions by number, never by pointer.
#pragma once

#include <atomic>
#include <cstdint>

#include "compress/checksum.h"
#include "compress/codec_id.h"

namespace foldswap {

// Index of the object's record; fits 40 bits (32 in this version). Never 0 for an object.
enum class ObjectId : std::uint64_t { none = 0 };

enum class Tier : std::uint8_t { none = 0, frame = 1, segment = 2 };

// Where an object lies that has left the frames. What a unit is, the owner of the file says.
struct SegmentPlace {
  std::uint32_t segment = 0;
  std::uint32_t unit = 0;  // 0..32767
  friend bool operator==(const SegmentPlace&, const SegmentPlace&) = default;
};

// An object that nobody refers to any more, and that did not lie in a frame: its place is free now.
struct Vacated {
  SegmentPlace place;
  std::uint32_t length = 0;
};

struct Location {
  Tier tier = Tier::none;
  std::uint32_t frame = 0;  // or segment
  std::uint32_t chunk = 0;  // 0..32767; or unit
  std::uint32_t age = 0;    // 0..4095
  bool settled = false;

  [[nodiscard]] constexpr std::uint64_t pack() const {
    return std::uint64_t{static_cast<std::uint8_t>(tier)} << 62 |
           std::uint64_t{settled ? 1U : 0U} << 61 | std::uint64_t{frame} << 27 |
           std::uint64_t{age} << 15 | chunk;
  }
  [[nodiscard]] static constexpr Location unpack(std::uint64_t word) {
    return {static_cast<Tier>(word >> 62), static_cast<std::uint32_t>(word >> 27),
            static_cast<std::uint32_t>(word & 0x7fff),
            static_cast<std::uint32_t>(word >> 15 & 0xfff), (word >> 61 & 1) != 0};
  }
  [[nodiscard]] constexpr SegmentPlace segment_place() const { return {frame, chunk}; }
  friend bool operator==(const Location&, const Location&) = default;
};

inline constexpr std::uint32_t kRefsMax = (1U << 20) - 1;

struct ObjectMeta {
  std::uint32_t refs = 0;
  std::uint32_t length = 0;
  Codec codec = Codec::raw;
  std::uint32_t checksum = 0;

  [[nodiscard]] constexpr std::uint64_t pack() const {
    return std::uint64_t{checksum} << 36 | std::uint64_t{static_cast<std::uint8_t>(codec)} << 33 |
           std::uint64_t{length} << 20 | refs;
  }
  [[nodiscard]] static constexpr ObjectMeta unpack(std::uint64_t word) {
    return {static_cast<std::uint32_t>(word & kRefsMax),
            static_cast<std::uint32_t>(word >> 20 & 0x1fff), static_cast<Codec>(word >> 33 & 7),
            static_cast<std::uint32_t>(word >> 36)};
  }
  friend bool operator==(const ObjectMeta&, const ObjectMeta&) = default;
};
static_assert(kChecksumBits == 28 && kCodecBits == 3, "the meta word has exactly this room");

struct Record {
  std::atomic<std::uint64_t> location;
  std::atomic<std::uint64_t> meta;

  [[nodiscard]] Location where() const {
    return Location::unpack(location.load(std::memory_order_acquire));
  }
  [[nodiscard]] ObjectMeta what() const {
    return ObjectMeta::unpack(meta.load(std::memory_order_acquire));
  }
  // What is stored later may overwrite the old place: the compiler must not let it come before.
  void set(Location to) {
    location.store(to.pack(), std::memory_order_release);
    std::atomic_signal_fence(std::memory_order_seq_cst);
  }
  void set(ObjectMeta to) { meta.store(to.pack(), std::memory_order_release); }
};
static_assert(sizeof(Record) == 16 && std::atomic<std::uint64_t>::is_always_lock_free);

}  // namespace foldswap
