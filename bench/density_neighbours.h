// Whether it pays to compress four neighbouring pages as one: it is denser, but to give one of them
// back all four are decompressed, and an object is only free when its last page is. Measured on
// the pages of one program, with the daemon's codec. Thread safety: pure functions.
#pragma once

#include "bench/density_pages.h"

namespace foldswap::bench {

struct Neighbours {
  static constexpr std::size_t kTogether = 4;
  double ratio_alone = 0, ratio_together = 0;              // original bytes to the codec's output
  double us_alone = 0, us_together = 0;                    // CPU time to get one page back, median
  double compress_us_alone = 0, compress_us_together = 0;  // per page
};

[[nodiscard]] Result<Neighbours> measure_neighbours(const PageSet& set);

}  // namespace foldswap::bench
