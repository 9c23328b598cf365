// Plain calls: read, write, vectors, buffers across a border of pages, ioctl, and the small structs
// and strings that calls take by address.
#include <dirent.h>
#include <fcntl.h>
#include <net/if.h>
#include <spawn.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdio>
#include <vector>

#include "tests/programs/kernel_access/kernel_access.h"

namespace kernel_access {
namespace {

void pipes() {
  const Memory from(64), to(64);
  const Pipe pipe;
  evict({from.span()});
  whole(write(pipe.in, from.base(), from.bytes()), from.bytes(), "write");
  evict({from.span(), to.span()});
  whole(read(pipe.out, to.base(), to.bytes()), to.bytes(), "read");
  same(to.base(), from.base(), to.bytes(), "what came through the pipe");
  from.check_all();
}

void files() {
  const Memory from(256), to(256);
  const int fd = open_scratch(0);
  // Odd starts and lengths, so that hardly a buffer begins or ends with a page.
  constexpr std::size_t kPiece = 100'003;
  evict({from.span()});
  for (std::size_t at = 0; at < from.bytes(); at += kPiece) {
    const std::size_t bytes = std::min(kPiece, from.bytes() - at);
    whole(write(fd, from.base() + at, bytes), bytes, "write");
  }
  evict({from.span(), to.span()});
  must(lseek(fd, 0, SEEK_SET), "lseek");
  for (std::size_t at = 0; at < to.bytes(); at += kPiece) {
    const std::size_t bytes = std::min(kPiece, to.bytes() - at);
    whole(read(fd, to.base() + at, bytes), bytes, "read");
  }
  same(to.base(), from.base(), to.bytes(), "what came through the file");
  evict({from.span(), to.span()});
  for (std::size_t i = to.pages(); i-- > 0;) {  // single pages, from the back, to another place
    const std::size_t target = (i * 7 + 3) % to.pages();
    whole(pread(fd, to.page(target), kPage, static_cast<off_t>(i * kPage)), kPage, "pread");
    same(to.page(target), from.page(i), kPage, "a page of the file");
  }
  from.check_all();
  close(fd);
}

// Cuts memory into pieces of the given length and hands them out from both ends in turn. The
// vector itself lies in memory that is out, too.
std::size_t cut(const Memory& memory, const Memory& vector, std::size_t piece) {
  auto* parts = vector.at<iovec>(0);
  std::size_t count = 0, low = 0, high = memory.bytes();
  while (low < high) {
    const std::size_t bytes = std::min(piece, high - low);
    const bool front = count % 2 == 0;
    if (!front) high -= bytes;
    parts[count++] = {memory.base() + (front ? low : high), bytes};
    if (front) low += bytes;
  }
  return count;
}

// The bytes of `memory` in the order of the vector.
std::vector<std::byte> in_order(const Memory& vector, std::size_t count) {
  std::vector<std::byte> out;
  for (std::size_t n = 0; n < count; ++n) {
    const iovec& part = vector.at<iovec>(0)[n];
    const auto* start = static_cast<const std::byte*>(part.iov_base);
    out.insert(out.end(), start, start + part.iov_len);
  }
  return out;
}

void vectors() {
  const Memory from(32), to(32), from_parts(8), to_parts(8);
  const Pipe pipe;
  const std::size_t writes = cut(from, from_parts, 5'000);
  const std::size_t reads = cut(to, to_parts, 3'333);
  const auto ranges = {from.span(), to.span(), from_parts.span(), to_parts.span()};
  evict(ranges);
  whole(writev(pipe.in, from_parts.at<iovec>(0), static_cast<int>(writes)), from.bytes(), "writev");
  whole(readv(pipe.out, to_parts.at<iovec>(0), static_cast<int>(reads)), to.bytes(), "readv");
  if (in_order(from_parts, writes) != in_order(to_parts, reads)) wrong("what came by vectors");
  from.check_all();

  const int fd = open_scratch(0);
  evict(ranges);
  whole(pwritev(fd, from_parts.at<iovec>(0), static_cast<int>(writes), 77), from.bytes(),
        "pwritev");
  whole(preadv(fd, to_parts.at<iovec>(0), static_cast<int>(reads), 77), to.bytes(), "preadv");
  if (in_order(from_parts, writes) != in_order(to_parts, reads)) wrong("what came by the file");
  from.check_all();
  close(fd);
}

// Everything is out, then the page before or after the border is touched.
void evict_half(const Memory& memory, std::size_t border, int touched) {
  evict({memory.span()});
  if (touched < 0) return;
  const std::size_t page = border + static_cast<std::size_t>(touched);
  static_cast<void>(*const_cast<const volatile std::byte*>(memory.page(page)));
  const std::size_t other = border + 1 - static_cast<std::size_t>(touched);
  if (pages_in({memory.page(page), kPage}) != 1) wrong("what was touched is not in");
  if (pages_in({memory.page(other), kPage}) != 0) wrong("the other half is not out");
}

void page_crossing() {
  const Memory from(8, Kind::heap), to(8, Kind::heap);
  const Pipe pipe;
  for (const int touched : {-1, 0, 1}) {
    for (const std::size_t border : {std::size_t{0}, std::size_t{4}}) {
      for (const std::size_t before : {std::size_t{1}, kPage / 2, kPage - 1}) {
        std::byte* source = from.across<std::byte>(border, before);
        std::byte* target = to.across<std::byte>(border, before);
        evict_half(from, border, touched);
        whole(write(pipe.in, source, kPage), kPage, "write across a border");
        std::array<std::byte, 2 * kPage> around{};
        std::memcpy(around.data(), to.page(border), around.size());
        evict_half(to, border, touched);
        whole(read(pipe.out, target, kPage), kPage, "read across a border");
        same(target, source, kPage, "what crossed the border");
        from.check_all();
        // Not one byte before or after it.
        std::memcpy(around.data() + kPage - before, source, kPage);
        same(to.page(border), around.data(), around.size(), "what lies around the buffer");
      }
    }
  }
}

void ioctl_terminal(const Memory& memory) {
  const int terminal = must(posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC), "posix_openpt");
  auto* size = memory.across<winsize>(0, 3);
  const winsize wanted{.ws_row = 43, .ws_col = 132, .ws_xpixel = 5, .ws_ypixel = 7};
  std::memcpy(size, &wanted, sizeof(wanted));
  evict({memory.span()});
  must(ioctl(terminal, TIOCSWINSZ, size), "TIOCSWINSZ");
  std::memset(size, 0, sizeof(*size));
  evict({memory.span()});
  must(ioctl(terminal, TIOCGWINSZ, size), "TIOCGWINSZ");
  same(size, &wanted, sizeof(wanted), "the window's size");
  termios expected{};
  must(ioctl(terminal, TCGETS, &expected), "TCGETS");
  auto* settings = memory.across<termios>(2, 20);
  std::memcpy(settings, &expected, sizeof(expected));
  std::memset(settings, 0x5a, 32);  // 36 bytes is what TCGETS fills in
  evict({memory.span()});
  must(ioctl(terminal, TCGETS, settings), "TCGETS");
  same(settings, &expected, 36, "the terminal's settings");
  close(terminal);
}

void ioctl_buffers() {
  const Memory memory(8);
  const Pipe pipe;
  whole(write(pipe.in, memory.base(), 12'345), 12'345, "write");
  auto* count = memory.across<std::byte>(0, 2);  // an int, half on each page
  evict({memory.span()});
  must(ioctl(pipe.out, FIONREAD, count), "FIONREAD");
  const int expected = 12'345;
  same(count, &expected, sizeof(expected), "FIONREAD");
  ioctl_terminal(memory);

  const int any = must(socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0), "socket");
  std::array<std::byte, 4 * sizeof(ifreq)> plain{};
  ifconf on_stack{};
  on_stack.ifc_len = plain.size();
  on_stack.ifc_buf = reinterpret_cast<char*>(plain.data());
  must(ioctl(any, SIOCGIFCONF, &on_stack), "SIOCGIFCONF");
  if (on_stack.ifc_len == 0) std::fprintf(stderr, "note: no interface is up\n");
  std::memset(memory.base(), 0, memory.bytes());
  auto* list = memory.across<std::byte>(4, 60);
  ifconf asked{};
  asked.ifc_len = plain.size();
  asked.ifc_buf = reinterpret_cast<char*>(list);
  auto* config = memory.across<std::byte>(0, 6);
  std::memcpy(config, &asked, sizeof(asked));
  evict({memory.span()});
  must(ioctl(any, SIOCGIFCONF, config), "SIOCGIFCONF");
  std::memcpy(&asked, config, sizeof(asked));
  if (asked.ifc_len != on_stack.ifc_len) wrong("SIOCGIFCONF's length");
  same(list, plain.data(), plain.size(), "SIOCGIFCONF's list");
  close(any);
}

// Strings and structs of a few bytes, each across a border of pages.
void small_structs() {
  const Memory memory(16);
  const std::string directory = options().text("dir", "/tmp");
  auto* path = memory.across<char>(0, 3);
  std::memcpy(path, directory.c_str(), directory.size() + 1);
  auto* about = memory.across<std::byte>(2, 40);
  auto* name = memory.across<std::byte>(4, 100);
  auto* time = memory.across<std::byte>(6, 7);
  auto* entries = memory.across<std::byte>(8, 200);
  std::memset(entries, 0, 2000);
  struct stat expected{};
  must(stat(directory.c_str(), &expected), "stat");
  utsname system{};
  must(uname(&system), "uname");
  evict({memory.span()});
  must(syscall(SYS_newfstatat, AT_FDCWD, path, about, 0), "newfstatat");
  same(about, &expected, offsetof(struct stat, st_atim), "stat's struct");
  must(syscall(SYS_uname, name), "uname");
  same(name, &system, sizeof(system), "uname's struct");
  must(syscall(SYS_clock_gettime, CLOCK_MONOTONIC, time), "clock_gettime");
  timespec then{};
  std::memcpy(&then, time, sizeof(then));
  const double age =
      seconds_now() - static_cast<double>(then.tv_sec) - static_cast<double>(then.tv_nsec) * 1e-9;
  if (age < 0 || age > 600) wrong("clock_gettime's time");
  const int fd = must(open(directory.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC), "open");
  const long bytes = must(syscall(SYS_getdents64, fd, entries, 2000), "getdents64");
  std::vector<std::byte> listed(static_cast<std::size_t>(bytes));
  must(lseek(fd, 0, SEEK_SET), "lseek");
  whole(syscall(SYS_getdents64, fd, listed.data(), 2000), listed.size(), "getdents64");
  same(entries, listed.data(), listed.size(), "the directory's entries");
  close(fd);
}

// execve reads argument vector, environment and all strings out of memory that is out.
void exec_arguments() {
  constexpr std::size_t kArguments = 40;
  const Memory memory(64), pointers(2);
  auto** arguments = pointers.across<char*>(0, 8 * sizeof(char*));
  std::string expected;
  for (std::size_t n = 0; n < kArguments; ++n) {
    auto* text = reinterpret_cast<char*>(memory.base()) + n * 5'003;
    const std::string word(n == 0 ? "echo"
                                  : std::string(4'000 + n, static_cast<char>('a' + n % 26)));
    std::memcpy(text, word.c_str(), word.size() + 1);
    arguments[n] = text;
    if (n > 0) expected += word + (n + 1 == kArguments ? "\n" : " ");
  }
  arguments[kArguments] = nullptr;
  char** environment = arguments + kArguments + 1;
  auto* disable = reinterpret_cast<char*>(memory.base()) + 250'000;
  std::strcpy(disable, "FOLDSWAP_DISABLE=1");
  environment[0] = disable;
  environment[1] = nullptr;
  const Pipe pipe;
  posix_spawn_file_actions_t actions;
  if (posix_spawn_file_actions_init(&actions) != 0 ||
      posix_spawn_file_actions_adddup2(&actions, pipe.in, STDOUT_FILENO) != 0) {
    broken("posix_spawn_file_actions");
  }
  evict({memory.span(), pointers.span()});
  pid_t child = 0;
  errno = posix_spawn(&child, "/bin/echo", &actions, nullptr, arguments, environment);
  if (errno != 0) broken("posix_spawn");
  int status = 0;
  must(waitpid(child, &status, 0), "waitpid");
  posix_spawn_file_actions_destroy(&actions);
  if (status != 0) wrong("echo failed");
  std::string said(expected.size() + 100, '\0');
  whole(read(pipe.out, said.data(), said.size()), expected.size(), "what echo said");
  said.resize(expected.size());
  if (said != expected) wrong("the arguments");
}

// Stands still with its memory out, for another program (kernel_other.cc) to look at. The test says
// what comes next.
void looked_at() {
  const std::uint64_t seed = options().number("seed", 1);
  const Memory memory(64, Kind::heap, seed);
  evict({memory.span()});
  say("at " + std::to_string(reinterpret_cast<std::uint64_t>(memory.base())));
  while (true) {
    const std::string command = next_command();
    if (command == "evict") {
      evict({memory.span()});
    } else if (command == "check") {
      memory.check_all();
    } else if (command == "check written") {
      Memory expected(memory.pages(), Kind::heap, seed);
      expected.write_all();
      same(memory.base(), expected.base(), memory.bytes(), "what the other program wrote");
    } else {
      return;
    }
    say("ok");
  }
}

constexpr Case kCases[] = {{"pipes", pipes},
                           {"files", files},
                           {"vectors", vectors},
                           {"page_crossing", page_crossing},
                           {"ioctl_buffers", ioctl_buffers},
                           {"small_structs", small_structs},
                           {"exec_arguments", exec_arguments},
                           {"looked_at", looked_at}};

}  // namespace

std::span<const Case> call_cases() {
  return kCases;
}

}  // namespace kernel_access
