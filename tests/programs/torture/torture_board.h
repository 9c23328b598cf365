// Memory that all threads fault on at the same time. Its pages are a pure function of page and
// version of their block; a version changes under the block's lock, so that each read can be
// verified exactly. The board itself is moved and protected only while all threads stand still.
//
// Locks: the gate before a block's lock. Writers of blocks and the forking thread take the gate
// (shared and alone), so that a child gets no half-written block. A child never locks: it is alone.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <shared_mutex>
#include <vector>

#include "tests/programs/lib/common.h"
#include "tests/programs/torture/torture_journal.h"

namespace testprog::torture {

class Board {
 public:
  static constexpr std::size_t kBlockPages = 32;

  explicit Board(std::size_t pages);

  void read(Random& random, const Slot& slot);     // a random block, some of its pages
  void change(Random& random, Slot& slot);         // a random block becomes another version
  void stampede(Random random, const Slot& slot);  // all threads with the same generator
  void rearrange(Random& random, Slot& slot);      // all others stand still
  void check_all(const Slot& slot) const;          // nobody writes meanwhile

  std::shared_mutex& gate() { return gate_; }
  void become_child() { alone_ = true; }
  void diverge(Random& random);  // in a child: private versions

 private:
  struct Block {
    std::shared_mutex lock;
    std::uint64_t version = 0;  // 0: zeros
  };
  [[nodiscard]] std::byte* page(std::size_t i) const { return base_ + i * kPage; }
  [[nodiscard]] std::uint64_t key(std::size_t i) const;
  void check(std::size_t i, const Slot& slot) const;
  void write_block(std::size_t block);

  std::byte* base_;
  std::vector<Block> blocks_;
  std::shared_mutex gate_;
  bool alone_ = false;
  std::uint64_t owner_;
};

}  // namespace testprog::torture
