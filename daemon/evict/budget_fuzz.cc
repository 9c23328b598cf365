// libFuzzer target for what the system says of a client's memory cgroup. Whoever makes a cgroup
// chooses its name, of any bytes but a line feed and a slash. So the input is a hierarchy with
// limits, written as the kernel writes it: the path that is found must be the one that was meant,
// and the room what the limits leave. And any text at all must be survived.
#include "daemon/evict/budget.h"

#include <algorithm>
#include <string>
#include <vector>

#include "base/testing/fuzz_input.h"
#include "daemon/testing/fake_os.h"

namespace foldswap {
namespace {

constexpr pid_t kPid = 7;

std::string name_of(FuzzInput& input) {
  std::string name;
  for (const char c : input.text(12)) name += c == '\n' || c == '/' || c == 0 ? '_' : c;
  return name.empty() ? "a" : name;
}

// What is in a folder of the hierarchy. Returns the room that it leaves.
std::uint64_t make_folder(FuzzInput& input, FakeOs& os, const std::string& folder, bool v2,
                          std::uint64_t rss) {
  const std::uint32_t bits = input.byte();
  // It may go while it is looked at: then files are missing.
  const bool has_usage = (bits & 1) == 0, has_stat = (bits & 2) == 0, limited = (bits & 4) == 0;
  const std::uint64_t limit = input.number(5), usage = input.number(5);
  const std::uint64_t inactive = input.number(3), active = input.number(3);
  os.texts[folder + (v2 ? "/memory.max" : "/memory.limit_in_bytes")] =
      limited ? std::to_string(limit) + "\n"
      : v2    ? "max\n"
              : "9223372036854771712\n";
  if (has_usage)
    os.texts[folder + (v2 ? "/memory.current" : "/memory.usage_in_bytes")] =
        std::to_string(usage) + "\n";
  const std::string prefix = v2 ? "" : "total_";
  if (has_stat)
    os.texts[folder + "/memory.stat"] = "cache 5\n" + prefix + "inactive_file " +
                                        std::to_string(inactive) + "\n" + prefix + "active_file " +
                                        std::to_string(active) + "\nunevictable 0\n";
  if (!limited || !has_usage) return wire::kNoLimit;
  const std::uint64_t cache = has_stat ? inactive + active : 0;
  const std::uint64_t others = usage > cache + rss ? usage - cache - rss : 0;
  const std::uint64_t taken = others + CgroupLimit::kMargin;
  return limit > taken ? limit - taken : 0;
}

void hierarchy(FuzzInput& input) {
  FakeOs os;
  const std::uint32_t bits = input.byte();
  const bool v2 = (bits & 1) != 0;
  const std::uint64_t rss = input.number(4);
  const std::string mount = v2 ? "/sys/fs/cgroup" : "/sys/fs/cgroup/memory";
  std::string path;
  std::uint64_t room = make_folder(input, os, mount, v2, rss);
  for (std::uint32_t depth = bits >> 1 & 3; depth > 0; --depth) {
    path += "/" + name_of(input);
    room = std::min(room, make_folder(input, os, mount + path, v2, rss));
  }
  if (path.empty()) path = "/";
  const std::string other = "/" + name_of(input);
  std::vector<std::string> lines{"3:cpu,cpuacct:" + other, "1:name=memory:" + other,
                                 v2 ? "0::" + path : "9:rdma,memory:" + path};
  if (!v2) lines.push_back("0::" + other);
  std::rotate(lines.begin(), lines.begin() + input.byte() % lines.size(), lines.end());
  std::string text;
  for (const std::string& line : lines) text += line + "\n";
  bool found_v2 = !v2;
  if (parse_cgroup_path(text, found_v2) != path || found_v2 != v2)
    wrong("another cgroup than that of " + text);
  os.texts["/proc/7/cgroup"] = text;
  if (const std::uint64_t found = CgroupLimit::anonymous_room(os, kPid, rss); found != room)
    wrong("room of " + std::to_string(found) + " where there is " + std::to_string(room));
}

void anything(FuzzInput& input) {
  FakeOs os;
  const std::string value = input.text(30), stat = input.text(60), text = input.rest();
  bool v2 = false;
  const std::string path = parse_cgroup_path(text, v2);
  if (path.find('\n') != std::string::npos || text.find(path) == std::string::npos)
    wrong("a path that is in no line: " + path);
  os.texts["/proc/7/cgroup"] = text;
  const std::string folder = (v2 ? "/sys/fs/cgroup" : "/sys/fs/cgroup/memory") + path;
  for (const char* file :
       {"/memory.max", "/memory.current", "/memory.limit_in_bytes", "/memory.usage_in_bytes"})
    os.texts[folder + file] = value;
  os.texts[folder + "/memory.stat"] = stat;
  (void)CgroupLimit::anonymous_room(os, kPid, input.number(4));
}

}  // namespace
}  // namespace foldswap

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t bytes) {
  foldswap::FuzzInput input(data, bytes);
  if (input.byte() % 4 != 0) {
    foldswap::hierarchy(input);
  } else {
    foldswap::anything(input);
  }
  return 0;
}
