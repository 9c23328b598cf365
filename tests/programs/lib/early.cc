#include "tests/programs/lib/early.h"

#include <sys/mman.h>

#include <cstddef>
#include <cstdlib>

namespace testprog {

Hooks hooks{};

namespace {

constexpr std::size_t kPage = 4096, kPages = 64;
Early made{};

void call(void (*hook)()) {
  if (hook != nullptr) hook();
}

void make(pthread_mutex_t*& mutex, std::byte* place, int robust, int protocol) {
  mutex = reinterpret_cast<pthread_mutex_t*>(place);
  pthread_mutexattr_t attributes;
  if (pthread_mutexattr_init(&attributes) != 0 ||
      pthread_mutexattr_setrobust(&attributes, robust) != 0 ||
      pthread_mutexattr_setprotocol(&attributes, protocol) != 0 ||
      pthread_mutex_init(mutex, &attributes) != 0) {
    std::abort();
  }
}

[[gnu::constructor]] void start() {
  void* const memory =
      mmap(nullptr, kPages * kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) std::abort();
  auto* const base = static_cast<std::byte*>(memory);
  for (std::size_t i = 0; i < kPages; ++i) base[i * kPage] = std::byte{1};
  make(made.robust, base + 2 * kPage, PTHREAD_MUTEX_ROBUST, PTHREAD_PRIO_NONE);
  make(made.across, base + 17 * kPage - 16, PTHREAD_MUTEX_ROBUST, PTHREAD_PRIO_NONE);
  make(made.inheriting, base + 32 * kPage, PTHREAD_MUTEX_ROBUST, PTHREAD_PRIO_INHERIT);
  if (pthread_atfork([] { call(hooks.prepare); }, [] { call(hooks.parent); },
                     [] { call(hooks.child); }) != 0) {
    std::abort();
  }
}

}  // namespace

const Early& early() {
  return made;
}

}  // namespace testprog
