// Another process that looks at a client's memory. --pid, --at (decimal address), --pages, --seed:
// there lies what Memory(pages, Kind::heap, seed) of kernel_access.h was filled with. --how:
//   vm_read    process_vm_readv of all pages, which must be out: waits, gets the right bytes
//   vm_write   process_vm_writev over all pages, which must be out, with the next contents
//   ptrace     PTRACE_PEEKDATA of the first word of each page
//   mem        pread of /proc/PID/mem, page by page; and pwrite of what is there already
// --expect=eio: the last two get EIO everywhere, and the pages stay out; otherwise: right bytes.
#include <fcntl.h>
#include <sys/ptrace.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <string>
#include <vector>

#include "tests/programs/lib/common.h"
#include "tests/programs/lib/residence.h"

using namespace testprog;

namespace {

struct Target {
  pid_t pid;
  std::uint64_t at;
  Region expected;
  bool refused;  // EIO is what we expect
};

void* there(const Target& target, std::size_t page) {
  return reinterpret_cast<void*>(target.at + page * kPage);
}

// Odd cuts on both sides, so that pages are met in parts.
void vm_access(const Target& target, bool write) {
  if (Residence(target.pid).pages_in(target.at, target.expected.bytes()) != 0) {
    wrong("the pages are not out");
  }
  const std::size_t bytes = target.expected.bytes();
  std::vector<std::byte> buffer(bytes);
  if (write) std::memcpy(buffer.data(), target.expected.base(), bytes);
  std::vector<iovec> local, remote;
  for (std::size_t at = 0; at < bytes; at += 7'001) {
    local.push_back({buffer.data() + at, std::min<std::size_t>(7'001, bytes - at)});
  }
  for (std::size_t at = 0; at < bytes; at += 9'113) {
    remote.push_back(
        {reinterpret_cast<void*>(target.at + at), std::min<std::size_t>(9'113, bytes - at)});
  }
  const ssize_t n =
      must((write ? process_vm_writev : process_vm_readv)(target.pid, local.data(), local.size(),
                                                          remote.data(), remote.size(), 0),
           "process_vm_readv or writev");
  if (static_cast<std::size_t>(n) != bytes) wrong("not all of it");
  if (std::memcmp(buffer.data(), target.expected.base(), bytes) != 0) wrong("process_vm_readv");
}

void by_ptrace(const Target& target) {
  must(ptrace(PTRACE_SEIZE, target.pid, nullptr, nullptr), "PTRACE_SEIZE");
  must(ptrace(PTRACE_INTERRUPT, target.pid, nullptr, nullptr), "PTRACE_INTERRUPT");
  int status = 0;
  must(waitpid(target.pid, &status, __WALL), "waitpid");
  for (std::size_t i = 0; i < target.expected.pages(); ++i) {
    errno = 0;
    const long word = ptrace(PTRACE_PEEKDATA, target.pid, there(target, i), nullptr);
    if (target.refused) {
      if (errno != EIO) wrong("PEEKDATA of a page that is out is no EIO");
    } else {
      if (errno != 0) broken("PEEKDATA");
      if (std::memcmp(&word, target.expected.page(i), sizeof(word)) != 0) wrong("PEEKDATA");
    }
  }
  must(ptrace(PTRACE_DETACH, target.pid, nullptr, nullptr), "PTRACE_DETACH");
}

void by_mem(const Target& target) {
  const std::string path = "/proc/" + std::to_string(target.pid) + "/mem";
  const int fd = must(open(path.c_str(), O_RDWR | O_CLOEXEC), "open mem");
  std::array<std::byte, kPage> page{};
  for (std::size_t i = 0; i < target.expected.pages(); ++i) {
    const auto at = static_cast<off_t>(target.at + i * kPage);
    const ssize_t got = pread(fd, page.data(), kPage, at);
    const int error = errno;
    const ssize_t put = pwrite(fd, target.expected.page(i), kPage, at);
    if (target.refused) {
      if (got != -1 || error != EIO) wrong("a read of a page that is out is no EIO");
      if (put != -1 || errno != EIO) wrong("a write to a page that is out is no EIO");
    } else {
      if (got != kPage || put != kPage) wrong("a page is cut short");
      if (std::memcmp(page.data(), target.expected.page(i), kPage) != 0) wrong("a read of mem");
    }
  }
  close(fd);
}

}  // namespace

int main(int argc, char** argv) {
  const Options options(argc, argv);
  const std::size_t pages = options.number("pages", 64);
  Target target{
      .pid = static_cast<pid_t>(options.number("pid", 0)),
      .at = options.number("at", 0),
      .expected = Region(map_bytes(pages * kPage), pages, options.number("seed", 1), Kind::heap),
      .refused = options.text("expect", "bytes") == "eio"};
  target.expected.write_all();
  const std::string how = options.text("how", "");
  if (how == "vm_write") target.expected.write_all();  // the second time: other contents
  if (how == "vm_read" || how == "vm_write") {
    vm_access(target, how == "vm_write");
  } else if (how == "ptrace") {
    by_ptrace(target);
  } else if (how == "mem") {
    by_mem(target);
  } else {
    errno = EINVAL;
    broken("--how");
  }
  const std::size_t in = Residence(target.pid).pages_in(target.at, target.expected.bytes());
  if (in != (target.refused ? 0 : pages)) wrong("how many pages are in");
  return 0;
}
