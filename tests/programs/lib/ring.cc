#include "tests/programs/lib/ring.h"

#include <cerrno>
#include <cstring>
#include <string>

#include "tests/programs/lib/common.h"
#include "tests/programs/lib/scratch.h"

namespace testprog {
namespace {

void check(int result, const char* what) {
  if (result >= 0) return;
  errno = -result;
  broken(what);
}

}  // namespace

Ring::Ring(unsigned entries, unsigned flags) {
  const int result = io_uring_queue_init(entries, &ring_, flags);
  if (result == -ENOSYS || result == -EPERM) {
    skip(std::string("no io_uring here: ") + std::strerror(-result));
  }
  check(result, "io_uring_queue_init");
}

Ring::~Ring() {
  io_uring_queue_exit(&ring_);
}

io_uring_sqe* Ring::next(std::uint64_t tag) {
  io_uring_sqe* sqe = io_uring_get_sqe(&ring_);
  for (int tries = 0; sqe == nullptr && tries < 1000; ++tries) {  // a kernel thread takes its time
    submit();
    sleep_ms(1);
    sqe = io_uring_get_sqe(&ring_);
  }
  if (sqe == nullptr) wrong("the submission queue stays full");
  io_uring_prep_nop(sqe);
  io_uring_sqe_set_data64(sqe, tag);
  return sqe;
}

void Ring::submit() {
  int result = 0;
  do {
    result = io_uring_submit(&ring_);
  } while (result == -EINTR);
  check(result, "io_uring_submit");
}

Ring::Completion Ring::wait() {
  io_uring_cqe* cqe = nullptr;
  int result = 0;
  do {
    result = io_uring_wait_cqe(&ring_, &cqe);
  } while (result == -EINTR);
  check(result, "io_uring_wait_cqe");
  const Completion completion{.tag = io_uring_cqe_get_data64(cqe), .result = cqe->res};
  io_uring_cqe_seen(&ring_, cqe);
  return completion;
}

int Ring::result() {
  submit();
  return wait().result;
}

void Ring::register_buffers(const std::vector<iovec>& buffers) {
  check(io_uring_register_buffers(&ring_, buffers.data(), static_cast<unsigned>(buffers.size())),
        "io_uring_register_buffers");
}

void Ring::unregister_buffers() {
  check(io_uring_unregister_buffers(&ring_), "io_uring_unregister_buffers");
}

}  // namespace testprog
