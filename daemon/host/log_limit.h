// LogLimit: how often something that strangers can provoke may be logged: in bursts of kBurst, and
// kPerSecond over time. What was left unsaid is counted.
// Thread safety: none; the thread that logs.
#pragma once

#include <algorithm>
#include <cstdint>

namespace foldswap {

class LogLimit {
 public:
  static constexpr std::uint64_t kBurst = 100, kPerSecond = 5;

  // Whether to log now; `unsaid` gets the number of lines left out since the last one that was let
  // through.
  [[nodiscard]] bool allow(std::uint64_t now_us, std::uint64_t& unsaid) {
    const std::uint64_t earned = (now_us - counted_at_us_) * kPerSecond / 1'000'000;
    if (earned != 0) {
      left_ = std::min(kBurst, left_ + earned);
      counted_at_us_ = now_us;
    }
    if (left_ == 0) {
      ++unsaid_;
      return false;
    }
    --left_;
    unsaid = unsaid_;
    unsaid_ = 0;
    return true;
  }

 private:
  std::uint64_t left_ = kBurst, counted_at_us_ = 0, unsaid_ = 0;
};

}  // namespace foldswap
