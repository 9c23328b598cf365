// What the threads of a client need left alone (HAZARDS 9) and what they prove (HAZARDS 16).
//
// never_evict(): the kernel writes to a thread's control block and walks its robust list when the
// thread exits, and refuses to wait for us then. So the pages around each thread's get_robust_list
// head (TCB, tid word, rseq area) stay, and so do pages with robust mutexes (noted by the library)
// and the library's own memory. QuarantineWitness: two looks at all threads of a client; between
// them each must have been seen asleep in another system call, have advanced its user time, or be
// gone. Only then may ranges noted before the first look leave quarantine. Thread safety: the
// evictor's, one instance per client.
#pragma once

#include <cstdint>
#include <vector>

#include "base/os.h"
#include "base/wire.h"
#include "daemon/client/client.h"

namespace foldswap {

class ThreadGuard {
 public:
  explicit ThreadGuard(Os& os) : os_(os) {}

  // Sorted, not overlapping. Rebuilt when a thread was created, when robust mutexes were added, or
  // after kMaxAgeUs. nullptr: it cannot be known (too many robust mutexes, the process is going):
  // evict nothing.
  [[nodiscard]] const std::vector<wire::Range>* never_evict(Client& client,
                                                            std::uint32_t threads_created,
                                                            std::uint64_t now_us);
  // Advances the two looks; lets go what is proved and old enough.
  void watch_quarantine(Client& client, std::uint64_t now_us, std::uint64_t min_age_us);

 private:
  void add(std::uint64_t start, std::uint64_t end);
  void normalise();

  static constexpr std::uint64_t kMaxAgeUs = 500'000, kLookEveryUs = 500'000;
  Os& os_;
  std::vector<wire::Range> never_;
  std::uint64_t built_at_us_ = 0;
  std::uint32_t threads_created_ = 0, exclusions_ = 0;
  bool built_ = false;
  std::uint64_t unknown_since_us_ = 0;  // a thread has had no robust list since then

  std::vector<ThreadInfo> unproved_;  // threads of the snapshot not yet seen elsewhere
  std::uint64_t generation_ = 0;      // of the snapshot
  bool looking_ = false;
  std::uint64_t looked_at_us_ = 0;
};

}  // namespace foldswap
