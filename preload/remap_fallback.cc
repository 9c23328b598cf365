#include "preload/remap_fallback.h"

#include <fcntl.h>
#include <sys/mman.h>

#include <cerrno>
#include <cstdint>

#include "base/uapi.h"
#include "preload/maps_text.h"
#include "preload/registered.h"
#include "preload/state.h"

namespace foldswap::preload {
namespace {

void* as_pointer(std::uint64_t address) {
  return reinterpret_cast<void*>(address);
}
bool is_error(long result) {
  return result < 0 && result > -4096;
}

long map_anonymous(std::uint64_t hint, std::size_t bytes, int protection, int more_flags) {
  return sys::call(SYS_mmap, hint, bytes, protection, MAP_PRIVATE | MAP_ANONYMOUS | more_flags, -1,
                   0);
}

bool all_zero(const std::uint64_t* page) {
  for (std::size_t i = 0; i < kPage / sizeof(*page); ++i) {
    if (page[i] != 0) return false;
  }
  return true;
}

// The page table, and which pages are guards (MADV_GUARD_INSTALL): whoever reads one gets SIGSEGV.
// Asked in order. None is where the kernel does not tell.
class Guards {
 public:
  Guards() : fd_(sys::call(SYS_openat, AT_FDCWD, "/proc/self/pagemap", O_RDONLY | O_CLOEXEC)) {}
  Guards(const Guards&) = delete;
  Guards& operator=(const Guards&) = delete;
  ~Guards() {
    if (fd_ >= 0) sys::call(SYS_close, fd_);
  }

  [[nodiscard]] bool at(std::uint64_t address) {
    const std::uint64_t page = address / kPage;
    if (page - first_ >= kWords) look_from(page);
    return page - first_ < kWords && (words_[page - first_] & uapi::kPagemapGuard) != 0;
  }
  // How many regions were found, or a negative errno.
  [[nodiscard]] long scan(uapi::PmScanArg& what) const {
    return sys::call(SYS_ioctl, fd_, uapi::kPagemapScan, &what);
  }

 private:
  static constexpr std::size_t kWords = 128;

  void look_from(std::uint64_t page) {
    first_ = page;
    for (std::uint64_t& word : words_) word = 0;
    if (fd_ >= 0) sys::call(SYS_pread64, fd_, words_, sizeof(words_), page * sizeof(words_[0]));
  }

  long fd_;
  std::uint64_t first_ = ~std::uint64_t{0} - kWords;
  std::uint64_t words_[kWords];
};

// Copies pages of the range at `from` to `to`. Holes stay holes in the copy, or a sparse mapping
// would grow to its full size; and guards guards.
class Copy {
 public:
  Copy(std::uint64_t to, std::uint64_t from, std::size_t bytes)
      : to_(to), from_(from), bytes_(bytes) {}

  // 0, or a negative errno: a guard could not be made.
  long run() {
    const std::uint64_t end = from_ + bytes_;
    std::uint64_t at = from_;
    RegisteredParts parts(at, end);
    wire::Range part;
    RegisteredParts::Next next = RegisteredParts::Next::part;
    while ((next = parts.next(part)) == RegisteredParts::Next::part) {
      long error = what_is_there(at, part.start);
      at = part.start + part.bytes;
      if (error == 0) error = each(part.start, at);
      if (error != 0) return error;
    }
    return next == RegisteredParts::Next::unknown ? each(at, end) : what_is_there(at, end);
  }

 private:
  // Where pages may be out, all are looked at: reading brings them back.
  long each(std::uint64_t start, std::uint64_t end) {
    for (std::uint64_t page = start; page < end; page += kPage) {
      const std::uint64_t copy = to_ + (page - from_);
      if (guards_.at(page)) {
        const long made = sys::call(SYS_madvise, copy, kPage, uapi::kMadvGuardInstall);
        if (made != 0) return made;
      } else if (!all_zero(reinterpret_cast<const std::uint64_t*>(page))) {
        sys::copy_bytes(as_pointer(copy), as_pointer(page), kPage);
      }
    }
    return 0;
  }

  // Elsewhere only what the page table knows of.
  long what_is_there(std::uint64_t start, std::uint64_t end) {
    for (std::uint64_t at = start; at < end;) {
      uapi::PageRegion regions[kRegions];
      uapi::PmScanArg scan{};
      scan.size = sizeof(scan);
      scan.start = at;
      scan.end = end;
      scan.vec = reinterpret_cast<std::uint64_t>(regions);
      scan.vec_len = kRegions;
      scan.category_anyof_mask = uapi::kPageIsPresent | uapi::kPageIsSwapped;
      scan.return_mask = scan.category_anyof_mask;
      const long found = guards_.scan(scan);
      if (found < 0 || scan.walk_end <= at) return each(at, end);
      for (long i = 0; i < found; ++i) {
        const long error = each(regions[i].start, regions[i].end);
        if (error != 0) return error;
      }
      at = scan.walk_end;
    }
    return 0;
  }

