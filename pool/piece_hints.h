// PieceHints: for each size up to the largest object, the frames that were last seen with free room
// of just that size in one piece. A store that finds one need not compact. Hints only: they may be
// out of date, are forgotten when newer ones come, and whoever dies leaves none.
// Thread safety: none; every call needs the lock of the shard. Units: chunks.
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cstdint>
#include <utility>

#include "pool/geometry.h"

namespace foldswap {

class PieceHints {
 public:
  void note(std::uint32_t chunks, std::uint32_t frame) {
    chunks = std::min(chunks, kObjectChunksMax);
    Bin& bin = bins_[chunks];
    bin.frames[bin.next++ % kFrames] = frame;
    bits_[chunks / 64] |= std::uint64_t{1} << (chunks % 64);
  }
  // Takes the frame with the smallest piece of first..last out, of those that `good` says are still
  // as noted; the others that it meets are forgotten. 0: there is none.
  template <typename F>
  [[nodiscard]] std::uint32_t take(std::uint32_t first, std::uint32_t last, F good);

 private:
  static constexpr std::uint32_t kFrames = 7;  // with `next` half a cache line
  struct Bin {
    std::uint32_t next = 0;
    std::array<std::uint32_t, kFrames> frames{};  // 0: none
  };
  std::array<Bin, kObjectChunksMax + 1> bins_;
  std::array<std::uint64_t, kObjectChunksMax / 64 + 1> bits_{};  // 0: the bin is empty
};

template <typename F>
std::uint32_t PieceHints::take(std::uint32_t first, std::uint32_t last, F good) {
  last = std::min(last, kObjectChunksMax);
  std::uint64_t mask = ~std::uint64_t{0} << (first % 64);
  for (std::uint32_t word = first / 64; word <= last / 64; ++word, mask = ~std::uint64_t{0}) {
    for (std::uint64_t bits = bits_[word] & mask; bits != 0; bits &= bits - 1) {
      const std::uint32_t size = word * 64 + static_cast<std::uint32_t>(std::countr_zero(bits));
      if (size > last) return 0;
      for (std::uint32_t& noted : bins_[size].frames) {
        const std::uint32_t frame = std::exchange(noted, 0);
        if (frame != 0 && good(frame)) return frame;
      }
      bits_[word] &= ~(std::uint64_t{1} << (size % 64));
    }
  }
  return 0;
}

}  // namespace foldswap
