// read(2) and write(2) through buffers that may be evicted: the kernel itself meets the missing
// pages. Each round writes the whole region to a file and to a pipe, reads both back into a second
// region, and compares; readv/writev on scattered pages, pread into single pages, and a Unix socket
// besides.
// --mb, --rounds, --dir (for the file), --seed. Before each round it says "round"; the test may
// reclaim meanwhile.
#include <fcntl.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <thread>

#include "tests/programs/lib/common.h"

using namespace testprog;

namespace {

void write_whole(int fd, const std::byte* data, std::size_t bytes) {
  while (bytes > 0) {
    const ssize_t n = must(::write(fd, data, std::min<std::size_t>(bytes, 1U << 20)), "write");
    data += n;
    bytes -= static_cast<std::size_t>(n);
  }
}

void read_whole(int fd, std::byte* data, std::size_t bytes) {
  while (bytes > 0) {
    const ssize_t n = must(::read(fd, data, std::min<std::size_t>(bytes, 1U << 20)), "read");
    if (n == 0) wrong("end of file too early");
    data += n;
    bytes -= static_cast<std::size_t>(n);
  }
}

void compare(const Region& a, const std::byte* b) {
  if (std::memcmp(a.base(), b, a.pages() * kPage) != 0)
    wrong("what was read differs from what was written");
}

void through_file(const Region& from, std::byte* to, const std::string& path) {
  const int fd = must(open(path.c_str(), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600), "open");
  must(unlink(path.c_str()), "unlink");
  write_whole(fd, from.base(), from.pages() * kPage);
  must(lseek(fd, 0, SEEK_SET), "lseek");
  read_whole(fd, to, from.pages() * kPage);
  compare(from, to);
  // Single pages, backwards, and pairs of pages that are far apart in one call.
  for (std::size_t n = 0; n < from.pages() / 2; n += 7) {
    const std::size_t last = from.pages() - 1 - n;
    iovec parts[2] = {{.iov_base = to + n * kPage, .iov_len = kPage},
                      {.iov_base = to + last * kPage, .iov_len = kPage}};
    must(preadv(fd, parts, 2, static_cast<off_t>(last * kPage - kPage)), "preadv");
    from.check(last);
    must(pread(fd, parts[0].iov_base, kPage, static_cast<off_t>(n * kPage)), "pread");
    must(pread(fd, parts[1].iov_base, kPage, static_cast<off_t>(last * kPage)), "pread");
  }
  compare(from, to);
  must(close(fd), "close");
}

void through_pair(const Region& from, std::byte* to, int in, int out) {
  std::thread writer([&] { write_whole(in, from.base(), from.pages() * kPage); });
  read_whole(out, to, from.pages() * kPage);
  writer.join();
  compare(from, to);
  must(close(in), "close");
  must(close(out), "close");
}

}  // namespace

int main(int argc, char** argv) {
  const Options options(argc, argv);
  const std::size_t pages = options.number("mb", 16) * 256;
  const std::uint64_t rounds = options.number("rounds", 2);
  Region from(map_bytes(pages * kPage), pages, options.number("seed", 1), Kind::mixed);
  from.write_all();
  std::byte* to = map_bytes(pages * kPage);
  const std::string path = options.text("dir", "/tmp") + "/rw_buffers." + std::to_string(getpid());
  for (std::uint64_t round = 0; round < rounds; ++round) {
    say("round");
    through_file(from, to, path);
    std::array<int, 2> fds{};
    must(pipe2(fds.data(), O_CLOEXEC), "pipe2");
    through_pair(from, to, fds[1], fds[0]);
    must(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds.data()), "socketpair");
    through_pair(from, to, fds[1], fds[0]);
    for (std::size_t i = round; i < pages; i += rounds) from.write(i);
  }
  from.check_all();
  say("done");
  return 0;
}
