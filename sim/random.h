// Random: the one source of chance in a simulation; the seed decides all of it.
// Thread safety: none.
#pragma once

#include <cstdint>

namespace foldswap::sim {

// xorshift64*, started through splitmix64 so that neighbouring seeds have nothing in common.
class Random {
 public:
  explicit Random(std::uint64_t seed) {
    seed += 0x9e3779b97f4a7c15;
    seed = (seed ^ (seed >> 30)) * 0xbf58476d1ce4e5b9;
    seed = (seed ^ (seed >> 27)) * 0x94d049bb133111eb;
    state_ = (seed ^ (seed >> 31)) | 1;
  }
  std::uint64_t next() {
    state_ ^= state_ >> 12;
    state_ ^= state_ << 25;
    state_ ^= state_ >> 27;
    return state_ * 0x2545f4914f6cdd1d;
  }
  // 0 <= result < n; n is not 0.
  std::uint64_t below(std::uint64_t n) { return (next() >> 11) % n; }
  std::uint64_t between(std::uint64_t least, std::uint64_t most) {
    return least + below(most - least + 1);
  }
  // Once in n times; never when n is 0.
  bool once_in(std::uint64_t n) { return n != 0 && below(n) == 0; }

 private:
  std::uint64_t state_;
};

}  // namespace foldswap::sim
