// Inputs for the codec tests: deterministic bytes of a wanted length and kind.
#pragma once

#include <cstddef>
#include <cstdint>
#include <random>
#include <vector>

namespace foldswap::test {

enum class Kind { zeros, text, heap, random };
inline constexpr Kind kKinds[] = {Kind::zeros, Kind::text, Kind::heap, Kind::random};

inline std::vector<std::byte> make_bytes(Kind kind, std::size_t bytes, std::uint32_t seed = 1) {
  std::mt19937 rng(seed);
  std::vector<std::byte> out(bytes);
  for (std::size_t i = 0; i < bytes; ++i) {
    switch (kind) {
      case Kind::zeros:
        break;
      case Kind::text:
        out[i] = std::byte("the quick brown fox "[(i + rng() % 2) % 20]);
        break;
      case Kind::heap:  // pointers: high bytes repeat, low ones vary
        out[i] = i % 8 < 2 ? std::byte(rng() & 0xff) : std::byte("\0\0\x34\x12\x7f\x7f\0\0"[i % 8]);
        break;
      case Kind::random:
        out[i] = std::byte(rng() & 0xff);
        break;
    }
  }
  return out;
}

}  // namespace foldswap::test
