// The settings that may change while the daemon runs, as the data path reads them. Written by the
// control thread. Thread safety: atomics; a reader may see a change a step late.
#pragma once

#include <atomic>
#include <cstdint>

#include "compress/codec.h"

namespace foldswap {

struct Tunables {
  std::atomic<std::uint32_t> spin_us{20};
  std::atomic<std::uint32_t> readahead_max{64};
  std::atomic<std::uint64_t> quarantine_us{30'000'000};
  std::atomic<std::uint32_t> codec{2};  // Codec
  std::atomic<std::int32_t> codec_level{1};
  std::atomic<std::uint32_t> cold_codec{0};  // likewise; raw: what is cold stays as it is
  std::atomic<std::int32_t> cold_level{0};
  std::atomic<std::uint32_t> incarnation{1};
  std::atomic<std::uint64_t> writeback_max{0}, writeback_free_min{0};  // bytes
  std::atomic<std::uint64_t> writeback_per_day{0};                     // bytes; 0: no budget
  std::atomic<std::uint64_t> available_low{0};                         // bytes; 0: not looked at
  std::atomic<std::uint32_t> psi_ms{0};                                // likewise

  [[nodiscard]] CodecSpec codec_spec() const {
    return {static_cast<Codec>(codec.load(std::memory_order_relaxed)),
            codec_level.load(std::memory_order_relaxed)};
  }
  [[nodiscard]] CodecSpec cold_codec_spec() const {
    return {static_cast<Codec>(cold_codec.load(std::memory_order_relaxed)),
            cold_level.load(std::memory_order_relaxed)};
  }
};

}  // namespace foldswap
