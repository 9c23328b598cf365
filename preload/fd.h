// Fd: owns a descriptor, for code that the agent runs: unlike base/unique_fd.h it closes by system
// call, because libc's close() is a cancellation point and looks at the calling thread's libc
// block. Thread safety: a plain value. A number means something only in the table of the thread
// that made it.
#pragma once

#include <utility>

#include "preload/syscalls.h"

namespace foldswap::preload {

class Fd {
 public:
  Fd() = default;
  explicit Fd(int fd) : fd_(fd) {}
  Fd(Fd&& other) noexcept : fd_(other.release()) {}
  Fd& operator=(Fd&& other) noexcept {
    if (this != &other) reset(other.release());
    return *this;
  }
  Fd(const Fd&) = delete;
  Fd& operator=(const Fd&) = delete;
  ~Fd() { reset(); }

  [[nodiscard]] int get() const { return fd_; }
  [[nodiscard]] bool valid() const { return fd_ >= 0; }
  [[nodiscard]] int release() { return std::exchange(fd_, -1); }
  void reset(int fd = -1) {
    if (fd_ >= 0) sys::call(SYS_close, fd_);
    fd_ = fd;
  }

 private:
  int fd_ = -1;
};

}  // namespace foldswap::preload
