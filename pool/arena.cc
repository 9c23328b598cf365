#include "pool/arena.h"

#include <bit>
#include <cassert>

namespace foldswap {

Arena::Arena(const Table& table)
    : table_(table),
      per_page_(static_cast<std::uint32_t>(kTablePageBytes / table.item_bytes)),
      first_index_(header_items(table.item_bytes)),
      capacity_(per_page_ - first_index_),
      present_(table.bitmaps),
      attached_(table.bitmaps + bitmap_words(table.pages)) {
  assert(std::has_single_bit(table.item_bytes) && table.item_bytes >= kItemBytesMin);
}

std::uint32_t Arena::take() {
  std::uint32_t page = table_.state->room_head;
  if (page == kNoPage) page = table_.state->empty_head;
  if (page == kNoPage) return kNoItem;
  TablePageHeader& h = header(page);
  for (std::uint32_t word = 0; word < 4; ++word) {
    const auto bit = static_cast<std::uint32_t>(std::countr_one(h.used[word]));
    if (bit == 64) continue;
    h.used[word] |= std::uint64_t{1} << bit;
    ++h.live;
    relist(page);
    return page * per_page_ + word * 64 + bit;
  }
  return kNoItem;
}

void Arena::give(std::uint32_t item) {
  const std::uint32_t page = item / per_page_, index = item % per_page_;
  TablePageHeader& h = header(page);
  h.used[index / 64] &= ~(std::uint64_t{1} << (index % 64));
  --h.live;
  relist(page);
}

bool Arena::exists(std::uint32_t item) const {
  const std::uint32_t page = item / per_page_, local = page / table_.shards;
  return page % table_.shards == table_.shard && local < table_.pages &&
         item % per_page_ >= first_index_ && attached(local);
}

bool Arena::live(std::uint32_t item) const {
  const std::uint32_t index = item % per_page_;
  return exists(item) && (header(item / per_page_).used[index / 64] >> (index % 64) & 1) != 0;
}

std::uint32_t Arena::claim() {
  const std::uint32_t words = bitmap_words(table_.pages);
  for (std::uint32_t word = table_.state->search_hint; word < words; ++word) {
    const auto bit = static_cast<std::uint32_t>(std::countr_one(present_[word]));
    table_.state->search_hint = word;
    if (bit == 64) continue;
    const std::uint32_t local = word * 64 + bit;
    if (local >= table_.pages) return kNoPage;
    present_[word] |= std::uint64_t{1} << bit;
    ++table_.state->held_pages;
    return local * table_.shards + table_.shard;
  }
  return kNoPage;
}

// The places that the header covers, and those that do not exist, count as used.
Arena::UsedBits Arena::no_items() const {
  UsedBits used{};
  for (std::uint32_t i = 0; i < 256; ++i) {
    if (i < first_index_ || i >= per_page_) used[i / 64] |= std::uint64_t{1} << (i % 64);
  }
  return used;
}

void Arena::attach(std::uint32_t page) {
  TablePageHeader& h = header(page);
  h = TablePageHeader{};
  h.used = no_items();
  h.magic = TablePageHeader::kMagic;
  const std::uint32_t local = page / table_.shards;
  attached_[local / 64] |= std::uint64_t{1} << (local % 64);
  link(page, PageList::empty);
}

void Arena::forget(std::uint32_t page) {
  const std::uint32_t local = page / table_.shards;
  present_[local / 64] &= ~(std::uint64_t{1} << (local % 64));
  --table_.state->held_pages;
  if (local / 64 < table_.state->search_hint) table_.state->search_hint = local / 64;
}

std::uint32_t Arena::detach_empty() {
  const std::uint32_t page = table_.state->empty_head;
  if (page == kNoPage) return kNoPage;
  unlink(page);
  header(page).magic = 0;
  const std::uint32_t local = page / table_.shards;
  attached_[local / 64] &= ~(std::uint64_t{1} << (local % 64));
  return page;
}

void Arena::restart() {
  *table_.state = ArenaState{};
  for_each_attached([&](std::uint32_t) { ++table_.state->held_pages; });
  for_each_held_unattached([&](std::uint32_t) { ++table_.state->held_pages; });
  for (std::uint32_t w = 0; w < bitmap_words(table_.pages); ++w) present_[w] |= attached_[w];
}

void Arena::restore(std::uint32_t page, const UsedBits& items) {
  TablePageHeader& h = header(page);
  h.magic = TablePageHeader::kMagic;
  UsedBits used = no_items();
  std::uint32_t live = 0;
  for (std::size_t w = 0; w < used.size(); ++w) {
    live += static_cast<std::uint32_t>(std::popcount(items[w] & ~used[w]));
    used[w] |= items[w];
  }
  h.used = used;
  h.live = static_cast<std::uint16_t>(live);
  h.list = PageList::none;
  link(page, list_for(live));
}

std::uint32_t& Arena::head(PageList list) const {
  return list == PageList::room ? table_.state->room_head : table_.state->empty_head;
}

PageList Arena::list_for(std::uint32_t live) const {
  if (live == 0) return PageList::empty;
  return live == capacity_ ? PageList::none : PageList::room;
}

void Arena::relist(std::uint32_t page) {
  const TablePageHeader& h = header(page);
  const PageList want = list_for(h.live);
  if (want == h.list) return;
  unlink(page);
  link(page, want);
}

void Arena::link(std::uint32_t page, PageList list) {
  TablePageHeader& h = header(page);
  h.list = list;
  if (list == PageList::none) return;
  std::uint32_t& first = head(list);
  h.next = first;
  h.prev = kNoPage;
  if (first != kNoPage) header(first).prev = page;
  first = page;
  if (list == PageList::empty) ++table_.state->empty_pages;
}

void Arena::unlink(std::uint32_t page) {
  TablePageHeader& h = header(page);
  if (h.list == PageList::none) return;
  if (h.prev == kNoPage) {
    head(h.list) = h.next;
  } else {
    header(h.prev).next = h.next;
  }
  if (h.next != kNoPage) header(h.next).prev = h.prev;
  if (h.list == PageList::empty) --table_.state->empty_pages;
  h.list = PageList::none;
}

const char* Arena::validate_list(PageList list, std::uint32_t& count) const {
  std::uint32_t before = kNoPage;
  for (std::uint32_t page = head(list); page != kNoPage; page = header(page).next) {
    const TablePageHeader& h = header(page);
    if (h.magic != TablePageHeader::kMagic)
      return "table list leads to a page that is not attached";
    if (h.list != list) return "table page hangs on another list than it says";
    if (h.prev != before) return "table list: previous link is wrong";
    if (++count > table_.pages) return "table list has a cycle";
    before = page;
  }
  return nullptr;
}

const char* Arena::validate() const {
  std::uint32_t room = 0, empty = 0, held = 0;
  if (const char* wrong = validate_list(PageList::room, room)) return wrong;
  if (const char* wrong = validate_list(PageList::empty, empty)) return wrong;
  if (empty != table_.state->empty_pages) return "count of empty table pages is wrong";
  for (std::uint32_t local = 0; local < table_.pages; ++local) {
    if ((present_[local / 64] >> (local % 64) & 1) == 0) continue;
    ++held;
    if (!attached(local)) continue;  // claimed or detached: another thread's
    const TablePageHeader& h = header(local * table_.shards + table_.shard);
    int used = 0;
    for (const std::uint64_t word : h.used) used += std::popcount(word);
    if (static_cast<std::uint32_t>(used) != h.live + 256 - capacity_) {
      return "table page: live count and bitmap differ";
    }
    if (h.list == PageList::room) --room;
    if (h.list == PageList::empty) --empty;
    if ((h.live == 0) != (h.list == PageList::empty)) return "empty table page is on a wrong list";
    if ((h.live == capacity_) != (h.list == PageList::none)) return "full table page is listed";
  }
  if (room != 0 || empty != 0) return "table pages on lists and table pages held differ";
  if (held != table_.state->held_pages) return "count of held table pages is wrong";
  return nullptr;
}

}  // namespace foldswap
