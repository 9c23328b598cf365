// PageMap: where every page of one client is. A radix tree over extents (2 MiB), in one memfd,
// position independent: directory (8192 entries) -> node (8192) -> leaf (512 entries of 8 bytes,
// one page of memory). Offsets and indices only; a versioned header; sparse, so that only what is
// used costs memory.
//
// Thread safety: entries are atomic words, found without a lock by any thread. Leaves are made and
// freed under the client's mutex (rank 1); a leaf is freed only by the reader, and only while no
// batch is in flight, so a pointer that the evictor holds for a batch stays good. Invariants: a
// page whose leaf does not exist is `none`. out_pages of a leaf = its entries that are not none.
// Units: addresses are bytes, page-aligned; pages are 4 KiB.
// Errors: the map is full (kMostLeaves or kMostNodes): ensure() returns nothing, and the page is
// not evicted.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <vector>

#include "base/mapping.h"
#include "base/os.h"
#include "base/wire.h"
#include "daemon/state/page_entry.h"

namespace foldswap {

inline constexpr std::uint64_t kPage = wire::kPageBytes;
inline constexpr std::uint64_t kAddressEnd = 1ULL << 47;

[[nodiscard]] constexpr std::uint64_t page_floor(std::uint64_t address) {
  return address & ~(kPage - 1);
}
[[nodiscard]] constexpr std::uint64_t extent_floor(std::uint64_t address) {
  return address & ~(wire::kExtentBytes - 1);
}

class PageMap {
 public:
  static Result<std::unique_ptr<PageMap>> create(Os& os);
  // As a daemon left it that has died: the words are the truth, and counts, the tree's spare parts
  // and the like are made anew. Error: it is of another version, or its tree is none.
  static Result<std::unique_ptr<PageMap>> take_over(Os& os, UniqueFd fd);

  [[nodiscard]] Entry load(std::uint64_t address) const {
    const auto* word = find(address);
    return word == nullptr ? Entry() : Entry(word->load(std::memory_order_acquire));
  }
  // The word of a page, or nullptr when its leaf does not exist.
  [[nodiscard]] std::atomic<std::uint64_t>* find(std::uint64_t address) const;
  // Likewise, made when absent. Caller holds the client's mutex. nullptr: the map is full.
  [[nodiscard]] std::atomic<std::uint64_t>* ensure(std::uint64_t address);

  // One compare-and-swap; keeps the count of pages out. False when the entry was not `from` any
  // more.
  bool replace(std::uint64_t address, Entry from, Entry to);

  // Address of the first page at or after `from`, and before `end`, that is not none; `end` if
  // there is none.
  [[nodiscard]] std::uint64_t next_out(std::uint64_t from, std::uint64_t end) const;
  // The end of the last page in [start, end) that is not none; `start` if there is none.
  [[nodiscard]] std::uint64_t end_of_out(std::uint64_t start, std::uint64_t end) const;
  // Entries that are not none in the extents that [start, end) touches.
  [[nodiscard]] std::uint64_t out_in_extents(std::uint64_t start, std::uint64_t end) const;
  [[nodiscard]] std::uint64_t out_total() const;
  // Entries that are evicted for good (neither none, out nor bad).
  [[nodiscard]] std::uint64_t evicted_total() const;

  // Freeing leaves without pages out, in three steps because no system call is made under a lock:
  // take them out of the tree (caller holds the client's mutex, no batch is in flight), give their
  // memory back (no lock), make them available again (mutex).
  [[nodiscard]] std::vector<std::uint32_t> unlink_empty_leaves();
  void punch_leaves(const std::vector<std::uint32_t>& leaves);
  void recycle_leaves(const std::vector<std::uint32_t>& leaves);
  [[nodiscard]] std::uint64_t resident_bytes() const;  // caller holds the client's mutex
  [[nodiscard]] int fd() const { return fd_.get(); }

  static constexpr std::uint32_t kMagic = 0x504d5346, kVersion = 2;  // "FSMP"
  static constexpr std::uint32_t kFan = 8192, kMostNodes = 512, kMostLeaves = 1U << 18;

 private:
  struct Header;
  struct LeafInfo;
  PageMap(Os& os, UniqueFd fd, Mapping mapping);
  [[nodiscard]] Status rebuild();
  [[nodiscard]] Status rebuild_leaf(std::uint32_t leaf, std::uint32_t extent);
  [[nodiscard]] std::uint32_t leaf_of(std::uint64_t address) const;
  [[nodiscard]] std::atomic<std::uint64_t>* leaf_words(std::uint32_t leaf) const;
  [[nodiscard]] std::uint64_t leaf_offset(std::uint32_t leaf) const;

  Os& os_;
  UniqueFd fd_;
  Mapping mapping_;
  Header* header_;
  std::atomic<std::uint32_t>* directory_;
  std::atomic<std::uint32_t>* nodes_;
  LeafInfo* infos_;
};

}  // namespace foldswap
