#include "base/file_system.h"

#include <fcntl.h>
#include <linux/magic.h>
#include <stdlib.h>
#include <sys/statfs.h>
#include <unistd.h>

#include <array>
#include <cstdint>
#include <cstdio>

namespace foldswap {
namespace {

struct KnownType {
  std::uint64_t magic;
  const char* name;
};
// Those that linux/magic.h does not have are the file systems' own.
constexpr std::uint64_t kXfs = 0x58465342, kZfs = 0x2fc12fc1, kCifs = 0xff534d42,
                        kBcachefs = 0xca451a4e;
constexpr KnownType kTypes[] = {
    {EXT4_SUPER_MAGIC, "ext4"},
    {kXfs, "xfs"},
    {BTRFS_SUPER_MAGIC, "btrfs"},
    {F2FS_SUPER_MAGIC, "f2fs"},
    {kZfs, "zfs"},
    {kBcachefs, "bcachefs"},
    {TMPFS_MAGIC, "tmpfs"},
    {RAMFS_MAGIC, "ramfs"},
    {OVERLAYFS_SUPER_MAGIC, "overlay"},
    {NFS_SUPER_MAGIC, "nfs"},
    {kCifs, "cifs"},
    {V9FS_MAGIC, "9p"},
    {FUSE_SUPER_MAGIC, "fuse"},
    {MSDOS_SUPER_MAGIC, "vfat"},
};

std::string type_name(std::uint64_t magic) {
  for (const KnownType& type : kTypes) {
    if (type.magic == magic) return type.name;
  }
  std::array<char, 24> text{};
  std::snprintf(text.data(), text.size(), "0x%llx", static_cast<unsigned long long>(magic));
  return text.data();
}

constexpr int kFlags = O_RDWR | O_CLOEXEC;
constexpr mode_t kMode = 0600;

int direct_flag(bool direct) {
  return direct ? O_DIRECT : 0;
}

std::string random_name() {
  std::array<unsigned char, 8> random{};
  ::arc4random_buf(random.data(), random.size());
  std::string name = ".foldswap-";
  for (const unsigned char byte : random) {
    name += "0123456789abcdef"[byte >> 4];
    name += "0123456789abcdef"[byte & 15];
  }
  return name;
}

}  // namespace

// O_EXCL: nor can it be given a name later.
Result<UniqueFd> open_unnamed(const std::string& directory, bool direct) {
  UniqueFd fd(::open(directory.c_str(), O_TMPFILE | O_EXCL | kFlags | direct_flag(direct), kMode));
  if (fd.valid()) return fd;
  if (errno == EOPNOTSUPP || errno == EISDIR) return open_and_unlink(directory, direct);
  return fail_errno("cannot make a file in " + directory);
}

// By the directory's descriptor, so that the name is taken from where it was put. Some file systems
// notice only after the file was made that they cannot open it with O_DIRECT.
Result<UniqueFd> open_and_unlink(const std::string& directory, bool direct) {
  const UniqueFd place(::open(directory.c_str(), O_DIRECTORY | O_RDONLY | O_CLOEXEC));
  if (!place.valid()) return fail_errno("cannot open the directory " + directory);
  const std::string name = random_name();
  UniqueFd fd(::openat(place.get(), name.c_str(),
                       O_CREAT | O_EXCL | O_NOFOLLOW | kFlags | direct_flag(direct), kMode));
  const int error = errno;
  const bool made = fd.valid() || error == EINVAL;
  if (made && ::unlinkat(place.get(), name.c_str(), 0) != 0 && errno != ENOENT) {
    return fail_errno("cannot take the name of " + directory + "/" + name + " away");
  }
  if (!fd.valid()) return fail_errno("cannot make a file in " + directory, error);
  return fd;
}

Result<FileSystemInfo> file_system_of(const std::string& path) {
  struct statfs st{};
  if (::statfs(path.c_str(), &st) != 0) return fail_errno("cannot look at " + path);
  const auto magic = static_cast<std::uint64_t>(st.f_type) & 0xffffffff;
  return FileSystemInfo{.free_bytes = st.f_bavail * static_cast<std::uint64_t>(st.f_bsize),
                        .in_memory = magic == TMPFS_MAGIC || magic == RAMFS_MAGIC,
                        .type = type_name(magic)};
}

}  // namespace foldswap
