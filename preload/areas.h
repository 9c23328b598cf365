// The mappings a client brings: private area, staging, mailbox, transfer area. A Region unmaps
// itself unless kept. Thread safety: for whoever makes the process a client, alone: the
// constructor, or in a forked child the fork handler and then the agent.
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>

#include "base/wire.h"
#include "preload/reason.h"
#include "preload/state.h"

namespace foldswap::preload {

class Region {
 public:
  Region() = default;
  Region(std::byte* start, std::size_t bytes) : start_(start), bytes_(bytes) {}
  Region(Region&& other) noexcept
      : start_(std::exchange(other.start_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}
  Region& operator=(Region&& other) noexcept {
    std::swap(start_, other.start_);
    std::swap(bytes_, other.bytes_);
    return *this;
  }
  Region(const Region&) = delete;
  Region& operator=(const Region&) = delete;
  ~Region() {
    if (start_ != nullptr) sys::call(SYS_munmap, start_, bytes_);
  }

  [[nodiscard]] std::byte* start() const { return start_; }
  [[nodiscard]] std::size_t bytes() const { return bytes_; }
  [[nodiscard]] wire::Range range() const {
    return {reinterpret_cast<std::uint64_t>(start_), bytes_};
  }
  void keep() { start_ = nullptr; }

 private:
  std::byte* start_ = nullptr;
  std::size_t bytes_ = 0;
};

inline constexpr std::size_t kControlOffset = 2 * kPage + kStackBytes;

// The first page of the private area that `control` is the last of.
[[nodiscard]] inline Life* life_beside(Control& control) {
  return reinterpret_cast<Life*>(reinterpret_cast<std::byte*>(&control) - kControlOffset);
}

struct Areas {
  Region own;  // [alive page][guard][agent's stack][Control]
  Region staging, mailbox, transfer;

  [[nodiscard]] Life* alive() const { return reinterpret_cast<Life*>(own.start()); }
  [[nodiscard]] Control* control() const {
    return reinterpret_cast<Control*>(own.start() + kControlOffset);
  }
  void keep() {
    own.keep();
    staging.keep();
    mailbox.keep();
    transfer.keep();
  }
};

// Map the private area, and the other three, with their advice for fork and core dumps; no page of
// staging is touched. Neither touches libc's state: the agent of a forked child calls map_shared().
// Locked::yes: the private area is locked, if the program's limit allows that.
enum class Locked : bool { no, yes };
[[nodiscard]] bool map_private(Areas& areas, Locked locked, Reason& reason);
[[nodiscard]] bool map_shared(int mailbox_fd, int transfer_fd, Areas& areas, Reason& reason);

// The library's writable data, which must never be evicted: the segment around `library`.
[[nodiscard]] wire::Range own_data();

// Whether both addresses belong to one loaded object. (dladdr would read the whole symbol table to
// say so.)
[[nodiscard]] bool same_module(const void* a, const void* b);

}  // namespace foldswap::preload
