// A library that programs are linked with, and whose constructor runs before that of anything that
// is preloaded: it makes mutexes that the kernel itself changes, and registers fork handlers, as
// libraries for audio and real time, allocators and RPC libraries do. Thread safety: what the
// constructor made is constant; hooks are set by one thread while nobody forks.
#pragma once

#include <pthread.h>

namespace testprog {

struct Early {
  pthread_mutex_t* robust;      // each on pages of its own
  pthread_mutex_t* across;      // robust, half of it on one page and half on the next
  pthread_mutex_t* inheriting;  // robust, with priority inheritance
};
__attribute__((visibility("default"))) const Early& early();

// What the fork handlers do; null: nothing.
struct Hooks {
  void (*prepare)();
  void (*parent)();
  void (*child)();
};
__attribute__((visibility("default"))) extern Hooks hooks;

}  // namespace testprog
