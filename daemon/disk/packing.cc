#include "daemon/disk/packing.h"

#include <array>
#include <bitset>

namespace foldswap {
namespace {

constexpr std::size_t kMostUnits = 256;
using Sums = std::bitset<kMostUnits + 1>;

// Which of `ahead` come into one block: the first one, and those that fill the rest best. The
// older of two that fill it as well, because the search goes back from the youngest.
std::bitset<kLookAhead> block_of(std::span<const std::uint32_t> sizes,
                                 std::span<const std::size_t> ahead, std::uint32_t block) {
  std::bitset<kLookAhead> chosen;
  chosen.set(0);
  const std::uint32_t first = sizes[ahead[0]];
  if (first >= block) return chosen;
  // sums[i]: what the first i of the others can add up to.
  std::array<Sums, kLookAhead> sums;
  sums[0].set(0);
  for (std::size_t i = 1; i < ahead.size(); ++i) {
    const std::uint32_t size = sizes[ahead[i]];
    sums[i] = sums[i - 1];
    if (size <= kMostUnits) sums[i] |= sums[i - 1] << size;
  }
  std::uint32_t rest = block - first;
  while (!sums[ahead.size() - 1].test(rest)) --rest;
  for (std::size_t i = ahead.size() - 1; i > 0; --i) {
    if (sums[i - 1].test(rest)) continue;
    chosen.set(i);
    rest -= sizes[ahead[i]];
  }
  return chosen;
}

}  // namespace

std::vector<std::size_t> packing_order(std::span<const std::uint32_t> sizes, std::uint32_t block) {
  std::vector<std::size_t> order, ahead;
  order.reserve(sizes.size());
  for (std::size_t next = 0; next < sizes.size() || !ahead.empty();) {
    while (ahead.size() < kLookAhead && next < sizes.size()) ahead.push_back(next++);
    const auto chosen = block_of(sizes, ahead, block);
    std::size_t left = 0;
    for (std::size_t i = 0; i < ahead.size(); ++i)
      chosen.test(i) ? order.push_back(ahead[i]) : void(ahead[left++] = ahead[i]);
    ahead.resize(left);
  }
  return order;
}

}  // namespace foldswap
