#include "compress/same_filled.h"

#include <cstring>

namespace foldswap {
namespace {

constexpr std::size_t kWord = sizeof(std::uint64_t);

std::uint64_t word_at(const std::byte* p) {
  std::uint64_t word;
  std::memcpy(&word, p, kWord);
  return word;
}

}  // namespace

std::optional<std::uint64_t> same_filled(std::span<const std::byte, kPageBytes> page) {
  // Most pages differ within a few blocks; the last word catches those that are zero but for a
  // tail.
  constexpr std::size_t kBlock = 256;
  const std::uint64_t first = word_at(page.data());
  if (word_at(page.data() + kPageBytes - kWord) != first) return std::nullopt;
  for (std::size_t block = 0; block < kPageBytes; block += kBlock) {
    std::uint64_t differs = 0;  // no branch inside a block: the compiler vectorises it
    for (std::size_t i = 0; i < kBlock; i += kWord) {
      differs |= word_at(page.data() + block + i) ^ first;
    }
    if (differs != 0) return std::nullopt;
  }
  return first;
}

void fill_pattern(std::span<std::byte> out, std::uint64_t word) {
  std::size_t at = 0;
  for (; at + kWord <= out.size(); at += kWord) std::memcpy(out.data() + at, &word, kWord);
  std::memcpy(out.data() + at, &word, out.size() - at);
}

}  // namespace foldswap
