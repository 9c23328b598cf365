// WriteBudget: how much may be written to the disk, for flash that wears out: not more than so many
// bytes in any 24 hours, counted by hours (but a write that failed is tried again all the same). It
// is kept in the state file, so that nobody gets another day's worth by killing the daemon. Thread
// safety: one thread's, the writer's. No errors.
#pragma once

#include <cstdint>

#include "daemon/state/state.h"

namespace foldswap {

class WriteBudget {
 public:
  explicit WriteBudget(WrittenByHour& written) : written_(written) {}

  // Whether so much more may be written now. per_day 0: there is no limit.
  [[nodiscard]] bool allows(std::uint64_t bytes, std::uint64_t per_day, std::uint64_t now_us);
  // Before it is written. Also where there is no limit: there may be one in an hour.
  void spend(std::uint64_t bytes, std::uint64_t now_us);

 private:
  void forget_old(std::uint64_t hour);

  WrittenByHour& written_;
};

}  // namespace foldswap
