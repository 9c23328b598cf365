#include "base/mutex.h"

#include <bit>
#include <cstdio>
#include <cstdlib>

namespace foldswap::rank_check {

#if defined(FOLDSWAP_DEBUG_CHECKS)
namespace {
thread_local unsigned t_held_mask = 0;  // bit r: a lock of rank r is held by this thread
std::atomic<unsigned> g_held_max{0};
}  // namespace

void acquired(LockRank rank) {
  const unsigned bit = 1U << static_cast<unsigned>(rank);
  if (t_held_mask >= bit) {  // something of this or a higher rank is held
    std::fprintf(stderr, "foldswap: lock order violated: taking rank %u while holding mask 0x%x\n",
                 static_cast<unsigned>(rank), t_held_mask);
    std::abort();
  }
  t_held_mask |= bit;
  const auto held = static_cast<unsigned>(std::popcount(t_held_mask));
  unsigned seen = g_held_max.load(std::memory_order_relaxed);
  while (held > seen && !g_held_max.compare_exchange_weak(seen, held, std::memory_order_relaxed)) {
  }
}

void released(LockRank rank) {
  t_held_mask &= ~(1U << static_cast<unsigned>(rank));
}
unsigned held_now() {
  return static_cast<unsigned>(std::popcount(t_held_mask));
}
unsigned held_max() {
  return g_held_max.load(std::memory_order_relaxed);
}
#else
void acquired(LockRank) {}
void released(LockRank) {}
unsigned held_now() {
  return 0;
}
unsigned held_max() {
  return 0;
}
#endif

}  // namespace foldswap::rank_check
