#include "daemon/admission/stranger.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/ioctl.h>
#include <sys/stat.h>

#include <algorithm>
#include <charconv>
#include <cstdio>
#include <cstring>

#include "base/size.h"
#include "base/uapi.h"
#include "daemon/admission/hello.h"

namespace foldswap {
namespace {

constexpr std::string_view kLibrary = "/libfoldswap.so", kDeleted = " (deleted)";

template <typename T>
bool read_number(std::string_view text, T& value, int base = 10) {
  const auto got = std::from_chars(text.data(), text.data() + text.size(), value, base);
  return got.ec == std::errc{} && got.ptr == text.data() + text.size();
}

// Takes the first word off `text`.
std::string_view next_word(std::string_view& text) {
  text.remove_prefix(std::min(text.find_first_not_of(' '), text.size()));
  const std::size_t end = std::min(text.find(' '), text.size());
  const std::string_view word = text.substr(0, end);
  text.remove_prefix(end);
  return word;
}

bool is_on(std::string_view value) {
  return !value.empty() && value != "0";
}

void copy_text(char* to, std::size_t room, std::string_view from) {
  const std::size_t bytes = std::min(from.size(), room - 1);
  std::memcpy(to, from.data(), bytes);
  to[bytes] = '\0';
}

void take_name(char (&to)[wire::kNameBytes], std::string_view from) {
  char cut[wire::kNameBytes] = {};
  copy_text(cut, sizeof(cut), from);
  copy_name(to, cut);
}

std::uint64_t size_of(std::string_view text) {
  const auto bytes = parse_size(text);
  return bytes ? *bytes : wire::kNoLimit;
}

}  // namespace

Wishes parse_wishes(std::string_view environment, std::string_view command) {
  Wishes wishes{};
  wishes.resident_max_bytes = wishes.group_max_bytes = wire::kNoLimit;
  take_name(wishes.name, command);
  while (!environment.empty()) {
    const std::size_t end = std::min(environment.find('\0'), environment.size());
    const std::string_view line = environment.substr(0, end);
    environment.remove_prefix(std::min(end + 1, environment.size()));
    const std::size_t equals = line.find('=');
    if (!line.starts_with("FOLDSWAP_") || equals == std::string_view::npos) continue;
    const std::string_view key = line.substr(9, equals - 9), value = line.substr(equals + 1);
    if (key == "DISABLE") wishes.disabled = is_on(value);
    if (key == "RUNTIME_DIR") copy_text(wishes.runtime_dir, sizeof(wishes.runtime_dir), value);
    if (key == "NAME" && !value.empty()) take_name(wishes.name, value);
    if (key == "GROUP") take_name(wishes.group, value);
    if (key == "RESIDENT_MAX") wishes.resident_max_bytes = size_of(value);
    if (key == "GROUP_MAX") wishes.group_max_bytes = size_of(value);
  }
  return wishes;
}

std::optional<MappedLibrary> find_library(std::string_view maps) {
  MappedLibrary found;
  while (!maps.empty()) {
    const std::size_t end = std::min(maps.find('\n'), maps.size());
    std::string_view line = maps.substr(0, end);
    maps.remove_prefix(std::min(end + 1, maps.size()));
    // A path may have blanks, and ends the line.
    std::string_view path = line.substr(std::min(line.find('/'), line.size()));
    if (path.ends_with(kDeleted)) path.remove_suffix(kDeleted.size());
    if (!path.ends_with(kLibrary)) continue;
    const std::string_view range = next_word(line), rights = next_word(line),
                           offset = next_word(line), device = next_word(line),
                           inode = next_word(line);
    const std::size_t dash = range.find('-');
    MappedLibrary here;
    if (dash == std::string_view::npos || !read_number(range.substr(0, dash), here.start, 16) ||
        !read_number(range.substr(dash + 1), here.end, 16) ||
        !read_number(offset, here.offset, 16) || !read_number(inode, here.inode) ||
        here.inode == 0) {
      continue;
    }
    here.device = device;
    if (here.offset == 0 && rights.starts_with("r--p")) {
      here.first_range = range;
      here.path = path;
      found = here;
    } else if (rights == "r-xp" && here.inode == found.inode && here.device == found.device) {
      here.first_range = found.first_range;
      here.path = found.path;
      return here;
    }
  }
  return std::nullopt;
}

std::optional<Identity> parse_identity(std::string_view stat) {
  // The command's name, in parentheses, may hold anything.
  const std::size_t name_end = stat.rfind(')');
  if (name_end == std::string_view::npos) return std::nullopt;
  std::string_view rest = stat.substr(name_end + 1);
  while (rest.ends_with('\n')) rest.remove_suffix(1);
  constexpr int kState = 3, kStart = 22, kCode = 26;
  Identity identity;
  bool started = false;
  for (int field = kState; field <= kCode; ++field) {
    const std::string_view word = next_word(rest);
    if (field == kStart) started = read_number(word, identity.start_ticks);
    if (field == kCode && !read_number(word, identity.code_start)) return std::nullopt;
  }
  return started ? std::optional(identity) : std::nullopt;
}

std::string_view status_value(std::string_view status, std::string_view key) {
  while (!status.empty()) {
    const std::size_t end = std::min(status.find('\n'), status.size());
    std::string_view line = status.substr(0, end);
    status.remove_prefix(std::min(end + 1, status.size()));
    if (!line.starts_with(key) || line.size() <= key.size() || line[key.size()] != ':') continue;
    line.remove_prefix(key.size() + 1);
    line.remove_prefix(std::min(line.find_first_not_of(" \t"), line.size()));
    return line;
  }
  return {};
}

Result<Stranger> Stranger::open(pid_t pid) {
  UniqueFd folder(::open(("/proc/" + std::to_string(pid)).c_str(), O_DIRECTORY | O_CLOEXEC));
  if (!folder.valid()) return fail_errno("the process is gone");
  return Stranger(pid, std::move(folder));
}

Result<std::string> Stranger::read(const std::string& file, std::size_t most) const {
  const UniqueFd fd(::openat(folder_.get(), file.c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd.valid()) return fail_errno("cannot open its " + file);
  std::string text;
  char part[16384];
  for (;;) {
    const ssize_t got = ::read(fd.get(), part, sizeof(part));
    if (got < 0) return fail_errno("cannot read its " + file);
    if (got == 0 || text.size() >= most) return text;
    text.append(part, static_cast<std::size_t>(got));
  }
}

Result<Identity> Stranger::identity() const {
  auto text = read("stat");
  if (!text) return std::unexpected(text.error());
  const auto identity = parse_identity(*text);
  if (!identity) return fail("its stat cannot be understood");
  return *identity;
}

Result<MappedLibrary> Stranger::library() const {
  auto text = read("maps", 64 << 20);
  if (!text) return std::unexpected(text.error());
  auto library = find_library(*text);
  if (!library) return fail("libfoldswap.so is not loaded in it");
  return std::move(*library);
}

// The file that is mapped, even if its name is another's by now; without the right to that
// (CAP_CHECKPOINT_RESTORE), the one of that name if it is the same.
UniqueFd Stranger::open_library(const MappedLibrary& library) const {
  constexpr int kFlags = O_RDONLY | O_CLOEXEC | O_NONBLOCK;
  UniqueFd file(::openat(folder_.get(), ("map_files/" + library.first_range).c_str(), kFlags));
  if (file.valid() || (errno != EPERM && errno != EACCES)) return file;
  file.reset(::openat(folder_.get(), ("root" + library.path).c_str(), kFlags));
  struct stat st{};
  if (file.valid() && (::fstat(file.get(), &st) != 0 || st.st_ino != library.inode)) {
    file.reset();
    errno = ENOENT;
  }
  return file;
}

Result<Gadget> Stranger::gadget(const MappedLibrary& library) const {
  const UniqueFd file = open_library(library);
  if (!file.valid()) return fail_errno("cannot open its libfoldswap.so");
  struct stat st{};
  if (::fstat(file.get(), &st) != 0 || !S_ISREG(st.st_mode))
    return fail("its libfoldswap.so is no file");
  const auto status = read("status");
  if (!status) return std::unexpected(status.error());
  // Real, effective, saved and file system user.
  const std::string owner = std::to_string(st.st_uid);
  const std::string all_his = owner + "\t" + owner + "\t" + owner + "\t" + owner;
  if (st.st_uid != 0 && status_value(*status, "Uid") != all_his)
    return fail("its libfoldswap.so belongs neither to root nor to its user");
  if ((st.st_mode & (S_IWGRP | S_IWOTH)) != 0)
    return fail("others than its owner may write to its libfoldswap.so");
  std::vector<std::byte> bytes(kMostLibraryBytes);
  const ssize_t got = ::pread(file.get(), bytes.data(), bytes.size(), 0);
  if (got < 0) return fail_errno("cannot read its libfoldswap.so");
  auto gadget = find_gadget(std::span(bytes).first(static_cast<std::size_t>(got)));
  if (!gadget) return gadget;
  const std::uint64_t bytes_mapped = library.end - library.start;
  const std::uint64_t least = std::min(gadget->call, gadget->user);
  if (least < library.offset || gadget->end - library.offset > bytes_mapped)
    return fail("the code of its libfoldswap.so is not mapped");
  return gadget;
}

bool Stranger::still_mapped(const MappedLibrary& library) const {
  const UniqueFd maps(::openat(folder_.get(), "maps", O_RDONLY | O_CLOEXEC));
  if (!maps.valid()) return false;
  uapi::ProcmapQuery query{};
  query.size = sizeof(query);
  query.query_addr = library.start;
  if (::ioctl(maps.get(), uapi::kProcmapQuery, &query) == 0) {
    char device[32];
    std::snprintf(device, sizeof(device), "%02x:%02x", query.dev_major, query.dev_minor);
    return query.vma_start == library.start && query.vma_end == library.end &&
           query.vma_offset == library.offset && query.inode == library.inode &&
           library.device == device && (query.vma_flags & uapi::kVmaExecutable) != 0 &&
           (query.vma_flags & (uapi::kVmaWritable | uapi::kVmaShared)) == 0;
  }
  if (errno != ENOTTY && errno != EINVAL) return false;
  const auto now = this->library();  // before Linux 6.11
  return now && now->start == library.start && now->end == library.end &&
         now->offset == library.offset && now->inode == library.inode &&
         now->device == library.device;
}

std::vector<pid_t> Stranger::threads() const {
  std::vector<pid_t> tids;
  const int fd = ::openat(folder_.get(), "task", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  DIR* const list = fd < 0 ? nullptr : ::fdopendir(fd);
  if (list == nullptr) return tids;
  while (const dirent* entry = ::readdir(list)) {
    pid_t tid = 0;
    if (read_number(std::string_view(entry->d_name), tid)) tids.push_back(tid);
  }
  ::closedir(list);
  return tids;
}

}  // namespace foldswap
