// What the pool's tests of taking over share: its files.
#pragma once

#include <array>

#include "base/testing/crash_support.h"
#include "pool/take_over.h"
#include "pool/testing/test_support.h"

namespace foldswap::test {

// As the keeper has them.
inline PoolFiles duplicate(const PoolLayout& layout) {
  const auto copy = [](int fd) { return UniqueFd(::fcntl(fd, F_DUPFD_CLOEXEC, 0)); };
  return {copy(layout.frames_fd()), copy(layout.records_fd()), copy(layout.meta_fd())};
}

inline std::array<int, 3> files_of(const PoolLayout& layout) {
  return {layout.frames_fd(), layout.records_fd(), layout.meta_fd()};
}

inline PoolFiles pool_files(const Snapshot& snapshot) {
  auto files = snapshot.files();
  return {std::move(files[0]), std::move(files[1]), std::move(files[2])};
}

}  // namespace foldswap::test
