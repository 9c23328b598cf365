// How an object lies in a segment of the backing file: a header, its sealed bytes
// (daemon/disk/seal.h), and what is left of the last unit.
//
// The header is a hint for cleaning, which wants to know what lies in a segment: it is believed
// only when that object's record says that it lies here. Everything else about an object is in its
// record. Thread safety: constants and pure functions. Units: bytes, unless the name says units.
#pragma once

#include <cstdint>

#include "daemon/disk/backing_file.h"
#include "daemon/disk/seal.h"

namespace foldswap {

struct DiskHeader {
  std::uint32_t object;
  std::uint16_t length;  // of the codec's output
  std::uint16_t units;   // to the next header
};
static_assert(sizeof(DiskHeader) == 8);

inline constexpr std::uint32_t kSealedOverhead = sizeof(DiskHeader) + Seal::kTagBytes;

// What an object takes of a segment, and of its account.
[[nodiscard]] constexpr std::uint32_t disk_units(std::uint32_t length) {
  constexpr auto kUnit = static_cast<std::uint32_t>(BackingFile::kUnit);
  return (length + kSealedOverhead + kUnit - 1) / kUnit;
}
[[nodiscard]] constexpr std::uint64_t disk_bytes(std::uint32_t length) {
  return disk_units(length) * BackingFile::kUnit;
}
[[nodiscard]] constexpr std::uint64_t block_floor(std::uint64_t offset) {
  return offset / BackingFile::kBlock * BackingFile::kBlock;
}
[[nodiscard]] constexpr std::uint64_t block_ceil(std::uint64_t offset) {
  return block_floor(offset + BackingFile::kBlock - 1);
}

}  // namespace foldswap
