// An io_uring as the test programs use it: one request at a time, or a queue that is kept full.
// Thread safety: none. Errors end the program; a kernel that has no io_uring for us ends it with
// status 77 and the reason on stderr.
#pragma once

#include <liburing.h>
#include <sys/types.h>

#include <cstdint>
#include <vector>

namespace testprog {

class Ring {
 public:
  explicit Ring(unsigned entries, unsigned flags = 0);
  ~Ring();
  Ring(const Ring&) = delete;
  Ring& operator=(const Ring&) = delete;

  // A request to be filled in; `tag` comes back with its completion.
  [[nodiscard]] io_uring_sqe* next(std::uint64_t tag = 0);
  void submit();
  // The next completion, waited for: its tag and result.
  struct Completion {
    std::uint64_t tag;
    int result;
  };
  [[nodiscard]] Completion wait();
  // A whole request: submitted, waited for.
  [[nodiscard]] int result();

  void register_buffers(const std::vector<iovec>& buffers);
  void unregister_buffers();

 private:
  io_uring ring_{};
};

}  // namespace testprog
