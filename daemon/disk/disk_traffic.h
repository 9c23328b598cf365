// DiskTraffic: how the threads that use the disk give way to each other. Thread safety: any thread;
// want_room is set before any is started, and must be callable from all of them.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>

namespace foldswap {

// What the threads that read, evict and write say to each other.
struct DiskTraffic {
  std::atomic<std::uint32_t> demand{0};  // reads under way that a fault waits for
  // There will be room in the pool before long: whoever finds none may wait for it.
  std::atomic<bool> relief{false};
  // Somebody found none: the writer is woken.
  std::function<void()> want_room = [] {};
};

}  // namespace foldswap
