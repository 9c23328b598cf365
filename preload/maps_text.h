// MapsText: the text of /proc/PID/maps, line by line, without allocating and without libc's state.
// Thread safety: a plain value, one thread's; the agent may use it (2 KiB of its stack).
#pragma once

#include <fcntl.h>
#include <sys/mman.h>

#include <cstddef>
#include <cstdint>

#include "preload/syscalls.h"

namespace foldswap::preload {

class MapsText {
 public:
  struct Vma {
    std::uint64_t start = 0, end = 0;
    int protection = 0;
    bool private_anonymous = false;
  };

  explicit MapsText(const char* path)
      : fd_(sys::call(SYS_openat, AT_FDCWD, path, O_RDONLY | O_CLOEXEC)) {}
  MapsText(const MapsText&) = delete;
  MapsText& operator=(const MapsText&) = delete;
  ~MapsText() {
    if (fd_ >= 0) sys::call(SYS_close, fd_);
  }

  // start-end rwxp offset major:minor inode [path]
  [[nodiscard]] bool next(Vma& vma) {
    int c = 0;
    vma.start = number(c, 16);
    if (c != '-') return false;
    vma.end = number(c, 16);
    vma.protection = 0;
    if (get() == 'r') vma.protection |= PROT_READ;
    if (get() == 'w') vma.protection |= PROT_WRITE;
    if (get() == 'x') vma.protection |= PROT_EXEC;
    const bool is_private = get() == 'p';
    get();
    for (int field = 0; field < 2; ++field) {  // offset, device
      do c = get();
      while (c > ' ');
    }
    const std::uint64_t inode = number(c, 10);
    bool kernel_made = false;  // [vdso], [vvar]
    int before = 0;
    for (; c != '\n' && c != kEnd; before = c, c = get()) {
      if (before == '[' && c == 'v') kernel_made = true;
    }
    vma.private_anonymous = is_private && inode == 0 && !kernel_made;
    return c == '\n';
  }

 private:
  static constexpr int kEnd = -1;

  int get() {
    if (at_ == filled_) {
      const long got = fd_ < 0 ? 0 : sys::call(SYS_read, fd_, buffer_, sizeof(buffer_));
      if (got <= 0) return kEnd;
      at_ = 0;
      filled_ = static_cast<std::size_t>(got);
    }
    return static_cast<unsigned char>(buffer_[at_++]);
  }

  // `c`: the character after the number.
  std::uint64_t number(int& c, unsigned base) {
    std::uint64_t value = 0;
    for (c = get();; c = get()) {
      unsigned digit = 99;
      if (c >= '0' && c <= '9') digit = static_cast<unsigned>(c - '0');
      if (c >= 'a' && c <= 'f') digit = static_cast<unsigned>(c - 'a') + 10;
      if (digit >= base) return value;
      value = value * base + digit;
    }
  }

  long fd_;
  std::size_t at_ = 0, filled_ = 0;
  char buffer_[2048];
};

}  // namespace foldswap::preload
