// The Os seam, with a point before and one after each call. real_os() is linked with --wrap.
#include <cerrno>
#include <utility>

#include "base/os.h"
#include "tests/crash/points.h"

namespace foldswap::crash {
namespace {

// A point before and one after; errno is the call's.
template <typename Call>
auto around(Site site, Call call) {
  come_to(site, Kind::before);
  auto result = call();
  const int error = errno;
  come_to(site, Kind::after);
  errno = error;
  return result;
}

class CrashRing final : public IoRing {
 public:
  explicit CrashRing(std::unique_ptr<IoRing> ring) : ring_(std::move(ring)) {}
  bool read(std::span<std::byte> buffer, std::uint64_t offset, std::uint64_t tag) override {
    return around(FOLDSWAP_CRASH_SITE, [&] { return ring_->read(buffer, offset, tag); });
  }
  bool write(std::span<const std::byte> buffer, std::uint64_t offset, std::uint64_t tag) override {
    return around(FOLDSWAP_CRASH_SITE, [&] { return ring_->write(buffer, offset, tag); });
  }
  int submit() override {
    return around(FOLDSWAP_CRASH_SITE, [&] { return ring_->submit(); });
  }
  std::size_t reap(std::span<IoDone> done) override {
    return around(FOLDSWAP_CRASH_SITE, [&] { return ring_->reap(done); });
  }
  [[nodiscard]] int fd() const override { return ring_->fd(); }
  [[nodiscard]] std::string note() const override { return ring_->note(); }

 private:
  std::unique_ptr<IoRing> ring_;
};

class CrashOs final : public Os {
 public:
  explicit CrashOs(Os& os) : os_(os) {}

