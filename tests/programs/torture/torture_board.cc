#include "tests/programs/torture/torture_board.h"

#include <sys/mman.h>

#include <algorithm>
#include <cerrno>
#include <mutex>
#include <string>

#include "tests/programs/torture/torture_contents.h"

namespace testprog::torture {
namespace {
constexpr std::uint64_t kOwner = 0xb0a4d0;
}

Board::Board(std::size_t pages)
    : base_(map_bytes(pages / kBlockPages * kBlockPages * kPage)),
      blocks_(pages / kBlockPages),
      owner_(kOwner) {
  for (std::size_t b = 0; b < blocks_.size(); ++b) {
    blocks_[b].version = b % 8 == 7 ? 0 : 1;  // some holes
    if (blocks_[b].version != 0) write_block(b);
  }
}

std::uint64_t Board::key(std::size_t i) const {
  const std::uint64_t version = blocks_[i / kBlockPages].version;
  if (version == 0) return 0;
  return make_key(owner_, version << 16 | i, draw_look(Random(version << 16 | i).next()));
}

void Board::write_block(std::size_t block) {
  for (std::size_t i = block * kBlockPages; i < (block + 1) * kBlockPages; ++i) {
    fill(page(i), key(i));
  }
}

void Board::check(std::size_t i, const Slot& slot) const {
  if (holds(page(i), key(i))) return;
  fail(slot, "page " + std::to_string(i) + " of the board, block version " +
                 std::to_string(blocks_[i / kBlockPages].version) + ", expected " +
                 name_key(key(i)) + ": " + describe(page(i), key(i)));
}

void Board::read(Random& random, const Slot& slot) {
  const std::size_t block = random.below(blocks_.size());
  const std::size_t first = block * kBlockPages + random.below(kBlockPages);
  const std::size_t count =
      std::min<std::size_t>(1 + random.below(8), (block + 1) * kBlockPages - first);
  std::shared_lock<std::shared_mutex> lock(blocks_[block].lock, std::defer_lock);
  if (!alone_) lock.lock();
  for (std::size_t i = first; i < first + count; ++i) check(i, slot);
}

void Board::change(Random& random, Slot& slot) {
  const std::size_t block = random.below(blocks_.size());
  const std::uint64_t draw = random.below(4);
  std::shared_lock<std::shared_mutex> gate(gate_, std::defer_lock);
  std::unique_lock<std::shared_mutex> lock(blocks_[block].lock, std::defer_lock);
  if (!alone_) {
    gate.lock();
    lock.lock();
  }
  std::byte* start = page(block * kBlockPages);
  slot.note("change the board", start, kBlockPages, draw);
  static std::uint64_t versions = 1;  // never one twice
  const std::uint64_t version = __atomic_add_fetch(&versions, 1, __ATOMIC_RELAXED);
  check(block * kBlockPages, slot);
  if (draw == 0 && madvise(start, kBlockPages * kPage, MADV_DONTNEED) != 0) {
    fail_call(slot, "madvise(DONTNEED) of the board", errno);
  }
  blocks_[block].version = draw == 0 ? 0 : version;
  if (draw != 0) write_block(block);
}

void Board::stampede(Random random, const Slot& slot) {
  for (int n = 0; n < 12; ++n) {
    const std::size_t block = random.below(blocks_.size());
    std::shared_lock<std::shared_mutex> lock(blocks_[block].lock, std::defer_lock);
    if (!alone_) lock.lock();
    for (std::size_t i = 0; i < kBlockPages; ++i) check(block * kBlockPages + i, slot);
  }
}

void Board::rearrange(Random& random, Slot& slot) {
  const std::size_t bytes = blocks_.size() * kBlockPages * kPage;
  if (random.below(3) == 0) {
    std::byte* target = map_bytes(bytes);
    slot.note("move the board", target, bytes / kPage);
    void* moved = mremap(base_, bytes, bytes, MREMAP_MAYMOVE | MREMAP_FIXED, target);
    if (moved == MAP_FAILED) fail_call(slot, "mremap of the board", errno);
    base_ = target;
  }
  if (random.below(3) == 0) {
    const std::size_t half = bytes / 2 / kPage * kPage;
    slot.note("protect the board", base_, half / kPage);
    for (const int protection : {PROT_READ, PROT_READ | PROT_WRITE}) {
      if (mprotect(base_, half, protection) != 0) fail_call(slot, "mprotect", errno);
      for (int n = 0; n < 32; ++n) check(random.below(bytes / kPage), slot);
    }
  }
}

void Board::check_all(const Slot& slot) const {
  for (std::size_t i = 0; i < blocks_.size() * kBlockPages; ++i) check(i, slot);
}

void Board::diverge(Random& random) {
  // The keys of all blocks change their owner with the first write; so all of them are written.
  if (random.below(4) != 0) return;
  owner_ = kOwner ^ (1 + random.below(0xffff));
  for (std::size_t b = 0; b < blocks_.size(); ++b) {
    if (blocks_[b].version != 0) write_block(b);
  }
}

}  // namespace testprog::torture
