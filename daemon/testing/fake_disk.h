// FakeDisk: files on a disk that does what a test tells it to, for FakeOs. Reads and writes end
// when and in the order that the test wants, or fail, or do something else than they say.
//
// A file's descriptor is a real one (of an empty memory file), so that it can be duplicated and
// closed; the bytes are kept here, by inode. What a write puts down is taken from its buffer when
// the write ends: a buffer that is used again too early shows. Thread safety: none.
#pragma once

#include <fcntl.h>
#include <sys/eventfd.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <span>
#include <utility>
#include <vector>

#include "base/os.h"

namespace foldswap {

// One read or write, and what is to become of it.
struct FakeIo {
  bool write = false;
  std::uint64_t offset = 0;
  // NOLINTBEGIN(readability-redundant-member-init): g++ asks for initialisers (-Wextra)
  std::span<std::byte> into{};        // read
  std::span<const std::byte> from{};  // write
  // NOLINTEND(readability-redundant-member-init)
  std::uint64_t tag = 0;
  // For FakeDisk::on_io to change: what really happens, whatever is said about it.
  std::uint64_t lands_at = 0;  // offset
  std::size_t moved = 0;       // bytes; fewer than asked for: a torn write, a buffer half filled
  std::int64_t flip_bit = -1;  // of what is moved
  bool before_last = false;    // a read of what lay there before the last write

  [[nodiscard]] std::size_t bytes() const { return write ? from.size() : into.size(); }
};

class FakeDisk {
 public:
  static constexpr std::uint64_t kBlock = 4096;

  // -- for the test to set
  FileSystemInfo info{.free_bytes = 1ULL << 40, .in_memory = false, .type = "ext4"};
  bool has_direct = true, has_allocate = true, has_punch = true;
  std::deque<int> fail_allocates, fail_punches, fail_submits;  // errno of the next; 0: succeeds
  // Asked when one ends. Negative: that is its result and nothing moved; 0: all of it moved; else
  // that many bytes moved and are its result.
  std::function<int(FakeIo&)> on_io;
  int own_fds_from = 0;  // the least number of a descriptor that is the simulated disk's own
  bool auto_complete =
      true;  // what is submitted ends at once; otherwise when complete...() says so

  // -- for the test to call
  [[nodiscard]] std::size_t under_way() const { return pending_.size(); }
  [[nodiscard]] const FakeIo& io(std::size_t index) const { return pending_[index].io; }
  // The oldest, at most `most`; returns how many.
  std::size_t complete_io(std::size_t most = SIZE_MAX) {
    const std::size_t count = std::min(most, pending_.size());
    for (std::size_t i = 0; i < count; ++i) complete_at(0);
    return count;
  }
  // io(index), whatever came before it.
  void complete_at(std::size_t index) {
    Pending ended = pending_[index];
    pending_.erase(pending_.begin() + static_cast<std::ptrdiff_t>(index));
    const int result = carry_out(files_.at(ended.inode), ended.io);
    if (ended.ring != nullptr) ended.ring->end(ended.io.tag, result);
  }
  // Who made the rings is dead: what is under way goes on, and nobody is told.
  void abandon_rings() {
    for (Pending& pending : pending_) pending.ring = nullptr;
  }
  // What lies in the file, as far as it was written; zeros beyond.
  [[nodiscard]] std::vector<std::byte> contents(int fd, std::uint64_t offset, std::size_t bytes) {
    std::vector<std::byte> out(bytes);
    for_blocks(offset, bytes,
               [&](std::uint64_t block, std::size_t in, std::size_t at, std::size_t n) {
                 take(file(fd).now, block, in, &out[at], n);
               });
    return out;
  }

