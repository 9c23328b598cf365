// Mapping: owns one mmap'd range and unmaps it when it goes.
// Thread safety: none of its own; the bytes are the user's to protect.
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>

#include "base/result.h"

namespace foldswap {

class Mapping {
 public:
  Mapping() = default;
  Mapping(Mapping&& o) noexcept
      : base_(std::exchange(o.base_, nullptr)), bytes_(std::exchange(o.bytes_, 0)) {}
  Mapping& operator=(Mapping&& o) noexcept;
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;
  ~Mapping() { reset(); }

  // Shared, read-write mapping of the first `bytes` of `fd`; address space is not charged.
  static Result<Mapping> shared(int fd, std::size_t bytes);
  // Private anonymous memory, zeroed.
  static Result<Mapping> anonymous(std::size_t bytes);

  [[nodiscard]] std::byte* data() const { return static_cast<std::byte*>(base_); }
  [[nodiscard]] std::size_t size() const { return bytes_; }
  [[nodiscard]] bool valid() const { return base_ != nullptr; }
  template <typename T>
  [[nodiscard]] T* as(std::size_t offset = 0) const {
    return reinterpret_cast<T*>(data() + offset);
  }
  void reset();

 private:
  Mapping(void* base, std::size_t bytes) : base_(base), bytes_(bytes) {}
  void* base_ = nullptr;
  std::size_t bytes_ = 0;
};

}  // namespace foldswap
