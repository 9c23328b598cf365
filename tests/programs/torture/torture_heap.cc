#include "tests/programs/torture/torture_heap.h"

#include <malloc.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace testprog::torture {
namespace {

// Word i of a block; the same for each length, so that realloc keeps a prefix. Compressible.
std::uint64_t word(std::uint64_t tag, std::size_t i) {
  return i % 8 == 0 ? tag * 0x9e3779b97f4a7c15ULL + i : tag + i / 64;
}

void fill_words(unsigned char* start, std::uint64_t tag, std::size_t from, std::size_t bytes) {
  for (std::size_t at = from; at < bytes; at += 8) {
    const std::uint64_t value = word(tag, at / 8);
    std::memcpy(start + at, &value, std::min<std::size_t>(8, bytes - at));
  }
}

std::size_t draw_size(Random& random) {
  switch (random.below(8)) {
    case 0:
      return 64 * 1024 + random.below(1 << 20);  // a mapping of its own, most of the time
    case 1:
    case 2:
      return 4096 + random.below(60 * 1024);
    default:
      return 16 + random.below(2000);
  }
}

}  // namespace

void Heap::check(const Block& block, std::size_t bytes, const Slot& slot) {
  for (std::size_t at = 0; at < bytes; at += 8) {
    const std::uint64_t value = word(block.tag, at / 8);
    if (std::memcmp(block.start + at, &value, std::min<std::size_t>(8, bytes - at)) == 0) continue;
    std::uint64_t found = 0;
    std::memcpy(&found, block.start + at, std::min<std::size_t>(8, bytes - at));
    std::array<char, 200> text{};
    std::snprintf(text.data(), text.size(),
                  "heap block %p of %zu bytes: at %zu (%p) %016llx instead of %016llx",
                  static_cast<void*>(block.start), block.bytes, at,
                  static_cast<void*>(block.start + at), static_cast<unsigned long long>(found),
                  static_cast<unsigned long long>(value));
    fail(slot, text.data());
  }
}

void Heap::add(Random& random, Slot& slot) {
  const std::size_t bytes = draw_size(random);
  slot.note("malloc", std::uint64_t{0}, bytes / kPage, bytes);
  void* memory = random.below(2) == 0 ? std::malloc(bytes) : std::calloc(1, bytes);
  if (memory == nullptr) fail_call(slot, "malloc", errno);
  blocks_.push_back({static_cast<unsigned char*>(memory), bytes, random.next()});
  total_bytes_ += bytes;
  fill_words(blocks_.back().start, blocks_.back().tag, 0, bytes);
}

void Heap::resize(Random& random, Slot& slot) {
  Block& block = blocks_[random.below(blocks_.size())];
  const std::size_t bytes = draw_size(random);
  slot.note("realloc", block.start, block.bytes / kPage, bytes);
  void* memory = std::realloc(block.start, bytes);
  if (memory == nullptr) fail_call(slot, "realloc", errno);
  const std::size_t kept = std::min(bytes, block.bytes);
  total_bytes_ += bytes - block.bytes;
  block.start = static_cast<unsigned char*>(memory);
  block.bytes = bytes;
  check(block, kept, slot);
  fill_words(block.start, block.tag, kept / 8 * 8, bytes);
}

void Heap::remove(Random& random, Slot& slot) {
  std::swap(blocks_[random.below(blocks_.size())], blocks_.back());
  const Block block = blocks_.back();
  slot.note("free", block.start, block.bytes / kPage);
  check(block, block.bytes, slot);
  std::free(block.start);
  total_bytes_ -= block.bytes;
  blocks_.pop_back();
}

void Heap::churn(Random& random, Slot& slot) {
  for (int n = 0; n < 12; ++n) {
    const std::uint64_t draw = random.below(8);
    if (blocks_.empty() || (draw < 4 && total_bytes_ < most_bytes_)) {
      add(random, slot);
    } else if (draw < 6) {
      resize(random, slot);
    } else {
      remove(random, slot);
    }
  }
  while (total_bytes_ > most_bytes_) remove(random, slot);
  if (random.below(16) == 0) {
    slot.note("malloc_trim");
    malloc_trim(random.below(1 << 16));
  }
}

void Heap::check_all(const Slot& slot) const {
  for (const Block& block : blocks_) check(block, block.bytes, slot);
}

}  // namespace testprog::torture
