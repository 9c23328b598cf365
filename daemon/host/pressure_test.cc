// Memory pressure, as /proc says it.
#include "daemon/host/pressure.h"

#include <gtest/gtest.h>

#include "daemon/testing/fake_os.h"

namespace foldswap {
namespace {

constexpr const char* kMeminfo = "/proc/meminfo";
constexpr const char* kPsi = "/proc/pressure/memory";

std::string psi(std::uint64_t total_us) {
  return "some avg10=0.00 avg60=0.00 avg300=0.00 total=" + std::to_string(total_us) +
         "\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=999999999\n";
}

TEST(PressureTest, ReadsMeminfo) {
  const std::string text =
      "MemTotal:       16384000 kB\nMemFree:          1000 kB\nMemAvailable:    2048 kB\n";
  EXPECT_EQ(meminfo_bytes(text, "MemAvailable"), 2048U * 1024);
  EXPECT_EQ(meminfo_bytes(text, "MemTotal"), 16384000U * 1024ULL);
  EXPECT_EQ(meminfo_bytes(text, "SwapFree"), std::nullopt);
  EXPECT_EQ(meminfo_bytes("", "MemAvailable"), std::nullopt);
  EXPECT_EQ(meminfo_bytes("MemAvailable:", "MemAvailable"), std::nullopt);
  EXPECT_EQ(meminfo_bytes("MemAvailable", "MemAvailable"), std::nullopt);
}

TEST(PressureTest, ReadsPsi) {
  EXPECT_EQ(psi_some_us(psi(1234)), 1234U);
  EXPECT_EQ(psi_some_us("full avg10=0.00 total=7\n"), std::nullopt);
  EXPECT_EQ(psi_some_us("some avg10=0.00\n"), std::nullopt);
  EXPECT_EQ(psi_some_us(""), std::nullopt);
}

TEST(PressureTest, TheCgroupsOwnPsiIsPreferred) {
  FakeOs os;
  EXPECT_EQ(psi_path(os), kPsi);
  os.texts["/proc/self/cgroup"] = "0::/\n";
  EXPECT_EQ(psi_path(os), kPsi);
  os.texts["/proc/self/cgroup"] = "1:name=systemd:/x\n0::/system.slice/foldswapd.service\n";
  EXPECT_EQ(psi_path(os), kPsi);
  const std::string own = "/sys/fs/cgroup/system.slice/foldswapd.service/memory.pressure";
  os.texts[own] = psi(0);
  EXPECT_EQ(psi_path(os), own);
}

TEST(PressureTest, MemAvailableBelowTheLine) {
  FakeOs os;
  Pressure pressure(os);
  const Pressure::Limits limits{.available_low_bytes = 1024 * 1024, .stall_ms_per_s = 0};
  EXPECT_FALSE(pressure.high(limits));  // not there
  os.texts[kMeminfo] = "MemAvailable:    1023 kB\n";
  EXPECT_FALSE(pressure.high(limits));  // looked a moment ago
  os.clock_ns += 200'000'000;
  const int before = os.texts_read;
  EXPECT_TRUE(pressure.high(limits));
  for (int i = 0; i < 50; ++i) EXPECT_TRUE(pressure.high(limits));
  EXPECT_EQ(os.texts_read, before + 1);
  os.texts[kMeminfo] = "MemAvailable:    1024 kB\n";
  os.clock_ns += 200'000'000;
  EXPECT_FALSE(pressure.high(limits));
  os.texts[kMeminfo] = "MemAvailable:    1 kB\n";
  os.clock_ns += 200'000'000;
  EXPECT_FALSE(pressure.high({}));  // not asked for
}

TEST(PressureTest, TimeLostWaiting) {
  FakeOs os;
  Pressure pressure(os);
  const Pressure::Limits limits{.available_low_bytes = 0, .stall_ms_per_s = 100};
  std::uint64_t total = 5'000'000;
  const auto second = [&](std::uint64_t lost_us) {
    total += lost_us;
    os.texts[kPsi] = psi(total);
    os.clock_ns += 1'001'000'000;
    return pressure.high(limits);
  };
  EXPECT_FALSE(second(0));  // the first look only tells from where
  EXPECT_FALSE(second(50'000));
  EXPECT_TRUE(second(150'000));
  os.clock_ns += 500'000'000;
  EXPECT_TRUE(pressure.high(limits));
  EXPECT_FALSE(second(0));
  EXPECT_TRUE(second(900'000));
  total = 0;  // another file by that name: not a stall of an age
  EXPECT_FALSE(second(0));
}

TEST(PressureTest, AKernelWithoutPsiIsAskedOnce) {
  FakeOs os;
  Pressure pressure(os);
  const Pressure::Limits limits{.available_low_bytes = 1024 * 1024, .stall_ms_per_s = 100};
  os.texts[kMeminfo] = "MemAvailable:    1 kB\n";
  EXPECT_TRUE(pressure.high(limits));
  const int before = os.texts_read;
  for (int i = 0; i < 10; ++i) {
    os.clock_ns += 2'000'000'000;
    EXPECT_TRUE(pressure.high(limits));
  }
  EXPECT_EQ(os.texts_read, before + 10);
}

}  // namespace
}  // namespace foldswap
