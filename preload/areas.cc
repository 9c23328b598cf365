#include "preload/areas.h"

#include <link.h>
#include <sys/mman.h>

namespace foldswap::preload {
namespace {

constexpr int kAnonymous = MAP_PRIVATE | MAP_ANONYMOUS;
constexpr int kReadWrite = PROT_READ | PROT_WRITE;

bool map(int fd, std::size_t bytes, int flags, Region& region, Reason& reason) {
  const long address = sys::call(SYS_mmap, nullptr, bytes, kReadWrite, flags, fd, 0);
  if (address < 0 && address > -4096) {
    reason.error("mmap", address);
    return false;
  }
  region = Region(reinterpret_cast<std::byte*>(address), bytes);
  return true;
}

bool advise(const std::byte* start, std::size_t bytes, int advice, Reason& reason) {
  const long error = sys::call(SYS_madvise, start, bytes, advice);
  if (error != 0) reason.error("madvise", error);
  return error == 0;
}

bool hide(const Region& region, Reason& reason) {
  return advise(region.start(), region.bytes(), MADV_DONTFORK, reason) &&
         advise(region.start(), region.bytes(), MADV_DONTDUMP, reason);
}

bool map_own(Region& region, Locked locked, Reason& reason) {
  if (!map(-1, kPrivateBytes, kAnonymous, region, reason)) return false;
  std::byte* const base = region.start();
  if (!advise(base, kPage, MADV_WIPEONFORK, reason) ||
      !advise(base + kPage, kPrivateBytes - kPage, MADV_DONTFORK, reason) ||
      !advise(base, kPrivateBytes, MADV_DONTDUMP, reason)) {
    return false;
  }
  sys::call(SYS_mprotect, base + kPage, kPage, PROT_NONE);
  // Best effort, against the kernel's own swapping; the limit may be small, and is the program's.
  if (locked == Locked::yes) sys::call(SYS_mlock, base + 2 * kPage, kPrivateBytes - 2 * kPage);
  return true;
}

bool map_staging(Region& region, Reason& reason) {
  Region room;
  if (!map(-1, wire::kStagingBytes + wire::kExtentBytes, kAnonymous | MAP_NORESERVE, room,
           reason)) {
    return false;
  }
  const auto start = reinterpret_cast<std::uint64_t>(room.start());
  const std::uint64_t aligned = (start + wire::kExtentBytes - 1) & ~(wire::kExtentBytes - 1);
  const std::size_t head = aligned - start;
  const std::size_t tail = wire::kExtentBytes - head;
  if (head != 0) sys::call(SYS_munmap, start, head);
  if (tail != 0) sys::call(SYS_munmap, aligned + wire::kStagingBytes, tail);
  room.keep();
  region = Region(reinterpret_cast<std::byte*>(aligned), wire::kStagingBytes);
  return hide(region, reason);
}

// The loaded segment of `info` that holds `address`; empty: none.
wire::Range segment(const dl_phdr_info& info, const void* address) {
  const auto wanted = reinterpret_cast<std::uint64_t>(address);
  for (int i = 0; i < info.dlpi_phnum; ++i) {
    const ElfW(Phdr)& header = info.dlpi_phdr[i];
    const std::uint64_t start = info.dlpi_addr + header.p_vaddr;
    if (header.p_type == PT_LOAD && wanted >= start && wanted < start + header.p_memsz) {
      return {page_floor(start), page_ceil(start + header.p_memsz) - page_floor(start)};
    }
  }
  return {};
}

int find_own_data(dl_phdr_info* info, std::size_t, void* answer) {
  const wire::Range found = segment(*info, &library);
  if (found.bytes == 0) return 0;
  *static_cast<wire::Range*>(answer) = found;
  return 1;
}

struct Pair {
  const void* a;
  const void* b;
  bool together;
};

int find_pair(dl_phdr_info* info, std::size_t, void* question) {
  auto& pair = *static_cast<Pair*>(question);
  if (segment(*info, pair.a).bytes == 0) return 0;
  pair.together = segment(*info, pair.b).bytes != 0;
  return 1;
}

}  // namespace

bool map_private(Areas& areas, Locked locked, Reason& reason) {
  return map_own(areas.own, locked, reason);
}

bool map_shared(int mailbox_fd, int transfer_fd, Areas& areas, Reason& reason) {
  return map_staging(areas.staging, reason) &&
         map(mailbox_fd, wire::kMailboxBytes, MAP_SHARED, areas.mailbox, reason) &&
         hide(areas.mailbox, reason) &&
         map(transfer_fd, wire::kTransferBytes, MAP_SHARED, areas.transfer, reason) &&
         hide(areas.transfer, reason);
}

wire::Range own_data() {
  wire::Range range{};
  dl_iterate_phdr(find_own_data, &range);
  return range;
}

bool same_module(const void* a, const void* b) {
  Pair pair{a, b, false};
  dl_iterate_phdr(find_pair, &pair);
  return pair.together;
}

}  // namespace foldswap::preload
