// Reason: one line of text, built in place, without stdio or allocation. Longer text is cut.
// Thread safety: a plain value.
#pragma once

#include <cstddef>
#include <cstdint>

#include "preload/syscalls.h"

namespace foldswap::preload {

class Reason {
 public:
  Reason& operator<<(const char* text) {
    while (*text != '\0' && size_ < kRoom) put(*text++);
    return *this;
  }
  Reason& operator<<(std::uint64_t value) {
    char digits[20];
    std::size_t count = 0;
    do {
      digits[count++] = static_cast<char>('0' + value % 10);
      value /= 10;
    } while (value != 0);
    while (count > 0) put(digits[--count]);
    return *this;
  }
  // "...: error 13"; libc's strerror may allocate.
  Reason& error(const char* what, long error) {
    return *this << what << " failed with error " << static_cast<std::uint64_t>(-error);
  }
  // Unlike what << does with text of our own, control characters of others are replaced.
  Reason& quote(const char* text) {
    while (*text != '\0' && size_ < kRoom) {
      put(*text >= ' ' && *text != 0x7f ? *text : '?');
      ++text;
    }
    return *this;
  }
  // The daemon is not there, or ended in the middle: trying again may help.
  Reason& gone() {
    gone_ = true;
    return *this;
  }
  [[nodiscard]] bool is_gone() const { return gone_; }
  void clear() { *this = Reason(); }
  [[nodiscard]] const char* text() const { return text_; }
  void print(int fd) const { sys::call(SYS_write, fd, text_, size_); }

 private:
  static constexpr std::size_t kRoom = 400;
  void put(char c) {
    if (size_ >= kRoom) return;
    text_[size_++] = c;
    text_[size_] = '\0';
  }
  bool gone_ = false;
  std::size_t size_ = 0;
  char text_[kRoom + 1] = {};
};

}  // namespace foldswap::preload
