// Kernel interfaces that Debian 12's headers (6.1) lack, as the kernel's uapi defines them:
// UFFDIO_MOVE (6.8), UFFDIO_POISON (6.6), PAGEMAP_SCAN (6.7), PROCMAP_QUERY (6.11). Values only; no
// code.
#pragma once

#include <linux/userfaultfd.h>
#include <sys/ioctl.h>

#include <cstdint>

namespace foldswap::uapi {

struct UffdMove {
  std::uint64_t dst, src, len, mode;
  std::int64_t move;  // bytes moved, or a negative errno
};
inline constexpr std::uint64_t kMoveModeDontWake = 1, kMoveModeAllowSrcHoles = 2;
inline constexpr unsigned long kUffdioMove = _IOWR(0xAA, 0x05, UffdMove);
inline constexpr std::uint64_t kFeatureMove = 1ULL << 16, kFeaturePoison = 1ULL << 14;

struct UffdPoison {
  uffdio_range range;
  std::uint64_t mode;
  std::int64_t updated;
};
inline constexpr unsigned long kUffdioPoison = _IOWR(0xAA, 0x08, UffdPoison);

struct PageRegion {
  std::uint64_t start, end, categories;
};
struct PmScanArg {
  std::uint64_t size, flags, start, end, walk_end, vec, vec_len, max_pages;
  std::uint64_t category_inverted, category_mask, category_anyof_mask, return_mask;
};
static_assert(sizeof(PmScanArg) == 96 && sizeof(PageRegion) == 24);
inline constexpr unsigned long kPagemapScan = _IOWR('f', 16, PmScanArg);
inline constexpr std::uint64_t kPageIsWpAllowed = 1, kPageIsWritten = 2, kPageIsFile = 4,
                               kPageIsPresent = 8, kPageIsSwapped = 16, kPageIsPfnZero = 32,
                               kPageIsHuge = 64, kPageIsSoftDirty = 128;

// One mapping of /proc/PID/maps, without its text (6.11). `size` is the whole structure's.
struct ProcmapQuery {
  std::uint64_t size, query_flags, query_addr;
  std::uint64_t vma_start, vma_end, vma_flags, vma_page_size, vma_offset, inode;
  std::uint32_t dev_major, dev_minor, vma_name_size, build_id_size;
  std::uint64_t vma_name_addr, build_id_addr;
};
static_assert(sizeof(ProcmapQuery) == 104);
inline constexpr unsigned long kProcmapQuery = _IOWR('f', 17, ProcmapQuery);
inline constexpr std::uint64_t kVmaReadable = 1, kVmaWritable = 2, kVmaExecutable = 4,
                               kVmaShared = 8, kQueryCoveringOrNext = 16;

// Of a word of /proc/PID/pagemap: the page is a guard (6.15).
inline constexpr std::uint64_t kPagemapGuard = 1ULL << 58;

inline constexpr int kMadvDontneedLocked = 24, kMadvPopulateWrite = 23, kMadvCollapse = 25,
                     kMadvGuardInstall = 102, kMadvGuardRemove = 103;

}  // namespace foldswap::uapi
