#include "base/size.h"

#include <array>
#include <charconv>
#include <cstdio>

namespace foldswap {

Result<std::uint64_t> parse_size(std::string_view text) {
  const auto bad = [&] {
    return fail("'" + std::string(text) + "' is not a size (write 512M, 2G or plain bytes)");
  };
  std::uint64_t value = 0;
  const char* end = text.data() + text.size();
  const auto [rest, ec] = std::from_chars(text.data(), end, value);
  if (ec != std::errc{} || rest == text.data()) return bad();
  std::string_view unit(rest, static_cast<std::size_t>(end - rest));
  if (unit.ends_with("iB")) {
    unit.remove_suffix(2);
    if (unit.empty()) return bad();
  } else if (unit.ends_with('B')) {
    unit.remove_suffix(1);
  }
  unsigned shift = 0;
  if (unit.size() > 1) return bad();
  if (unit.size() == 1) {
    switch (unit[0]) {
      case 'k':
      case 'K':
        shift = 10;
        break;
      case 'm':
      case 'M':
        shift = 20;
        break;
      case 'g':
      case 'G':
        shift = 30;
        break;
      case 't':
      case 'T':
        shift = 40;
        break;
      default:
        return bad();
    }
  }
  constexpr std::uint64_t kMost = ~std::uint64_t{0} >> 1;
  if (value > (kMost >> shift)) return bad();
  return value << shift;
}

std::string human_size(std::uint64_t bytes) {
  constexpr std::array<const char*, 5> kUnits{"B", "KiB", "MiB", "GiB", "TiB"};
  std::size_t unit = 0;
  auto value = static_cast<double>(bytes);
  while (value >= 1024.0 && unit + 1 < kUnits.size()) {
    value /= 1024.0;
    ++unit;
  }
  std::array<char, 32> text{};
  std::snprintf(text.data(), text.size(), unit == 0 ? "%.0f %s" : "%.1f %s", value, kUnits[unit]);
  return text.data();
}

}  // namespace foldswap
