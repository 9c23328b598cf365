// Pressure: whether the machine is short of memory. Two signs: MemAvailable below a line, and time
// that tasks lost waiting for memory (PSI: the cgroup's own where there is v2, else the
// system's). A kernel without PSI is said once; the line alone counts then.
//
// Thread safety: one thread's. Errors: what cannot be read is no pressure. Units: bytes,
// microseconds.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "base/os.h"

namespace foldswap {

// The number that begins after "KEY:" in the text of /proc/meminfo, in bytes.
[[nodiscard]] std::optional<std::uint64_t> meminfo_bytes(std::string_view text,
                                                         std::string_view key);
// total= of the "some" line of a PSI file, microseconds.
[[nodiscard]] std::optional<std::uint64_t> psi_some_us(std::string_view text);
// From /proc/self/cgroup: where the PSI of our cgroup is, or of the system's.
[[nodiscard]] std::string psi_path(Os& os);

class Pressure {
 public:
  struct Limits {
    std::uint64_t available_low_bytes = 0;  // 0: not looked at
    std::uint32_t stall_ms_per_s = 0;       // 0: likewise
  };
  explicit Pressure(Os& os) : os_(os) {}
  // Looks at most ten times a second; in between, what it was.
  [[nodiscard]] bool high(const Limits& limits);

 private:
  [[nodiscard]] bool stalled(std::uint64_t now_us, std::uint32_t limit_ms);

  Os& os_;
  bool high_ = false;
  std::uint64_t looked_us_ = 0;
  std::string path_;
  bool absent_ = false;
  std::uint64_t stall_us_ = 0, stall_at_us_ = 0;  // at the last look at PSI; 0: none yet
  std::uint64_t stalled_until_us_ = 0;
};

}  // namespace foldswap
