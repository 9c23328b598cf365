// The Os seam: every userfaultfd ioctl, memfd, file, futex and clock call of the daemon goes
// through here, so that faults can be injected and a simulator can stand in for the kernel. RealOs
// calls the kernel. Conventions: 0 or a positive count for success, a negative errno for failure.
// No call throws. Thread safety: all methods may be called from any thread.
#pragma once

#include <linux/userfaultfd.h>
#include <sys/types.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

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

struct IoDone {
  std::uint64_t tag = 0;
  std::int32_t result = 0;  // bytes, perhaps fewer than asked for, or -errno
};

// Reads and writes of one file that go on by themselves (io_uring). One thread's; that thread alone
// destroys it, which waits for what is under way. Ends come in any order. A wait of that thread
// (epoll_wait) may come back with EINTR because something has ended.
class IoRing {
 public:
  virtual ~IoRing() = default;
  // Queues one. The buffer lies in those that the ring was made with, and stays as it is until its
  // IoDone. False: as many are under way as the ring is deep.
  [[nodiscard]] virtual bool read(std::span<std::byte> buffer, std::uint64_t offset,
                                  std::uint64_t tag) = 0;
  [[nodiscard]] virtual bool write(std::span<const std::byte> buffer, std::uint64_t offset,
                                   std::uint64_t tag) = 0;
  // Hands what is queued to the kernel. On an error it stays queued: call again later.
  virtual int submit() = 0;
  // What has ended; never waits. Looks into shared memory only, unless the kernel has something to
  // flush.
  [[nodiscard]] virtual std::size_t reap(std::span<IoDone> done) = 0;
  [[nodiscard]] virtual int fd() const = 0;  // polls readable when there is something to reap
  // What it must do without, as a sentence for the log; empty: nothing.
  [[nodiscard]] virtual std::string note() const { return {}; }
};

struct FileSystemInfo {
  std::uint64_t free_bytes = 0;  // for this process
  bool in_memory = false;        // tmpfs or ramfs
  std::string type;              // "ext4"; the number in hex when it has no name here
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

  // -- memory files; punch() and allocate() also files on disk
  // Sealed against any change of size.
  virtual Result<UniqueFd> memory_file(const char* name, std::uint64_t bytes) = 0;
  virtual int punch(int fd, std::uint64_t offset, std::uint64_t bytes) = 0;
  // Extends a file on disk that is shorter.
  virtual int allocate(int fd, std::uint64_t offset, std::uint64_t bytes) = 0;

  // -- files on disk
  // Without a name, mode 0600. `direct`: past the page cache; EINVAL when the file system cannot.
  virtual Result<UniqueFd> unnamed_file(const std::string& directory, bool direct) = 0;
  virtual Result<FileSystemInfo> file_system(const std::string& path) = 0;
  virtual Result<std::uint64_t> allocated_bytes(int fd) = 0;  // blocks that the file takes
  // `buffers` and the file are registered with it. ENOSYS: see set_io_ring_maker().
  virtual Result<std::unique_ptr<IoRing>> io_ring(int fd, std::span<std::byte> buffers,
                                                  unsigned depth) = 0;

  // -- files and other processes
  virtual Result<std::string> read_file(const std::string& path) = 0;  // at most 64 MiB
  virtual Result<std::vector<std::string>> list_directory(const std::string& path) = 0;
  virtual Result<std::string> read_link(const std::string& path) = 0;
  virtual int pagemap_scan(int pagemap_fd, uapi::PmScanArg& arg) = 0;
  // /proc/PID/maps, for query_mapping().
  virtual Result<UniqueFd> open_maps(const std::string& path) = 0;
  // PROCMAP_QUERY. 0; -ENOENT: no such mapping; -ENOTTY: the kernel is older than 6.11.
  virtual int query_mapping(int maps_fd, uapi::ProcmapQuery& query) = 0;
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

// What real_os() makes rings with; there is none at first, so that only who uses them needs
// liburing (use_io_uring() in base/io_ring.h).
using IoRingMaker = Result<std::unique_ptr<IoRing>> (*)(int fd, std::span<std::byte> buffers,
                                                        unsigned depth);
void set_io_ring_maker(IoRingMaker maker);

}  // namespace foldswap
