// What tests share that let a process die at any of its stores: files in memory as they are then.
#pragma once

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/ptrace.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <csignal>
#include <cstdint>
#include <cstring>
#include <span>
#include <utility>
#include <vector>

#include "base/os.h"

namespace foldswap::test {

using Bytes = std::vector<std::byte>;

// Stepping through ThreadSanitizer's own code takes minutes and shows nothing more.
#if defined(__SANITIZE_THREAD__)
inline constexpr bool kUnderTsan = true;
#else
inline constexpr bool kUnderTsan = false;
#endif
// The same, of what has too many steps for it.
#if defined(__SANITIZE_ADDRESS__)
inline constexpr bool kUnderAsan = true;
#else
inline constexpr bool kUnderAsan = false;
#endif

// A forked child that stands still before it does `work`; its status then is that.
template <typename Work>
pid_t fork_traced(Work work) {
  const pid_t child = ::fork();
  if (child != 0) return child;
  if (::ptrace(PTRACE_TRACEME, 0, nullptr, nullptr) != 0) ::_exit(3);
  ::raise(SIGSTOP);
  ::_exit(work());
}

// Steps a forked child through `work`, which says whether it went well, one instruction at a time,
// and asks `torn()` after each of them. Both see the same memory files.
template <typename Work, typename Torn>
void single_step(Work work, Torn torn) {
  const pid_t child = fork_traced([&] { return work() ? 0 : 1; });
  ASSERT_GE(child, 0);
  int status = 0;
  std::uint64_t steps = 0, wrong = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  while (WIFSTOPPED(status) && wrong == 0) {
    wrong = static_cast<std::uint64_t>(torn());
    ++steps;
    ASSERT_EQ(::ptrace(PTRACE_SINGLESTEP, child, nullptr, nullptr), 0);
    ASSERT_EQ(::waitpid(child, &status, 0), child);
  }
  if (WIFSTOPPED(status)) {
    ::kill(child, SIGKILL);
    ::waitpid(child, &status, 0);
  }
  EXPECT_EQ(wrong, 0U) << "at step " << steps;
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << status;
  EXPECT_GT(steps, 1000U);
}

// What is in the files at one moment: what a death at that moment leaves. Holes stay holes.
class Snapshot {
 public:
  Snapshot() = default;
  explicit Snapshot(std::span<const int> fds) : sizes_(fds.size()) {
    for (std::size_t f = 0; f < fds.size(); ++f) read(f, fds[f]);
  }
  // New ones with the same in them.
  [[nodiscard]] std::vector<UniqueFd> files() const {
    std::vector<UniqueFd> made;
    for (const std::uint64_t size : sizes_)
      made.push_back(real_os().memory_file("foldswap-snapshot", size).value());
    for (const Piece& piece : pieces_) {
      EXPECT_EQ(
          ::pwrite(made[piece.file].get(), piece.bytes.data(), piece.bytes.size(), piece.offset),
          static_cast<ssize_t>(piece.bytes.size()));
    }
    return made;
  }
  // Asked after every instruction: nothing is allocated.
  [[nodiscard]] bool is_of(std::span<const int> fds) const {
    if (sizes_.size() != fds.size()) return false;
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
    static std::array<std::byte, 32 * 1024> now;
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

  std::vector<std::uint64_t> sizes_;
  std::vector<Piece> pieces_;
};

// A forked child does `work`, step by step. `look` is given the files each time that they have
// changed, and says whether all is well. Returns how often that was.
template <typename Work, typename Look>
std::uint64_t die_at_every_store(std::span<const int> fds, Work work, Look look) {
  Snapshot last;
  std::uint64_t deaths = 0;
  single_step(work, [&] {
    if (last.is_of(fds)) return false;
    last = Snapshot(fds);
    ++deaths;
    return !look(last);
  });
  return deaths;
}

// A forked child does `work` until `dead`, which is asked after each step, and is killed there.
template <typename Work, typename Dead>
void die_when(Work work, Dead dead) {
  const pid_t child = fork_traced([&] { return work(), 0; });
  ASSERT_GE(child, 0);
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
