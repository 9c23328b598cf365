// FakeOs: a small model of one process's memory and its userfaultfd, behind the Os seam. For tests
// of the core: it decides what the kernel would (registered, present, change under way), and can be
// told to fail. Files on disk are FakeDisk's (daemon/testing/fake_disk.h). Everything else goes to
// the real system (memory files) or has no answer. Thread safety: none; tests step the core by
// hand.
#pragma once

#include <array>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <set>
#include <utility>
#include <vector>

#include "base/os.h"
#include "daemon/state/page_map.h"
#include "daemon/testing/fake_disk.h"

namespace foldswap {

class FakeOs final : public Os {
 public:
  using PageBytes = std::array<std::byte, kPage>;

  // -- the modelled address space; descriptor numbers tell spaces apart (parent, children)
  struct Space {
    std::set<std::uint64_t> registered;
    std::map<std::uint64_t, PageBytes> present;
    std::set<std::uint64_t> poisoned;
    std::set<std::uint64_t> guards;         // MADV_GUARD_INSTALL
    std::set<std::uint64_t> not_anonymous;  // cannot be registered
    std::vector<std::uint64_t> woken;
    std::deque<uffd_msg> queue;
    int changing = 0;              // changes whose thread has not come back yet
    int probes_until_change = -1;  // then one begins; negative: never
    bool gone = false;
  };
  std::map<int, Space> spaces;
  std::map<int, int> pagemap_of;  // descriptor of a page map -> of its userfaultfd
  std::uint64_t clock_ns = 1'000'000'000;
  std::deque<int> fail_copies;  // errno of the next COPYs; 0: succeeds
  FakeDisk disk;
  std::map<std::string, std::string> texts;  // what read_file() finds
  int texts_read = 0;
  std::map<std::string, std::vector<std::string>> directories;  // others are the real system's
  int scans = 0;                                                // of page maps
  std::function<void(int fd)> before_read;
  std::function<void()> before_register;  // and before UNREGISTER; each time
  std::function<void()> before_fill;      // runs once, when the next page is about to be filled

  void add_range(int fd, std::uint64_t start, std::uint64_t pages) {
    for (std::uint64_t i = 0; i < pages; ++i) spaces[fd].registered.insert(start + i * kPage);
  }
  void drop_range(int fd, std::uint64_t start, std::uint64_t pages) {
    for (std::uint64_t i = 0; i < pages; ++i) {
      spaces[fd].registered.erase(start + i * kPage);
      spaces[fd].present.erase(start + i * kPage);
    }
  }
  void fault(int fd, std::uint64_t page, bool write) {
    uffd_msg m{};
    m.event = UFFD_EVENT_PAGEFAULT;
    m.arg.pagefault.address = page;
    m.arg.pagefault.flags = write ? UFFD_PAGEFAULT_FLAG_WRITE : 0;
    spaces[fd].queue.push_back(m);
  }
  void remap(int fd, std::uint64_t from, std::uint64_t to, std::uint64_t bytes) {
    uffd_msg m{};
    m.event = UFFD_EVENT_REMAP;
    m.arg.remap.from = from;
    m.arg.remap.to = to;
    m.arg.remap.len = bytes;
    spaces[fd].queue.push_back(m);
  }
  void range_event(int fd, std::uint8_t event, std::uint64_t start, std::uint64_t end) {
    uffd_msg m{};
    m.event = event;
    m.arg.remove.start = start;
    m.arg.remove.end = end;
    spaces[fd].queue.push_back(m);
  }
  void fork_event(int fd, int child) {
    uffd_msg m{};
    m.event = UFFD_EVENT_FORK;
    m.arg.fork.ufd = static_cast<std::uint32_t>(child);
    spaces[fd].queue.push_back(m);
  }

