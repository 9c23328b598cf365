// Ranked, annotated mutexes. The enum *is* the lock order (DESIGN §8): a thread may only take a
// higher rank than it holds, and one lock per rank. Checked by clang (-Wthread-safety) at compile
// time for what is guarded, and at run time in debug builds (FOLDSWAP_DEBUG_CHECKS) for the order:
// a violation prints both ranks and aborts. The layout lock (rank 0) is a futex word in shared
// memory (base/wire.h); the daemon's side reports its holds here with RankScope, so that the one
// order covers it too. Technique: jemalloc's witness.h; LevelDB's port annotations.
#pragma once

#include <atomic>
#include <cstdint>
#include <mutex>

#if defined(__clang__)
#define FS_TSA(x) __attribute__((x))
#else
#define FS_TSA(x)
#endif
#define FS_CAPABILITY(x) FS_TSA(capability(x))
#define FS_SCOPED_CAPABILITY FS_TSA(scoped_lockable)
#define FS_GUARDED_BY(x) FS_TSA(guarded_by(x))
#define FS_PT_GUARDED_BY(x) FS_TSA(pt_guarded_by(x))
#define FS_REQUIRES(...) FS_TSA(requires_capability(__VA_ARGS__))
#define FS_ACQUIRE(...) FS_TSA(acquire_capability(__VA_ARGS__))
#define FS_TRY_ACQUIRE(...) FS_TSA(try_acquire_capability(__VA_ARGS__))
#define FS_RELEASE(...) FS_TSA(release_capability(__VA_ARGS__))
#define FS_EXCLUDES(...) FS_TSA(locks_excluded(__VA_ARGS__))

namespace foldswap {

enum class LockRank : std::uint8_t { layout = 0, client = 1, pool_shard = 2, leaf = 3 };

namespace rank_check {
inline constinit thread_local unsigned t_held = 0;  // ranked locks that this thread holds
inline constinit std::atomic<unsigned> g_held_max{0};

void check_order(LockRank rank);  // debug builds; notes the rank as held
void forget_rank(LockRank rank);  // likewise, as let go
void raise_held_max(unsigned held);

// What the calling thread holds, by the ranks. Whoever runs several flows of control on one thread
// exchanges it when it goes from one to the other.
struct Held {
  unsigned count = 0, mask = 0;
};
[[nodiscard]] Held exchange_held(Held held);

// Called by the lock types. A lock counts from the moment that its thread asks for it.
inline void acquired([[maybe_unused]] LockRank rank) {
#if defined(FOLDSWAP_DEBUG_CHECKS)
  check_order(rank);
#endif
  if (++t_held > g_held_max.load(std::memory_order_relaxed)) raise_held_max(t_held);
}
inline void released([[maybe_unused]] LockRank rank) {
#if defined(FOLDSWAP_DEBUG_CHECKS)
  forget_rank(rank);
#endif
  --t_held;
}
// Locks the calling thread holds now.
[[nodiscard]] inline unsigned held_now() {
  return t_held;
}
// The most that any thread of this process has held at once since start.
[[nodiscard]] inline unsigned held_max() {
  return g_held_max.load(std::memory_order_relaxed);
}
}  // namespace rank_check

template <LockRank kRank>
class FS_CAPABILITY("mutex") RankedMutex {
 public:
  RankedMutex() = default;
  RankedMutex(const RankedMutex&) = delete;
  RankedMutex& operator=(const RankedMutex&) = delete;
  ~RankedMutex() = default;

  void lock() FS_ACQUIRE() {
    rank_check::acquired(kRank);  // before blocking: an inversion is reported, not deadlocked on
    mutex_.lock();
  }
  void unlock() FS_RELEASE() {
    mutex_.unlock();
    rank_check::released(kRank);
  }

 private:
  std::mutex mutex_;
};

// The only way to hold a RankedMutex.
template <LockRank kRank>
class FS_SCOPED_CAPABILITY RankedLock {
 public:
  explicit RankedLock(RankedMutex<kRank>& mutex) FS_ACQUIRE(mutex) : mutex_(mutex) {
    mutex_.lock();
  }
  ~RankedLock() FS_RELEASE() { mutex_.unlock(); }
  RankedLock(const RankedLock&) = delete;
  RankedLock& operator=(const RankedLock&) = delete;

 private:
  RankedMutex<kRank>& mutex_;
};

// For a lock that is no RankedMutex (the layout word): takes part in the rank check and the
// count only.
class RankScope {
 public:
  explicit RankScope(LockRank rank) : rank_(rank) { rank_check::acquired(rank_); }
  ~RankScope() { rank_check::released(rank_); }
  RankScope(const RankScope&) = delete;
  RankScope& operator=(const RankScope&) = delete;

 private:
  LockRank rank_;
};

}  // namespace foldswap
