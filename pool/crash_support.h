// What the tests of taking over share: the files of a pool that dies.
#pragma once

#include <fcntl.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include "pool/pool.h"
#include "pool/take_over.h"

namespace foldswap::test {

// As the keeper has them.
inline PoolFiles duplicate(const Pool& pool) {
  const auto copy = [](int fd) { return UniqueFd(::fcntl(fd, F_DUPFD_CLOEXEC, 0)); };
  const PoolLayout& layout = pool.layout();
  return {copy(layout.frames_fd()), copy(layout.records_fd()), copy(layout.meta_fd())};
}

}  // namespace foldswap::test
