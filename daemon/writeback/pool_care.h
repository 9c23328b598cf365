// PoolCare: what is done for the pool in the background, a little at a time: objects leave sparse
// frames, and pages that stay out are compressed again, denser.
//
// Both only move bytes inside the pool and know of no client: whoever refers to an object sees the
// same page before and after. The daemon's own thread for it (Carer) pauses twenty times as
// long as a step took, so that it takes a twentieth of a CPU at most.
//
// Thread safety: PoolCare for one thread; Carer starts that thread and ends it.
// Errors: none; an object that cannot be read or finds no room stays as it is.
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <stop_token>
#include <thread>

#include "compress/codec.h"
#include "daemon/client/page_store.h"
#include "daemon/config/tunables.h"

namespace foldswap {

class PoolCare {
 public:
  using Clock = std::chrono::steady_clock;

  // quiet: when nothing was stored for so long, everything in the pool is cold.
  PoolCare(PageStore& store, const Tunables& tunables, std::unique_ptr<PageCodec> codec,
           Clock::duration quiet = std::chrono::seconds(10));

  // True: there may be more to do at once.
  bool step();

 private:
  bool repack(ObjectId id, CodecSpec spec);

  static constexpr std::uint64_t kMoveBytes = 256 * 1024;
  static constexpr std::size_t kRepacked = 32;

  PageStore& store_;
  Pool& pool_;
  const Tunables& tunables_;
  const std::unique_ptr<PageCodec> codec_;
  const Clock::duration quiet_;
  std::uint64_t ticks_seen_ = 0;
  Clock::time_point tick_at_ = Clock::now();
};

class Carer {
 public:
  explicit Carer(std::unique_ptr<PoolCare> care);

 private:
  void run(const std::stop_token& stop);

  std::unique_ptr<PoolCare> care_;
  std::mutex mutex_;
  std::condition_variable_any wake_;
  std::jthread thread_;  // last: it uses the others
};

}  // namespace foldswap
