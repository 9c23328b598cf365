#include "daemon/evict/thread_guard.h"

#include <algorithm>

#include "base/mutation.h"

namespace foldswap {

void ThreadGuard::add(std::uint64_t start, std::uint64_t end) {
  if (start < end)
    never_.push_back({page_floor(start), page_floor(end + kPage - 1) - page_floor(start)});
}

void ThreadGuard::normalise() {
  std::ranges::sort(never_, {}, &wire::Range::start);
  std::vector<wire::Range> merged;
  for (const wire::Range& range : never_) {
    if (!merged.empty() && range.start <= merged.back().start + merged.back().bytes) {
      const std::uint64_t end =
          std::max(merged.back().start + merged.back().bytes, range.start + range.bytes);
      merged.back().bytes = end - merged.back().start;
    } else {
      merged.push_back(range);
    }
  }
  never_ = std::move(merged);
}

const std::vector<wire::Range>* ThreadGuard::never_evict(Client& client,
                                                         std::uint32_t threads_created,
                                                         std::uint64_t now_us) {
  const std::uint32_t exclusions = load_word(client.mailbox->exclusion_count);
  if (exclusions > wire::kExclusions) return nullptr;
  if (built_ && threads_created == threads_created_ && exclusions == exclusions_ &&
      now_us - built_at_us_ < kMaxAgeUs) {
    return &never_;
  }
  never_.clear();
  const auto tids = read_tids(os_, client.pid());
  if (tids.empty()) return nullptr;
  const auto agent = static_cast<pid_t>(load_word(client.mailbox->agent_tid));
  bool all_known = true;
  for (const pid_t tid : tids) {
    std::uint64_t head = 0;
    // glibc: head, tid word and rseq area lie in the thread's control block, well within a page of
    // each other.
    if (os_.robust_list_head(tid, head) == 0 && head != 0) add(head - kPage, head + 2 * kPage);
    // A thread that has not said yet where it is.
    all_known = all_known && (head != 0 || tid == agent);
  }
  for (std::uint32_t i = 0; i < exclusions; ++i) {
    const std::uint64_t page = __atomic_load_n(&client.mailbox->exclusions[i], __ATOMIC_RELAXED);
    if (page < kAddressEnd && !mutated(Mutation::h09_robust_mutexes))
      add(page_floor(page), page_floor(page) + kPage);
  }
  for (const wire::Range& own : client.record.own) {
    if (own.start < kAddressEnd && own.bytes < kAddressEnd) add(own.start, own.start + own.bytes);
  }
  add(client.record.staging, client.record.staging + wire::kStagingBytes);
  normalise();
  threads_created_ = threads_created;
  exclusions_ = exclusions;
  built_at_us_ = now_us;
  built_ = all_known;
  if (!all_known && now_us - unknown_since_us_ < kMaxAgeUs) return nullptr;
  if (all_known) unknown_since_us_ = now_us;
  return &never_;
}

void ThreadGuard::watch_quarantine(Client& client, std::uint64_t now_us, std::uint64_t min_age_us) {
  {
    const RankedLock lock(client.mutex);
    if (client.quarantine.empty()) {
      looking_ = false;
      return;
    }
  }
  if (now_us - looked_at_us_ < std::min(kLookEveryUs, min_age_us / 2 + 10'000)) return;
  looked_at_us_ = now_us;
  if (!looking_) {
    // First look: every range noted so far is older than this snapshot.
    ++generation_;
    {
      const RankedLock lock(client.mutex);
      client.quarantine.witnessed(generation_);
    }
    unproved_ = read_threads(os_, client.pid(), true);
    const auto agent = static_cast<pid_t>(load_word(client.mailbox->agent_tid));
    std::erase_if(unproved_,
                  [&](const ThreadInfo& t) { return t.asleep_elsewhere || t.tid == agent; });
    looking_ = true;
  } else {
    const auto now = read_threads(os_, client.pid(), true);
    std::erase_if(unproved_, [&](const ThreadInfo& then) {
      const auto it = std::ranges::find(now, then.tid, &ThreadInfo::tid);
      return it == now.end() || it->asleep_elsewhere || it->user_ticks > then.user_ticks;
    });
  }
  if (!unproved_.empty()) return;
  const RankedLock lock(client.mutex);
  client.quarantine.expire(generation_, now_us, min_age_us);
  looking_ = false;
}

}  // namespace foldswap