  static constexpr std::uint64_t kRegions = 32;
  Guards guards_;
  const std::uint64_t to_, from_;
  const std::size_t bytes_;
};

// A tail behind the range, when there is room.
bool grow_in_place(std::uint64_t end, std::size_t more, int protection) {
  const long tail = map_anonymous(end, more, protection, MAP_FIXED_NOREPLACE);
  if (is_error(tail)) return false;
  if (static_cast<std::uint64_t>(tail) == end) return true;
  sys::call(SYS_munmap, tail, more);
  return false;
}

// The new address, or a negative errno.
// `place` 0: anywhere.
long move_by_copy(std::uint64_t start, std::size_t old_bytes, std::size_t new_bytes, int protection,
                  std::uint64_t place) {
  const long made = map_anonymous(place, new_bytes, PROT_READ | PROT_WRITE,
                                  MAP_NORESERVE | (place != 0 ? MAP_FIXED : 0));
  if (is_error(made)) return made;
  const long copied =
      Copy(static_cast<std::uint64_t>(made), start, old_bytes < new_bytes ? old_bytes : new_bytes)
          .run();
  if (copied != 0) {
    sys::call(SYS_munmap, made, new_bytes);
    return copied;
  }
  if (protection != (PROT_READ | PROT_WRITE)) {
    sys::call(SYS_mprotect, made, new_bytes, protection);
  }
  sys::call(SYS_munmap, start, old_bytes);
  return made;
}

}  // namespace

bool spans_vmas(std::size_t start, std::size_t bytes, int& protection) {
  const std::uint64_t end = start + bytes;
  MapsText maps;
  std::uint64_t reached = start;
  unsigned count = 0;
  for (MapsText::Vma vma; reached < end && maps.next(vma);) {
    if (vma.end <= start) continue;
    if (vma.start > reached || !vma.private_anonymous) return false;
    if (count != 0 && vma.protection != protection) return false;
    protection = vma.protection;
    reached = vma.end;
    ++count;
  }
  return reached >= end && count > 1;
}

bool several_vmas(std::uint64_t start, std::size_t bytes) {
  const std::uint64_t end = page_ceil(start + bytes);
  MapsText maps;
  unsigned count = 0;
  for (MapsText::Vma vma; count < 2 && maps.next(vma) && vma.start < end;)
    count += vma.end > start ? 1 : 0;
  return count > 1;
}

bool remap_by_copy(const RemapCall& call, void* target, void*& moved, int& error) {
  const auto start = reinterpret_cast<std::uint64_t>(call.address);
  const std::size_t old_bytes = page_ceil(call.old_bytes);
  const std::size_t new_bytes = page_ceil(call.new_bytes);
  const bool plain = (call.flags & ~MREMAP_MAYMOVE) == 0;
  const auto place = reinterpret_cast<std::uint64_t>(target);
  // To a place of the program's choice, as it is, and not over itself.
  const bool placed = call.flags == (MREMAP_MAYMOVE | MREMAP_FIXED) && place % kPage == 0 &&
                      old_bytes == new_bytes &&
                      (place >= start + old_bytes || start >= place + new_bytes);
  if ((!plain && !placed) || start % kPage != 0 || old_bytes == 0 || new_bytes == 0) return false;
  int protection = 0;
  if (!spans_vmas(start, old_bytes, protection) || (protection & PROT_READ) == 0) return false;
  moved = call.address;
  if (placed) {
    const long result = move_by_copy(start, old_bytes, new_bytes, protection, place);
    moved = is_error(result) ? MAP_FAILED : target;
    error = is_error(result) ? static_cast<int>(-result) : 0;
    return true;
  }
  if (new_bytes <= old_bytes) {
    if (new_bytes < old_bytes) sys::call(SYS_munmap, start + new_bytes, old_bytes - new_bytes);
    return true;
  }
  if (grow_in_place(start + old_bytes, new_bytes - old_bytes, protection)) return true;
  const long result = (call.flags & MREMAP_MAYMOVE) != 0
                          ? move_by_copy(start, old_bytes, new_bytes, protection, 0)
                          : -ENOMEM;
  moved = is_error(result) ? MAP_FAILED : reinterpret_cast<void*>(result);
  error = is_error(result) ? static_cast<int>(-result) : 0;
  return true;
}

}  // namespace foldswap::preload
