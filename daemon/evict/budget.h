// Budgets: how much of a client may be resident now. The smallest of its own --resident-max, its
// share of a group's
// --group-max, and what its memory cgroup leaves (HAZARDS 15: a COPY at the cgroup's limit gets the
// client OOM-killed, so the budget stays below it by a read-ahead window plus staging). Thread
// safety: BudgetBook may be used by every thread (a leaf mutex inside).
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "base/mutex.h"
#include "base/os.h"
#include "daemon/client/client.h"

namespace foldswap {

// The memory cgroup of a process, v1 or v2.
class CgroupLimit {
 public:
  // Bytes of anonymous memory that `pid` may hold before its cgroup comes near its limit;
  // wire::kNoLimit: no limit.
  [[nodiscard]] static std::uint64_t anonymous_room(Os& os, pid_t pid, std::uint64_t rss_bytes);
  // Room that is kept free below the limit.
  static constexpr std::uint64_t kMargin =
      wire::kStagingBytes + wire::kTransferBytes + 2 * 64 * 4096;
};

// From the text of /proc/PID/cgroup: path of the memory controller; empty when there is none. `v2`
// tells which.
[[nodiscard]] std::string parse_cgroup_path(std::string_view text, bool& v2);

class BudgetBook {
 public:
  explicit BudgetBook(Os& os) : os_(os) {}

  // Takes a fresh sample of the client's RssAnon and says what it may have; wire::kNoLimit: no
  // budget.
  [[nodiscard]] std::uint64_t sample(Client& client, std::uint64_t now_us);
  void forget(const Client& client);

 private:
  struct Member {
    std::string group;
    std::uint64_t rss_bytes = 0;
    std::uint64_t cgroup_room = wire::kNoLimit;
    std::uint64_t cgroup_at_us = 0;
  };
  Os& os_;
  RankedMutex<LockRank::leaf> mutex_;
  std::unordered_map<std::uint64_t, Member> members_ FS_GUARDED_BY(mutex_);
};

}  // namespace foldswap