  // -- for FakeOs
  [[nodiscard]] bool has(int fd) const { return files_.contains(inode_of(fd)); }
  [[nodiscard]] Result<UniqueFd> make_file(bool direct) {
    if (direct && !has_direct) return fail_errno("the simulated disk has no O_DIRECT", EINVAL);
    auto fd = real_os().memory_file("sim-disk", 0);
    if (!fd) return fd;
    // The duplicate keeps the inode's number from being given to another file.
    File& made = files_[inode_of(fd->get())];
    made.direct = direct;
    made.keep.reset(::fcntl(fd->get(), F_DUPFD_CLOEXEC, own_fds_from));
    return fd;
  }
  [[nodiscard]] int allocate(int fd, std::uint64_t offset, std::uint64_t bytes) {
    if (!has_allocate) return -EOPNOTSUPP;
    if (const int error = next(fail_allocates); error != 0) return -error;
    File& f = file(fd);
    if (!take_blocks(f, offset, bytes)) return -ENOSPC;
    f.size = std::max(f.size, offset + bytes);
    return 0;
  }
  [[nodiscard]] int punch(int fd, std::uint64_t offset, std::uint64_t bytes) {
    if (!has_punch) return -EOPNOTSUPP;
    if (const int error = next(fail_punches); error != 0) return -error;
    File& f = file(fd);
    for (std::uint64_t block = offset / kBlock; block < (offset + bytes) / kBlock; ++block) {
      info.free_bytes += f.allocated.erase(block) * kBlock;
      f.now.erase(block);
      f.before.erase(block);
    }
    return 0;
  }
  [[nodiscard]] Result<std::uint64_t> allocated_bytes(int fd) {
    if (!has(fd)) return fail_errno("not a file of the simulated disk", EBADF);
    return file(fd).allocated.size() * kBlock;
  }
  [[nodiscard]] Result<std::unique_ptr<IoRing>> make_ring(int fd, std::span<std::byte> buffers,
                                                          unsigned depth) {
    if (!has(fd)) return fail_errno("not a file of the simulated disk", EBADF);
    return std::unique_ptr<IoRing>(new Ring(*this, inode_of(fd), buffers, depth));
  }

 private:
  using Block = std::vector<std::byte>;
  using Blocks = std::map<std::uint64_t, Block>;  // those that are not all zeros
  struct File {
    bool direct = false;
    UniqueFd keep;
    std::set<std::uint64_t> allocated;
    std::uint64_t size = 0;  // reads end here
    Blocks now, before;      // before: what the last write replaced
  };

  class Ring final : public IoRing {
   public:
    Ring(FakeDisk& disk, std::uint64_t inode, std::span<std::byte> buffers, unsigned depth)
        : disk_(disk),
          inode_(inode),
          buffers_(buffers),
          depth_(depth),
          event_(::eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)) {}
    Ring(const Ring&) = delete;
    Ring& operator=(const Ring&) = delete;
    ~Ring() override {
      auto& pending = disk_.pending_;
      for (std::size_t i = pending.size(); i-- > 0;) {
        if (pending[i].ring == this) disk_.complete_at(i);
      }
    }

    bool read(std::span<std::byte> buffer, std::uint64_t offset, std::uint64_t tag) override {
      return queue({.offset = offset, .into = buffer, .tag = tag}, buffer);
    }
    bool write(std::span<const std::byte> buffer, std::uint64_t offset,
               std::uint64_t tag) override {
      return queue({.write = true, .offset = offset, .from = buffer, .tag = tag}, buffer);
    }
    int submit() override {
      if (const int error = next(disk_.fail_submits); error != 0) return -error;
      const auto count = static_cast<int>(queued_.size());
      for (FakeIo& io : queued_) disk_.pending_.push_back({this, inode_, io});
      queued_.clear();
      if (disk_.auto_complete) disk_.complete_io();
      return count;
    }
    std::size_t reap(std::span<IoDone> done) override {
      const std::size_t count = std::min(done.size(), ended_.size());
      for (std::size_t i = 0; i < count; ++i) {
        done[i] = ended_.front();
        ended_.pop_front();
      }
      in_flight_ -= count;
      std::uint64_t told = 0;
      if (ended_.empty()) (void)!::read(event_.get(), &told, sizeof(told));
      return count;
    }
    [[nodiscard]] int fd() const override { return event_.get(); }

    void end(std::uint64_t tag, int result) {
      ended_.push_back({tag, result});
      const std::uint64_t one = 1;
      (void)!::write(event_.get(), &one, sizeof(one));
    }

   private:
    // As the kernel, a buffer outside of those registered is a mistake of the caller's.
    bool queue(FakeIo io, std::span<const std::byte> buffer) {
      if (in_flight_ >= depth_) return false;
      const bool inside = buffer.data() >= buffers_.data() &&
                          buffer.data() + buffer.size() <= buffers_.data() + buffers_.size();
      if (!inside) std::abort();
      ++in_flight_;
      queued_.push_back(io);
      return true;
    }

    FakeDisk& disk_;
    const std::uint64_t inode_;
    const std::span<std::byte> buffers_;
    const std::size_t depth_;
    const UniqueFd event_;
    std::size_t in_flight_ = 0;
    std::vector<FakeIo> queued_;
    std::deque<IoDone> ended_;
  };
  struct Pending {
    Ring* ring;
    std::uint64_t inode;
    FakeIo io;
  };

