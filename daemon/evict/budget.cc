#include "daemon/evict/budget.h"

#include <algorithm>
#include <charconv>

#include "daemon/host/proc_reader.h"

namespace foldswap {
namespace {

constexpr std::uint64_t kCgroupEveryUs = 200'000;
constexpr std::uint64_t kUnlimited = 1ULL << 60;  // v1 says "no limit" with a huge number

std::uint64_t read_number(Os& os, const std::string& path) {
  const auto text = os.read_file(path);
  std::uint64_t value = wire::kNoLimit;
  if (text) (void)std::from_chars(text->data(), text->data() + text->size(), value);
  return value;
}

// Value of "key N" in a memory.stat.
std::uint64_t stat_value(const std::string& text, std::string_view key) {
  const std::string needle = "\n" + std::string(key) + " ";
  const std::string padded = "\n" + text;
  const std::size_t at = padded.find(needle);
  std::uint64_t value = 0;
  if (at != std::string::npos) {
    const char* begin = padded.data() + at + needle.size();
    (void)std::from_chars(begin, padded.data() + padded.size(), value);
  }
  return value;
}

}  // namespace

std::string parse_cgroup_path(std::string_view text, bool& v2) {
  std::string unified;
  while (!text.empty()) {
    const std::size_t eol = text.find('\n');
    const std::string_view line = text.substr(0, eol);
    text.remove_prefix(eol == std::string_view::npos ? text.size() : eol + 1);
    const std::size_t first = line.find(':');
    const std::size_t second = line.find(':', first + 1);
    if (first == std::string_view::npos || second == std::string_view::npos) continue;
    const std::string controllers =
        "," + std::string(line.substr(first + 1, second - first - 1)) + ",";
    if (controllers.find(",memory,") != std::string::npos) {
      v2 = false;
      return std::string(line.substr(second + 1));
    }
    if (controllers == ",,") unified = std::string(line.substr(second + 1));
  }
  v2 = true;
  return unified;
}

std::uint64_t CgroupLimit::anonymous_room(Os& os, pid_t pid, std::uint64_t rss_bytes) {
  const auto text = os.read_file("/proc/" + std::to_string(pid) + "/cgroup");
  if (!text) return wire::kNoLimit;
  bool v2 = false;
  std::string path = parse_cgroup_path(*text, v2);
  std::uint64_t room = wire::kNoLimit;
  // A parent's limit binds as well.
  for (;; path.resize(path.rfind('/'))) {
    const std::string dir =
        (v2 ? "/sys/fs/cgroup" : "/sys/fs/cgroup/memory") + (path == "/" ? "" : path);
    const std::uint64_t limit =
        read_number(os, dir + (v2 ? "/memory.max" : "/memory.limit_in_bytes"));
    const std::uint64_t usage =
        limit < kUnlimited
            ? read_number(os, dir + (v2 ? "/memory.current" : "/memory.usage_in_bytes"))
            : wire::kNoLimit;
    // A cgroup that goes between the two looks binds nobody any more.
    if (usage != wire::kNoLimit) {
      const auto stat = os.read_file(dir + "/memory.stat");
      const std::uint64_t cache =
          !stat ? 0
          : v2  ? stat_value(*stat, "inactive_file") + stat_value(*stat, "active_file")
                : stat_value(*stat, "total_inactive_file") + stat_value(*stat, "total_active_file");
      const std::uint64_t others = usage > cache + rss_bytes ? usage - cache - rss_bytes : 0;
      const std::uint64_t taken = others + kMargin;
      room = std::min(room, limit > taken ? limit - taken : 0);
    }
    if (path.empty() || path == "/") break;
    if (path.rfind('/') == std::string::npos) break;
  }
  return room;
}

std::uint64_t BudgetBook::sample(Client& client, std::uint64_t now_us) {
  const auto rss = read_rss_anon(os_, client.pid());
  if (!rss) return wire::kNoLimit;
  client.copied_pages = 0;
  client.rss_bytes = *rss;
  bool look_at_cgroup = false;
  {
    const RankedLock lock(mutex_);
    Member& me = members_[client.id];
    look_at_cgroup = now_us - me.cgroup_at_us > kCgroupEveryUs || me.cgroup_at_us == 0;
  }
  const std::uint64_t cgroup_room =
      look_at_cgroup ? CgroupLimit::anonymous_room(os_, client.pid(), *rss) : 0;

  std::uint64_t budget = client.record.resident_max_bytes.load(std::memory_order_relaxed);
  const std::uint64_t group_max = client.record.group_max_bytes.load(std::memory_order_relaxed);
  // A group is of one user: names are no secret.
  const std::string group =
      client.record.group[0] == 0 ? "" : std::to_string(client.uid) + "/" + client.record.group;
  const RankedLock lock(mutex_);
  Member& me = members_[client.id];
  me.group = group;
  me.rss_bytes = *rss;
  if (look_at_cgroup) {
    me.cgroup_room = cgroup_room;
    me.cgroup_at_us = now_us;
  }
  budget = std::min(budget, me.cgroup_room);
  if (group_max != wire::kNoLimit && !group.empty()) {
    std::uint64_t total = 0;
    for (const auto& [id, member] : members_) total += member.group == group ? member.rss_bytes : 0;
    // Everybody gives in proportion to what he has.
    const std::uint64_t share =
        total == 0
            ? group_max
            : static_cast<std::uint64_t>(static_cast<double>(group_max) *
                                         static_cast<double>(*rss) / static_cast<double>(total));
    const bool over = total > group_max - std::min<std::uint64_t>(group_max / 64, 4ULL << 20);
    budget = std::min(budget, over ? share : std::max(share, *rss + (group_max - total)));
  } else if (group_max != wire::kNoLimit) {
    budget = std::min(budget, group_max);
  }
  return budget;
}

void BudgetBook::forget(const Client& client) {
  const RankedLock lock(mutex_);
  members_.erase(client.id);
}

}  // namespace foldswap
