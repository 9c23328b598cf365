// What can be known about a program before it is started: where it is, and whether the dynamic
// loader will honour LD_PRELOAD in it. Only `run` uses this; the file may change before exec, so it
// is advice, not a guarantee. Thread safety: functions without state.
#pragma once

#include <filesystem>
#include <optional>
#include <string>

#include "base/result.h"

namespace foldswap::cli {

// The file that execvp(3) would start for `command`: itself when it has a slash, else looked up in
// PATH. Error: code ENOENT when there is none, EACCES when there is one that may not be executed.
[[nodiscard]] Result<std::string> find_program(const std::string& command);

// Why a preloaded library would not be loaded into `file` (its interpreter, when it is a script),
// as "FILE is statically linked"; nothing when it would, or when the file cannot be read.
[[nodiscard]] std::optional<std::string> why_not_preloadable(const std::string& file);

// libfoldswap.so as seen from a foldswap binary in `binary_dir`: beside it, in the build tree, or
// where it is installed. Error: says where it was looked for.
[[nodiscard]] Result<std::filesystem::path> find_library(const std::filesystem::path& binary_dir);

}  // namespace foldswap::cli