  static std::uint64_t inode_of(int fd) {
    struct stat st{};
    return ::fstat(fd, &st) == 0 ? st.st_ino : 0;
  }
  static int next(std::deque<int>& errors) {
    if (errors.empty()) return 0;
    const int error = errors.front();
    errors.pop_front();
    return error;
  }
  File& file(int fd) { return files_.at(inode_of(fd)); }

  // each(block, offset in it, offset in the whole, bytes)
  template <typename Each>
  static void for_blocks(std::uint64_t offset, std::size_t bytes, Each each) {
    for (std::size_t at = 0; at < bytes;) {
      const std::uint64_t block = (offset + at) / kBlock;
      const std::size_t in = (offset + at) % kBlock;
      const std::size_t n = std::min<std::size_t>(kBlock - in, bytes - at);
      each(block, in, at, n);
      at += n;
    }
  }
  static void take(const Blocks& blocks, std::uint64_t block, std::size_t in, std::byte* to,
                   std::size_t n) {
    const auto found = blocks.find(block);
    if (found == blocks.end()) {
      std::memset(to, 0, n);
    } else {
      std::memcpy(to, found->second.data() + in, n);
    }
  }
  bool take_blocks(File& f, std::uint64_t offset, std::uint64_t bytes) {
    const std::uint64_t end = (offset + bytes + kBlock - 1) / kBlock;
    for (std::uint64_t block = offset / kBlock; block < end; ++block) {
      if (f.allocated.contains(block)) continue;
      if (info.free_bytes < kBlock) return false;
      info.free_bytes -= kBlock;
      f.allocated.insert(block);
    }
    return true;
  }
  static bool aligned(const FakeIo& io) {
    const void* buffer = io.write ? static_cast<const void*>(io.from.data()) : io.into.data();
    return io.offset % kBlock == 0 && io.bytes() % kBlock == 0 &&
           reinterpret_cast<std::uintptr_t>(buffer) % 512 == 0;
  }

  int carry_out(File& f, FakeIo& io) {
    io.lands_at = io.offset;
    io.moved = io.bytes();
    if (f.direct && !aligned(io)) return -EINVAL;
    const int said = on_io ? on_io(io) : 0;
    if (said < 0) return said;
    if (said > 0) io.moved = std::min(io.moved, static_cast<std::size_t>(said));
    std::size_t done = 0;
    if (io.write) {
      if (!put(f, io)) return -ENOSPC;
      done = io.bytes();
    } else {
      done = get(f, io);
    }
    return static_cast<int>(said > 0 ? std::min(done, io.moved) : done);
  }
  bool put(File& f, const FakeIo& io) {
    std::vector<std::byte> bytes(io.from.begin(),
                                 io.from.begin() + static_cast<std::ptrdiff_t>(io.moved));
    flip(bytes, io.flip_bit);
    if (!take_blocks(f, io.lands_at, bytes.size())) return false;
    for_blocks(io.lands_at, bytes.size(),
               [&](std::uint64_t block, std::size_t in, std::size_t at, std::size_t n) {
                 Block& now = f.now[block];
                 now.resize(kBlock);
                 f.before[block] = now;
                 std::memcpy(now.data() + in, &bytes[at], n);
               });
    f.size = std::max(f.size, io.lands_at + bytes.size());
    return true;
  }
  // Bytes that lay there, up to the end of the file.
  static std::size_t get(const File& f, const FakeIo& io) {
    const std::uint64_t left = f.size > io.lands_at ? f.size - io.lands_at : 0;
    const std::size_t there = std::min<std::uint64_t>(io.bytes(), left);
    const std::span<std::byte> to = io.into.first(std::min(io.moved, there));
    for_blocks(io.lands_at, to.size(),
               [&](std::uint64_t block, std::size_t in, std::size_t at, std::size_t n) {
                 take(io.before_last ? f.before : f.now, block, in, &to[at], n);
               });
    flip(to, io.flip_bit);
    return there;
  }
  static void flip(std::span<std::byte> bytes, std::int64_t bit) {
    const auto at = static_cast<std::size_t>(bit);
    if (bit >= 0 && at / 8 < bytes.size()) bytes[at / 8] ^= std::byte{1} << (at % 8);
  }

  std::map<std::uint64_t, File> files_;  // by inode
  std::vector<Pending> pending_;
};

}  // namespace foldswap
