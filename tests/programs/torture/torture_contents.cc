#include "tests/programs/torture/torture_contents.h"

#include <algorithm>
#include <array>
#include <cstdio>
#include <cstring>

#include "tests/programs/lib/common.h"

namespace testprog::torture {
namespace {

constexpr std::size_t kWords = kPage / 8;
using Words = std::array<std::uint64_t, kWords>;

Look look_of(std::uint64_t key) {
  return static_cast<Look>(key & 15);
}

bool is_key(std::uint64_t word) {
  return (word & 15) >= 1 && (word & 15) <= 4 && (word >> 40) != 0;
}

void make(Words& out, std::uint64_t key) {
  if (key == 0 || look_of(key) == Look::same) return out.fill(key);
  out[0] = key;
  Random random(key);
  if (look_of(key) == Look::sparse) {
    std::fill(out.begin() + 1, out.end(), 0);
    for (int n = 0; n < 6; ++n) out[1 + random.below(kWords - 1)] = random.next();
    return;
  }
  if (look_of(key) == Look::random) {
    for (std::size_t i = 1; i < kWords; ++i) out[i] = random.next();
    return;
  }
  const std::uint64_t heap = 0x00007f0000000000ULL | (random.next() & 0xffff00000ULL);
  for (std::size_t i = 1; i < kWords; ++i) {
    const std::uint64_t draw = i % 4 == 1 ? random.next() : 0;
    out[i] = i % 4 == 1 ? heap + (draw & 0xfff0) : i % 4 == 2 ? (key >> 4) & 0xffff : i % 7;
  }
}

Words read_words(const std::byte* page) {
  Words words;
  std::memcpy(words.data(), page, kPage);
  return words;
}

std::size_t same_words(const Words& a, const Words& b) {
  std::size_t count = 0;
  for (std::size_t i = 0; i < kWords; ++i) count += a[i] == b[i] ? 1U : 0U;
  return count;
}

}  // namespace

std::uint64_t make_key(std::uint64_t owner, std::uint64_t serial, Look look) {
  return owner << 40 | (serial & ((1ULL << kSerialBits) - 1)) << 4 |
         static_cast<std::uint64_t>(look);
}

Look draw_look(std::uint64_t draw) {
  const std::uint64_t d = draw % 16;
  return d == 0 ? Look::same : d == 1 ? Look::sparse : d < 5 ? Look::random : Look::heap;
}

void fill(std::byte* page, std::uint64_t key) {
  Words words;
  make(words, key);
  std::memcpy(page, words.data(), kPage);
}

bool holds(const std::byte* page, std::uint64_t key) {
  Words words;
  make(words, key);
  return std::memcmp(page, words.data(), kPage) == 0;
}

std::string name_key(std::uint64_t key) {
  if (key == 0) return "zeros";
  std::array<char, 80> text{};
  std::snprintf(text.data(), text.size(), "owner %llx serial %llu look %llu",
                static_cast<unsigned long long>(key >> 40),
                static_cast<unsigned long long>(key >> 4 & ((1ULL << kSerialBits) - 1)),
                static_cast<unsigned long long>(key & 15));
  return text.data();
}

std::string describe(const std::byte* page, std::uint64_t expected) {
  const Words found = read_words(page);
  Words wanted;
  make(wanted, expected);
  std::size_t first = 0;
  while (first < kWords && found[first] == wanted[first]) ++first;
  if (first == kWords) return "now it holds what was expected";
  std::array<char, 200> text{};
  std::snprintf(text.data(), text.size(),
                "%zu of 512 words as expected, first other at %zu: %016llx"
                " instead of %016llx; ",
                same_words(found, wanted), first, static_cast<unsigned long long>(found[first]),
                static_cast<unsigned long long>(wanted[first]));
  std::string story = text.data();
  if (same_words(found, Words{}) == kWords) return story + "the page is all zeros";
  const std::uint64_t claim = found[0];
  if (!is_key(claim)) return story + "its first word is no key";
  Words claimed;
  make(claimed, claim);
  std::snprintf(text.data(), text.size(), "it agrees in %zu of 512 words with ",
                same_words(found, claimed));
  return story + text.data() + name_key(claim);
}

}  // namespace testprog::torture
