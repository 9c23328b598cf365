// Where the memory controller of a process is, from its /proc/PID/cgroup.
#include "daemon/evict/budget.h"

#include <gtest/gtest.h>

namespace foldswap {
namespace {

TEST(ParseCgroup, FindsTheMemoryController) {
  bool v2 = true;
  EXPECT_EQ(parse_cgroup_path("12:cpu,cpuacct:/a\n9:memory:/lim/one\n0::/u\n", v2), "/lim/one");
  EXPECT_FALSE(v2);
  EXPECT_EQ(parse_cgroup_path("0::/user.slice/x.scope\n", v2), "/user.slice/x.scope");
  EXPECT_TRUE(v2);
  EXPECT_EQ(parse_cgroup_path("garbage\n1:memory\n", v2), "");
}

}  // namespace
}  // namespace foldswap
