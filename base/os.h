// The Os seam: every userfaultfd ioctl, memfd, file, futex and clock call of the daemon goes
// through here, so that faults can be injected and a simulator can stand in for the kernel. RealOs
// calls the kernel. Conventions: 0 or a positive count for success, a negative errno for failure.
// No call throws. Thread safety: all methods may be called from any thread.
#pragma once

#include <linux/userfaultfd.h>
#include <sys/types.h>

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include "base/result.h"
#include "base/uapi.h"
#include "base/unique_fd.h"

namespace foldswap {

// Bytes done and why it stopped: error == 0 exactly when all was done.
struct UffdProgress {
  std::uint64_t done = 0;
  int error = 0;  // positive errno
};

// What PROBE (UFFDIO_CONTINUE on one page of anonymous memory, which changes nothing) tells:
// HAZARDS, head.
enum class Probe { registered, unregistered, changing, gone };

struct FutexWait {
  const std::uint32_t* word;
  std::uint32_t value;  // the wait ends when *word differs
};

class Os {
 public:
  virtual ~Os() = default;

  // -- clock
  virtual std::uint64_t now_ns() = 0;  // monotonic
  [[nodiscard]] std::uint64_t now_us() { return now_ns() / 1'000; }
  virtual void sleep_us(std::uint64_t us) = 0;

  // -- userfaultfd
  virtual int uffd_api(int fd, std::uint64_t features) = 0;
  virtual int uffd_register(int fd, std::uint64_t start, std::uint64_t bytes) = 0;
  virtual int uffd_unregister(int fd, std::uint64_t start, std::uint64_t bytes) = 0;
  virtual UffdProgress uffd_copy(int fd, std::uint64_t dst, const std::byte* src,
                                 std::uint64_t bytes) = 0;
  virtual UffdProgress uffd_zeropage(int fd, std::uint64_t dst, std::uint64_t bytes) = 0;
  virtual int uffd_poison(int fd, std::uint64_t page) = 0;
  virtual int uffd_wake(int fd, std::uint64_t start, std::uint64_t bytes) = 0;
  virtual Probe uffd_probe(int fd, std::uint64_t page) = 0;
  // Messages read, 0 when none waits, or -errno. Never blocks, whatever the client did to the
  // description.
  virtual int uffd_read(int fd, std::span<uffd_msg> messages) = 0;

  // -- memory files
  // Sealed against any change of size.
  virtual Result<UniqueFd> memory_file(const char* name, std::uint64_t bytes) = 0;
  virtual int punch(int fd, std::uint64_t offset, std::uint64_t bytes) = 0;
  virtual int allocate(int fd, std::uint64_t offset, std::uint64_t bytes) = 0;

  // -- files and other processes
  virtual Result<std::string> read_file(const std::string& path) = 0;  // at most 64 MiB
  virtual Result<std::string> read_link(const std::string& path) = 0;
  virtual int pagemap_scan(int pagemap_fd, uapi::PmScanArg& arg) = 0;
  virtual int read_at(int fd, void* data, std::size_t bytes, std::uint64_t offset) = 0;
  virtual int robust_list_head(pid_t tid, std::uint64_t& head) = 0;  // get_robust_list(2)
  virtual int pidfd_signal(int pidfd, int signal) = 0;

  // -- futexes in shared memory
  virtual void futex_wake(std::uint32_t* word) = 0;  // all waiters
  // Waits until one of the words differs from its value or the time is over. At most 128 words.
  virtual void futex_wait_any(std::span<const FutexWait> waits, std::uint64_t timeout_us) = 0;
};

// The kernel. One instance for the life of the process.
Os& real_os();

}  // namespace foldswap
