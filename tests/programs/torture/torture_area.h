// One thread's memory and the shadow that says what each of its pages must hold. An Area is a range
// of addresses; its pages may be mapped or holes (a hole may belong to anybody: it is never
// touched). Nothing here makes system calls that change the mapping: calls come first, then the
// shadow is told.
//
// What plain Linux guarantees of mremap: it takes a range that lies in one VMA. Pages of one
// `piece` came with one mmap and still lie side by side, each piece has been written to (so that
// both halves of a split share an anon_vma, and merge when their flags are equal again); a run of
// equal piece and equal flags is therefore within one VMA.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "tests/programs/lib/common.h"
#include "tests/programs/torture/torture_contents.h"
#include "tests/programs/torture/torture_journal.h"

namespace testprog::torture {

enum class Is : std::uint8_t {
  hole,   // not mapped by us
  data,   // holds `key`
  maybe,  // MADV_FREE since the last write: `key` or zeros
  guard,  // MADV_GUARD_INSTALL
};

// What splits VMAs.
enum Flag : std::uint8_t {
  kReadOnly = 1,
  kNoAccess = 2,
  kLocked = 4,
  kDontFork = 8,
  kWipeOnFork = 16,
  kHuge = 32,
  kNoHuge = 64,
};

struct PageShadow {
  std::uint64_t key = 0;
  std::uint32_t piece = 0;
  std::uint8_t flags = 0;
  Is is = Is::hole;

  [[nodiscard]] bool mapped() const { return is != Is::hole; }
  [[nodiscard]] bool has(unsigned which) const { return (flags & which) != 0; }
  [[nodiscard]] bool readable() const {
    return (is == Is::data || is == Is::maybe) && !has(kNoAccess);
  }
  [[nodiscard]] bool writable() const { return readable() && !has(kReadOnly); }
};

struct Span {
  std::size_t first = 0;
  std::size_t count = 0;
  [[nodiscard]] std::size_t end() const { return first + count; }
  [[nodiscard]] bool empty() const { return count == 0; }
};

// Who writes: the source of keys that nobody else makes.
class Author {
 public:
  explicit Author(std::uint64_t owner) : owner_(owner & ((1ULL << kOwnerBits) - 1)) {}
  [[nodiscard]] std::uint64_t owner() const { return owner_; }
  // 0 now and then: zeros are contents, too.
  std::uint64_t next_key();
  [[nodiscard]] Author child();  // another owner, the same in every replay

 private:
  std::uint64_t owner_;
  std::uint64_t serial_ = 0;
};

using Accepts = std::function<bool(const PageShadow&)>;

class Area {
 public:
  Area(std::byte* base, std::size_t pages) : base_(base), pages_(pages) {}

  [[nodiscard]] std::size_t size() const { return pages_.size(); }
  [[nodiscard]] std::byte* at(std::size_t i) const { return base_ + i * kPage; }
  [[nodiscard]] PageShadow& operator[](std::size_t i) { return pages_[i]; }
  [[nodiscard]] const PageShadow& operator[](std::size_t i) const { return pages_[i]; }
  [[nodiscard]] bool empty() const;  // nothing is mapped

  // A span of at most `most` pages that are all accepted, or an empty one.
  [[nodiscard]] Span pick(Random& random, std::size_t most, const Accepts& accepts) const;
  // The whole run of equal piece and flags around a random mapped page.
  [[nodiscard]] Span pick_run(Random& random) const;
  // Calls for each maximal span that is accepted.
  void each_span(const Accepts& accepts, const std::function<void(Span)>& call) const;

  void write(std::size_t i, Author& author);  // must be writable
  // Contents become zeros where there are any; guards stay.
  void zero(Span span);
  // Freshly mapped: a piece of its own, zeros.
  void map_new(Span span, std::uint8_t flags = 0);
  // Gone; what is left behind it is another piece.
  void unmap(Span span);
  void set_flags(Span span, unsigned add, unsigned take);
  // After mremap: takes over the pages of another place. They must not be mapped here any more, as
  // far as this shadow knows. Returns nothing: the source tells its own side by unmap().
  void receive(std::size_t first, const std::vector<PageShadow>& pages);
  [[nodiscard]] std::vector<PageShadow> copy_of(Span span) const;
  void grow(std::size_t pages) { pages_.resize(pages_.size() + pages); }
  // Each piece has to have been written to: see above.
  void touch_piece(std::size_t first, Author& author);
  void detach_behind(std::size_t end);  // what follows `end` is no longer of the piece before it

  // This process is a forked child: what it sees of the parent's area.
  void inherit(Author& author);

  void check(std::size_t i, const Slot& slot) const;  // ends the process if a byte is wrong
  void check_span(Span span, const Slot& slot) const;
  void check_all(const Slot& slot) const { check_span({0, size()}, slot); }

 private:
  std::byte* base_;
  std::vector<PageShadow> pages_;
};

// Another number for each piece of any area.
[[nodiscard]] std::uint32_t new_piece();

}  // namespace testprog::torture
