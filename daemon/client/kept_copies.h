// KeptCopies: what is still on disk of the pages that one client has resident. A page that was read
// back keeps its object; when it is evicted again and still holds the same bytes, that object is
// what its entry names, and nothing is compressed, stored or written.
//
// What is remembered is no state of the page: "the object O holds bytes with the tag T, and this
// page held them once". That stays true whatever happens to the page, so that nobody has to be told
// of writes, moves or forks: whoever evicts it compares tags (PageStore::reuse). What is forgotten
// or outlives its page costs room or work, and never a byte.
//
// The tag is Poly1305 under a key that never leaves this process, over the whole page: for any two
// different pages the chance of equal tags is at most 256 * 8 / 2^106 (Bernstein 2005), whoever
// chose them, because no tag is ever shown. Technique: the swap cache of kernels, which keeps the
// slot of a clean page; there the page table's dirty bit tells, here the bytes do.
//
// Shape: a table of kSlots, found by the low bits of the page number, one page each: neighbours lie
// together, and of two pages that share a slot the later one stays. Memory is touched where it is
// used. Thread safety: any thread; the mutex is a leaf, and nothing is released under it: objects
// that lose their slot are the caller's to unref().
#pragma once

#include <array>
#include <atomic>
#include <bitset>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "base/mapping.h"
#include "base/mutex.h"
#include "daemon/state/page_map.h"
#include "pool/record.h"

namespace foldswap {

class PageTagger {
 public:
  using Tag = std::array<std::uint64_t, 2>;
  PageTagger();  // with a fresh key
  [[nodiscard]] Tag operator()(std::span<const std::byte, kPage> page) const;

 private:
  std::array<unsigned char, 32> key_;
};

class KeptCopies {
 public:
  using Tag = PageTagger::Tag;
  struct Kept {
    ObjectId object = ObjectId::none;
    Tag tag{};
  };

  KeptCopies();

  // The caller's reference goes with the object. Returns what had the slot, or else what there is
  // no memory for; its reference is the caller's now.
  [[nodiscard]] ObjectId put(std::uint64_t page, ObjectId object, Tag tag);
  // Takes out what is kept for the page, and the reference with it.
  [[nodiscard]] std::optional<Kept> take(std::uint64_t page);
  // Takes out what is kept for pages of [start, end), some at a time; nothing: that was all.
  [[nodiscard]] std::vector<ObjectId> take_some(std::uint64_t start, std::uint64_t end);

  [[nodiscard]] std::uint64_t size() const { return size_.load(std::memory_order_relaxed); }
  // Of the table, at most: what was ever touched stays until the client ends.
  [[nodiscard]] std::uint64_t resident_bytes() const {
    return chunks_touched_.load(std::memory_order_relaxed) * kSlotsPerChunk * sizeof(Slot);
  }

  static constexpr std::uint64_t kSlots = 1U << 19;  // 2 GiB of neighbours
  static constexpr std::size_t kMostTaken = 1024;    // by one call

 private:
  // Of the page number the slot's index has the low bits, and `word` the rest.
  struct Slot {
    std::uint64_t word;  // 0: empty
    Tag tag;
  };
  static constexpr std::uint64_t kSlotsPerChunk = 512, kChunks = kSlots / kSlotsPerChunk;
  static constexpr unsigned kObjectBits = 40;
  [[nodiscard]] static std::uint64_t index_of(std::uint64_t page) { return page / kPage % kSlots; }
  [[nodiscard]] static std::uint64_t word_of(std::uint64_t page, ObjectId object) {
    return (page / kPage / kSlots) << kObjectBits | static_cast<std::uint64_t>(object);
  }
  [[nodiscard]] static ObjectId object_of(std::uint64_t word) {
    return ObjectId{word & ((1ULL << kObjectBits) - 1)};
  }
  [[nodiscard]] static std::uint64_t page_of(std::uint64_t word, std::uint64_t index) {
    return ((word >> kObjectBits) * kSlots + index) * kPage;
  }
  [[nodiscard]] ObjectId empty(std::uint64_t index) FS_REQUIRES(mutex_);

  const Mapping table_;
  RankedMutex<LockRank::leaf> mutex_;
  Slot* const slots_ FS_PT_GUARDED_BY(mutex_);                       // nullptr: no memory for it
  std::array<std::uint16_t, kChunks> used_ FS_GUARDED_BY(mutex_){};  // slots, of each chunk
  std::bitset<kChunks> touched_ FS_GUARDED_BY(mutex_);
  std::atomic<std::uint64_t> size_{0}, chunks_touched_{0};
};

}  // namespace foldswap
