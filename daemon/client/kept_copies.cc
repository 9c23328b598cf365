#include "daemon/client/kept_copies.h"

#include <sodium.h>

#include <algorithm>
#include <stdexcept>
#include <utility>

namespace foldswap {

PageTagger::PageTagger() {
  static_assert(crypto_onetimeauth_poly1305_KEYBYTES == sizeof(key_) &&
                crypto_onetimeauth_poly1305_BYTES == sizeof(Tag));
  if (sodium_init() < 0) throw std::runtime_error("libsodium does not start");
  crypto_onetimeauth_poly1305_keygen(key_.data());
}

PageTagger::Tag PageTagger::operator()(std::span<const std::byte, kPage> page) const {
  Tag tag;
  (void)crypto_onetimeauth_poly1305(reinterpret_cast<unsigned char*>(tag.data()),
                                    reinterpret_cast<const unsigned char*>(page.data()),
                                    page.size(), key_.data());
  return tag;
}

KeptCopies::KeptCopies()
    : table_(Mapping::anonymous(kSlots * sizeof(Slot)).value_or(Mapping())),
      slots_(table_.valid() ? table_.as<Slot>() : nullptr) {}

ObjectId KeptCopies::empty(std::uint64_t index) {
  const std::uint64_t word = std::exchange(slots_[index].word, 0);
  if (word == 0) return ObjectId::none;
  --used_[index / kSlotsPerChunk];
  size_.fetch_sub(1, std::memory_order_relaxed);
  return object_of(word);
}

ObjectId KeptCopies::put(std::uint64_t page, ObjectId object, Tag tag) {
  const std::uint64_t index = index_of(page), chunk = index / kSlotsPerChunk;
  const RankedLock lock(mutex_);
  if (slots_ == nullptr) return object;
  const ObjectId before = empty(index);
  slots_[index] = {word_of(page, object), tag};
  ++used_[chunk];
  size_.fetch_add(1, std::memory_order_relaxed);
  if (!touched_[chunk]) chunks_touched_.fetch_add(1, std::memory_order_relaxed);
  touched_[chunk] = true;
  return before;
}

std::optional<KeptCopies::Kept> KeptCopies::take(std::uint64_t page) {
  if (size() == 0) return std::nullopt;
  const std::uint64_t index = index_of(page);
  const RankedLock lock(mutex_);
  if (used_[index / kSlotsPerChunk] == 0) return std::nullopt;
  const Slot& slot = slots_[index];
  if (slot.word == 0 || page_of(slot.word, index) != page) return std::nullopt;
  const Tag tag = slot.tag;
  return Kept{empty(index), tag};
}

std::vector<ObjectId> KeptCopies::take_some(std::uint64_t start, std::uint64_t end) {
  std::vector<ObjectId> taken;
  if (size() == 0 || start >= end) return taken;
  // Of a range that is longer than the table every slot is looked at once.
  const std::uint64_t first = start / kPage, pages = std::min((end - start) / kPage, kSlots);
  const RankedLock lock(mutex_);
  for (std::uint64_t i = 0; i < pages && taken.size() < kMostTaken;) {
    const std::uint64_t index = (first + i) % kSlots;
    if (used_[index / kSlotsPerChunk] == 0) {
      i += kSlotsPerChunk - index % kSlotsPerChunk;
      continue;
    }
    const std::uint64_t word = slots_[index].word;
    if (word != 0 && page_of(word, index) - start < end - start) taken.push_back(empty(index));
    ++i;
  }
  return taken;
}

}  // namespace foldswap
