// Which pages of a process are in its memory, as /proc/PID/pagemap has it. A test of an access to
// evicted memory proves nothing unless the memory was out at that moment; this is how it knows.
// The kernel's shared zero page does not count: it is nobody's memory, and is never taken out.
// Looking touches no page that is asked about. Thread safety: none; errors end the program.
#pragma once

#include <sys/types.h>

#include <cstddef>
#include <cstdint>

namespace testprog {

class Residence {
 public:
  explicit Residence(pid_t pid = 0);  // 0: this process
  ~Residence();
  Residence(const Residence&) = delete;
  Residence& operator=(const Residence&) = delete;

  // How many of the pages that [start, start + bytes) touches have memory of their own.
  [[nodiscard]] std::size_t pages_in(std::uint64_t start, std::size_t bytes) const;
  [[nodiscard]] std::size_t pages_in(const void* start, std::size_t bytes) const {
    return pages_in(reinterpret_cast<std::uint64_t>(start), bytes);
  }

 private:
  int fd_;
};

}  // namespace testprog
