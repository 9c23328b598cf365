// Stands in for preload/machine.h when the library's own code is built into the simulator: every
// system call goes to the simulated kernel, every look at shared memory may let another fiber go
// on, and memory of the client is the simulated client's. See sim/client_calls.cc.
#pragma once

#include <cstddef>
#include <cstdint>

namespace foldswap::sim {

// As the kernel's, for the process whose fiber runs.
long client_call(long number, long a, long b, long c, long d, long e, long f);
// Between two instructions of a client.
void client_pause();
void client_copy(void* to, const void* from, std::size_t bytes);

}  // namespace foldswap::sim

namespace foldswap::sys {

inline long call6(long number, long a, long b, long c, long d, long e, long f) {
  return sim::client_call(number, a, b, c, d, e, f);
}
inline void pause() {
  sim::client_pause();
}
inline void copy_bytes(void* to, const void* from, std::size_t bytes) {
  sim::client_copy(to, from, bytes);
}
inline constexpr std::uint32_t kYields = 20;  // turns of a fiber are long ones

}  // namespace foldswap::sys
