// Files without a name, on the file system of the temporary directory.
#include "base/file_system.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <cstdlib>
#include <filesystem>

namespace foldswap {
namespace {

namespace fs = std::filesystem;

struct FileSystemTest : ::testing::Test {
  FileSystemTest() {
    std::string name = ::testing::TempDir() + "foldswap-fs-XXXXXX";
    directory = ::mkdtemp(name.data());
  }
  ~FileSystemTest() override { fs::remove_all(directory); }

  // Nobody else can open it, nor find it.
  void expect_unnamed(int fd) const {
    struct stat st{};
    ASSERT_EQ(::fstat(fd, &st), 0);
    EXPECT_TRUE(S_ISREG(st.st_mode));
    EXPECT_EQ(st.st_mode & 07777, 0600U);
    EXPECT_EQ(st.st_nlink, 0U);
    EXPECT_NE(::fcntl(fd, F_GETFD) & FD_CLOEXEC, 0);
    EXPECT_TRUE(fs::is_empty(directory));
  }

  std::string directory;
};

TEST_F(FileSystemTest, UnnamedFilesHaveNoName) {
  const auto plain = open_unnamed(directory, false);
  ASSERT_TRUE(plain.has_value()) << plain.error().text();
  expect_unnamed(plain->get());
  EXPECT_EQ(::fcntl(plain->get(), F_GETFL) & O_DIRECT, 0);
  const auto taken_away = open_and_unlink(directory, false);
  ASSERT_TRUE(taken_away.has_value()) << taken_away.error().text();
  expect_unnamed(taken_away->get());
  EXPECT_EQ(::pwrite(taken_away->get(), "abc", 3, 0), 3);
}

TEST_F(FileSystemTest, DirectFilesAreDirectOrRefused) {
  for (const auto& open : {open_unnamed, open_and_unlink}) {
    const auto file = open(directory, true);
    if (file) {
      EXPECT_NE(::fcntl(file->get(), F_GETFL) & O_DIRECT, 0);
    } else {
      EXPECT_EQ(file.error().code, EINVAL);
    }
    EXPECT_TRUE(fs::is_empty(directory));
  }
}

TEST_F(FileSystemTest, ErrorsNameTheDirectory) {
  for (const auto& open : {open_unnamed, open_and_unlink}) {
    const auto missing = open(directory + "/missing", false);
    ASSERT_FALSE(missing.has_value());
    EXPECT_EQ(missing.error().code, ENOENT);
    EXPECT_NE(missing.error().text().find(directory + "/missing"), std::string::npos);
    const auto no_directory = open("/proc/self/status", false);
    ASSERT_FALSE(no_directory.has_value());
    EXPECT_EQ(no_directory.error().code, ENOTDIR);
  }
}

TEST_F(FileSystemTest, KnowsWhatLiesInMemory) {
  const auto shm = file_system_of("/dev/shm");
  ASSERT_TRUE(shm.has_value()) << shm.error().text();
  EXPECT_EQ(shm->type, "tmpfs");
  EXPECT_TRUE(shm->in_memory);
  const auto proc = file_system_of("/proc").value();
  EXPECT_EQ(proc.type, "0x9fa0");
  EXPECT_FALSE(proc.in_memory);
  EXPECT_EQ(proc.free_bytes, 0U);
  EXPECT_EQ(file_system_of(directory + "/missing").error().code, ENOENT);
  EXPECT_EQ(file_system_of(directory)->free_bytes > 0, fs::space(directory).available > 0);
}

TEST_F(FileSystemTest, AllocationIsCountedAndGivenBack) {
  const auto file = real_os().unnamed_file(directory, false).value();
  EXPECT_EQ(real_os().allocated_bytes(file.get()).value(), 0U);
  if (real_os().allocate(file.get(), 0, 1 << 20) == -EOPNOTSUPP) GTEST_SKIP() << "no fallocate";
  EXPECT_GE(real_os().allocated_bytes(file.get()).value(), 1U << 20);
  EXPECT_EQ(real_os().punch(file.get(), 0, 1 << 20), 0);
  EXPECT_LT(real_os().allocated_bytes(file.get()).value(), 1U << 20);
  EXPECT_EQ(real_os().allocated_bytes(-1).error().code, EBADF);
}

}  // namespace
}  // namespace foldswap
