// Where the memory controller of a process is, from its /proc/PID/cgroup, and the room that it
// leaves.
#include "daemon/evict/budget.h"

#include <gtest/gtest.h>

#include "daemon/testing/fake_os.h"

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

TEST(CgroupLimit, TheTightestOfTheHierarchyBinds) {
  FakeOs os;
  os.texts["/proc/7/cgroup"] = "0::/a/b\n";
  os.texts["/sys/fs/cgroup/a/memory.max"] = "1073741824\n";
  os.texts["/sys/fs/cgroup/a/memory.current"] = "536870912\n";
  os.texts["/sys/fs/cgroup/a/b/memory.max"] = "max\n";
  EXPECT_EQ(CgroupLimit::anonymous_room(os, 7, 1 << 20),
            (1U << 30) - ((1U << 29) - (1U << 20)) - CgroupLimit::kMargin);
}

TEST(CgroupLimit, OneThatGoesBetweenTwoLooksBindsNobody) {
  FakeOs os;
  os.texts["/proc/7/cgroup"] = "0::/a\n";
  os.texts["/sys/fs/cgroup/a/memory.max"] = "1073741824\n";  // and no memory.current
  EXPECT_EQ(CgroupLimit::anonymous_room(os, 7, 1 << 20), wire::kNoLimit);
}

}  // namespace
}  // namespace foldswap
