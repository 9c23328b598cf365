// libFuzzer target: a stream of bytes is a stream of calls, against a model that is a map. Any
// difference, any broken invariant, is an abort. scripts/fuzz.sh runs it.
#include <array>
#include <cstdint>
#include <cstring>
#include <iterator>
#include <map>
#include <memory>
#include <span>
#include <vector>

#include "base/testing/fuzz_input.h"
#include "pool/pool.h"

namespace foldswap {
namespace {

constexpr PoolGeometry kGeometries[] = {{65536, 4095}, {4096, 3},      {4096, 2}, {8192, 7},
                                        {16384, 512},  {262144, 4095}, {4096, 1}};

std::vector<std::byte> content(std::uint64_t seed, std::size_t bytes) {
  std::vector<std::byte> out(bytes);
  std::uint64_t x = seed * 0x9e3779b97f4a7c15ULL + 1;
  for (auto& b : out) {
    x ^= x << 13, x ^= x >> 7, x ^= x << 17;
    b = static_cast<std::byte>(x);
  }
  return out;
}

class Machine {
 public:
  explicit Machine(FuzzInput& input) : input_(input) {
    PoolConfig config;
    config.geometry = kGeometries[input.byte() % std::size(kGeometries)];
    config.shards = 1 + input.byte() % 3;
    config.limit_bytes = 2 * kMiB;
    config.frame_bytes_max = 16 * kMiB;
    config.objects_max = 1 << 16;
    config.waste_percent = input.byte() % 40;
    pool_ = Pool::create(real_os(), config).value();
  }

  void step() {
    switch (input_.byte() % 12) {
      case 0:
      case 1:
      case 2:
        return store();
      case 3:
        return load(pick());
      case 4:
      case 5:
        return unref(pick());
      case 6:
        return ref(pick());
      case 7:
        (void)pool_->tidy(input_.number(2));
        return;
      case 8:
        return replace(pick());
      case 9:
        (void)pool_->oldest(1 + input_.byte(),
                            {.unsettled = input_.byte() % 2 != 0, .least_age = 0});
        return;
      case 10:
        (void)pool_->trim(input_.number(2));
        return;
      default:
        (void)pool_->set_limit(std::uint64_t{input_.byte()} * 16 * kKiB);
        return;
    }
  }
  void check() {
    if (const Status valid = pool_->validate(); !valid) wrong(valid.error().message);
    if (pool_->stats().objects != model_.size()) wrong("the number of objects");
    if (pool_->stats().misuses != 0) wrong("a misuse");
  }
  void finish() {
    check();
    while (!model_.empty()) {
      load(model_.begin());
      unref(model_.begin());
    }
    pool_->trim(0);
    check();
    if (pool_->stats().frame_bytes != 0) wrong("frames of an empty pool");
  }

 private:
  struct Object {
    std::uint64_t seed;
    std::size_t bytes;
    std::uint32_t refs;
  };
  using Model = std::map<std::uint64_t, Object>;

  Model::iterator pick() {
    const std::uint64_t n = input_.number(2);
    return model_.empty() ? model_.end()
                          : std::next(model_.begin(), static_cast<long>(n % model_.size()));
  }
  std::size_t length() {
    const std::uint32_t kind = input_.byte();
    const std::uint64_t word = input_.number(2);
    return kind % 8 == 0 ? 4096 : kind % 8 == 1 ? 1 + word % 4096 : 1 + word % 900;
  }
  void store() {
    const std::size_t bytes = length();
    const auto id = pool_->store(content(++seed_, bytes), Codec::zstd);
    if (!id) return;
    if (!model_.emplace(static_cast<std::uint64_t>(*id), Object{seed_, bytes, 1}).second) {
      wrong("an id given twice");
    }
  }
  void load(Model::iterator at) {
    if (at == model_.end()) return;
    std::array<std::byte, kObjectBytesMax> out;
    const auto loaded = pool_->load(ObjectId{at->first}, out);
    const auto want = content(at->second.seed, at->second.bytes);
    if (!loaded || loaded->length != want.size() ||
        std::memcmp(out.data(), want.data(), want.size()) != 0) {
      wrong("other bytes");
    }
  }
  void ref(Model::iterator at) {
    if (at == model_.end()) return;
    if (!pool_->ref(ObjectId{at->first})) wrong("a reference was refused");
    ++at->second.refs;
  }
  void unref(Model::iterator at) {
    if (at == model_.end()) return;
    for (; at->second.refs > 0; --at->second.refs) pool_->unref(ObjectId{at->first});
    model_.erase(at);
  }
  void replace(Model::iterator at) {
    const std::size_t bytes = length();
    if (at == model_.end()) return;
    const auto replaced = pool_->replace(ObjectId{at->first}, content(++seed_, bytes), Codec::lz4);
    if (replaced == Replaced::gone) wrong("an object that is gone");
    if (replaced == Replaced::no_room) return;
    at->second.seed = seed_;
    at->second.bytes = bytes;
  }

  FuzzInput& input_;
  std::unique_ptr<Pool> pool_;
  Model model_;
  std::uint64_t seed_ = 0;
};

}  // namespace
}  // namespace foldswap

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  foldswap::FuzzInput input(data, size);
  foldswap::Machine machine(input);
  for (int steps = 1; !input.empty(); ++steps) {
    machine.step();
    if (steps % 32 == 0) machine.check();
  }
  machine.finish();
  return 0;
}
