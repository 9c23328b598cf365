// Which pages leave a client next. A seam: other sources of "cold" (RWP mode, DAMON, extent heat by
// MADV_COLD) become other policies later; the evictor knows only this interface. Thread safety: the
// evictor's.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "base/os.h"
#include "base/wire.h"
#include "daemon/client.h"

namespace foldswap {

struct EvictionPlan {
  std::vector<wire::Run> runs;    // in order, at most kMaxRuns
  std::vector<wire::Range> regs;  // at most kMaxRegs
  std::uint32_t pages = 0;        // sum over runs
  bool turn_ended = false;        // the clock passed the end of the address space
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
class ClockPolicy final : public EvictionPolicy {
 public:
  explicit ClockPolicy(Os& os) : os_(os) {}
  EvictionPlan choose(Client& client, const EvictionWish& wish,
                      const std::vector<wire::Range>& never) override;

 private:
  // Present anonymous pages of [start, end); returns where the scan stopped.
  std::uint64_t scan(Client& client, std::uint64_t start, std::uint64_t end,
                     std::vector<wire::Range>& present);
  void take(Client& client, const VmaInfo& vma, const wire::Range& present, const wire::Range& reg,
            const EvictionWish& wish, const std::vector<wire::Range>& never, EvictionPlan& plan);
  [[nodiscard]] bool shared(Client& client, std::uint64_t page, std::uint64_t end);
  Os& os_;
  std::vector<wire::Range> present_;
  // Words of a client's page map, of [looked_from_, looked_until_).
  std::array<std::uint64_t, 512> looked_{};
  std::uint64_t looked_client_ = 0, looked_from_ = 0, looked_until_ = 0;
};

}  // namespace foldswap