  // -- Os
  std::uint64_t now_ns() override { return clock_ns += 1'000; }
  void sleep_us(std::uint64_t us) override { clock_ns += us * 1'000; }
  int uffd_api(int, std::uint64_t) override { return 0; }
  int uffd_register(int fd, std::uint64_t start, std::uint64_t bytes) override {
    if (before_register) before_register();
    const auto& others = spaces[fd].not_anonymous;
    const auto first = others.lower_bound(start);
    if (first != others.end() && *first < start + bytes) return -EINVAL;
    add_range(fd, start, bytes / kPage);
    return 0;
  }
  int uffd_unregister(int fd, std::uint64_t start, std::uint64_t bytes) override {
    if (before_register) before_register();
    auto& registered = spaces[fd].registered;  // a client may ask for any range, however large
    registered.erase(registered.lower_bound(start), registered.lower_bound(start + bytes));
    return 0;
  }
  UffdProgress uffd_copy(int fd, std::uint64_t dst, const std::byte* src,
                         std::uint64_t bytes) override {
    if (!fail_copies.empty()) {
      const int error = fail_copies.front();
      fail_copies.pop_front();
      if (error != 0) return {0, error};
    }
    return fill(fd, dst, bytes, [&](std::uint64_t i, PageBytes& page) {
      std::memcpy(page.data(), src + i * kPage, kPage);
    });
  }
  UffdProgress uffd_zeropage(int fd, std::uint64_t dst, std::uint64_t bytes) override {
    return fill(fd, dst, bytes, [](std::uint64_t, PageBytes& page) { page.fill(std::byte{0}); });
  }
  int uffd_poison(int fd, std::uint64_t page) override {
    spaces[fd].poisoned.insert(page);
    return 0;
  }
  int uffd_wake(int fd, std::uint64_t start, std::uint64_t) override {
    if (spaces[fd].gone) return -ESRCH;
    spaces[fd].woken.push_back(start);
    return 0;
  }
  Probe uffd_probe(int fd, std::uint64_t page) override {
    Space& s = spaces[fd];
    if (s.probes_until_change >= 0 && s.probes_until_change-- == 0) ++s.changing;
    if (s.gone) return Probe::gone;
    if (changing(s)) return Probe::changing;
    return s.registered.contains(page) ? Probe::registered : Probe::unregistered;
  }
  int uffd_read(int fd, std::span<uffd_msg> messages) override {
    if (before_read) before_read(fd);
    auto& queue = spaces[fd].queue;
    int n = 0;
    while (!queue.empty() && static_cast<std::size_t>(n) < messages.size()) {
      messages[static_cast<std::size_t>(n++)] = queue.front();
      queue.pop_front();
    }
    return n;
  }
  Result<UniqueFd> memory_file(const char* name, std::uint64_t bytes) override {
    return real_os().memory_file(name, bytes);
  }
  int punch(int fd, std::uint64_t offset, std::uint64_t bytes) override {
    return disk.has(fd) ? disk.punch(fd, offset, bytes) : real_os().punch(fd, offset, bytes);
  }
  int allocate(int fd, std::uint64_t offset, std::uint64_t bytes) override {
    return disk.has(fd) ? disk.allocate(fd, offset, bytes) : real_os().allocate(fd, offset, bytes);
  }
  Result<UniqueFd> unnamed_file(const std::string&, bool direct) override {
    return disk.make_file(direct);
  }
  Result<FileSystemInfo> file_system(const std::string&) override { return disk.info; }
  Result<std::uint64_t> allocated_bytes(int fd) override { return disk.allocated_bytes(fd); }
  Result<std::unique_ptr<IoRing>> io_ring(int fd, std::span<std::byte> buffers,
                                          unsigned depth) override {
    return disk.make_ring(fd, buffers, depth);
  }
  Result<std::string> read_file(const std::string& path) override {
    ++texts_read;
    const auto found = texts.find(path);
    return found == texts.end() ? fail("no " + path) : Result<std::string>(found->second);
  }
  Result<std::vector<std::string>> list_directory(const std::string& path) override {
    const auto found = directories.find(path);
    if (found != directories.end()) return found->second;
    return real_os().list_directory(path);
  }
  Result<std::string> read_link(const std::string& path) override { return fail("no " + path); }
  // Of the space that pagemap_of names. Each 2 MiB with something in it takes half a microsecond.
  int pagemap_scan(int fd, uapi::PmScanArg& arg) override {
    const auto found = pagemap_of.find(fd);
    if (found == pagemap_of.end()) return -ENOTTY;
    ++scans;
    const auto& present = spaces[found->second].present;
    auto* const regions = reinterpret_cast<uapi::PageRegion*>(arg.vec);
    std::uint64_t count = 0, extent = ~std::uint64_t{0};
    arg.walk_end = arg.end;
    for (auto it = present.lower_bound(arg.start); it != present.end() && it->first < arg.end;
         ++it) {
      const std::uint64_t page = it->first;
      if (extent_floor(page) != extent) clock_ns += 500;
      extent = extent_floor(page);
      if (count != 0 && regions[count - 1].end == page) {
        regions[count - 1].end += kPage;
        continue;
      }
      if (count == arg.vec_len) {
        arg.walk_end = page;
        break;
      }
      regions[count++] = {page, page + kPage, uapi::kPageIsPresent};
    }
    return static_cast<int>(count);
  }
  Result<UniqueFd> open_maps(const std::string&) override { return UniqueFd(::dup(0)); }
  // Of `mappings`, whatever the descriptor. None are given: a kernel that does not know the call.
  int query_mapping(int, uapi::ProcmapQuery& query) override {
    if (mappings.empty()) return -ENOTTY;
    for (const uapi::ProcmapQuery& m : mappings) {
      if (m.vma_end <= query.query_addr) continue;
      query = m;
      return 0;
    }
    return -ENOENT;
  }
  std::vector<uapi::ProcmapQuery> mappings;  // in order
  // The page map of the space that pagemap_of names.
  int read_at(int fd, void* data, std::size_t bytes, std::uint64_t offset) override {
    const auto found = pagemap_of.find(fd);
    if (found == pagemap_of.end()) return real_os().read_at(fd, data, bytes, offset);
    const Space& s = spaces[found->second];
    for (std::uint64_t i = 0; i < bytes / 8; ++i) {
      const std::uint64_t page = (offset / 8 + i) * kPage;
      const std::uint64_t word = s.present.contains(page)  ? 1ULL << 63 | 1ULL << 56
                                 : s.guards.contains(page) ? 1ULL << 58
                                                           : 0;
      std::memcpy(static_cast<std::byte*>(data) + i * 8, &word, sizeof(word));
    }
    return static_cast<int>(bytes);
  }
  int robust_list_head(pid_t, std::uint64_t&) override { return -ESRCH; }
  int pidfd_signal(int, int signal) override {
    signals.push_back(signal);
    return 0;
  }
  void futex_wake(std::uint32_t*) override {}
  void futex_wait_any(std::span<const FutexWait>, std::uint64_t) override {}

  std::vector<int> signals;

 private:
  // A change is under way while its event is unread, and until its thread has come back.
  static bool changing(const Space& s) {
    if (s.changing > 0) return true;
    for (const uffd_msg& m : s.queue) {
      if (m.event != UFFD_EVENT_PAGEFAULT) return true;
    }
    return false;
  }
  template <typename Fill>
  UffdProgress fill(int fd, std::uint64_t dst, std::uint64_t bytes, Fill one) {
    if (before_fill) std::exchange(before_fill, nullptr)();
    Space& s = spaces[fd];
    if (s.gone) return {0, ESRCH};
    if (changing(s)) return {0, EAGAIN};
    // As the kernel: the whole range must lie in one registered mapping.
    for (std::uint64_t i = 0; i < bytes / kPage; ++i) {
      if (!s.registered.contains(dst + i * kPage)) return {0, ENOENT};
    }
    for (std::uint64_t i = 0; i < bytes / kPage; ++i) {
      if (s.present.contains(dst + i * kPage)) return {i * kPage, i == 0 ? EEXIST : EAGAIN};
      one(i, s.present[dst + i * kPage]);
    }
    return {bytes, 0};
  }
};

}  // namespace foldswap
