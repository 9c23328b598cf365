#include "preload/mappings.h"

#include <fcntl.h>

#include <cerrno>

#include "base/uapi.h"
#include "base/wire.h"
#include "preload/maps_text.h"

namespace foldswap::preload {
namespace {

// Not /proc/self, which is empty once the leader has ended.
constexpr char kPath[] = "/proc/thread-self/maps";

Mappings::Answer find_in_text(std::uint64_t address, MappingInfo& info) {
  MapsText maps;
  bool any = false;
  for (MapsText::Vma vma; maps.next(vma); any = true) {
    if (vma.end <= address) continue;
    info = {vma.start, vma.end, vma.private_anonymous};
    return Mappings::Answer::found;
  }
  return any ? Mappings::Answer::none : Mappings::Answer::unknown;
}

}  // namespace

Mappings::Mappings() : fd_(sys::call(SYS_openat, AT_FDCWD, kPath, O_RDONLY | O_CLOEXEC)) {}

Mappings::~Mappings() {
  if (fd_ >= 0) sys::call(SYS_close, fd_);
}

Mappings::Answer Mappings::at_or_after(std::uint64_t address, MappingInfo& info) const {
  if (fd_ < 0) return Answer::unknown;
  uapi::ProcmapQuery query{};
  query.size = sizeof(query);
  query.query_flags = uapi::kQueryCoveringOrNext;
  query.query_addr = address;
  const long error = sys::call(SYS_ioctl, fd_, uapi::kProcmapQuery, &query);
  if (error == -ENOENT) return Answer::none;
  if (error == -ENOTTY) return find_in_text(address, info);
  if (error != 0) return Answer::unknown;
  info = {query.vma_start, query.vma_end,
          (query.vma_flags & uapi::kVmaShared) == 0 && query.inode == 0 &&
              query.vma_page_size == wire::kPageBytes};
  return Answer::found;
}

}  // namespace foldswap::preload
