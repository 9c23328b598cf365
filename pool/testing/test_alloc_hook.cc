// Z3FOLD_BUGS "allocation in atomic context": no allocation under a lock. Every operator new of the
// test program comes through here; in debug builds (FOLDSWAP_DEBUG_CHECKS) it ends the program when
// the thread holds a ranked lock.
#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <new>

#include "base/mutex.h"

namespace {

void* checked(std::size_t bytes, std::size_t align) {
  if (foldswap::rank_check::held_now() != 0) {
    std::fputs("allocation under a lock\n", stderr);
    std::abort();
  }
  void* p = align <= alignof(std::max_align_t)
                ? std::malloc(bytes == 0 ? 1 : bytes)
                : std::aligned_alloc(align, (bytes + align - 1) / align * align);
  if (p == nullptr) std::abort();
  return p;
}

}  // namespace

void* operator new(std::size_t bytes) {
  return checked(bytes, 1);
}
void* operator new[](std::size_t bytes) {
  return checked(bytes, 1);
}
void* operator new(std::size_t bytes, std::align_val_t align) {
  return checked(bytes, static_cast<std::size_t>(align));
}
void* operator new[](std::size_t bytes, std::align_val_t align) {
  return checked(bytes, static_cast<std::size_t>(align));
}
void operator delete(void* p) noexcept {
  std::free(p);
}
void operator delete[](void* p) noexcept {
  std::free(p);
}
void operator delete(void* p, std::size_t) noexcept {
  std::free(p);
}
void operator delete[](void* p, std::size_t) noexcept {
  std::free(p);
}
void operator delete(void* p, std::align_val_t) noexcept {
  std::free(p);
}
void operator delete[](void* p, std::align_val_t) noexcept {
  std::free(p);
}
void operator delete(void* p, std::size_t, std::align_val_t) noexcept {
  std::free(p);
}
void operator delete[](void* p, std::size_t, std::align_val_t) noexcept {
  std::free(p);
}