  std::uint64_t now_ns() override {
    return around(FOLDSWAP_CRASH_SITE, [&] { return os_.now_ns(); });
  }
  void sleep_us(std::uint64_t us) override {
    (void)around(FOLDSWAP_CRASH_SITE, [&] { return os_.sleep_us(us), 0; });
  }
  int uffd_api(int fd, std::uint64_t features) override {
    return around(FOLDSWAP_CRASH_SITE, [&] { return os_.uffd_api(fd, features); });
  }
  int uffd_register(int fd, std::uint64_t start, std::uint64_t bytes) override {
    return around(FOLDSWAP_CRASH_SITE, [&] { return os_.uffd_register(fd, start, bytes); });
  }
  int uffd_unregister(int fd, std::uint64_t start, std::uint64_t bytes) override {
    return around(FOLDSWAP_CRASH_SITE, [&] { return os_.uffd_unregister(fd, start, bytes); });
  }
  UffdProgress uffd_copy(int fd, std::uint64_t dst, const std::byte* src,
                         std::uint64_t bytes) override {
    return around(FOLDSWAP_CRASH_SITE, [&] { return os_.uffd_copy(fd, dst, src, bytes); });
  }
  UffdProgress uffd_zeropage(int fd, std::uint64_t dst, std::uint64_t bytes) override {
    return around(FOLDSWAP_CRASH_SITE, [&] { return os_.uffd_zeropage(fd, dst, bytes); });
  }
  int uffd_poison(int fd, std::uint64_t page) override {
    return around(FOLDSWAP_CRASH_SITE, [&] { return os_.uffd_poison(fd, page); });
  }
  int uffd_wake(int fd, std::uint64_t start, std::uint64_t bytes) override {
    return around(FOLDSWAP_CRASH_SITE, [&] { return os_.uffd_wake(fd, start, bytes); });
  }
  Probe uffd_probe(int fd, std::uint64_t page) override {
    return around(FOLDSWAP_CRASH_SITE, [&] { return os_.uffd_probe(fd, page); });
  }
  int uffd_read(int fd, std::span<uffd_msg> messages) override {
    return around(FOLDSWAP_CRASH_SITE, [&] { return os_.uffd_read(fd, messages); });
  }
  Result<UniqueFd> memory_file(const char* name, std::uint64_t bytes) override {
    return around(FOLDSWAP_CRASH_SITE, [&] { return os_.memory_file(name, bytes); });
  }
  int punch(int fd, std::uint64_t offset, std::uint64_t bytes) override {
    return around(FOLDSWAP_CRASH_SITE, [&] { return os_.punch(fd, offset, bytes); });
  }
  int allocate(int fd, std::uint64_t offset, std::uint64_t bytes) override {
    return around(FOLDSWAP_CRASH_SITE, [&] { return os_.allocate(fd, offset, bytes); });
  }
  Result<UniqueFd> unnamed_file(const std::string& directory, bool direct) override {
    return around(FOLDSWAP_CRASH_SITE, [&] { return os_.unnamed_file(directory, direct); });
  }
  Result<FileSystemInfo> file_system(const std::string& path) override {
    return around(FOLDSWAP_CRASH_SITE, [&] { return os_.file_system(path); });
  }
  Result<std::uint64_t> allocated_bytes(int fd) override {
    return around(FOLDSWAP_CRASH_SITE, [&] { return os_.allocated_bytes(fd); });
  }
  Result<std::unique_ptr<IoRing>> io_ring(int fd, std::span<std::byte> buffers,
                                          unsigned depth) override {
    return around(FOLDSWAP_CRASH_SITE, [&] {
      auto ring = os_.io_ring(fd, buffers, depth);
      if (ring) ring = std::make_unique<CrashRing>(std::move(*ring));
      return ring;
    });
  }
  Result<std::string> read_file(const std::string& path) override {
    return around(FOLDSWAP_CRASH_SITE, [&] { return os_.read_file(path); });
  }
  Result<std::string> read_link(const std::string& path) override {
    return around(FOLDSWAP_CRASH_SITE, [&] { return os_.read_link(path); });
  }
  Result<std::vector<std::string>> list_directory(const std::string& path) override {
    return around(FOLDSWAP_CRASH_SITE, [&] { return os_.list_directory(path); });
  }
  int pagemap_scan(int pagemap_fd, uapi::PmScanArg& arg) override {
    return around(FOLDSWAP_CRASH_SITE, [&] { return os_.pagemap_scan(pagemap_fd, arg); });
  }
  Result<UniqueFd> open_maps(const std::string& path) override {
    return around(FOLDSWAP_CRASH_SITE, [&] { return os_.open_maps(path); });
  }
  int query_mapping(int maps_fd, uapi::ProcmapQuery& query) override {
    return around(FOLDSWAP_CRASH_SITE, [&] { return os_.query_mapping(maps_fd, query); });
  }
  int read_at(int fd, void* data, std::size_t bytes, std::uint64_t offset) override {
    return around(FOLDSWAP_CRASH_SITE, [&] { return os_.read_at(fd, data, bytes, offset); });
  }
  int robust_list_head(pid_t tid, std::uint64_t& head) override {
    return around(FOLDSWAP_CRASH_SITE, [&] { return os_.robust_list_head(tid, head); });
  }
  int pidfd_signal(int pidfd, int signal) override {
    return around(FOLDSWAP_CRASH_SITE, [&] { return os_.pidfd_signal(pidfd, signal); });
  }
  void futex_wake(std::uint32_t* word) override {
    (void)around(FOLDSWAP_CRASH_SITE, [&] { return os_.futex_wake(word), 0; });
  }
  void futex_wait_any(std::span<const FutexWait> waits, std::uint64_t timeout_us) override {
    (void)around(FOLDSWAP_CRASH_SITE, [&] { return os_.futex_wait_any(waits, timeout_us), 0; });
  }

 private:
  Os& os_;
};

}  // namespace
}  // namespace foldswap::crash

extern "C" {
foldswap::Os& __real__ZN8foldswap7real_osEv();
foldswap::Os& __wrap__ZN8foldswap7real_osEv() {
  static foldswap::crash::CrashOs os(__real__ZN8foldswap7real_osEv());
  return os;
}
}
