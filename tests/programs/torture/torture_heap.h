// Blocks of malloc, realloc and free with contents that are known byte for byte. Small blocks live
// in arenas and brk, large ones are mappings that realloc mremaps.
// For one thread; a forked child has its own copy.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "tests/programs/lib/common.h"
#include "tests/programs/torture/torture_journal.h"

namespace testprog::torture {

class Heap {
 public:
  explicit Heap(std::size_t most_bytes) : most_bytes_(most_bytes) {}

  void churn(Random& random, Slot& slot);
  void check_all(const Slot& slot) const;

 private:
  struct Block {
    unsigned char* start;
    std::size_t bytes;
    std::uint64_t tag;
  };
  void add(Random& random, Slot& slot);
  void resize(Random& random, Slot& slot);
  void remove(Random& random, Slot& slot);
  static void check(const Block& block, std::size_t bytes, const Slot& slot);

  std::size_t most_bytes_;
  std::size_t total_bytes_ = 0;
  std::vector<Block> blocks_;
};

}  // namespace testprog::torture
