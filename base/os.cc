#include "base/os.h"

#include <dirent.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <linux/futex.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <climits>

#include "base/file_system.h"

namespace foldswap {
namespace {

// Debian 12's headers have no futex_waitv; the structure is the kernel's uapi.
struct FutexWaitv {
  std::uint64_t value, address;
  std::uint32_t flags, reserved;
};
constexpr long kSysFutexWaitv = 449;
constexpr std::uint32_t kFutex32Shared = 2;  // FUTEX_32, not FUTEX_PRIVATE_FLAG

std::atomic<IoRingMaker> g_io_ring_maker{nullptr};

class RealOs final : public Os {
 public:
  std::uint64_t now_ns() override {
    timespec ts{};
    ::clock_gettime(CLOCK_MONOTONIC, &ts);
    return static_cast<std::uint64_t>(ts.tv_sec) * 1'000'000'000 +
           static_cast<std::uint64_t>(ts.tv_nsec);
  }

  void sleep_us(std::uint64_t us) override {
    const timespec ts{static_cast<time_t>(us / 1'000'000),
                      static_cast<long>(us % 1'000'000) * 1'000};
    ::nanosleep(&ts, nullptr);
  }

  int uffd_api(int fd, std::uint64_t features) override {
    uffdio_api api{};
    api.api = UFFD_API;
    api.features = features;
    if (::ioctl(fd, UFFDIO_API, &api) != 0) return -errno;
    return 0;
  }

  int uffd_register(int fd, std::uint64_t start, std::uint64_t bytes) override {
    uffdio_register reg{};
    reg.range = {start, bytes};
    reg.mode = UFFDIO_REGISTER_MODE_MISSING;
    return ::ioctl(fd, UFFDIO_REGISTER, &reg) == 0 ? 0 : -errno;
  }

  int uffd_unregister(int fd, std::uint64_t start, std::uint64_t bytes) override {
    uffdio_range range{start, bytes};
    return ::ioctl(fd, UFFDIO_UNREGISTER, &range) == 0 ? 0 : -errno;
  }

  UffdProgress uffd_copy(int fd, std::uint64_t dst, const std::byte* src,
                         std::uint64_t bytes) override {
    uffdio_copy copy{};
    copy.dst = dst;
    copy.src = reinterpret_cast<std::uint64_t>(src);
    copy.len = bytes;
    if (::ioctl(fd, UFFDIO_COPY, &copy) == 0) return {bytes, 0};
    const int error = errno;
    return progress(copy.copy, error);
  }

  UffdProgress uffd_zeropage(int fd, std::uint64_t dst, std::uint64_t bytes) override {
    uffdio_zeropage zero{};
    zero.range = {dst, bytes};
    if (::ioctl(fd, UFFDIO_ZEROPAGE, &zero) == 0) return {bytes, 0};
    const int error = errno;
    return progress(zero.zeropage, error);
  }

  int uffd_poison(int fd, std::uint64_t page) override {
    uapi::UffdPoison poison{};
    poison.range = {page, 4096};
    return ::ioctl(fd, uapi::kUffdioPoison, &poison) == 0 ? 0 : -errno;
  }

  int uffd_wake(int fd, std::uint64_t start, std::uint64_t bytes) override {
    uffdio_range range{start, bytes};
    return ::ioctl(fd, UFFDIO_WAKE, &range) == 0 ? 0 : -errno;
  }

  Probe uffd_probe(int fd, std::uint64_t page) override {
    uffdio_continue probe{};
    probe.range = {page, 4096};
    if (::ioctl(fd, UFFDIO_CONTINUE, &probe) == 0) return Probe::registered;
    switch (errno) {
      case EAGAIN:
        return Probe::changing;
      case ENOENT:
        return Probe::unregistered;
      case ESRCH:
        return Probe::gone;
      default:
        return Probe::registered;  // EINVAL: anonymous and registered
    }
  }

  int uffd_read(int fd, std::span<uffd_msg> messages) override {
    const iovec vec{messages.data(), messages.size_bytes()};
    ssize_t n = ::preadv2(fd, &vec, 1, -1, RWF_NOWAIT);
    if (n < 0 && errno == EOPNOTSUPP) {  // before 6.10: trust O_NONBLOCK, set just before
      const int flags = ::fcntl(fd, F_GETFL);
      if ((flags & O_NONBLOCK) == 0) ::fcntl(fd, F_SETFL, flags | O_NONBLOCK);
      n = ::read(fd, messages.data(), messages.size_bytes());
    }
    if (n < 0) return errno == EAGAIN || errno == EINTR ? 0 : -errno;
    return static_cast<int>(static_cast<std::size_t>(n) / sizeof(uffd_msg));
  }

  Result<UniqueFd> memory_file(const char* name, std::uint64_t bytes) override {
    UniqueFd fd(::memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING));
    if (!fd.valid()) return fail_errno(std::string("memfd_create for ") + name + " failed");
    if (::ftruncate(fd.get(), static_cast<off_t>(bytes)) != 0) {
      return fail_errno(std::string("sizing the memory file ") + name + " failed");
    }
    if (::fcntl(fd.get(), F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) != 0) {
      return fail_errno(std::string("sealing the memory file ") + name + " failed");
    }
    return fd;
  }

  int punch(int fd, std::uint64_t offset, std::uint64_t bytes) override {
    return ::fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, static_cast<off_t>(offset),
                       static_cast<off_t>(bytes)) == 0
               ? 0
               : -errno;
  }

