#include "daemon/host/proc_reader.h"

#include <sys/syscall.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <sstream>
#include <utility>

#include "base/mutation.h"

namespace foldswap {
namespace {

template <typename T>
bool take_number(std::string_view& text, T& value, int base = 10) {
  while (!text.empty() && text.front() == ' ') text.remove_prefix(1);
  const auto [rest, ec] = std::from_chars(text.data(), text.data() + text.size(), value, base);
  if (ec != std::errc{}) return false;
  text.remove_prefix(static_cast<std::size_t>(rest - text.data()));
  return true;
}

std::string_view take_line(std::string_view& text) {
  const std::size_t at = text.find('\n');
  const std::string_view line = text.substr(0, at);
  text.remove_prefix(at == std::string_view::npos ? text.size() : at + 1);
  return line;
}

// "55d0c0a00000-55d0c0c00000 rw-p 00000000 00:00 0   [heap]"
bool parse_header(std::string_view line, VmaInfo& vma) {
  if (!take_number(line, vma.start, 16) || !line.starts_with('-')) return false;
  line.remove_prefix(1);
  if (!take_number(line, vma.end, 16) || line.size() < 6) return false;
  const std::string_view perms = line.substr(1, 4);
  line.remove_prefix(5);
  std::uint64_t offset = 0, inode = 0;
  if (!take_number(line, offset, 16)) return false;
  const std::size_t device = line.find_first_not_of(' ');
  if (device == std::string_view::npos) return false;
  line.remove_prefix(device);
  line.remove_prefix(std::min(line.find(' '), line.size()));
  if (!take_number(line, inode)) return false;
  const std::size_t name_at = line.find_first_not_of(' ');
  const std::string_view name = name_at == std::string_view::npos ? "" : line.substr(name_at);
  const bool anonymous =
      inode == 0 && (name.empty() || name == "[heap]" || name.starts_with("[anon:"));
  vma.ordinary = inode == 0 && perms[3] == 'p';
  vma.manageable = anonymous && perms == "rw-p";
  return true;
}

void parse_flags(std::string_view flags, VmaInfo& vma) {
  while (!flags.empty()) {
    const std::size_t at = flags.find(' ');
    const std::string_view flag = flags.substr(0, at);
    flags.remove_prefix(at == std::string_view::npos ? flags.size() : at + 1);
    if (flag == "um" || flag == "uw" || flag == "ui") vma.registered = true;
    // locked, not inherited or wiped on fork, grows down (a stack), huge TLB, I/O, pure PFN
    if (flag == "lo" || flag == "dc" || flag == "wf" || flag == "gd" || flag == "ht" ||
        flag == "io" || flag == "pf") {
      vma.manageable = false;
    }
  }
}

}  // namespace

std::vector<VmaInfo> parse_smaps(std::string_view text) {
  std::vector<VmaInfo> vmas;
  while (!text.empty()) {
    std::string_view line = take_line(text);
    if (line.empty()) continue;
    const char first = line.front();
    if ((first >= '0' && first <= '9') || (first >= 'a' && first <= 'f')) {
      VmaInfo vma;
      if (parse_header(line, vma)) vmas.push_back(vma);
    } else if (vmas.empty()) {
      continue;
    } else if (line.starts_with("Anonymous:")) {
      line.remove_prefix(10);
      std::uint64_t kib = 0;
      if (take_number(line, kib)) vmas.back().anonymous_bytes = kib * 1024;
    } else if (line.starts_with("VmFlags: ")) {
      parse_flags(line.substr(9), vmas.back());
    }
  }
  return vmas;
}

namespace {

// A process whose main thread has ended shows nothing of its memory in /proc/PID (an empty smaps,
// a statm of zeros, no error); each of its other threads shows all of it.
Result<std::string> read_of_memory(Os& os, pid_t pid, const std::string& name) {
  const auto tells = [](const Result<std::string>& text) {
    return text && !text->empty() && !text->starts_with("0 ");
  };
  const std::string base = "/proc/" + std::to_string(pid);
  auto text = os.read_file(base + "/" + name);
  if (!text || tells(text) || mutated(Mutation::memory_of_a_dead_leader)) return text;
  for (const pid_t tid : read_tids(os, pid)) {
    text = os.read_file(base + "/task/" + std::to_string(tid) + "/" + name);
    if (tells(text)) return text;
  }
  return fail("none of its threads has memory");
}

}  // namespace

ProcessMappings::ProcessMappings(Os& os, pid_t pid) : os_(os), pid_(pid) {
  if (pid <= 0) return;
  auto fd = os.open_maps("/proc/" + std::to_string(pid) + "/maps");
  if (fd) fd_ = std::move(*fd);
}

Result<std::vector<ProcessMapping>> ProcessMappings::of_range(std::uint64_t start,
                                                              std::uint64_t end) const {
  std::vector<ProcessMapping> parts;
  if (!fd_.valid()) return fail("its mappings cannot be read");
  while (start < end) {
    uapi::ProcmapQuery query{};
    query.size = sizeof(query);
    query.query_flags = uapi::kQueryCoveringOrNext;
    query.query_addr = start;
    const int error = os_.query_mapping(fd_.get(), query);
    if (error == -ENOENT || (error == 0 && query.vma_start >= end)) break;
    // Not known to the kernel; or its main thread has ended, and only the others' files tell.
    if (error != 0) return of_text(start, end);
    parts.push_back({std::max(start, query.vma_start), std::min(end, query.vma_end),
                     (query.vma_flags & uapi::kVmaShared) == 0 && query.inode == 0 &&
                         query.vma_page_size == 4096,
                     query.vma_start, query.vma_end});
    start = query.vma_end;
  }
  return parts;
}

Result<std::vector<ProcessMapping>> ProcessMappings::of_text(std::uint64_t start,
                                                             std::uint64_t end) const {
  const auto text = read_of_memory(os_, pid_, "maps");
  if (!text) return std::unexpected(text.error());
  std::vector<ProcessMapping> parts;
  std::string_view rest = *text;
  while (!rest.empty()) {
    const std::string_view line = take_line(rest);
    VmaInfo vma;
    if (!parse_header(line, vma) || vma.end <= start || vma.start >= end) continue;
    parts.push_back(
        {std::max(start, vma.start), std::min(end, vma.end), vma.ordinary, vma.start, vma.end});
  }
  return parts;
}

Result<std::vector<VmaInfo>> read_vmas(Os& os, pid_t pid) {
  const auto text = read_of_memory(os, pid, "smaps");
  if (!text) return std::unexpected(text.error());
  return parse_smaps(*text);
}

Result<std::uint64_t> read_rss_anon(Os& os, pid_t pid) {
  const auto text = read_of_memory(os, pid, "statm");
  if (!text) return std::unexpected(text.error());
  std::string_view rest = *text;
  std::uint64_t size = 0, resident = 0, shared = 0;
  if (!take_number(rest, size) || !take_number(rest, resident) || !take_number(rest, shared)) {
    return fail("statm has another form than expected");
  }
  return resident > shared ? (resident - shared) * 4096 : 0;
}

bool parse_stat(std::string_view text, ThreadInfo& thread) {
  // The name in parentheses may hold anything; fields are counted from the last ')'.
  const std::size_t close = text.rfind(')');
  if (close == std::string_view::npos || close + 2 >= text.size()) return false;
  text.remove_prefix(close + 2);
  thread.state = text.front();
  for (int field = 3; field <= 39; ++field) {
    const std::size_t at = text.find(' ');
    const std::string_view value = text.substr(0, at);
    if (field == 14)
      (void)std::from_chars(value.data(), value.data() + value.size(), thread.user_ticks);
    if (field == 22)
      (void)std::from_chars(value.data(), value.data() + value.size(), thread.start_ticks);
    if (field == 39) (void)std::from_chars(value.data(), value.data() + value.size(), thread.cpu);
    if (at == std::string_view::npos) return field == 39;
    text.remove_prefix(at + 1);
  }
  return true;
}

bool parse_asleep_elsewhere(std::string_view text) {
  long number = -1;
  if (text.starts_with("running") || !take_number(text, number) || number < 0) return false;
  // A call that may itself be the discard proves nothing.
  constexpr long kProcessMadvise = 440;
  return number != SYS_madvise && number != kProcessMadvise && number != SYS_io_uring_enter &&
         number != SYS_munmap && number != SYS_brk && number != SYS_fallocate;
}

std::vector<pid_t> read_tids(Os& os, pid_t pid) {
  std::vector<pid_t> tids;
  const auto names = os.list_directory("/proc/" + std::to_string(pid) + "/task");
  if (!names) return tids;
  for (const std::string& name : *names) {
    pid_t tid = 0;
    const auto [rest, ec] = std::from_chars(name.data(), name.data() + name.size(), tid);
    if (ec == std::errc{} && rest == name.data() + name.size()) tids.push_back(tid);
  }
  return tids;
}

std::vector<ThreadInfo> read_threads(Os& os, pid_t pid, bool syscalls) {
  std::vector<ThreadInfo> threads;
  for (const pid_t tid : read_tids(os, pid)) {
    const std::string base = "/proc/" + std::to_string(pid) + "/task/" + std::to_string(tid);
    const auto stat = os.read_file(base + "/stat");
    ThreadInfo thread;
    thread.tid = tid;
    if (!stat || !parse_stat(*stat, thread)) continue;
    if (syscalls) {
      const auto call = os.read_file(base + "/syscall");
      thread.asleep_elsewhere = call && parse_asleep_elsewhere(*call);
    }
    threads.push_back(thread);
  }
  return threads;
}

Result<std::uint64_t> read_start_ns(Os& os, pid_t pid) {
  constexpr std::uint64_t kTickNs = 10'000'000;  // USER_HZ is 100 on every Linux of ours
  const auto text = os.read_file("/proc/" + std::to_string(pid) + "/stat");
  if (!text) return std::unexpected(text.error());
  ThreadInfo thread;
  if (!parse_stat(*text, thread)) return fail("/proc/" + std::to_string(pid) + "/stat is short");
  return thread.start_ticks * kTickNs;
}

std::uint64_t boot_ns() {
  timespec now{};
  ::clock_gettime(CLOCK_BOOTTIME, &now);
  return static_cast<std::uint64_t>(now.tv_sec) * 1'000'000'000 +
         static_cast<std::uint64_t>(now.tv_nsec);
}

pid_t read_tgid(Os& os, pid_t tid) {
  // The number counts in the faulting task's own pid namespace; in another one it would name a
  // stranger.
  const std::string base = "/proc/" + std::to_string(tid);
  const auto theirs = os.read_link(base + "/ns/pid"), ours = os.read_link("/proc/self/ns/pid");
  if (!theirs || !ours || *theirs != *ours) return 0;
  const auto text = os.read_file(base + "/status");
  if (!text) return 0;
  const std::size_t at = text->find("\nTgid:\t");
  if (at == std::string::npos) return 0;
  std::string_view rest = std::string_view(*text).substr(at + 7);
  pid_t tgid = 0;
  return take_number(rest, tgid) ? tgid : 0;
}

}  // namespace foldswap
