#include "daemon/pool_care.h"

#include <pthread.h>

#include <array>
#include <chrono>
#include <utility>

namespace foldswap {
namespace {

using std::chrono::milliseconds;
constexpr milliseconds kBetweenSteps{10}, kIdle{200};

}  // namespace

PoolCare::PoolCare(Pool& pool, const Tunables& tunables, std::unique_ptr<PageCodec> codec)
    : pool_(pool), tunables_(tunables), codec_(std::move(codec)) {}

bool PoolCare::step() {
  const bool moved = pool_.tidy(kMoveBytes) != 0;
  const CodecSpec spec = tunables_.cold_codec_spec();
  if (spec.codec == Codec::raw) return moved;
  const auto cold = pool_.oldest(kRepacked, true);
  for (const ObjectId id : cold) repack(id, spec);
  return moved || cold.size() == kRepacked;
}

// The reference keeps the id from being given to another page meanwhile. What hardly shrinks is
// left alone, and settled like the rest: each object is tried once.
void PoolCare::repack(ObjectId id, CodecSpec spec) {
  if (!pool_.ref(id)) return;
  std::array<std::byte, kCodecMaxInput> packed, page, again;
  const auto loaded = pool_.load(id, packed);
  bool replaced = false;
  if (loaded && loaded->codec != Codec::pattern &&
      codec_->decompress(loaded->codec, std::span(packed).first(loaded->length), page)) {
    const Compressed smaller = codec_->compress(spec, page, again);
    // A page that another codec would not give back is worse than one that takes more room.
    std::array<std::byte, kCodecMaxInput> check;
    if (smaller.length * 20 <= loaded->length * 19 &&
        codec_->decompress(smaller.codec, std::span(again).first(smaller.length), check) &&
        check == page) {
      replaced = pool_.replace(id, std::span(again).first(smaller.length), smaller.codec);
    }
  }
  if (!replaced) pool_.settle(id);
  pool_.unref(id);
}

Carer::Carer(std::unique_ptr<PoolCare> care)
    : care_(std::move(care)), thread_([this](const std::stop_token& stop) { run(stop); }) {}

void Carer::run(const std::stop_token& stop) {
  ::pthread_setname_np(::pthread_self(), "fs-care");
  while (!stop.stop_requested()) {
    const bool more = care_->step();
    std::unique_lock lock(mutex_);
    wake_.wait_for(lock, stop, more ? kBetweenSteps : kIdle, [] { return false; });
  }
}

}  // namespace foldswap
