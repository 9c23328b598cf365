// O_DIRECT and io_uring: registered buffers, worker threads, a kernel thread that polls. Here
// others than the calling thread meet the missing pages, or nobody may take the pages at all while
// a device writes to them.
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>

#include "tests/programs/kernel_access/kernel_access.h"
#include "tests/programs/lib/ring.h"

namespace kernel_access {
namespace {

unsigned length(const Memory& memory) {
  return static_cast<unsigned>(memory.bytes());
}

void direct_io() {
  const Memory from(64), to(64), other(64);
  const int fd = open_scratch(O_DIRECT);
  evict({from.span()});
  whole(pwrite(fd, from.base(), from.bytes(), 0), from.bytes(), "direct pwrite");
  evict({from.span(), to.span()});
  whole(pread(fd, to.base(), to.bytes(), 0), to.bytes(), "direct pread");
  same(to.base(), from.base(), to.bytes(), "what came from the disk");
  evict({from.span(), to.span()});
  from.check_all();

  // Vectors of single pages in another order, every second of them in, the others out.
  std::vector<iovec> parts;
  evict({other.span()});
  for (std::size_t i = 0; i < other.pages(); ++i) {
    parts.push_back({other.page((i * 5) % other.pages()), kPage});
    if (i % 2 == 0) other.check(i);
  }
  whole(preadv(fd, parts.data(), static_cast<int>(parts.size()), 0), other.bytes(), "preadv");
  for (std::size_t i = 0; i < other.pages(); ++i) {
    same(parts[i].iov_base, from.page(i), kPage, "a page from the disk");
  }
  // Buffers that start inside a page.
  evict({to.span(), from.span()});
  whole(pread(fd, to.base() + 512, 4 * kPage, 0), 4 * kPage, "pread off a page's start");
  same(to.base() + 512, from.base(), 4 * kPage, "what was read off a page's start");
  evict({to.span()});
  whole(pwrite(fd, to.base() + 512, 4 * kPage, 32 * kPage), 4 * kPage, "pwrite likewise");
  whole(pread(fd, other.base(), 4 * kPage, 32 * kPage), 4 * kPage, "pread");
  same(other.base(), from.base(), 4 * kPage, "what was written off a page's start");
  from.check_all();
  close(fd);
}

// Buffers that are out when they are registered; they come in, and stay for as long as they are.
void ring_registered() {
  Memory from(64);
  const Memory to(64);
  const int fd = open_scratch(O_DIRECT);
  Ring ring(8);
  evict({from.span(), to.span()});
  ring.register_buffers({{from.base(), from.bytes()}, {to.base(), to.bytes()}});
  for (int round = 0; round < 4; ++round) {
    press();
    if (pages_in(from.span()) != from.pages() || pages_in(to.span()) != to.pages()) {
      wrong("a registered buffer was taken out");
    }
    from.check_all();
    io_uring_prep_write_fixed(ring.next(), fd, from.base(), length(from), 0, 0);
    whole(ring.result(), from.bytes(), "WRITE_FIXED");
    press();
    io_uring_prep_read_fixed(ring.next(), fd, to.base(), length(to), 0, 1);
    whole(ring.result(), to.bytes(), "READ_FIXED");
    same(to.base(), from.base(), to.bytes(), "what went through registered buffers");
    for (std::size_t i = 0; i < from.pages(); i += 3) from.write(i);
  }
  ring.unregister_buffers();
  evict({from.span(), to.span()});
  from.check_all();
  close(fd);
}

// Both ways through a file, by requests that `prepare` has been given the last word on.
template <typename Prepare>
void through_file(Ring& ring, int fd, const Memory& from, const Memory& to, Prepare prepare) {
  evict({from.span(), to.span()});
  io_uring_sqe* sqe = ring.next();
  io_uring_prep_write(sqe, fd, from.base(), length(from), 0);
  prepare(sqe);
  whole(ring.result(), from.bytes(), "a write by io_uring");
  evict({from.span(), to.span()});
  sqe = ring.next();
  io_uring_prep_read(sqe, fd, to.base(), length(to), 0);
  prepare(sqe);
  whole(ring.result(), to.bytes(), "a read by io_uring");
  same(to.base(), from.base(), to.bytes(), "what went through io_uring");
  from.check_all();
}

// A read that waits for data, its vector and its buffer going out meanwhile.
template <typename Prepare>
void waiting_read(Ring& ring, const Memory& from, const Memory& to, Prepare prepare) {
  const Memory vector(1);
  const Pipe pipe;
  auto* part = vector.at<iovec>(0);
  *part = {to.base(), to.bytes()};
  evict({vector.span()});
  io_uring_sqe* sqe = ring.next();
  io_uring_prep_readv(sqe, pipe.out, part, 1, 0);
  prepare(sqe);
  ring.submit();
  sleep_ms(50);
  evict({to.span(), from.span()});
  const std::size_t sent = to.bytes() / 2;
  whole(write(pipe.in, from.base(), sent), sent, "write");
  const int result = ring.wait().result;
  if (result <= 0 || static_cast<std::size_t>(result) > sent) wrong("a waiting read's result");
  same(to.base(), from.base(), static_cast<std::size_t>(result), "what a waiting read got");
}

void forced_to_worker(io_uring_sqe* sqe) {
  sqe->flags |= IOSQE_ASYNC;
}

// Unregistered buffers, handled inline, and by worker threads.
void ring_workers() {
  const Memory from(64), to(64);
  Ring ring(8);
  for (const int flags : {0, O_DIRECT}) {
    const int fd = open_scratch(flags);
    through_file(ring, fd, from, to, [](io_uring_sqe*) {});
    through_file(ring, fd, from, to, forced_to_worker);
    close(fd);
  }
  waiting_read(ring, from, to, [](io_uring_sqe*) {});
  waiting_read(ring, from, to, forced_to_worker);
}

// A kernel thread takes the requests, without a system call of ours.
void ring_sqpoll() {
  Memory from(64);
  const Memory to(64);
  Ring ring(8, IORING_SETUP_SQPOLL);
  for (const int flags : {0, O_DIRECT}) {
    const int fd = open_scratch(flags);
    through_file(ring, fd, from, to, [](io_uring_sqe*) {});
    through_file(ring, fd, from, to, forced_to_worker);
    from.write_all();
    // And by registered buffers.
    evict({from.span(), to.span()});
    ring.register_buffers({{from.base(), from.bytes()}, {to.base(), to.bytes()}});
    press();
    io_uring_prep_write_fixed(ring.next(), fd, from.base(), length(from), 0, 0);
    whole(ring.result(), from.bytes(), "WRITE_FIXED");
    press();
    io_uring_prep_read_fixed(ring.next(), fd, to.base(), length(to), 0, 1);
    whole(ring.result(), to.bytes(), "READ_FIXED");
    same(to.base(), from.base(), to.bytes(), "what a polling thread moved");
    ring.unregister_buffers();
    from.write_all();
    close(fd);
  }
  waiting_read(ring, from, to, [](io_uring_sqe*) {});
}

constexpr Case kCases[] = {{"direct_io", direct_io},
                           {"ring_registered", ring_registered},
                           {"ring_workers", ring_workers},
                           {"ring_sqpoll", ring_sqpoll}};

}  // namespace

std::span<const Case> ring_cases() {
  return kCases;
}

}  // namespace kernel_access
