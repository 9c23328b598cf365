#include "daemon/writeback/pool_care.h"

#include <pthread.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <utility>

namespace foldswap {
namespace {

using std::chrono::milliseconds;
constexpr milliseconds kLeastPause{10}, kIdle{200};
constexpr int kShare = 20;  // of one CPU: a twentieth

// What is that old is cold: a tick is some 1/256 of what the pool holds (Shard::next_age()).
constexpr std::uint32_t kColdTicks = 8;

}  // namespace

PoolCare::PoolCare(PageStore& store, const Tunables& tunables, std::unique_ptr<PageCodec> codec,
                   Clock::duration quiet)
    : store_(store),
      pool_(store.pool()),
      tunables_(tunables),
      codec_(std::move(codec)),
      quiet_(quiet) {}

bool PoolCare::step() {
  const bool moved = pool_.tidy(kMoveBytes) != 0;
  const CodecSpec spec = tunables_.cold_codec_spec();
  if (spec.codec == Codec::raw) return moved;
  // Ticks are made by stores. When there are none for a while, everything is cold.
  const std::uint64_t ticks = pool_.ticks();
  const auto now = Clock::now();
  if (ticks != ticks_seen_) {
    ticks_seen_ = ticks;
    tick_at_ = now;
  }
  const std::uint32_t least_age = now - tick_at_ < quiet_ ? kColdTicks : 0;
  const auto cold =
      pool_.oldest(kRepacked, {.unsettled = true, .least_age = least_age, .among = 0});
  bool any = moved;
  for (const ObjectId id : cold) any = repack(id, spec) || any;
  return any;
}

// The reference keeps the id from being given to another page meanwhile. What hardly shrinks is
// left alone, and settled like the rest: each object is tried once. True: it is dealt with.
bool PoolCare::repack(ObjectId id, CodecSpec spec) {
  if (!pool_.try_ref(id)) return true;
  std::array<std::byte, kCodecMaxInput> packed, page, again, check;
  const auto loaded = pool_.load(id, packed);
  Replaced replaced = Replaced::gone;
  if (loaded && loaded->codec != Codec::pattern &&
      codec_->decompress(loaded->codec, std::span(packed).first(loaded->length), page)) {
    const Compressed smaller = codec_->compress(spec, page, again);
    // A page that another codec would not give back is worse than one that takes more room.
    if (smaller.length * 20 <= loaded->length * 19 &&
        codec_->decompress(smaller.codec, std::span(again).first(smaller.length), check) &&
        check == page) {
      replaced = pool_.replace(id, std::span(again).first(smaller.length), smaller.codec);
    }
  }
  if (replaced == Replaced::gone) pool_.settle(id);
  store_.unref(id);  // it may have gone to disk meanwhile
  return replaced != Replaced::no_room;
}

Carer::Carer(std::unique_ptr<PoolCare> care)
    : care_(std::move(care)), thread_([this](const std::stop_token& stop) { run(stop); }) {}

void Carer::run(const std::stop_token& stop) {
  ::pthread_setname_np(::pthread_self(), "fs-care");
  while (!stop.stop_requested()) {
    const auto begun = PoolCare::Clock::now();
    const bool more = care_->step();
    const auto pause = kShare * (PoolCare::Clock::now() - begun);
    std::unique_lock lock(mutex_);
    wake_.wait_for(lock, stop,
                   std::max<PoolCare::Clock::duration>(pause, more ? kLeastPause : kIdle),
                   [] { return false; });
  }
}

}  // namespace foldswap
