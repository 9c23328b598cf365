#include "base/io_ring.h"

#include <liburing.h>
#include <sys/uio.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

namespace foldswap {
namespace {

// The kernel registers no more than this with one entry.
constexpr std::size_t kEntryBytes = std::size_t{1} << 30;

// No interrupt for what has ended: the flag in the ring tells reap() to enter the kernel. Kernels
// before 5.19 know neither. SINGLE_ISSUER would tie the ring to the thread that made it.
int set_up(unsigned depth, io_uring& ring) {
  const int made =
      ::io_uring_queue_init(depth, &ring, IORING_SETUP_COOP_TASKRUN | IORING_SETUP_TASKRUN_FLAG);
  return made == -EINVAL ? ::io_uring_queue_init(depth, &ring, 0) : made;
}

class RealRing final : public IoRing {
 public:
  RealRing(io_uring ring, int fd, std::span<std::byte> buffers, unsigned depth)
      : ring_(ring), file_(fd), buffers_(buffers), depth_(depth) {
    file_registered_ = ::io_uring_register_files(&ring_, &fd, 1) == 0;
    register_buffers();
  }
  RealRing(const RealRing&) = delete;
  RealRing& operator=(const RealRing&) = delete;

  // What the kernel has not been handed yet never happens. The rest must end before its buffers go
  // away, and a disk cannot be told to forget about it.
  ~RealRing() override {
    while (in_flight_ > ::io_uring_sq_ready(&ring_)) {
      io_uring_cqe* cqe = nullptr;
      const int waited = ::io_uring_wait_cqe(&ring_, &cqe);
      if (waited == -EINTR || waited == -EAGAIN) continue;
      if (waited != 0) break;  // not a ring any more: nothing will ever come
      ::io_uring_cqe_seen(&ring_, cqe);
      --in_flight_;
    }
    ::io_uring_queue_exit(&ring_);
  }

  bool read(std::span<std::byte> buffer, std::uint64_t offset, std::uint64_t tag) override {
    io_uring_sqe* sqe = next();
    if (sqe == nullptr) return false;
    const auto bytes = static_cast<unsigned>(buffer.size());
    if (const int entry = entry_of(buffer); entry >= 0) {
      ::io_uring_prep_read_fixed(sqe, sqe_file(), buffer.data(), bytes, offset, entry);
    } else {
      ::io_uring_prep_read(sqe, sqe_file(), buffer.data(), bytes, offset);
    }
    queue(sqe, tag);
    return true;
  }

  bool write(std::span<const std::byte> buffer, std::uint64_t offset, std::uint64_t tag) override {
    io_uring_sqe* sqe = next();
    if (sqe == nullptr) return false;
    const auto bytes = static_cast<unsigned>(buffer.size());
    if (const int entry = entry_of(buffer); entry >= 0) {
      ::io_uring_prep_write_fixed(sqe, sqe_file(), buffer.data(), bytes, offset, entry);
    } else {
      ::io_uring_prep_write(sqe, sqe_file(), buffer.data(), bytes, offset);
    }
    queue(sqe, tag);
    return true;
  }

  // The kernel may take fewer than there are.
  int submit() override {
    int taken = 0;
    while (::io_uring_sq_ready(&ring_) != 0) {
      const int n = ::io_uring_submit(&ring_);
      if (n == -EINTR) continue;
      if (n < 0) return n;
      if (n == 0) return -EAGAIN;
      taken += n;
    }
    return taken;
  }

  // liburing enters the kernel when the ring is flagged: for what overflowed and for what waits to
  // be put into it.
  std::size_t reap(std::span<IoDone> done) override {
    std::array<io_uring_cqe*, 64> ended{};
    std::size_t count = 0;
    while (count < done.size()) {
      const auto want = static_cast<unsigned>(std::min(done.size() - count, ended.size()));
      const unsigned n = ::io_uring_peek_batch_cqe(&ring_, ended.data(), want);
      if (n == 0) break;
      for (unsigned i = 0; i < n; ++i) done[count++] = {ended[i]->user_data, ended[i]->res};
      ::io_uring_cq_advance(&ring_, n);
      in_flight_ -= n;
    }
    return count;
  }

  [[nodiscard]] int fd() const override { return ring_.ring_fd; }
  [[nodiscard]] std::string note() const override { return note_; }

 private:
  void register_buffers() {
    std::vector<iovec> entries;
    for (std::size_t at = 0; at < buffers_.size(); at += kEntryBytes) {
      entries.push_back({buffers_.data() + at, std::min(kEntryBytes, buffers_.size() - at)});
    }
    if (entries.empty()) return;
    const int error =
        ::io_uring_register_buffers(&ring_, entries.data(), static_cast<unsigned>(entries.size()));
    buffers_registered_ = error == 0;
    if (error != 0) {
      note_ = std::string("buffers cannot be registered (") + std::strerror(-error) +
              "): reads and writes take a little longer";
    }
  }

  // Which registered entry all of the buffer lies in; -1: none.
  [[nodiscard]] int entry_of(std::span<const std::byte> buffer) const {
    if (!buffers_registered_ || buffer.empty()) return -1;
    const auto at = reinterpret_cast<std::uintptr_t>(buffer.data()) -
                    reinterpret_cast<std::uintptr_t>(buffers_.data());
    if (at >= buffers_.size() || buffer.size() > buffers_.size() - at) return -1;
    if (at / kEntryBytes != (at + buffer.size() - 1) / kEntryBytes) return -1;
    return static_cast<int>(at / kEntryBytes);
  }

  // Never more than the ring is deep, so there is room for every end in the completion ring, which
  // is at least as large.
  [[nodiscard]] io_uring_sqe* next() {
    return in_flight_ < depth_ ? ::io_uring_get_sqe(&ring_) : nullptr;
  }
  [[nodiscard]] int sqe_file() const { return file_registered_ ? 0 : file_; }
  void queue(io_uring_sqe* sqe, std::uint64_t tag) {
    if (file_registered_) ::io_uring_sqe_set_flags(sqe, IOSQE_FIXED_FILE);
    ::io_uring_sqe_set_data64(sqe, tag);
    ++in_flight_;
  }

  io_uring ring_;
  const int file_;
  const std::span<std::byte> buffers_;
  const unsigned depth_;
  bool file_registered_ = false, buffers_registered_ = false;
  std::string note_;
  unsigned in_flight_ = 0;  // queued, handed to the kernel, or ended and not reaped
};

}  // namespace

Result<std::unique_ptr<IoRing>> make_io_ring(int fd, std::span<std::byte> buffers, unsigned depth) {
  io_uring ring{};
  if (const int made = set_up(depth, ring); made < 0) {
    return fail_errno("io_uring cannot be used", -made);
  }
  return std::unique_ptr<IoRing>(new RealRing(ring, fd, buffers, depth));
}

void use_io_uring() {
  set_io_ring_maker(make_io_ring);
}

}  // namespace foldswap
