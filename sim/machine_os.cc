#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <csignal>
#include <cstring>
#include <optional>

#include <spdlog/fmt/fmt.h>

#include "sim/machine.h"

namespace foldswap::sim {
namespace {

// "/proc/PID/REST"; nothing: it is another path.
struct ProcPath {
  pid_t pid = 0;
  std::string_view rest;
};
std::optional<ProcPath> proc_path(std::string_view path) {
  constexpr std::string_view kProc = "/proc/";
  if (!path.starts_with(kProc)) return std::nullopt;
  path.remove_prefix(kProc.size());
  ProcPath found;
  const auto [end, ec] = std::from_chars(path.data(), path.data() + path.size(), found.pid);
  if (ec != std::errc{} || end == path.data() + path.size() || *end != '/') return std::nullopt;
  found.rest = path.substr(static_cast<std::size_t>(end - path.data()) + 1);
  return found;
}

std::string stat_text(const Task& task) {
  // Fields 3 to 52: the state first, user ticks 14th, the CPU 39th.
  std::string text = fmt::format("{} (sim) {}", task.tid, task.call < 0 ? 'R' : 'S');
  for (int field = 4; field <= 52; ++field) {
    text += fmt::format(" {}", field == 14 ? task.ticks : 0);
  }
  return text + "\n";
}

}  // namespace

MachineOs::MachineOs(World& world, Kernel& kernel, Processes& processes, const Settings& settings)
    : world_(world), kernel_(kernel), processes_(processes), settings_(settings) {
  disk.auto_complete = false;
  disk.own_fds_from = kOwnFds;
  disk.on_io = [this](FakeIo& io) { return io_result(io); };
}

void MachineOs::pause(unsigned most_locks) {
  if (!world_.scheduler.on_fiber_of(kDaemon)) return;
  if (die_in != 0 && --die_in == 0) {
    world_.trace("dies in a call");
    on_death();  // does not come back
  }
  if (rank_check::held_now() > most_locks) return;
  if (world_.random.once_in(settings_.preempt)) world_.scheduler.yield();
}

bool MachineOs::refuses() {
  if (world_.calm || !world_.random.once_in(settings_.refuse)) return false;
  ++world_.counts.refused_memory;
  return true;
}

// No read of one place fails twice in a row: nothing is given up.
int MachineOs::io_result(FakeIo& io) {
  ++io_ended;
  ++(io.write ? world_.counts.disk_writes : world_.counts.disk_reads);
  world_.trace(io.write ? "disk write" : "disk read", io.offset, io.bytes());
  const auto bad = damaged_.lower_bound(io.offset),
             end = damaged_.lower_bound(io.offset + io.bytes());
  if (io.write) {
    damaged_.erase(bad, end);
  } else if (bad != end) {
    io.flip_bit = static_cast<std::int64_t>((*bad - io.offset) * 8);
    return 0;
  }
  if (world_.calm || !world_.random.once_in(settings_.disk_errors)) {
    failed_reads_.erase(io.offset);
    return 0;
  }
  if (!io.write && !failed_reads_.insert(io.offset).second) {
    failed_reads_.erase(io.offset);
    return 0;
  }
  ++world_.counts.disk_errors;
  switch (world_.random.below(3)) {
    case 0:
      return -EIO;
    case 1:
      return static_cast<int>(world_.random.below(io.bytes() / 512) * 512) + 512;
    default:
      if (!io.write) io.flip_bit = static_cast<std::int64_t>(world_.random.below(io.bytes() * 8));
      return io.write ? -EIO : 0;
  }
}

std::uint64_t MachineOs::now_ns() {
  pause();
  return world_.clock_ns += 200;
}

void MachineOs::sleep_us(std::uint64_t us) {
  if (!world_.scheduler.on_fiber()) return;
  world_.scheduler.wait([] { return false; }, world_.clock_ns + us * 1'000);
}

void MachineOs::trace_fill(const char* what, const Space* space, std::uint64_t page,
                           const UffdProgress& result) {
  world_.trace(what, page,
               result.done != 0 ? result.done / kPage : static_cast<std::uint64_t>(-result.error),
               space != nullptr ? static_cast<std::uint64_t>(space->pid) : 0);
}

int MachineOs::uffd_api(int, std::uint64_t) {
  return 0;
}

int MachineOs::uffd_register(int fd, std::uint64_t start, std::uint64_t bytes) {
  pause(1);
  Space* const space = kernel_.of_fd(fd, 'u');
  const int result = space == nullptr ? -EBADF : kernel_.register_range(*space, start, bytes);
  world_.trace("register", start, bytes / kPage, static_cast<std::uint64_t>(-result));
  pause(1);
  return result;
}

int MachineOs::uffd_unregister(int fd, std::uint64_t start, std::uint64_t bytes) {
  pause(1);
  Space* const space = kernel_.of_fd(fd, 'u');
  if (space != nullptr) world_.happens(Happens::unregister, *space, start, start + bytes);
  const int result = space == nullptr ? -EBADF : kernel_.unregister_range(*space, start, bytes);
  world_.trace("unregister", start, bytes / kPage, static_cast<std::uint64_t>(-result));
  pause(1);
  return result;
}

UffdProgress MachineOs::fill(const char* what, int fd, std::uint64_t dst, const std::byte* src,
                             std::uint64_t bytes) {
  pause(1);
  Space* const space = kernel_.of_fd(fd, 'u');
  const UffdProgress result =
      space == nullptr ? UffdProgress{0, EBADF} : kernel_.fill(*space, dst, src, bytes);
  trace_fill(what, space, dst, result);
  pause(1);
  return result;
}

UffdProgress MachineOs::uffd_copy(int fd, std::uint64_t dst, const std::byte* src,
                                  std::uint64_t bytes) {
  return fill("copy", fd, dst, src, bytes);
}

UffdProgress MachineOs::uffd_zeropage(int fd, std::uint64_t dst, std::uint64_t bytes) {
  return fill("zeropage", fd, dst, nullptr, bytes);
}

int MachineOs::uffd_poison(int fd, std::uint64_t page) {
  pause(1);
  Space* const space = kernel_.of_fd(fd, 'u');
  const int result = space == nullptr ? -EBADF : kernel_.poison(*space, page);
  world_.trace("poison", page);
  pause(1);
  return result;
}

int MachineOs::uffd_wake(int fd, std::uint64_t start, std::uint64_t bytes) {
  pause(1);
  Space* const space = kernel_.of_fd(fd, 'u');
  if (space == nullptr) return -EBADF;
  kernel_.wake(*space, start, bytes);
  pause(1);
  return 0;
}

Probe MachineOs::uffd_probe(int fd, std::uint64_t page) {
  pause(1);
  Space* const space = kernel_.of_fd(fd, 'u');
  const int error = space == nullptr ? -ESRCH : kernel_.probe(*space, page, kPage);
  pause(1);
  return error == -EAGAIN   ? Probe::changing
         : error == -ESRCH  ? Probe::gone
         : error == -EINVAL ? Probe::registered
                            : Probe::unregistered;
}

int MachineOs::uffd_read(int fd, std::span<uffd_msg> messages) {
  pause(1);
  Space* const space = kernel_.of_fd(fd, 'u');
  const int count = space == nullptr ? -EBADF : kernel_.read(*space, messages);
  if (die_at_event && count > 0 && messages[0].event != UFFD_EVENT_PAGEFAULT) {
    die_at_event = false;
    die_in = world_.random.between(1, 16);
  }
  pause(1);
  return count;
}

Result<UniqueFd> MachineOs::memory_file(const char* name, std::uint64_t bytes) {
  pause();
  if (refuses()) return fail_errno("there is no memory file for once", ENOMEM);
  return real_os().memory_file(name, bytes);
}

// fallocate() waits for what is being written to the file directly, be it for a process that is
// dead.
void MachineOs::end_writes(std::uint64_t offset, std::uint64_t bytes) {
  for (std::size_t i = disk.under_way(); i-- > 0;) {
    const FakeIo& io = disk.io(i);
    if (io.write && io.offset < offset + bytes && offset < io.offset + io.bytes())
      disk.complete_at(i);
  }
}

int MachineOs::punch(int fd, std::uint64_t offset, std::uint64_t bytes) {
  pause();
  if (disk.has(fd)) end_writes(offset, bytes);
  const int result = disk.has(fd) ? disk.punch(fd, offset, bytes)
                     : refuses()  ? -ENOMEM
                                  : real_os().punch(fd, offset, bytes);
  pause();
  return result;
}

int MachineOs::allocate(int fd, std::uint64_t offset, std::uint64_t bytes) {
  pause();
  const int result = refuses()      ? -ENOMEM
                     : disk.has(fd) ? disk.allocate(fd, offset, bytes)
                                    : real_os().allocate(fd, offset, bytes);
  pause();
  return result;
}

Result<UniqueFd> MachineOs::unnamed_file(const std::string&, bool direct) {
  return disk.make_file(direct);
}

Result<FileSystemInfo> MachineOs::file_system(const std::string&) {
  return disk.info;
}

Result<std::uint64_t> MachineOs::allocated_bytes(int fd) {
  return disk.allocated_bytes(fd);
}

Result<std::unique_ptr<IoRing>> MachineOs::io_ring(int fd, std::span<std::byte> buffers,
                                                   unsigned depth) {
  return disk.make_ring(fd, buffers, depth);
}

Result<std::string> MachineOs::read_file(const std::string& path) {
  pause();
  const auto found = proc_path(path);
  const Process* const process = found ? processes_.find(found->pid) : nullptr;
  if (process == nullptr || process->space.gone) return fail("no " + path);
  if (found->rest == "smaps") return Kernel::smaps(process->space);
  if (found->rest == "statm") return Kernel::statm(process->space);
  pid_t tid = 0;
  std::string_view rest = found->rest;
  if (!rest.starts_with("task/")) return fail("no " + path);
  rest.remove_prefix(5);
  const auto [end, ec] = std::from_chars(rest.data(), rest.data() + rest.size(), tid);
  const Task* const task = ec == std::errc{} ? kernel_.task(found->pid, tid) : nullptr;
  if (task == nullptr) return fail("no " + path);
  rest.remove_prefix(static_cast<std::size_t>(end - rest.data()));
  if (rest == "/stat") return stat_text(*task);
  if (rest != "/syscall") return fail("no " + path);
  return task->call < 0 ? std::string("running\n") : fmt::format("{} 0x0 0x0\n", task->call);
}

Result<std::vector<std::string>> MachineOs::list_directory(const std::string& path) {
  pause();
  const auto found = proc_path(path);
  if (!found || found->rest != "task" || !kernel_.tasks.contains(found->pid))
    return fail("no " + path);
  std::vector<std::string> names{".", ".."};
  for (const Task& task : kernel_.tasks.at(found->pid)) names.push_back(std::to_string(task.tid));
  return names;
}

Result<std::string> MachineOs::read_link(const std::string& path) {
  return fail("no " + path);
}

int MachineOs::pagemap_scan(int pagemap_fd, uapi::PmScanArg& arg) {
  pause();
  Space* const space = kernel_.of_fd(pagemap_fd, 'p');
  const int count = space == nullptr || space->gone ? -ESRCH : Kernel::pagemap_scan(*space, arg);
  const auto* const found = reinterpret_cast<const uapi::PageRegion*>(arg.vec);
  for (int i = 0; i < count; ++i)
    world_.happens(Happens::marked, *space, found[i].start, found[i].end);
  pause();
  return count;
}

Result<UniqueFd> MachineOs::open_maps(const std::string& path) {
  pause(1);
  const auto found = proc_path(path);
  const Process* const process = found ? processes_.find(found->pid) : nullptr;
  if (process == nullptr || process->space.gone) return fail("no " + path);
  return kernel_.open_maps(process->space);
}

int MachineOs::query_mapping(int maps_fd, uapi::ProcmapQuery& query) {
  pause(1);
  const Space* const space = kernel_.of_fd(maps_fd, 'm');
  return space == nullptr || space->gone ? -ESRCH : Kernel::query_mapping(*space, query);
}

int MachineOs::read_at(int fd, void* data, std::size_t bytes, std::uint64_t offset) {
  pause();
  if (const Space* const memory = kernel_.of_fd(fd, 'r'); memory != nullptr) {
    const int got =
        memory->gone ? 0 : Kernel::read_page(*memory, offset, static_cast<std::byte*>(data));
    pause();
    return got;
  }
  Space* const space = kernel_.of_fd(fd, 'p');
  if (space == nullptr) return real_os().read_at(fd, data, bytes, offset);
  if (space->gone) return 0;
  for (std::uint64_t i = 0; i < bytes / 8; ++i) {
    const std::uint64_t word = Kernel::pagemap_word(*space, (offset / 8 + i) * kPage);
    std::memcpy(static_cast<std::byte*>(data) + i * 8, &word, sizeof(word));
  }
  pause();
  return static_cast<int>(bytes);
}

int MachineOs::robust_list_head(pid_t tid, std::uint64_t& head) {
  pause();
  for (const auto& [pid, tasks] : kernel_.tasks) {
    const auto found = std::ranges::find(tasks, tid, &Task::tid);
    if (found == tasks.end()) continue;
    head = found->robust_list;
    return 0;
  }
  return -ESRCH;
}

int MachineOs::pidfd_signal(int pidfd, int signal) {
  Space* const space = kernel_.of_fd(pidfd, 'd');
  Process* const process = space != nullptr ? processes_.find(space->pid) : nullptr;
  if (process == nullptr || process->dead) return -ESRCH;
  world_.trace("signal", static_cast<std::uint64_t>(space->pid),
               static_cast<std::uint64_t>(signal));
  if (signal == SIGKILL) process->kill();
  return 0;
}

void MachineOs::futex_wake(std::uint32_t*) {}  // who waits looks at the word

void MachineOs::futex_wait_any(std::span<const FutexWait> waits, std::uint64_t timeout_us) {
  const std::vector<FutexWait> words(waits.begin(), waits.end());
  world_.scheduler.wait(
      [words] {
        return std::ranges::any_of(words, [](const FutexWait& w) {
          return __atomic_load_n(w.word, __ATOMIC_SEQ_CST) != w.value;
        });
      },
      world_.clock_ns + timeout_us * 1'000);
}

}  // namespace foldswap::sim
