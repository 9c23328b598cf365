// What the pool's tests share: an Os that can fail, pools of several geometries, checked objects.
#pragma once

#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "base/testing/crash_support.h"
#include "pool/pool.h"

namespace foldswap::test {

using Page = std::array<std::byte, 4096>;

// The kernel's memory files; everything that the pool does not use aborts. Failures are switched on
// and off.
class FaultyOs final : public Os {
 public:
  std::atomic<std::int64_t> allocations_left{-1};  // then ENOMEM; -1: no limit
  std::atomic<bool> punch_fails{false};
  std::atomic<std::uint64_t> punches{0}, allocations{0};

  Result<UniqueFd> memory_file(const char* name, std::uint64_t bytes) override {
    return real_os().memory_file(name, bytes);
  }
  int punch(int fd, std::uint64_t offset, std::uint64_t bytes) override {
    EXPECT_EQ(rank_check::held_now(), 0U) << "system call under a lock";
    ++punches;
    return punch_fails ? -EIO : real_os().punch(fd, offset, bytes);
  }
  int allocate(int fd, std::uint64_t offset, std::uint64_t bytes) override {
    EXPECT_EQ(rank_check::held_now(), 0U) << "system call under a lock";
    ++allocations;
    std::int64_t left = allocations_left.load();
    while (left >= 0) {
      if (left == 0) return -ENOMEM;
      if (allocations_left.compare_exchange_weak(left, left - 1)) break;
    }
    return real_os().allocate(fd, offset, bytes);
  }

  std::uint64_t now_ns() override { std::abort(); }
  void sleep_us(std::uint64_t) override { std::abort(); }
  int uffd_api(int, std::uint64_t) override { std::abort(); }
  int uffd_register(int, std::uint64_t, std::uint64_t) override { std::abort(); }
  int uffd_unregister(int, std::uint64_t, std::uint64_t) override { std::abort(); }
  UffdProgress uffd_copy(int, std::uint64_t, const std::byte*, std::uint64_t) override {
    std::abort();
  }
  UffdProgress uffd_zeropage(int, std::uint64_t, std::uint64_t) override { std::abort(); }
  int uffd_poison(int, std::uint64_t) override { std::abort(); }
  int uffd_wake(int, std::uint64_t, std::uint64_t) override { std::abort(); }
  Probe uffd_probe(int, std::uint64_t) override { std::abort(); }
  Result<UniqueFd> open_maps(const std::string&) override { std::abort(); }
  int query_mapping(int, uapi::ProcmapQuery&) override { std::abort(); }
  int uffd_read(int, std::span<uffd_msg>) override { std::abort(); }
  Result<UniqueFd> unnamed_file(const std::string&, bool) override { std::abort(); }
  Result<FileSystemInfo> file_system(const std::string&) override { std::abort(); }
  Result<std::uint64_t> allocated_bytes(int) override { std::abort(); }
  Result<std::unique_ptr<IoRing>> io_ring(int, std::span<std::byte>, unsigned) override {
    std::abort();
  }
  Result<std::string> read_file(const std::string&) override { std::abort(); }
  Result<std::vector<std::string>> list_directory(const std::string&) override { std::abort(); }
  Result<std::string> read_link(const std::string&) override { std::abort(); }
  int pagemap_scan(int, uapi::PmScanArg&) override { std::abort(); }
  int read_at(int, void*, std::size_t, std::uint64_t) override { std::abort(); }
  int robust_list_head(pid_t, std::uint64_t&) override { std::abort(); }
  int pidfd_signal(int, int) override { std::abort(); }
  void futex_wake(std::uint32_t*) override { std::abort(); }
  void futex_wait_any(std::span<const FutexWait>, std::uint64_t) override { std::abort(); }
};

inline constexpr std::uint64_t kMaxBytes = 256 * kMiB;

inline PoolConfig config_of(PoolGeometry geometry, std::uint64_t limit_bytes = 64 * kMiB) {
  return {.geometry = geometry,
          .limit_bytes = limit_bytes,
          .frame_bytes_max = kMaxBytes,
          .objects_max = 1 << 20};
}

inline std::unique_ptr<Pool> make_pool(Os& os, const PoolConfig& config) {
  auto pool = Pool::create(os, config);
  EXPECT_TRUE(pool.has_value()) << pool.error().text();
  return pool ? std::move(*pool) : nullptr;
}

// Bytes that tell from whom they are: any mix-up of objects shows.
inline Bytes content(std::uint64_t seed, std::size_t bytes) {
  Bytes out(bytes);
  std::uint64_t x = seed * 0x9e3779b97f4a7c15ULL + 1;
  for (auto& b : out) {
    x ^= x << 13, x ^= x >> 7, x ^= x << 17;
    b = std::byte(x & 0xff);
  }
  return out;
}

inline ::testing::AssertionResult holds(Pool& pool, ObjectId id, const Bytes& want) {
  Page out;
  const auto loaded = pool.load(id, out);
  if (!loaded) return ::testing::AssertionFailure() << loaded.error().text();
  if (loaded->length != want.size() || !std::equal(want.begin(), want.end(), out.begin())) {
    return ::testing::AssertionFailure() << "other bytes came back";
  }
  return ::testing::AssertionSuccess();
}

inline ::testing::AssertionResult valid(Pool& pool, bool quiet = true) {
  const Status status = pool.validate(quiet);
  if (status) return ::testing::AssertionSuccess();
  return ::testing::AssertionFailure() << status.error().text();
}

inline std::uint64_t resident_bytes(int fd) {
  struct stat st{};
  EXPECT_EQ(::fstat(fd, &st), 0);
  return static_cast<std::uint64_t>(st.st_blocks) * 512;
}

// What the system holds for the pool must be what the pool says it holds.
inline ::testing::AssertionResult memory_is_counted(Pool& pool) {
  const PoolStats stats = pool.stats();
  const PoolLayout& layout = pool.layout();
  const std::uint64_t scratch = layout.config().shards * layout.scratch_bytes();
  const std::uint64_t frames = resident_bytes(layout.frames_fd());
  const std::uint64_t rest = resident_bytes(layout.records_fd()) + resident_bytes(layout.meta_fd());
  if (frames != stats.frame_bytes + scratch || rest + scratch != stats.metadata_bytes) {
    return ::testing::AssertionFailure() << "frames: " << frames << " held, " << stats.frame_bytes
                                         << " + " << scratch << " counted; rest: " << rest + scratch
                                         << " held, " << stats.metadata_bytes << " counted";
  }
  return ::testing::AssertionSuccess();
}

struct NamedGeometry {
  const char* name;
  PoolGeometry geometry;
};
inline constexpr NamedGeometry kGeometries[] = {
    {"default", {}},         {"z3fold", {4096, 3}},   {"zbud", {4096, 2}},
    {"single", {4096, 1}},   {"small8K7", {8192, 7}}, {"large64K128", {65536, 128}},
    {"max", {262144, 4095}},
};
inline std::string geometry_name(const ::testing::TestParamInfo<NamedGeometry>& param) {
  return param.param.name;
}

}  // namespace foldswap::test
