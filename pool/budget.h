// Budget: the pool's hard limit and the reservations against it, as a handful of atomics.
//
// Everything is counted in frames, and in *places*: one place is room for one object of the largest
// size (4 KiB). An empty frame has `frame_room` places; a frame in use has as many as still fit
// after compaction. The one number that decides is
//
//     spare == (limit - held) * frame_room + places in held frames - reserved places
//
// A reservation of n places is granted when spare >= n. Then n objects of any size can be stored:
// as long as a place is left somewhere a store finds it, and when none is left, held < limit and
// the pool may grow. An object takes at most one place; growing turns frame_room places of the
// first term into places of the second and leaves spare alone; giving an empty frame back does the
// reverse.
//
// A store does not eat its reservation: until the caller releases it both count, which errs on the
// safe side (spare may even be negative for that long). Stores that nobody reserved for are served
// while there is room, but may take what others reserved.
//
// The limit falls at once as far as reservations allow, and the rest as they are released; until
// then no new reservation is granted. It never rises by itself. Invariant: held <= the limit in
// force, unless the limit was lowered below what was held. Thread safety: any thread, any lock
// held; lock-free but for set_limit, which no one waits for.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>

#include "pool/geometry.h"

namespace foldswap {

class Budget {
 public:
  Budget(const PoolGeometry& geometry, std::uint64_t limit_frames);

  [[nodiscard]] bool reserve(std::uint64_t places);
  void release(std::uint64_t places);
  void set_limit(std::uint64_t frames);

  // Gives up places that nobody has reserved. False: there are not so many.
  [[nodiscard]] bool spend(std::int64_t places);
  // A frame's places changed by `delta`.
  void room_changed(std::int64_t delta);

  // One more frame. False: the limit is reached. After true exactly one of the other two follows.
  [[nodiscard]] bool begin_grow();
  void cancel_grow();
  void finish_grow();

  // One empty frame less. False: a reservation counts on it. After true exactly one of the others
  // follows.
  [[nodiscard]] bool begin_shrink();
  void cancel_shrink();
  void finish_shrink();

  // Of a pool that is taken over: so many frames, none of them empty, with so many places. Before
  // anything else.
  void adopt(std::uint64_t frames, std::int64_t places);

  void empty_frames_changed(std::int64_t delta) {
    empty_frames_.fetch_add(static_cast<std::uint64_t>(delta), std::memory_order_relaxed);
  }

  [[nodiscard]] std::uint64_t held_frames() const {
    return held_frames_.load(std::memory_order_relaxed);
  }
  [[nodiscard]] std::uint64_t limit_frames() const {
    return target_frames_.load(std::memory_order_relaxed);
  }
  // Above limit_frames() while what was reserved before it was lowered may still be stored.
  [[nodiscard]] std::uint64_t limit_in_force() const {
    return limit_frames_.load(std::memory_order_acquire);
  }
  [[nodiscard]] std::uint64_t empty_frames() const {
    return empty_frames_.load(std::memory_order_relaxed);
  }
  // So many empty frames are worth keeping: not all has to go back and come again, but it is room
  // that nobody uses.
  [[nodiscard]] std::uint64_t empty_to_keep(std::uint64_t most) const {
    return std::clamp<std::uint64_t>(held_frames() / 128, 1, std::max<std::uint64_t>(most, 1));
  }
  // What reserve() can grant: without what the limit, on its way down, has still to take.
  [[nodiscard]] std::int64_t spare_places() const {
    const auto over = static_cast<std::int64_t>(limit_frames_.load(std::memory_order_acquire)) -
                      static_cast<std::int64_t>(target_frames_.load());
    return spare_.load(std::memory_order_acquire) - std::max<std::int64_t>(over, 0) * frame_room_;
  }
  [[nodiscard]] std::uint64_t reserved_places() const {
    return reserved_.load(std::memory_order_relaxed);
  }
  // Moves on whenever a place may have appeared: a search that found none and sees it unchanged,
  // with no frame in flight (growing or shrinking), saw the truth.
  [[nodiscard]] std::uint64_t changes() const { return changes_.load(std::memory_order_acquire); }
  [[nodiscard]] bool in_flight() const { return in_flight_.load(std::memory_order_acquire) != 0; }
  // Whether spare is what the other numbers say, given the places of all held frames. Quiet pools
  // only.
  [[nodiscard]] bool consistent(std::uint64_t places) const;

 private:
  void settle();

  const std::int64_t frame_room_;
  std::atomic<std::int64_t> spare_;
  std::atomic<std::uint64_t> held_frames_{0};
  std::atomic<std::uint64_t> limit_frames_;   // in force
  std::atomic<std::uint64_t> target_frames_;  // asked for
  std::atomic<std::uint64_t> reserved_{0};
  std::atomic<std::uint64_t> empty_frames_{0};
  std::atomic<std::uint64_t> changes_{0};
  std::atomic<std::uint32_t> in_flight_{0};
  std::atomic_flag settling_;
};

}  // namespace foldswap
