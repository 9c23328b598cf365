// Starvation: what a client's reader knows and does about a client that is starved (HAZARDS 5) and
// whose threads cannot be stopped, because somebody else traces them: a debugger, strace
// (HAZARDS 39). What they discard over and over is then unregistered, so that it raises no event
// any more; fault_service_starved.cc does that.
//
// Thread safety: the reader's alone. Nothing here allocates. Invariant: `given_up` holds all ranges
// that were unregistered this way since PROBE last found no change under way. What a move carries
// there is registered, so a REMAP onto one of them either began after that, and then its caller has
// announced itself and asked first (`asked`), or the page map does not tell any more what should
// be read there.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

#include "base/wire.h"

namespace foldswap {

// The last so many ranges that were noted; those that overlap or adjoin become one.
template <std::size_t kMost>
class LastRanges {
 public:
  [[nodiscard]] std::span<const wire::Range> all() const { return {ranges_.data(), count_}; }
  [[nodiscard]] bool full() const { return count_ == kMost; }
  [[nodiscard]] bool overlaps(const wire::Range& range) const {
    return std::ranges::any_of(all(), [&](const wire::Range& r) {
      return range.start < r.start + r.bytes && r.start < range.start + range.bytes;
    });
  }
  // True: what there was has grown. False: it is one more.
  bool note(wire::Range range) {
    bool grown = false;
    for (std::size_t i = 0; i < count_;) {
      const wire::Range& r = ranges_[i];
      if (range.start > r.start + r.bytes || r.start > range.start + range.bytes) {
        ++i;
        continue;
      }
      const std::uint64_t end = std::max(range.start + range.bytes, r.start + r.bytes);
      range.start = std::min(range.start, r.start);
      range.bytes = end - range.start;
      grown = true;
      remove(i);
    }
    ranges_[full() ? next_++ % kMost : count_++] = range;
    return grown;
  }
  void remove(std::size_t i) { ranges_[i] = ranges_[--count_]; }
  void clear() { count_ = next_ = 0; }

 private:
  std::array<wire::Range, kMost> ranges_{};
  std::size_t count_ = 0, next_ = 0;
};

struct Starvation {
  LastRanges<64> discarded;  // by REMOVEs that were read while it starved
  LastRanges<256> given_up;
  LastRanges<128> asked;  // what mremap calls have had unified since anything was given up
  std::uint64_t second_us = 0, in_second = 0;  // so many were given up in this second
  std::uint64_t hold_until_us = 0;             // Mailbox::layout_daemon is up until then; 0: not
  std::uint64_t next_hold_us = 0;
  std::uint64_t said_us = 0;
};

}  // namespace foldswap
