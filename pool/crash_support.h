// What the tests of taking over share: the files of a pool that dies, at any moment.
#pragma once

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <vector>

#include "pool/pool.h"
#include "pool/take_over.h"
#include "pool/test_support.h"

namespace foldswap::test {

// As the keeper has them.
inline PoolFiles duplicate(const PoolLayout& layout) {
  const auto copy = [](int fd) { return UniqueFd(::fcntl(fd, F_DUPFD_CLOEXEC, 0)); };
  return {copy(layout.frames_fd()), copy(layout.records_fd()), copy(layout.meta_fd())};
}

// What is in the files at one moment: what a death at that moment leaves. Holes stay holes.
class Snapshot {
 public:
  Snapshot() = default;
  explicit Snapshot(const PoolLayout& layout) {
    const int fds[] = {layout.frames_fd(), layout.records_fd(), layout.meta_fd()};
    for (std::size_t f = 0; f < sizes_.size(); ++f) read(f, fds[f]);
  }
  [[nodiscard]] PoolFiles files() const {
    std::array<UniqueFd, 3> made;
    for (std::size_t f = 0; f < made.size(); ++f) {
      made[f] = real_os().memory_file("foldswap-snapshot", sizes_[f]).value();
    }
    for (const Piece& piece : pieces_) {
      EXPECT_EQ(
          ::pwrite(made[piece.file].get(), piece.bytes.data(), piece.bytes.size(), piece.offset),
          static_cast<ssize_t>(piece.bytes.size()));
    }
    return {std::move(made[0]), std::move(made[1]), std::move(made[2])};
  }
  // Asked after every instruction: nothing is allocated.
  [[nodiscard]] bool is_of(const PoolLayout& layout) const {
    const int fds[] = {layout.frames_fd(), layout.records_fd(), layout.meta_fd()};
    std::size_t next = 0;
    for (std::size_t f = 0; f < sizes_.size(); ++f) {
      for (off_t at = 0; (at = ::lseek(fds[f], at, SEEK_DATA)) >= 0; ++next) {
        if (next == pieces_.size() || !is_still(pieces_[next], f, fds[f], at)) return false;
        at += static_cast<off_t>(pieces_[next].bytes.size());
      }
    }
    return next == pieces_.size();
  }

 private:
  struct Piece {
    std::size_t file;
    off_t offset;
    Bytes bytes;
  };
  static bool is_still(const Piece& piece, std::size_t file, int fd, off_t offset) {
    static std::array<std::byte, 32 * kKiB> now;
    const auto size = static_cast<off_t>(piece.bytes.size());
    if (piece.file != file || piece.offset != offset) return false;
    if (::lseek(fd, offset, SEEK_HOLE) != offset + size) return false;
    for (off_t at = 0; at < size;) {
      const ssize_t got = ::pread(
          fd, now.data(), std::min<std::size_t>(now.size(), static_cast<std::size_t>(size - at)),
          offset + at);
      if (got <= 0 ||
          std::memcmp(now.data(), piece.bytes.data() + at, static_cast<std::size_t>(got)) != 0)
        return false;
      at += got;
    }
    return true;
  }
  void read(std::size_t file, int fd) {
    struct stat st{};
    EXPECT_EQ(::fstat(fd, &st), 0);
    sizes_[file] = static_cast<std::uint64_t>(st.st_size);
    for (off_t at = 0; (at = ::lseek(fd, at, SEEK_DATA)) >= 0;) {
      const off_t end = ::lseek(fd, at, SEEK_HOLE);
      Piece piece{file, at, Bytes(static_cast<std::size_t>(end - at))};
      EXPECT_EQ(::pread(fd, piece.bytes.data(), piece.bytes.size(), at), end - at);
      pieces_.push_back(std::move(piece));
      at = end;
    }
  }

  std::array<std::uint64_t, 3> sizes_{};
  std::vector<Piece> pieces_;
};

// A forked child does `work`, step by step. `look` is given the files each time that they have
// changed, and says whether all is well. Returns how often that was.
template <typename Work, typename Look>
std::uint64_t die_at_every_store(const PoolLayout& layout, Work work, Look look) {
  Snapshot last;
  std::uint64_t deaths = 0;
  single_step(work, [&] {
    if (last.is_of(layout)) return false;
    last = Snapshot(layout);
    ++deaths;
    return !look(last);
  });
  return deaths;
}

// A forked child does `work` until `dead`, which is asked after each step, and is killed there.
template <typename Work, typename Dead>
void die_when(Work work, Dead dead) {
  const pid_t child = ::fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    if (::ptrace(PTRACE_TRACEME, 0, nullptr, nullptr) != 0) ::_exit(3);
    ::raise(SIGSTOP);
    work();
    ::_exit(0);
  }
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  while (WIFSTOPPED(status) && !dead()) {
    ASSERT_EQ(::ptrace(PTRACE_SINGLESTEP, child, nullptr, nullptr), 0);
    ASSERT_EQ(::waitpid(child, &status, 0), child);
  }
  ASSERT_TRUE(WIFSTOPPED(status)) << "it never came to that";
  ::kill(child, SIGKILL);
  ::waitpid(child, &status, 0);
}

}  // namespace foldswap::test
