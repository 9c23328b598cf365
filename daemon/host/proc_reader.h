// What /proc tells about a client: its VMAs with flags, its threads, its resident size. Parsing
// only; every file is read through the Os seam. All of it is hints for planning: the kernel's MOVE
// and REGISTER have the last word. Thread safety: free functions, no state.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/os.h"
#include "base/result.h"

namespace foldswap {

struct VmaInfo {
  std::uint64_t start = 0, end = 0;
  std::uint64_t anonymous_bytes = 0;  // resident anonymous memory in it
  bool ordinary = false;              // private, of no file
  bool manageable = false;            // DESIGN §4, "Never managed"
  bool registered = false;            // with some userfaultfd (VmFlags: um)
};

// From the text of /proc/PID/smaps.
[[nodiscard]] std::vector<VmaInfo> parse_smaps(std::string_view text);
[[nodiscard]] Result<std::vector<VmaInfo>> read_vmas(Os& os, pid_t pid);

// A part of a mapping, or all of one.
struct ProcessMapping {
  std::uint64_t start = 0, end = 0;
  bool ordinary = false;  // private, of no file, of 4 KiB pages
  std::uint64_t whole_start = 0, whole_end = 0;
};

// What is mapped where in a process, cheaper than smaps: one mapping at a time where the kernel can
// tell (6.11), else from the text of maps. Thread safety: const methods of one thread at a time.
class ProcessMappings {
 public:
  ProcessMappings(Os& os, pid_t pid);
  // The mappings that touch [start, end), cut to it. Error: it cannot be told.
  [[nodiscard]] Result<std::vector<ProcessMapping>> of_range(std::uint64_t start,
                                                             std::uint64_t end) const;

 private:
  [[nodiscard]] Result<std::vector<ProcessMapping>> of_text(std::uint64_t start,
                                                            std::uint64_t end) const;
  Os& os_;
  const pid_t pid_;
  UniqueFd fd_;
};

// resident - shared of /proc/PID/statm: RssAnon (swapped pages do not count).
[[nodiscard]] Result<std::uint64_t> read_rss_anon(Os& os, pid_t pid);

struct ThreadInfo {
  pid_t tid = 0;
  char state = '?';
  std::uint64_t user_ticks = 0, start_ticks = 0;
  int cpu = -1;
  // Asleep in a system call that discards nothing (DESIGN §5): proof that it is not inside a
  // madvise.
  bool asleep_elsewhere = false;
};
// With `syscalls`, also reads what each is blocked in (needs ptrace access).
[[nodiscard]] std::vector<ThreadInfo> read_threads(Os& os, pid_t pid, bool syscalls);
[[nodiscard]] std::vector<pid_t> read_tids(Os& os, pid_t pid);
// Of /proc/PID/task/TID/stat.
[[nodiscard]] bool parse_stat(std::string_view text, ThreadInfo& thread);
// Of /proc/PID/task/TID/syscall.
[[nodiscard]] bool parse_asleep_elsewhere(std::string_view text);
// Thread group of a thread; 0 when it is gone.
[[nodiscard]] pid_t read_tgid(Os& os, pid_t tid);

// When the process began, rounded down to a tick of 10 ms, and now: both since boot, suspends
// counted.
[[nodiscard]] Result<std::uint64_t> read_start_ns(Os& os, pid_t pid);
[[nodiscard]] std::uint64_t boot_ns();

}  // namespace foldswap
