// `foldswap run`: starts a program with libfoldswap.so preloaded, so that it becomes a client by
// itself.
//
// Everything is handed on in the environment (DESIGN 12), which children inherit. LD_PRELOAD is
// appended to, never replaced. When the program cannot become a client it runs all the same,
// without the library, and one line on standard error says why (none with FOLDSWAP_QUIET=1); with
// `require` it does not run. Thread safety: changes the environment; for single-threaded use.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

namespace foldswap::cli {

// As env(1), which users of such wrappers know.
enum RunStatus : int { kCannotBeClient = 125, kCannotInvoke = 126, kNotFound = 127 };

struct RunOptions {
  std::vector<std::string> command;  // not empty; passed on untouched
  std::optional<std::uint64_t> resident_max_bytes;
  std::optional<std::uint64_t> group_max_bytes;
  std::optional<std::string> name;
  bool require = false;               // likewise when FOLDSWAP_REQUIRE=1
  std::filesystem::path runtime_dir;  // where the daemon is looked for
  bool runtime_dir_given = false;     // on the command line: the program must be told
};

// Does not return when the program was started; else its exit status, with the reason on standard
// error.
[[nodiscard]] int run(const RunOptions& options);

// LD_PRELOAD with `library` appended, unless it is already in there.
[[nodiscard]] std::string appended_preload(const char* current, const std::string& library);
// ASAN_OPTIONS with what gcc's AddressSanitizer needs to begin behind a preloaded library, unless
// it says something about that already.
[[nodiscard]] std::string with_asan_option(const char* current);

}  // namespace foldswap::cli
