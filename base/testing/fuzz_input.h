// What fuzzers share: the input as a stream of choices, and the end of a run that found something
// wrong. Thread safety: plain values. Only for *_fuzz.cc.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <span>
#include <string>

namespace foldswap {

// Found something: libFuzzer keeps the input, the replay of a corpus fails.
[[noreturn]] inline void wrong(const std::string& what) {
  std::fprintf(stderr, "WRONG: %s\n", what.c_str());
  std::abort();
}

// Beyond its end there are zeros.
class FuzzInput {
 public:
  FuzzInput(const std::uint8_t* data, std::size_t bytes) : bytes_(data, bytes) {}
  [[nodiscard]] bool empty() const { return at_ >= bytes_.size(); }
  std::uint32_t byte() { return empty() ? 0 : bytes_[at_++]; }
  std::uint64_t number(unsigned bytes) {
    std::uint64_t value = 0;
    for (unsigned i = 0; i < bytes; ++i) value |= std::uint64_t{byte()} << (8 * i);
    return value;
  }
  std::string text(std::size_t most) {
    std::string text;
    for (std::size_t left = byte() % (most + 1); left > 0 && !empty(); --left)
      text += static_cast<char>(byte());
    return text;
  }
  std::string rest() {
    std::string text;
    while (!empty()) text += static_cast<char>(byte());
    return text;
  }

 private:
  std::span<const std::uint8_t> bytes_;
  std::size_t at_ = 0;
};

}  // namespace foldswap

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t bytes);
