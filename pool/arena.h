// Arena: hands out fixed-size items (records, frame descriptors) by number from a
// table in a memory file, page by page, and tells which pages of the table nothing lives in any
// more.
//
// One Arena is one shard's view: shard s of n owns the table pages p with p % n == s. An item's
// number is page * items_per_page + index; the first 48 bytes of every page are its header, so no
// item ever has number 0. Numbers are stable until the item is given back. Technique: slab
// allocation with a bitmap in the page (Bonwick 1994).
//
// A page's life: absent -> claim -> claimed -> (memory allocated by the caller, outside locks) ->
// attach
//   -> attached -> all items given back -> detach_empty -> detached -> (punched) -> forget ->
//   absent
// Whoever takes a dead owner's table over believes the two bitmaps of pages, and of a page the bits
// of what is in use as far as it has no better knowledge; restart() and restore() make all of the
// rest anew. The caller does the two system calls: the arena itself touches attached pages only, so
// a table can never fault on memory that the system has not granted.
//
// Invariants: a page is on the room list when 0 < live < capacity, on the empty list when live ==
// 0, on
//   none when it is full. held_pages counts claimed, attached and detached pages.
// Thread safety: none; every call needs the lock of the shard.
// Errors: kNoItem / kNoPage when there is nothing to give.
#pragma once

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <span>

#include "base/page.h"

namespace foldswap {

inline constexpr std::uint64_t kTablePageBytes = kPageBytes;
inline constexpr std::uint32_t kNoItem = 0;
inline constexpr std::uint32_t kNoPage = ~std::uint32_t{0};

// What an arena keeps about itself, in the shard's state page.
struct ArenaState {
  std::uint32_t room_head = kNoPage;
  std::uint32_t empty_head = kNoPage;
  std::uint32_t held_pages = 0;
  std::uint32_t empty_pages = 0;
  std::uint32_t search_hint = 0;  // no absent page lies in a bitmap word before this one
};

enum class PageList : std::uint16_t { none = 0, room = 1, empty = 2 };

struct TablePageHeader {
  static constexpr std::uint32_t kMagic = 0x41535346;  // "FSSA"; 0 when not attached
  std::uint32_t magic;
  std::uint32_t next, prev;
  std::uint16_t live;
  PageList list;
  std::array<std::uint64_t, 4> used;  // one bit per item
};
static_assert(sizeof(TablePageHeader) == 48);
// Of a page of the table, the header's.
[[nodiscard]] constexpr std::uint32_t header_items(std::uint32_t item_bytes) {
  return (static_cast<std::uint32_t>(sizeof(TablePageHeader)) + item_bytes - 1) / item_bytes;
}

class Arena {
 public:
  static constexpr std::uint32_t kItemBytesMin = kTablePageBytes / 256;

  struct Table {
    std::byte* base = nullptr;     // of the whole table, all shards
    std::uint32_t item_bytes = 0;  // power of two, 16..64
    std::uint32_t shards = 1;
    std::uint32_t shard = 0;
    std::uint32_t pages = 0;  // the most this shard may own
    ArenaState* state = nullptr;
    std::uint64_t* bitmaps = nullptr;  // two of bitmap_words(pages): not absent; attached
  };
  [[nodiscard]] static constexpr std::uint32_t bitmap_words(std::uint32_t pages) {
    return (pages + 63) / 64;
  }
  explicit Arena(const Table& table);

  // An unused item, or kNoItem when a page must be added first. Its bytes are whatever they were.
  [[nodiscard]] std::uint32_t take();
  void give(std::uint32_t item);
  // True for an item that is handed out and belongs to this shard; any number may be asked.
  [[nodiscard]] bool live(std::uint32_t item) const;
  // Handed out or not.
  [[nodiscard]] bool exists(std::uint32_t item) const;
  [[nodiscard]] std::byte* at(std::uint32_t item) const {
    return table_.base + std::size_t{item} * table_.item_bytes;
  }

  [[nodiscard]] std::uint32_t claim();
  void attach(std::uint32_t page);
  void forget(std::uint32_t page);
  [[nodiscard]] std::uint32_t detach_empty();

