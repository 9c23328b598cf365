// Stranger: a process that is no client, as its folder in /proc shows it. The folder is opened
// once, so that everything is of one process, whatever becomes of its number. Reading some of these
// files may take for ever (the process decides how: a FUSE file in it, a fault that nobody
// answers), so this is for the injector's own process (injector.h), which is killed when it is
// late. Nothing that a process can write is believed: the environment only says what it wishes.
// Thread safety: a plain value, for one thread.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "base/result.h"
#include "base/unique_fd.h"
#include "base/wire.h"
#include "daemon/admission/gadget.h"

namespace foldswap {

// What a process's environment wishes (DESIGN §12). Plain: it is sent from one process to another.
struct Wishes {
  bool disabled;
  char runtime_dir[108];  // empty: the usual one
  char name[wire::kNameBytes], group[wire::kNameBytes];
  std::uint64_t resident_max_bytes, group_max_bytes;
};
// From the text of /proc/PID/environ; `command`: its name if it wishes none.
[[nodiscard]] Wishes parse_wishes(std::string_view environment, std::string_view command);

// libfoldswap.so in it: where it is mapped, and which file that is.
struct MappedLibrary {
  std::uint64_t start = 0, end = 0, offset = 0;  // of the mapping that can be executed
  std::uint64_t inode = 0;
  std::string device;       // as maps has it
  std::string first_range;  // "START-END" of its first mapping: its name in map_files
  std::string path;         // as the process sees it
};
// From the text of /proc/PID/maps.
[[nodiscard]] std::optional<MappedLibrary> find_library(std::string_view maps);

// Field 22 of /proc/PID/stat and its code's start, which together tell one program of one process.
struct Identity {
  std::uint64_t start_ticks = 0, code_start = 0;
  friend bool operator==(const Identity&, const Identity&) = default;
};
[[nodiscard]] std::optional<Identity> parse_identity(std::string_view stat);

class Stranger {
 public:
  // Error: it is gone.
  static Result<Stranger> open(pid_t pid);

  [[nodiscard]] pid_t pid() const { return pid_; }
  [[nodiscard]] Result<std::string> read(const std::string& file, std::size_t most = 8 << 20) const;
  [[nodiscard]] Result<Identity> identity() const;
  // Error: not in it. Its code is read again at each call.
  [[nodiscard]] Result<MappedLibrary> library() const;
  // Error: why it may not be used. The file belongs to root or to the user whose process it is, and
  // nobody else may write to it.
  [[nodiscard]] Result<Gadget> gadget(const MappedLibrary& library) const;
  // Whether [start, end) is what `library` says, now.
  [[nodiscard]] bool still_mapped(const MappedLibrary& library) const;
  [[nodiscard]] std::vector<pid_t> threads() const;

 private:
  Stranger(pid_t pid, UniqueFd folder) : pid_(pid), folder_(std::move(folder)) {}
  [[nodiscard]] UniqueFd open_library(const MappedLibrary& library) const;
  pid_t pid_;
  UniqueFd folder_;
};

// The value of a line of /proc/PID/status: "Seccomp" -> "0".
[[nodiscard]] std::string_view status_value(std::string_view status, std::string_view key);

}  // namespace foldswap
