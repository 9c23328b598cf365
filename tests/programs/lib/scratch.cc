#include "tests/programs/lib/scratch.h"

#include <fcntl.h>
#include <linux/magic.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>

#include "tests/programs/lib/common.h"

namespace testprog {

void skip(const std::string& reason) {
  std::fprintf(stderr, "SKIP: %s\n", reason.c_str());
  _exit(77);
}

int open_scratch(const std::string& directory, int flags) {
  const std::string path = directory + "/scratch." + std::to_string(getpid());
  const int fd = open(path.c_str(), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC | flags, 0600);
  const int error = errno;
  unlink(path.c_str());
  const bool direct = (flags & O_DIRECT) != 0;
  if (fd < 0 && error == EINVAL && direct) skip(directory + " refuses O_DIRECT");
  errno = error;
  must(fd, "open");
  struct statfs where{};
  must(fstatfs(fd, &where), "fstatfs");
  if (direct && where.f_type == TMPFS_MAGIC) skip(directory + " is a tmpfs: no disk, no O_DIRECT");
  return fd;
}

}  // namespace testprog
