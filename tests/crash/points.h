// Crash points: every store to a shared memory file and every call through the Os seam of
// `foldswapd_crash`, which is foldswapd built with instrumentation that calls what is here (stores:
// entry.cc, bulk.cc; calls: crash_os.cc). A point is a place in the code, told by its offset in the
// image and by that of its function's caller, and what of it: before a store, half way through a
// bulk store, before a call, after one. After a store is before the next one.
//
// Control is a file that FOLDSWAP_CRASH_CONTROL names, mapped shared: tests/e2e/lib/crash_points.py
// counts there how often each point was come to, and arms one; the daemon that comes to it so many
// times is killed there and then, as by kill -9. Or it arms all at which no daemon has died. Only
// the keeper's child counts and dies: neither the keeper nor a vetting helper.
//
// Thread safety: all may be called from any thread. Nothing here allocates or changes errno.
#pragma once

#include <cstddef>
#include <cstdint>

namespace foldswap::crash {

enum class Kind : std::uint64_t { store, half, before, after };

// Who stores or calls: where in its function, and where that was called.
struct Site {
  const void* at;
  const void* caller;
};
// Of the caller of the function that this is in. Both have frame pointers.
#define FOLDSWAP_CRASH_SITE \
  (foldswap::crash::Site{__builtin_return_address(0), __builtin_return_address(1)})

// May not return.
void come_to(Site site, Kind kind);

// Whether any of these bytes lies in a shared mapping of a file.
[[nodiscard]] bool shared(const void* begin, std::size_t bytes);

inline void before_store(Site site, const void* to, std::size_t bytes) {
  if (shared(to, bytes)) come_to(site, Kind::store);
}

}  // namespace foldswap::crash
