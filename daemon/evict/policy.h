// Which pages leave a client next. A seam: other sources of "cold" (RWP mode, DAMON, extent heat by
// MADV_COLD) become other policies later; the evictor knows only this interface. Thread safety: the
// evictor's.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "base/os.h"
#include "base/wire.h"
#include "daemon/client/client.h"
#include "daemon/client/map_limit.h"

namespace foldswap {

struct EvictionPlan {
  std::vector<wire::Run> runs;    // in order, at most kMaxRuns
  std::vector<wire::Range> regs;  // at most kMaxRegs
  std::uint32_t pages = 0;        // sum over runs
  std::uint32_t splits = 0;       // mappings that registering `regs` may add
  bool turn_ended = false;        // the clock passed the end of the address space
  bool unfinished = false;        // it found nothing yet, and goes on where the clock stands
};

struct EvictionWish {
  std::uint32_t pages = 0;        // at most kHalfPages
  bool explicit_reclaim = false;  // an admin asked: heat and population do not count
  bool relaxed = false;           // a whole turn found nothing: sparse extents may go, too
};

class EvictionPolicy {
 public:
  virtual ~EvictionPolicy() = default;
  // `never` : sorted ranges that must stay (thread control blocks, robust mutexes, the library's
  // own memory).
  virtual EvictionPlan choose(Client& client, const EvictionWish& wish,
                              const std::vector<wire::Range>& never) = 0;
};

// A clock over the address space: present pages in address order, long runs whole, with a second
// chance for pages that were faulted in since (two heat bits, decayed as the hand passes).
//
// A dense mapping is registered whole, so that mremap finds it in one state. Of a sparse one a
// slice of 2 MiB at a time, while mappings are not scarce (MapLimit); then all of it up to and with
// the slice, which merges with what is registered before it; and when nothing may be split any
// more, all of it. However large and empty a mapping is, what lies behind it is found soon: the
// kernel passes over page tables that do not exist. A plan that has looked for kMostPlanUs ends.
class ClockPolicy final : public EvictionPolicy {
 public:
  explicit ClockPolicy(Os& os) : os_(os), limit_(os) {}
  EvictionPlan choose(Client& client, const EvictionWish& wish,
                      const std::vector<wire::Range>& never) override;

 private:
  // What one choose() works with.
  struct Task {
    Client& client;
    const EvictionWish& wish;
    const std::vector<wire::Range>& never;
    EvictionPlan plan;
    std::uint64_t begun_us = 0, scans = 0;
    std::uint64_t span = 0;  // of a sparse mapping, per look at the page tables
    [[nodiscard]] bool full() const {
      return plan.pages >= wish.pages || plan.regs.size() >= wire::kMaxRegs - 1;
    }
  };

  [[nodiscard]] bool counted_long_ago(const Client& client);
  // Both go on from `at`, and say where they stopped; the plan is full when `stop` is set.
  std::uint64_t look_at_dense(Task& task, const VmaInfo& vma, std::uint64_t at, bool& stop);
  std::uint64_t look_at_sparse(Task& task, const VmaInfo& vma, std::uint64_t at, bool& stop);
  // Present anonymous pages of [start, end); returns where the scan stopped.
  std::uint64_t scan(Client& client, std::uint64_t start, std::uint64_t end,
                     std::vector<wire::Range>& present);
  // What to register for a slice of a sparse mapping, and what it may cost in mappings.
  struct Reg {
    wire::Range range;
    std::uint32_t splits = 0;
  };
  [[nodiscard]] Reg reg_of(Task& task, const VmaInfo& vma, const wire::Range& slice);
  void take(Task& task, const wire::Range& present, const Reg& reg);
  [[nodiscard]] bool shared(Client& client, std::uint64_t page, std::uint64_t end);

  Os& os_;
  MapLimit limit_;
  std::vector<wire::Range> present_, slice_;
  // Words of a client's page map, of [looked_from_, looked_until_).
  std::array<std::uint64_t, 512> looked_{};
  std::uint64_t looked_client_ = 0, looked_from_ = 0, looked_until_ = 0;
};

}  // namespace foldswap