  // The file's size grows along: some file systems make no holes in what lies beyond it. Memory
  // files have their full size.
  int allocate(int fd, std::uint64_t offset, std::uint64_t bytes) override {
    return ::fallocate(fd, 0, static_cast<off_t>(offset), static_cast<off_t>(bytes)) == 0 ? 0
                                                                                          : -errno;
  }

  Result<UniqueFd> unnamed_file(const std::string& directory, bool direct) override {
    return open_unnamed(directory, direct);
  }

  Result<FileSystemInfo> file_system(const std::string& path) override {
    return file_system_of(path);
  }

  Result<std::uint64_t> allocated_bytes(int fd) override {
    struct stat st{};
    if (::fstat(fd, &st) != 0) return fail_errno("cannot tell how large a file is");
    return static_cast<std::uint64_t>(st.st_blocks) * 512;
  }

  Result<std::unique_ptr<IoRing>> io_ring(int fd, std::span<std::byte> buffers,
                                          unsigned depth) override {
    const IoRingMaker make = g_io_ring_maker.load();
    if (make == nullptr) return fail_errno("this program makes no io_uring", ENOSYS);
    return make(fd, buffers, depth);
  }

  Result<std::string> read_file(const std::string& path) override {
    UniqueFd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NOCTTY));
    if (!fd.valid()) return fail_errno("cannot open " + path);
    std::string text;
    constexpr std::size_t kStep = 64 * 1024, kMost = 64 * 1024 * 1024;
    while (text.size() < kMost) {
      const std::size_t old = text.size();
      text.resize(old + kStep);
      const ssize_t n = ::read(fd.get(), text.data() + old, kStep);
      if (n < 0 && errno == EINTR) {
        text.resize(old);
        continue;
      }
      if (n < 0) return fail_errno("cannot read " + path);
      text.resize(old + static_cast<std::size_t>(n));
      if (n == 0) break;
    }
    return text;
  }

  Result<std::vector<std::string>> list_directory(const std::string& path) override {
    const std::unique_ptr<DIR, int (*)(DIR*)> directory(::opendir(path.c_str()), ::closedir);
    if (directory == nullptr) return fail_errno("cannot open " + path);
    std::vector<std::string> names;
    while (const dirent* entry = ::readdir(directory.get())) names.emplace_back(entry->d_name);
    return names;
  }
  Result<std::string> read_link(const std::string& path) override {
    std::array<char, 256> target{};
    const ssize_t n = ::readlink(path.c_str(), target.data(), target.size());
    if (n < 0) return fail_errno("cannot read the link " + path);
    return std::string(target.data(), static_cast<std::size_t>(n));
  }

  int pagemap_scan(int pagemap_fd, uapi::PmScanArg& arg) override {
    const int n = ::ioctl(pagemap_fd, uapi::kPagemapScan, &arg);
    return n >= 0 ? n : -errno;
  }

  Result<UniqueFd> open_maps(const std::string& path) override {
    UniqueFd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
    if (!fd.valid()) return fail_errno("cannot open " + path);
    return fd;
  }

  int query_mapping(int maps_fd, uapi::ProcmapQuery& query) override {
    return ::ioctl(maps_fd, uapi::kProcmapQuery, &query) == 0 ? 0 : -errno;
  }

  int read_at(int fd, void* data, std::size_t bytes, std::uint64_t offset) override {
    const ssize_t n = ::pread(fd, data, bytes, static_cast<off_t>(offset));
    return n >= 0 ? static_cast<int>(n) : -errno;
  }

  int robust_list_head(pid_t tid, std::uint64_t& head) override {
    void* where = nullptr;
    std::size_t bytes = 0;
    if (::syscall(SYS_get_robust_list, tid, &where, &bytes) != 0) return -errno;
    head = reinterpret_cast<std::uint64_t>(where);
    return 0;
  }

  int pidfd_signal(int pidfd, int signal) override {
    return ::syscall(SYS_pidfd_send_signal, pidfd, signal, nullptr, 0) == 0 ? 0 : -errno;
  }

  void futex_wake(std::uint32_t* word) override {
    ::syscall(SYS_futex, word, FUTEX_WAKE, INT_MAX, nullptr, nullptr, 0);
  }

  void futex_wait_any(std::span<const FutexWait> waits, std::uint64_t timeout_us) override {
    std::array<FutexWaitv, 128> list{};
    const std::size_t count = waits.size() < list.size() ? waits.size() : list.size();
    for (std::size_t i = 0; i < count; ++i) {
      list[i] = {waits[i].value, reinterpret_cast<std::uint64_t>(waits[i].word), kFutex32Shared, 0};
    }
    timespec until{};
    ::clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_sec += static_cast<time_t>(timeout_us / 1'000'000);
    until.tv_nsec += static_cast<long>(timeout_us % 1'000'000) * 1'000;
    if (until.tv_nsec >= 1'000'000'000) {
      until.tv_nsec -= 1'000'000'000;
      until.tv_sec += 1;
    }
    ::syscall(kSysFutexWaitv, list.data(), count, 0, &until, CLOCK_MONOTONIC);
  }

 private:
  // COPY and ZEROPAGE report bytes done in a signed field: negative errno when nothing was done.
  static UffdProgress progress(std::int64_t field, int error) {
    return {field > 0 ? static_cast<std::uint64_t>(field) : 0, error};
  }
};

}  // namespace

Os& real_os() {
  static RealOs os;
  return os;
}

void set_io_ring_maker(IoRingMaker maker) {
  g_io_ring_maker.store(maker);
}

}  // namespace foldswap
