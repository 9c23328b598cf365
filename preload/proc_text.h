// ProcText: reads a file of /proc character by character, without allocating. Thread safety: a
// plain value, for one thread. Errors: a file that cannot be opened or read has no characters.
#pragma once

#include <fcntl.h>

#include <cstddef>
#include <cstdint>

#include "preload/fd.h"

namespace foldswap::preload {

class ProcText {
 public:
  static constexpr int kEnd = -1;

  explicit ProcText(const char* path)
      : file_(static_cast<int>(sys::call(SYS_openat, AT_FDCWD, path, O_RDONLY | O_CLOEXEC))) {}

  [[nodiscard]] bool open() const { return file_.valid(); }

  int get() {
    if (at_ == filled_) {
      const long got =
          file_.valid() ? sys::call(SYS_read, file_.get(), buffer_, sizeof(buffer_)) : 0;
      if (got <= 0) return kEnd;
      at_ = 0;
      filled_ = static_cast<std::size_t>(got);
    }
    // NOLINTNEXTLINE(clang-analyzer-core.uninitialized.UndefReturn): the system call has filled it
    return static_cast<unsigned char>(buffer_[at_++]);
  }

  // `c`: the character after the number.
  std::uint64_t number(int& c, unsigned base) {
    c = get();
    return rest_of_number(c, base);
  }
  // Of which `c` is the first character.
  std::uint64_t rest_of_number(int& c, unsigned base) {
    std::uint64_t value = 0;
    for (;; c = get()) {
      unsigned digit = 99;
      if (c >= '0' && c <= '9') digit = static_cast<unsigned>(c - '0');
      if (c >= 'a' && c <= 'f') digit = static_cast<unsigned>(c - 'a') + 10;
      if (digit >= base) return value;
      value = value * base + digit;
    }
  }

 private:
  Fd file_;
  std::size_t at_ = 0, filled_ = 0;
  char buffer_[2048];
};

}  // namespace foldswap::preload
