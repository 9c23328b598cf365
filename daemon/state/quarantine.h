// Ranges that a REMOVE event announced as going (DESIGN §5, HAZARDS 16). The event comes *before*
// the kernel drops the pages: one evicted in between would come back from the dead. So such a range
// is not evicted until
//   1. `evict.quarantine_s` have passed, and
//   2. every thread that existed at the event has since been seen outside the call that raised it
//   (ThreadWitness).
// Lives in the client's state record, so that it outlasts the daemon, which may die in the middle
// of any change of it. Bounded: when it is full the
// two nearest ranges become one (conservative: more is quarantined, never less).
//
// Thread safety: none; the client's mutex guards it.
#pragma once

#include <cstdint>

#include "daemon/state/state.h"

namespace foldswap {

class QuarantineList {
 public:
  explicit QuarantineList(ClientRecord& record) : record_(record) {}

  void add(std::uint64_t start, std::uint64_t end, std::uint64_t now_us);
  [[nodiscard]] bool contains(std::uint64_t page) const;
  // End of the quarantined range that holds `page`, or `page` itself when it is in none.
  [[nodiscard]] std::uint64_t end_of(std::uint64_t page) const;
  // Start of the first range after `page`; kNone when there is none.
  [[nodiscard]] std::uint64_t next_after(std::uint64_t page) const;
  [[nodiscard]] bool empty() const { return now().count == 0; }
  [[nodiscard]] std::uint64_t pages() const;

  // A snapshot of the client's threads with this generation was taken: ranges without a witness get
  // it.
  void witnessed(std::uint64_t generation);
  // Whoever took the snapshots is dead.
  void forget_witnesses();
  // Every thread of snapshot `generation` (and of older ones) has been seen elsewhere; ranges older
  // than `min_age_us` with such a witness are let go.
  void expire(std::uint64_t generation, std::uint64_t now_us, std::uint64_t min_age_us);

  static constexpr std::uint64_t kNone = ~std::uint64_t{0};

 private:
  [[nodiscard]] const QuarantineTable& now() const {
    return record_.quarantine[record_.quarantine_now.load(std::memory_order_acquire)];
  }
  template <typename Edit>
  void change(Edit edit);
  ClientRecord& record_;
};

}  // namespace foldswap
