#include "daemon/host/runtime_dir.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>

#include <cerrno>

namespace foldswap {

Result<UniqueFd> lock_runtime_dir(const std::string& directory, int lowest) {
  if (::mkdir(directory.c_str(), 0755) != 0 && errno != EEXIST)
    return fail_errno("cannot make the runtime directory " + directory);
  const std::string path = directory + "/daemon.lock";
  UniqueFd opened(::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600));
  UniqueFd lock(opened.valid() ? ::fcntl(opened.get(), F_DUPFD_CLOEXEC, lowest) : -1);
  if (!lock.valid()) return fail_errno("cannot open " + path);
  if (::flock(lock.get(), LOCK_EX | LOCK_NB) != 0)
    return fail("another foldswapd runs on " + directory);
  return lock;
}

}  // namespace foldswap
