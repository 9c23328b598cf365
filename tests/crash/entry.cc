// What g++ -fsanitize=thread calls, in place of ThreadSanitizer's own run-time: every store of the
// program asks here first. Loads ask, too, and are of no interest.
#include <cstddef>
#include <cstdint>

#include "tests/crash/points.h"

using foldswap::crash::before_store;

#define PLAIN(bytes)                              \
  void __tsan_read##bytes(void*) {}               \
  void __tsan_write##bytes(void* to) {            \
    before_store(FOLDSWAP_CRASH_SITE, to, bytes); \
  }                                               \
  void __tsan_unaligned_read##bytes(void*) {}     \
  void __tsan_unaligned_write##bytes(void* to) {  \
    before_store(FOLDSWAP_CRASH_SITE, to, bytes); \
  }

#define FETCH(bits, type, name, operation)                                      \
  type __tsan_atomic##bits##_fetch_##name(volatile type* at, type value, int) { \
    before_store(FOLDSWAP_CRASH_SITE, const_cast<type*>(at), sizeof(type));     \
    return operation(at, value, __ATOMIC_SEQ_CST);                              \
  }

#define EXCHANGE(bits, type, strength, weak)                                                \
  bool __tsan_atomic##bits##_compare_exchange_##strength(volatile type* at, type* expected, \
                                                         type value, int, int) {            \
    before_store(FOLDSWAP_CRASH_SITE, const_cast<type*>(at), sizeof(type));                 \
    return __atomic_compare_exchange_n(at, expected, value, weak, __ATOMIC_SEQ_CST,         \
                                       __ATOMIC_SEQ_CST);                                   \
  }

#define ATOMIC(bits, type)                                                  \
  type __tsan_atomic##bits##_load(const volatile type* at, int) {           \
    return __atomic_load_n(at, __ATOMIC_SEQ_CST);                           \
  }                                                                         \
  void __tsan_atomic##bits##_store(volatile type* at, type value, int) {    \
    before_store(FOLDSWAP_CRASH_SITE, const_cast<type*>(at), sizeof(type)); \
    __atomic_store_n(at, value, __ATOMIC_SEQ_CST);                          \
  }                                                                         \
  type __tsan_atomic##bits##_exchange(volatile type* at, type value, int) { \
    before_store(FOLDSWAP_CRASH_SITE, const_cast<type*>(at), sizeof(type)); \
    return __atomic_exchange_n(at, value, __ATOMIC_SEQ_CST);                \
  }                                                                         \
  FETCH(bits, type, add, __atomic_fetch_add)                                \
  FETCH(bits, type, sub, __atomic_fetch_sub)                                \
  FETCH(bits, type, and, __atomic_fetch_and)                                \
  FETCH(bits, type, or, __atomic_fetch_or)                                  \
  FETCH(bits, type, xor, __atomic_fetch_xor)                                \
  EXCHANGE(bits, type, strong, false)                                       \
  EXCHANGE(bits, type, weak, true)

extern "C" {

void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_read(void*) {}
void __tsan_vptr_update(void*, void*) {}
void __tsan_read_range(void*, std::size_t) {}
void __tsan_write_range(void* to, std::size_t bytes) {
  if (bytes != 0) before_store(FOLDSWAP_CRASH_SITE, to, bytes);
}
void __tsan_atomic_thread_fence(int) {
  __atomic_thread_fence(__ATOMIC_SEQ_CST);
}
void __tsan_atomic_signal_fence(int) {}

PLAIN(1)
PLAIN(2)
PLAIN(4)
PLAIN(8)
PLAIN(16)

ATOMIC(8, std::uint8_t)
ATOMIC(16, std::uint16_t)
ATOMIC(32, std::uint32_t)
ATOMIC(64, std::uint64_t)

}  // extern "C"
