// The works of churn_bench: things that programs do all day with memory, threads and processes that
// foldswap has no business with. Each runs `ops` times in the calling process.
#pragma once

#include <cstdint>
#include <span>

namespace foldswap::bench {

struct Work {
  const char* name;
  void (*run)(std::uint64_t ops);
  bool judged;  // the goal is for memory; processes and threads are shown for what they are
};

[[nodiscard]] std::span<const Work> works();

}  // namespace foldswap::bench
