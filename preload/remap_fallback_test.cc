// mremap by copying, in a process that nobody serves: what moves arrives, holes and guards too.
#include "preload/remap_fallback.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "base/uapi.h"

namespace foldswap::preload {
namespace {

constexpr std::size_t kPage = 4096;
enum class Byte { value, hole, guard };

class RemapByCopy : public testing::Test {
 protected:
  static constexpr std::size_t kPages = 400, kBytes = kPages * kPage;

  void SetUp() override {
    source = map();
    target = map();
    // Several mappings of equal rights.
    ASSERT_EQ(madvise(source + 100 * kPage, 50 * kPage, MADV_DONTDUMP), 0);
    for (std::size_t i = 0; i < kPages; ++i) {
      if (kind(i) == Byte::value) std::memset(source + i * kPage, value(i), kPage);
    }
  }
  void TearDown() override {
    munmap(source, kBytes);
    munmap(target, kBytes);
  }
  static char* map() {
    void* const memory =
        mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    EXPECT_NE(memory, MAP_FAILED);
    return static_cast<char*>(memory);
  }
  static int value(std::size_t page) { return static_cast<int>(1 + page % 255); }
  static Byte kind(std::size_t page) {
    return page % 5 == 3 ? Byte::hole : page % 7 == 6 || page / 3 == 40 ? Byte::guard : Byte::value;
  }
  // As the kernel reads it for others: without a signal.
  static Byte look(char* page, int& first) {
    char bytes[kPage];
    const iovec into{bytes, kPage}, from{page, kPage};
    if (process_vm_readv(getpid(), &into, 1, &from, 1, 0) != static_cast<ssize_t>(kPage))
      return Byte::guard;
    first = static_cast<unsigned char>(bytes[0]);
    for (const char c : bytes) EXPECT_EQ(c, bytes[0]);
    return first == 0 ? Byte::hole : Byte::value;
  }
  char *source = nullptr, *target = nullptr;
};

TEST_F(RemapByCopy, GuardsMoveAsGuards) {
  for (std::size_t i = 0; i < kPages; ++i) {
    if (kind(i) != Byte::guard) continue;
    if (madvise(source + i * kPage, kPage, uapi::kMadvGuardInstall) != 0) {
      ASSERT_EQ(errno, EINVAL);
      GTEST_SKIP() << "this kernel has no MADV_GUARD_INSTALL";
    }
  }
  std::uint64_t word = 0;
  const int pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
  const auto at = reinterpret_cast<std::uint64_t>(source) / kPage + 6;
  ASSERT_EQ(pread(pagemap, &word, sizeof(word), static_cast<off_t>(at * sizeof(word))), 8);
  close(pagemap);
  if ((word & uapi::kPagemapGuard) == 0)
    GTEST_SKIP() << "this kernel does not tell which pages are guards";
  void* moved = nullptr;
  int error = 0;
  ASSERT_TRUE(
      remap_by_copy({source, kBytes, kBytes, MREMAP_MAYMOVE | MREMAP_FIXED}, target, moved, error));
  EXPECT_EQ(error, 0);
  ASSERT_EQ(moved, target);
  for (std::size_t i = 0; i < kPages; ++i) {
    int first = 0;
    ASSERT_EQ(look(target + i * kPage, first), kind(i)) << i;
    if (kind(i) == Byte::value) {
      EXPECT_EQ(first, value(i));
    }
  }
  EXPECT_EQ(madvise(source, kPage, MADV_NORMAL), -1) << "it is still where it was";
}

TEST_F(RemapByCopy, OneMappingIsTheKernels) {
  void* moved = nullptr;
  int error = 0;
  EXPECT_FALSE(remap_by_copy({source, 50 * kPage, 50 * kPage, MREMAP_MAYMOVE | MREMAP_FIXED},
                             target, moved, error));
  EXPECT_FALSE(remap_by_copy({source, kBytes, kBytes, MREMAP_MAYMOVE | MREMAP_FIXED},
                             source + 10 * kPage, moved, error))
      << "onto itself";
}

}  // namespace
}  // namespace foldswap::preload
