// What preload/syscalls.h is built on: one system call, one copy, and where another may go on. The
// simulator has a file of this name instead (sim/shadow/preload/machine.h). Thread safety: as
// syscalls.h.
#pragma once

#include <cstddef>
#include <cstdint>

#if !defined(__x86_64__) || !defined(__linux__)
#error "the preload library knows the system call interface of x86-64 Linux only"
#endif

namespace foldswap::sys {

inline long call6(long number, long a, long b, long c, long d, long e, long f) {
  long result = number;
  register long r10 asm("r10") = d;
  register long r8 asm("r8") = e;
  register long r9 asm("r9") = f;
  asm volatile("syscall"
               : "+a"(result)
               : "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
               : "rcx", "r11", "memory");
  return result;
}

// Before each look at memory that others see: nothing, on a machine that lets them go on anyway.
inline void pause() {}

inline void copy_bytes(void* to, const void* from, std::size_t bytes) {
  asm volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(bytes) : : "memory");
}
// Turns of Backoff that yield only.
inline constexpr std::uint32_t kYields = 200;

}  // namespace foldswap::sys
