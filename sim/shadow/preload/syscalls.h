// Stands in for preload/syscalls.h when the library's own code is built into the simulator: the
// same names, but every system call goes to the simulated kernel, every look at shared memory may
// let another fiber go on, and memory of the client is the simulated client's. See sim/agent.h.
#pragma once

#include <linux/futex.h>
#include <sys/syscall.h>
#include <time.h>

#include <cstddef>
#include <cstdint>
#include <type_traits>

namespace foldswap::sim {

// As the kernel's, for the process whose fiber runs.
long client_call(long number, long a, long b, long c, long d, long e, long f);
// Between two instructions of a client.
void client_pause();
void client_copy(void* to, const void* from, std::size_t bytes);

}  // namespace foldswap::sim

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

template <typename A = int, typename B = int, typename C = int, typename D = int, typename E = int,
          typename F = int>
inline long call(long number, A a = {}, B b = {}, C c = {}, D d = {}, E e = {}, F f = {}) {
  return sim::client_call(number, word(a), word(b), word(c), word(d), word(e), word(f));
}

template <typename T>
[[nodiscard]] T load(const T& value) {
  sim::client_pause();
  return __atomic_load_n(&value, __ATOMIC_SEQ_CST);
}
template <typename T>
void store(T& value, T wanted) {
  sim::client_pause();
  __atomic_store_n(&value, wanted, __ATOMIC_SEQ_CST);
}
inline std::uint32_t add(std::uint32_t& value, std::uint32_t amount) {
  sim::client_pause();
  return __atomic_add_fetch(&value, amount, __ATOMIC_SEQ_CST);
}
template <typename T>
[[nodiscard]] bool exchange_if(T& value, std::type_identity_t<T> expected,
                               std::type_identity_t<T> wanted) {
  sim::client_pause();
  return __atomic_compare_exchange_n(&value, &expected, wanted, false, __ATOMIC_SEQ_CST,
                                     __ATOMIC_SEQ_CST);
}

enum class Scope : int { shared = 0, own = FUTEX_PRIVATE_FLAG };

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
  static constexpr std::uint32_t kYields = 20;  // turns of a fiber are long ones
  std::uint32_t turns_ = 0;
};

inline void copy_bytes(void* to, const void* from, std::size_t bytes) {
  sim::client_copy(to, from, bytes);
}
inline void zero_bytes(void* to, std::size_t bytes) {
  __builtin_memset(to, 0, bytes);
}

}  // namespace foldswap::sys
