// Direct reads of 4 KiB from a disk into memory that the test takes out all the while. The pages
// are pinned for as long as the device may write to them; if one of them were moved then, what the
// device wrote would be lost, and the page would still hold what it held before. So each page is
// compared when its read is complete, and again before its next use, when it has been out, most
// likely.
//
// Three threads share --reads: an io_uring with registered buffers, which are registered anew all
// the time (--registered=0: without this one), an io_uring without, and pread. A fourth, whose
// reads do not count, reads into 16 scattered pages at a time: the kernel waits for one of them
// while the ones before it are pinned already. --dir is a directory on a real disk; --seed. Says
// "ready", and at the end "done" and how many reads each thread did. Exit status 77: no O_DIRECT,
// or no io_uring; the reason is on stderr.
#include <fcntl.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <string>
#include <thread>
#include <vector>

#include "tests/programs/lib/common.h"
#include "tests/programs/lib/ring.h"
#include "tests/programs/lib/scratch.h"

using namespace testprog;

namespace {

// Small enough to be quick on any disk. No two blocks are the same.
class Disk {
 public:
  Disk(const std::string& directory, std::uint64_t seed)
      : seed_(seed), fd_(open_scratch(directory, O_DIRECT)) {
    constexpr std::size_t kAtOnce = 256;
    std::byte* buffer = map_bytes(kAtOnce * kPage);
    for (std::size_t block = 0; block < kBlocks; block += kAtOnce) {
      for (std::size_t i = 0; i < kAtOnce; ++i) {
        fill_page(buffer + i * kPage, key(block + i), Kind::heap);
      }
      if (must(pwrite(fd_, buffer, kAtOnce * kPage, offset(block)), "pwrite") != kAtOnce * kPage) {
        wrong("a short write");
      }
    }
    must(fsync(fd_), "fsync");
  }

  static constexpr std::size_t kBlocks = 8192;
  [[nodiscard]] int fd() const { return fd_; }
  [[nodiscard]] std::uint64_t key(std::size_t block) const { return Random(seed_ + block).next(); }
  static off_t offset(std::size_t block) { return static_cast<off_t>(block * kPage); }

 private:
  const std::uint64_t seed_;
  const int fd_;
};

// Pages to read into, with what was read there last.
class Targets {
 public:
  Targets(const Disk& disk, std::size_t pages, std::uint64_t seed)
      : disk_(disk), random_(seed), base_(map_aligned(pages * kPage)), block_(pages, kNone) {}

  struct Read {
    std::size_t page, block;
  };
  // A page with no read under way, and a block that it does not hold. What it holds is verified
  // every other time; then the read itself meets the page missing.
  Read begin() {
    std::size_t page = random_.below(block_.size());
    while (block_[page] == kUnderWay) page = random_.below(block_.size());
    if (random_.below(2) == 0) check(page);
    std::size_t block = random_.below(Disk::kBlocks);
    if (block == block_[page]) block = (block + 1) % Disk::kBlocks;
    block_[page] = kUnderWay;
    return {page, block};
  }
  void complete(const Read& read, long result) {
    if (result < 0) {
      errno = static_cast<int>(-result);
      broken("a direct read");
    }
    if (result != kPage) wrong("a short read");
    block_[read.page] = read.block;
    check(read.page);
  }
  void check_all() const {
    for (std::size_t page = 0; page < block_.size(); ++page) check(page);
  }
  [[nodiscard]] std::byte* at(std::size_t page) const { return base_ + page * kPage; }
  [[nodiscard]] std::size_t pages() const { return block_.size(); }

 private:
  void check(std::size_t page) const {
    if (block_[page] == kNone) return check_zero(at(page));
    check_page(at(page), disk_.key(block_[page]), Kind::heap);
  }

