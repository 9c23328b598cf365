#include "pool/budget.h"

#include <algorithm>

namespace foldswap {
namespace {

// Subtracts `amount` if that leaves at least `least`.
bool take(std::atomic<std::int64_t>& spare, std::int64_t amount, std::int64_t least = 0) {
  std::int64_t seen = spare.load(std::memory_order_acquire);
  while (seen - amount >= least) {
    if (spare.compare_exchange_weak(seen, seen - amount, std::memory_order_acq_rel)) return true;
  }
  return false;
}

}  // namespace

Budget::Budget(const PoolGeometry& geometry, std::uint64_t limit_frames)
    : frame_room_(geometry.frame_room()),
      spare_(static_cast<std::int64_t>(limit_frames) * frame_room_),
      limit_frames_(limit_frames),
      target_frames_(limit_frames) {}

bool Budget::reserve(std::uint64_t places) {
  settle();
  if (limit_frames_.load(std::memory_order_acquire) > target_frames_.load()) return false;
  if (!take(spare_, static_cast<std::int64_t>(places))) return false;
  reserved_.fetch_add(places, std::memory_order_relaxed);
  return true;
}

void Budget::release(std::uint64_t places) {
  reserved_.fetch_sub(places, std::memory_order_relaxed);
  spare_.fetch_add(static_cast<std::int64_t>(places), std::memory_order_acq_rel);
  settle();
}

void Budget::set_limit(std::uint64_t frames) {
  target_frames_.store(frames);
  settle();
}

// Brings the limit in force as near to the one asked for as reservations allow. Whoever finds it
// busy goes on: the owner looks at the target again before it leaves.
void Budget::settle() {
  while (limit_frames_.load(std::memory_order_acquire) != target_frames_.load()) {
    if (settling_.test_and_set()) return;
    const std::uint64_t now = limit_frames_.load(), want = target_frames_.load();
    bool stuck = false;
    if (want > now) {
      limit_frames_.store(want);
      spare_.fetch_add(static_cast<std::int64_t>(want - now) * frame_room_);
    } else if (want < now) {
      const std::int64_t spare = std::max<std::int64_t>(spare_.load(), 0);
      const std::uint64_t fall =
          std::min(now - want, static_cast<std::uint64_t>(spare / frame_room_));
      // Taken first: a frame may only stop being allowed once nobody can reserve it any more.
      if (fall != 0 && take(spare_, static_cast<std::int64_t>(fall) * frame_room_)) {
        limit_frames_.store(now - fall);
      }
      stuck = fall == 0;
    }
    settling_.clear();
    if (stuck && target_frames_.load() == want) return;
  }
}

void Budget::adopt(std::uint64_t frames, std::int64_t places) {
  held_frames_.store(frames);
  spare_.fetch_add(places - static_cast<std::int64_t>(frames) * frame_room_);
}

bool Budget::spend(std::int64_t places) {
  return take(spare_, places);
}

void Budget::room_changed(std::int64_t delta) {
  if (delta == 0) return;
  spare_.fetch_add(delta, std::memory_order_acq_rel);
  if (delta > 0) changes_.fetch_add(1, std::memory_order_acq_rel);
}

bool Budget::begin_grow() {
  in_flight_.fetch_add(1, std::memory_order_acq_rel);
  std::uint64_t held = held_frames_.load(std::memory_order_acquire);
  while (held < limit_frames_.load(std::memory_order_acquire)) {
    if (held_frames_.compare_exchange_weak(held, held + 1, std::memory_order_acq_rel)) return true;
  }
  in_flight_.fetch_sub(1, std::memory_order_acq_rel);
  return false;
}

void Budget::cancel_grow() {
  held_frames_.fetch_sub(1, std::memory_order_acq_rel);
  finish_grow();  // a place to grow has appeared for somebody else
}

void Budget::finish_grow() {
  changes_.fetch_add(1, std::memory_order_acq_rel);
  in_flight_.fetch_sub(1, std::memory_order_acq_rel);
}

// Frames over a limit that was lowered are places less in spare, but nobody needs them: they may
// go.
bool Budget::begin_shrink() {
  in_flight_.fetch_add(1, std::memory_order_acq_rel);
  const auto held = static_cast<std::int64_t>(held_frames_.load(std::memory_order_acquire));
  const auto limit = static_cast<std::int64_t>(limit_frames_.load(std::memory_order_acquire));
  const std::int64_t over = std::max<std::int64_t>(held - limit, 0) * frame_room_;
  if (take(spare_, frame_room_, -over)) return true;
  in_flight_.fetch_sub(1, std::memory_order_acq_rel);
  return false;
}

void Budget::cancel_shrink() {
  spare_.fetch_add(frame_room_, std::memory_order_acq_rel);
  changes_.fetch_add(1, std::memory_order_acq_rel);
  in_flight_.fetch_sub(1, std::memory_order_acq_rel);
}

void Budget::finish_shrink() {
  held_frames_.fetch_sub(1, std::memory_order_acq_rel);
  cancel_shrink();  // the frame's places are places to grow now
}

bool Budget::consistent(std::uint64_t places) const {
  const auto limit = static_cast<std::int64_t>(limit_frames_.load());
  const auto held = static_cast<std::int64_t>(held_frames_.load());
  const auto reserved = static_cast<std::int64_t>(reserved_.load());
  return spare_.load() ==
         (limit - held) * frame_room_ + static_cast<std::int64_t>(places) - reserved;
}

}  // namespace foldswap
