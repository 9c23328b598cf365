#include "daemon/client/map_limit.h"

#include <charconv>

#include "base/mutation.h"

namespace foldswap {

// An administrator may change it at any time, and a look costs some microseconds.
std::uint64_t MapLimit::limit() {
  constexpr std::uint64_t kFreshUs = 1'000'000, kDefault = 65'530;
  if (mutated(Mutation::h32_mapping_limit)) return ~std::uint64_t{0};
  const std::uint64_t now_us = os_.now_us();
  if (limit_ != 0 && now_us - read_us_ < kFreshUs) return limit_;
  read_us_ = now_us;
  limit_ = kDefault;
  const auto text = os_.read_file("/proc/sys/vm/max_map_count");
  std::uint64_t value = 0;
  if (text && std::from_chars(text->data(), text->data() + text->size(), value).ec == std::errc{} &&
      value != 0) {
    limit_ = value;
  }
  return limit_;
}

}  // namespace foldswap
