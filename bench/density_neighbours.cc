#include "bench/density_neighbours.h"

#include <zstd.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <memory>
#include <vector>

namespace foldswap::bench {
namespace {

constexpr int kLevel = 1;
constexpr std::size_t kMostGroups = 4096;

using Clock = std::chrono::steady_clock;
double us_since(Clock::time_point start) {
  return std::chrono::duration<double, std::micro>(Clock::now() - start).count();
}

double median(std::vector<double>& values) {
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

struct Side {
  double bytes = 0;
  std::vector<double> pack_us, unpack_us;
};

// Compresses and decompresses units of `pages` pages each. False: the codec failed or lied.
bool measure(const PageSet& set, std::size_t pages, std::size_t groups, Side& side) {
  const std::unique_ptr<ZSTD_CCtx, decltype(&ZSTD_freeCCtx)> pack(ZSTD_createCCtx(),
                                                                  &ZSTD_freeCCtx);
  const std::unique_ptr<ZSTD_DCtx, decltype(&ZSTD_freeDCtx)> unpack(ZSTD_createDCtx(),
                                                                    &ZSTD_freeDCtx);
  const std::size_t unit = pages * kPageBytes;
  std::vector<std::byte> packed(ZSTD_compressBound(unit)), plain(unit);
  const std::size_t units = groups * Neighbours::kTogether / pages;
  for (std::size_t i = 0; i < units; ++i) {
    const std::byte* from = set.bytes.data() + i * unit;
    const auto begun = Clock::now();
    const std::size_t bytes =
        ZSTD_compressCCtx(pack.get(), packed.data(), packed.size(), from, unit, kLevel);
    side.pack_us.push_back(us_since(begun) / static_cast<double>(pages));
    if (ZSTD_isError(bytes) != 0) return false;
    const auto again = Clock::now();
    const std::size_t got =
        ZSTD_decompressDCtx(unpack.get(), plain.data(), unit, packed.data(), bytes);
    side.unpack_us.push_back(us_since(again));
    if (got != unit || std::memcmp(plain.data(), from, unit) != 0) return false;
    side.bytes += static_cast<double>(std::min(bytes, unit));
  }
  return true;
}

}  // namespace

Result<Neighbours> measure_neighbours(const PageSet& set) {
  const std::size_t groups = std::min(set.pages() / Neighbours::kTogether, kMostGroups);
  if (groups == 0) return fail("too few pages to put four together");
  Side alone, together;
  if (!measure(set, 1, groups, alone) || !measure(set, Neighbours::kTogether, groups, together))
    return fail("zstd failed, or did not give back what it got");
  const auto original = static_cast<double>(groups * Neighbours::kTogether * kPageBytes);
  return Neighbours{.ratio_alone = original / alone.bytes,
                    .ratio_together = original / together.bytes,
                    .us_alone = median(alone.unpack_us),
                    .us_together = median(together.unpack_us),
                    .compress_us_alone = median(alone.pack_us),
                    .compress_us_together = median(together.pack_us)};
}

}  // namespace foldswap::bench
