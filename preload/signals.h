// SignalBlock: blocks signals of the calling thread for a scope, by system call (libc would leave
// its own out). Thread safety: per thread.
#pragma once

#include <signal.h>

#include <cstdint>
#include <initializer_list>

#include "preload/syscalls.h"

namespace foldswap::preload {

class SignalBlock {
 public:
  enum class Set {
    everything,
    // All but those that the program's own instruction raises: a crash must still reach its
    // handler.
    asynchronous,
  };
  explicit SignalBlock(Set set) : saved_(block(set)) {}
  SignalBlock(const SignalBlock&) = delete;
  SignalBlock& operator=(const SignalBlock&) = delete;
  ~SignalBlock() { restore(saved_); }

  // Whether a signal waits that the mask as it was would let through.
  [[nodiscard]] bool one_waits() const {
    std::uint64_t pending = 0;
    sys::call(SYS_rt_sigpending, &pending, sizeof(pending));
    return (pending & ~saved_) != 0;
  }

  // Without a scope: across fork(). block() answers the mask as it was.
  [[nodiscard]] static std::uint64_t block(Set set) {
    std::uint64_t mask = ~std::uint64_t{0}, saved = 0;
    if (set == Set::asynchronous) {
      for (const int fault : {SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGTRAP, SIGABRT, SIGSYS}) {
        mask &= ~(std::uint64_t{1} << (fault - 1));
      }
    }
    sys::call(SYS_rt_sigprocmask, SIG_SETMASK, &mask, &saved, sizeof(saved));
    return saved;
  }
  static void restore(std::uint64_t mask) {
    sys::call(SYS_rt_sigprocmask, SIG_SETMASK, &mask, nullptr, sizeof(mask));
  }

 private:
  std::uint64_t saved_;
};

}  // namespace foldswap::preload
