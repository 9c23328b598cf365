// Files without a name, and what a file system says about itself: the longer ones of RealOs's
// calls. Thread safety: pure functions over system calls. Errors name the directory.
#pragma once

#include <string>

#include "base/os.h"
#include "base/result.h"
#include "base/unique_fd.h"

namespace foldswap {

// O_TMPFILE, or open_and_unlink() where the file system has no such thing.
[[nodiscard]] Result<UniqueFd> open_unnamed(const std::string& directory, bool direct);
// Makes a name that nobody had, and takes it away at once.
[[nodiscard]] Result<UniqueFd> open_and_unlink(const std::string& directory, bool direct);
[[nodiscard]] Result<FileSystemInfo> file_system_of(const std::string& path);

}  // namespace foldswap