  // Taking over: restart(), then restore() for every attached page, and forget() for every other
  // one that is held, when it has no memory any more.
  using UsedBits = std::array<std::uint64_t, 4>;  // one bit per item of a page
  void restart();
  void restore(std::uint32_t page, const UsedBits& items);
  // Calls f(page).
  template <typename F>
  void for_each_attached(F f) const;
  template <typename F>
  void for_each_held_unattached(F f) const;

  [[nodiscard]] std::uint32_t held_pages() const { return table_.state->held_pages; }
  [[nodiscard]] std::uint32_t empty_pages() const { return table_.state->empty_pages; }
  [[nodiscard]] std::uint32_t first_index() const { return first_index_; }
  [[nodiscard]] std::uint32_t items_per_page() const { return per_page_; }

  // Calls f(item) for everything handed out.
  template <typename F>
  void for_each_live(F f) const;
  // The same for one page of ours, the next in [local, end); returns where to go on.
  template <typename F>
  [[nodiscard]] std::uint32_t for_each_live_of_next_page(std::uint32_t local, std::uint32_t end,
                                                         F f) const;
  [[nodiscard]] std::uint32_t pages_end() const { return table_.pages; }
  // What is wrong with the lists and counts, or nullptr.
  [[nodiscard]] const char* validate() const;

 private:
  [[nodiscard]] TablePageHeader& header(std::uint32_t page) const {
    return *reinterpret_cast<TablePageHeader*>(table_.base + std::size_t{page} * kTablePageBytes);
  }
  [[nodiscard]] std::uint32_t& head(PageList list) const;
  [[nodiscard]] PageList list_for(std::uint32_t live) const;
  [[nodiscard]] UsedBits no_items() const;
  template <typename F>
  void for_each_page(std::uint32_t word, std::uint64_t bits, F f) const;
  // Only an attached page may be looked at: reading another one would make the system give it
  // memory.
  [[nodiscard]] bool attached(std::uint32_t local) const {
    return (attached_[local / 64] >> (local % 64) & 1) != 0;
  }
  void link(std::uint32_t page, PageList list);
  void unlink(std::uint32_t page);
  void relist(std::uint32_t page);
  [[nodiscard]] const char* validate_list(PageList list, std::uint32_t& count) const;

  Table table_;
  std::uint32_t per_page_;
  std::uint32_t first_index_;
  std::uint32_t capacity_;  // items of one page
  std::uint64_t* present_;  // bit per page: not absent
  std::uint64_t* attached_;
};

template <typename F>
std::uint32_t Arena::for_each_live_of_next_page(std::uint32_t local, std::uint32_t end, F f) const {
  for (; local < end; ++local) {
    if (attached_[local / 64] == 0) {
      local |= 63;  // nothing in the whole word
      continue;
    }
    if (!attached(local)) continue;
    const std::uint32_t page = local * table_.shards + table_.shard;
    for (std::uint32_t i = first_index_; i < per_page_; ++i) {
      if ((header(page).used[i / 64] >> (i % 64) & 1) != 0) f(page * per_page_ + i);
    }
    return local + 1;
  }
  return end;
}

template <typename F>
void Arena::for_each_page(std::uint32_t word, std::uint64_t bits, F f) const {
  for (; bits != 0; bits &= bits - 1) {
    const std::uint32_t local = word * 64 + static_cast<std::uint32_t>(std::countr_zero(bits));
    if (local >= table_.pages) return;  // nobody's
    f(local * table_.shards + table_.shard);
  }
}

template <typename F>
void Arena::for_each_attached(F f) const {
  for (std::uint32_t w = 0; w < bitmap_words(table_.pages); ++w) for_each_page(w, attached_[w], f);
}

template <typename F>
void Arena::for_each_held_unattached(F f) const {
  for (std::uint32_t w = 0; w < bitmap_words(table_.pages); ++w) {
    for_each_page(w, present_[w] & ~attached_[w], f);
  }
}

template <typename F>
void Arena::for_each_live(F f) const {
  for (std::uint32_t local = 0; local < table_.pages;) {
    local = for_each_live_of_next_page(local, table_.pages, f);
  }
}

}  // namespace foldswap
