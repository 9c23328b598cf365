// What a pool makes of a page set, fresh and in the course of a life: for the density benchmark.
//
// The life: every page of the set is stored once, in its order (fresh); objects are freed at random
// and pages picked at random are stored in their place, until ten times as many as there are have
// gone through, and the pool tidies up a little now and then, as in the daemon (churned); 30 % are
// freed at once and replaced (refilled); 50 % are freed and not replaced (halved); the pool tidies
// up and gives back what is empty (tidied). The same seed, so the same objects, for every pool. For
// one thread.
#pragma once

#include <array>
#include <cstdint>

#include "base/result.h"
#include "bench/density_pages.h"
#include "pool/pool.h"

namespace foldswap::bench {

enum class Phase : std::uint8_t { fresh, churned, refilled, halved, tidied };
constexpr std::size_t kPhases = 5;
constexpr std::array<const char*, kPhases> kPhaseNames{"fresh", "churned", "refilled", "halved",
                                                       "tidied"};

// Page map: an entry of each page; of each leaf (512 pages) what PageMap knows of it and the
// node's word.
constexpr double kPageMapBytes = 8.0 + (16.0 + 4.0) / 512.0;

// A pool at one moment.
struct Moment {
  std::uint64_t objects = 0;
  std::uint64_t codec_bytes = 0;
  std::uint64_t frame_bytes = 0, empty_frame_bytes = 0;
  std::uint64_t metadata_bytes = 0;  // beyond what an empty pool has

  [[nodiscard]] double original() const { return static_cast<double>(objects * kPageBytes); }
  [[nodiscard]] double codec_ratio() const { return original() / static_cast<double>(codec_bytes); }
  [[nodiscard]] double frame_ratio() const { return original() / static_cast<double>(frame_bytes); }
  // The pool's tables and the page map, for the pages that have an object.
  [[nodiscard]] double all_metadata() const {
    return static_cast<double>(metadata_bytes) + static_cast<double>(objects) * kPageMapBytes;
  }
  [[nodiscard]] double whole_ratio() const {
    return original() / (static_cast<double>(frame_bytes) + all_metadata());
  }
};

struct Life {
  std::array<Moment, kPhases> moments;
  std::uint64_t fixed_metadata_bytes = 0;
  std::uint64_t stored = 0;    // all told
  std::uint64_t verified = 0;  // objects loaded, decompressed and compared
  std::uint64_t tidied_bytes = 0, churn_moved_bytes = 0;

  [[nodiscard]] const Moment& at(Phase phase) const {
    return moments[static_cast<std::size_t>(phase)];
  }
};

// Error: the pool failed, does not agree with itself, or gave back something else than was stored.
[[nodiscard]] Result<Life> live(PoolGeometry geometry, const PageSet& set, const Outputs& outputs);

}  // namespace foldswap::bench