  static constexpr std::size_t kNone = ~std::size_t{0}, kUnderWay = kNone - 1;
  const Disk& disk_;
  Random random_;
  std::byte* base_;
  std::vector<std::size_t> block_;
};

std::atomic<std::int64_t> left{0};  // reads not yet begun
std::uint64_t progress = 0;

bool another() {
  __atomic_fetch_add(&progress, 1, __ATOMIC_RELAXED);
  return left.fetch_sub(1) > 0;
}

// Keeps `depth` reads under way until `limit` have been done, or none are left.
template <typename Prepare>
std::uint64_t keep_reading(Ring& ring, Targets& targets, unsigned depth, std::uint64_t limit,
                           Prepare prepare) {
  std::vector<Targets::Read> under_way(depth);
  std::uint64_t begun = 0, done = 0;
  const auto begin = [&](std::size_t slot) {
    if (begun == limit || !another()) return;
    under_way[slot] = targets.begin();
    prepare(ring.next(slot), under_way[slot]);
    ++begun;
  };
  for (std::size_t slot = 0; slot < depth; ++slot) begin(slot);
  while (done < begun) {
    ring.submit();
    const Ring::Completion completion = ring.wait();
    targets.complete(under_way[completion.tag], completion.result);
    ++done;
    begin(completion.tag);
  }
  return done;
}

std::uint64_t registered(const Disk& disk, Targets& targets) {
  constexpr std::size_t kBufferPages = 16;
  Ring ring(64);
  std::vector<iovec> buffers;
  for (std::size_t page = 0; page < targets.pages(); page += kBufferPages) {
    buffers.push_back({targets.at(page), kBufferPages * kPage});
  }
  std::uint64_t done = 0;
  while (left.load() > 0) {
    ring.register_buffers(buffers);  // many of them are out at this moment
    done += keep_reading(ring, targets, 32, 1'000, [&](io_uring_sqe* sqe, const Targets::Read& r) {
      const std::uint64_t tag = sqe->user_data;
      io_uring_prep_read_fixed(sqe, disk.fd(), targets.at(r.page), kPage,
                               static_cast<std::uint64_t>(Disk::offset(r.block)),
                               static_cast<int>(r.page / kBufferPages));
      io_uring_sqe_set_data64(sqe, tag);
    });
    ring.unregister_buffers();
    sleep_ms(20);  // so that they can leave
  }
  targets.check_all();
  return done;
}

std::uint64_t unregistered(const Disk& disk, Targets& targets) {
  Ring ring(64);
  const std::uint64_t done =
      keep_reading(ring, targets, 16, ~std::uint64_t{0}, [&](io_uring_sqe* sqe, const auto& r) {
        const std::uint64_t tag = sqe->user_data;
        io_uring_prep_read(sqe, disk.fd(), targets.at(r.page), kPage,
                           static_cast<std::uint64_t>(Disk::offset(r.block)));
        io_uring_sqe_set_data64(sqe, tag);
        if (tag % 4 == 0) sqe->flags |= IOSQE_ASYNC;  // by a worker thread
      });
  targets.check_all();
  return done;
}

std::uint64_t plain(const Disk& disk, Targets& targets) {
  std::uint64_t done = 0;
  while (another()) {
    const Targets::Read read = targets.begin();
    const ssize_t n = pread(disk.fd(), targets.at(read.page), kPage, Disk::offset(read.block));
    targets.complete(read, n < 0 ? -errno : n);
    ++done;
  }
  targets.check_all();
  return done;
}

std::uint64_t vectored(const Disk& disk, Targets& targets) {
  std::uint64_t done = 0;
  while (left.load() > 0) {
    std::array<iovec, 16> parts{};
    std::array<Targets::Read, parts.size()> reads{};
    for (std::size_t i = 0; i < parts.size(); ++i) {
      reads[i] = targets.begin();
      parts[i] = {targets.at(reads[i].page), kPage};
    }
    const std::size_t first = reads[0].block % (Disk::kBlocks - parts.size());
    const ssize_t n =
        must(preadv(disk.fd(), parts.data(), parts.size(), Disk::offset(first)), "a direct preadv");
    if (n != parts.size() * kPage) wrong("a short read");
    for (std::size_t i = 0; i < parts.size(); ++i) {
      targets.complete({reads[i].page, first + i}, kPage);
    }
    __atomic_fetch_add(&progress, 1, __ATOMIC_RELAXED);
    ++done;
  }
  targets.check_all();
  return done;
}

}  // namespace

int main(int argc, char** argv) {
  const Options options(argc, argv);
  const std::uint64_t seed = options.number("seed", 1);
  const std::uint64_t reads = options.number("reads", 20'000);
  const Disk disk(options.text("dir", "/tmp"), seed);
  left.store(static_cast<std::int64_t>(reads));
  watch_progress(&progress, 60);
  using Body = std::uint64_t (*)(const Disk&, Targets&);
  constexpr std::array<Body, 4> kBodies{registered, unregistered, plain, vectored};
  constexpr std::array<std::size_t, 4> kPages{256, 2048, 1024, 512};
  std::array<std::uint64_t, 4> done{};
  std::vector<std::thread> threads;
  say("ready");
  for (std::size_t t = options.number("registered", 1) != 0 ? 0 : 1; t < kBodies.size(); ++t) {
    threads.emplace_back([&, t] {
      Targets targets(disk, kPages[t], seed + 1'000'000 * (t + 1));
      done[t] = kBodies[t](disk, targets);
    });
  }
  for (std::thread& thread : threads) thread.join();
  if (done[0] + done[1] + done[2] != reads) wrong("the number of reads");
  say("done " + std::to_string(done[0]) + " " + std::to_string(done[1]) + " " +
      std::to_string(done[2]));
  return 0;
}
