#include "cli/program.h"

#include <elf.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <cstring>
#include <string_view>
#include <utility>
#include <vector>

#include "base/unique_fd.h"

namespace foldswap::cli {
namespace {

#if defined(__x86_64__)
constexpr Elf64_Half kNativeMachine = EM_X86_64;
#elif defined(__aarch64__)
constexpr Elf64_Half kNativeMachine = EM_AARCH64;
#else
#error "which ELF machine is this?"
#endif

constexpr int kScriptLevelsMax = 4;  // as many as the kernel follows

// 0, or why `file` cannot be executed.
int executable_error(const std::string& file) {
  struct stat info{};
  if (::stat(file.c_str(), &info) != 0) return errno;
  if (!S_ISREG(info.st_mode)) return EACCES;
  return ::access(file.c_str(), X_OK) == 0 ? 0 : errno;
}

// The start of a file: enough for an ELF header, and for the #! line that the kernel looks at.
struct Head {
  std::array<char, 256> bytes{};
  std::size_t size = 0;

  [[nodiscard]] std::string_view text() const { return {bytes.data(), size}; }
};

Head read_head(int fd) {
  Head head;
  const ssize_t got = ::pread(fd, head.bytes.data(), head.bytes.size(), 0);
  if (got > 0) head.size = static_cast<std::size_t>(got);
  return head;
}

std::optional<std::string> script_interpreter(std::string_view head) {
  if (!head.starts_with("#!")) return std::nullopt;
  std::string_view line = head.substr(2, head.find('\n') - 2);
  const std::size_t start = line.find_first_not_of(" \t");
  if (start == std::string_view::npos) return std::nullopt;
  line.remove_prefix(start);
  return std::string(line.substr(0, line.find_first_of(" \t")));
}

bool changes_credentials(int fd, std::string_view& how) {
  struct stat info{};
  if (::fstat(fd, &info) != 0) return false;
  if ((info.st_mode & S_ISUID) != 0) how = "is setuid";
  // Without group execute, the setgid bit never meant a change of group.
  const mode_t setgid = S_ISGID | S_IXGRP;
  if (how.empty() && (info.st_mode & setgid) == setgid) how = "is setgid";
  if (how.empty() && ::fgetxattr(fd, "security.capability", nullptr, 0) > 0) {
    how = "has file capabilities";
  }
  return !how.empty();
}

// A program without PT_INTERP starts without a dynamic loader, and so without LD_PRELOAD.
bool has_interpreter(int fd, const Elf64_Ehdr& header) {
  if (header.e_phentsize != sizeof(Elf64_Phdr)) return false;
  std::vector<Elf64_Phdr> segments(header.e_phnum);
  const std::size_t bytes = segments.size() * sizeof(Elf64_Phdr);
  const ssize_t got = ::pread(fd, segments.data(), bytes, static_cast<off_t>(header.e_phoff));
  if (got < 0 || static_cast<std::size_t>(got) != bytes) return false;
  for (const Elf64_Phdr& segment : segments) {
    if (segment.p_type == PT_INTERP) return true;
  }
  return false;
}

std::optional<std::string> why_not_elf(int fd, const std::string& file, const Head& head) {
  if (!head.text().starts_with(std::string_view(ELFMAG, SELFMAG))) return std::nullopt;
  Elf64_Ehdr header{};
  if (head.size < sizeof(header)) return file + " is a truncated program";
  std::memcpy(&header, head.bytes.data(), sizeof(header));
  if (header.e_ident[EI_CLASS] != ELFCLASS64 || header.e_machine != kNativeMachine) {
    return file + " is built for another kind of machine than libfoldswap.so";
  }
  if (!has_interpreter(fd, header)) return file + " is statically linked";
  return std::nullopt;
}

}  // namespace

Result<std::string> find_program(const std::string& command) {
  const auto cannot = [&](int code) { return fail_errno("cannot run '" + command + "'", code); };
  if (command.empty()) return cannot(ENOENT);
  if (command.find('/') != std::string::npos) {
    const int error = executable_error(command);
    if (error != 0) return cannot(error);
    return command;
  }
  const char* path = std::getenv("PATH");
  const std::string_view places = path != nullptr ? path : "/bin:/usr/bin";
  int error = ENOENT;
  for (std::size_t at = 0; at <= places.size();) {
    const std::size_t colon = std::min(places.find(':', at), places.size());
    std::string place(places.substr(at, colon - at));
    at = colon + 1;
    if (place.empty()) place = ".";  // an empty element is the current directory
    std::string file = std::move(place);
    file += '/';
    file += command;
    const int why = executable_error(file);
    if (why == 0) return file;
    if (why == EACCES) error = EACCES;
  }
  return cannot(error);
}

std::optional<std::string> why_not_preloadable(const std::string& file) {
  std::string current = file;
  for (int level = 0; level <= kScriptLevelsMax; ++level) {
    const UniqueFd fd(::open(current.c_str(), O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK));
    if (!fd.valid()) return std::nullopt;
    const Head head = read_head(fd.get());
    if (auto interpreter = script_interpreter(head.text())) {
      current = *std::move(interpreter);  // the kernel ignores a script's own setuid bits
      continue;
    }
    std::string_view how;
    if (changes_credentials(fd.get(), how)) return current + " " + std::string(how);
    return why_not_elf(fd.get(), current, head);
  }
  return std::nullopt;
}

Result<std::filesystem::path> find_library(const std::filesystem::path& binary_dir) {
  const std::filesystem::path lib = binary_dir.parent_path() / "lib";
  const std::filesystem::path installed(FOLDSWAP_INSTALL_LIBDIR);
  const std::array<std::filesystem::path, 7> places{
      binary_dir,
      lib,
      lib / "foldswap",
      lib / FOLDSWAP_LIBRARY_ARCHITECTURE / "foldswap",
      lib / FOLDSWAP_LIBRARY_ARCHITECTURE,
      installed / "foldswap",
      installed,
  };
  for (const auto& place : places) {
    std::filesystem::path file = place / "libfoldswap.so";
    if (::access(file.c_str(), R_OK) == 0) return file;
  }
  return fail("libfoldswap.so is neither beside " + binary_dir.string() + "/foldswap, nor in " +
              lib.string() + " or " + installed.string());
}

}  // namespace foldswap::cli
