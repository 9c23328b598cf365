// Inline system calls, futexes and page copies for code that must not touch libc: no errno, no TLS,
// no cancellation. Every call answers the kernel's own value: a negative errno for failure. Thread
// safety: all of it may be called from any thread, the agent's included, and from signal handlers.
#pragma once

#include <linux/futex.h>
#include <sys/syscall.h>
#include <time.h>

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "preload/machine.h"

namespace foldswap::sys {

[[nodiscard]] inline long word(const volatile void* pointer) {
  return reinterpret_cast<long>(pointer);
}
template <typename T>
  requires(std::is_integral_v<T> || std::is_enum_v<T>)
[[nodiscard]] long word(T value) {
  return static_cast<long>(value);
}
[[nodiscard]] inline long word(std::nullptr_t) {
  return 0;
}

// Up to six integers or pointers. The answer may be ignored where failure changes nothing.
template <typename A = int, typename B = int, typename C = int, typename D = int, typename E = int,
          typename F = int>
inline long call(long number, A a = {}, B b = {}, C c = {}, D d = {}, E e = {}, F f = {}) {
  return call6(number, word(a), word(b), word(c), word(d), word(e), word(f));
}

template <typename T>
[[nodiscard]] T load(const T& value) {
  pause();
  return __atomic_load_n(&value, __ATOMIC_SEQ_CST);
}
template <typename T>
void store(T& value, T wanted) {
  pause();
  __atomic_store_n(&value, wanted, __ATOMIC_SEQ_CST);
}
inline std::uint32_t add(std::uint32_t& value, std::uint32_t amount) {
  pause();
  return __atomic_add_fetch(&value, amount, __ATOMIC_SEQ_CST);
}
template <typename T>
[[nodiscard]] bool exchange_if(T& value, std::type_identity_t<T> expected,
                               std::type_identity_t<T> wanted) {
  pause();
  return __atomic_compare_exchange_n(&value, &expected, wanted, false, __ATOMIC_SEQ_CST,
                                     __ATOMIC_SEQ_CST);
}

// Whether the futex word lies in memory that other processes map (the mailbox) or in this process's
// own.
enum class Scope : int { shared = 0, own = FUTEX_PRIVATE_FLAG };

// Returns when the word differs from `value`, on a wake-up, and after `timeout_ms`.
// -ETIMEDOUT tells the last apart.
inline long futex_wait(const std::uint32_t& futex, std::uint32_t value, Scope scope,
                       long timeout_ms) {
  const timespec timeout{timeout_ms / 1000, (timeout_ms % 1000) * 1'000'000};
  return call(SYS_futex, &futex, FUTEX_WAIT | static_cast<int>(scope), value, &timeout);
}
inline void futex_wake(const std::uint32_t& futex, Scope scope) {
  constexpr int kEverybody = 0x7fffffff;
  call(SYS_futex, &futex, FUTEX_WAKE | static_cast<int>(scope), kEverybody);
}

inline void yield() {
  call(SYS_sched_yield);
}
inline void sleep_us(long us) {
  const timespec time{us / 1'000'000, (us % 1'000'000) * 1000};
  call(SYS_nanosleep, &time, nullptr);
}

// Waits by turns: cheap at first, because what is waited for takes microseconds, then asleep,
// because its owner may be stopped. next() is one turn.
class Backoff {
 public:
  void next() {
    if (++turns_ <= kYields) {
      yield();
    } else {
      sleep_us(turns_ <= 2 * kYields ? 50 : 1000);
    }
  }
  [[nodiscard]] std::uint32_t turns() const { return turns_; }

 private:
  std::uint32_t turns_ = 0;
};

inline void zero_bytes(void* to, std::size_t bytes) {
  asm volatile("rep stosb" : "+D"(to), "+c"(bytes) : "a"(0) : "memory");
}

}  // namespace foldswap::sys
