// Codec: how the bytes of an object were encoded. A plain number that fits three bits, because the
// pool keeps it in the object's record and hands it back without ever calling a codec.
// Values are part of the state that outlives a process: never renumber.
#pragma once

#include <cstdint>

namespace foldswap {

enum class Codec : std::uint8_t {
  raw = 0,      // the bytes themselves
  lz4 = 1,      // one LZ4 block
  zstd = 2,     // one zstd frame without its magic number (compress/codec.cc)
  pattern = 3,  // no bytes: an 8-byte word that fills the page (compress/same_filled.h)
};
inline constexpr unsigned kCodecBits = 3;

}  // namespace foldswap
