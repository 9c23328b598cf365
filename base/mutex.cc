#include "base/mutex.h"

#include <cstdio>
#include <cstdlib>
#include <utility>

namespace foldswap::rank_check {
namespace {

thread_local unsigned t_held_mask = 0;  // bit r: a lock of rank r is held by this thread

}  // namespace

void check_order(LockRank rank) {
  const unsigned bit = 1U << static_cast<unsigned>(rank);
  if (t_held_mask >= bit) {  // something of this or a higher rank is held
    std::fprintf(stderr, "foldswap: lock order violated: taking rank %u while holding mask 0x%x\n",
                 static_cast<unsigned>(rank), t_held_mask);
    std::abort();
  }
  t_held_mask |= bit;
}

void forget_rank(LockRank rank) {
  t_held_mask &= ~(1U << static_cast<unsigned>(rank));
}

Held exchange_held(Held held) {
  return {std::exchange(t_held, held.count), std::exchange(t_held_mask, held.mask)};
}

void raise_held_max(unsigned held) {
  unsigned seen = held_max();
  while (held > seen && !g_held_max.compare_exchange_weak(seen, held, std::memory_order_relaxed)) {
  }
}

}  // namespace foldswap::rank_check
