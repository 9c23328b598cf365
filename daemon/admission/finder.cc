#include "daemon/admission/finder.h"

#include <fcntl.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <cstdio>
#include <filesystem>
#include <set>
#include <utility>

#include "daemon/host/log.h"

namespace foldswap {
namespace {

constexpr std::uint64_t kMs = 1'000, kSecond = 1'000'000;
constexpr std::uint64_t kScanUs = kSecond;
// A program that has just begun is often about to become another one.
constexpr std::uint64_t kYoungUs = 5 * kSecond, kOldLookUs = 4 * kSecond;
constexpr std::uint64_t kFastUs = 100 * kMs, kSlowUs = 2 * kSecond;  // between two samples
constexpr std::uint64_t kArriveUs = 5 * kSecond;
constexpr std::uint64_t kFirstRetryUs = 100 * kMs, kLastRetryUs = 10 * kSecond,
                        kOrderedRetryUs = 20 * kMs;
constexpr std::uint64_t kSureUs = 60 * kSecond;
constexpr std::uint64_t kLateRetryUs = 5 * kSecond;
constexpr std::uint64_t kSummonUs = 8 * kSecond;
constexpr const char* kUsualRuntimeDir = "/run/foldswap";

std::optional<pid_t> number(std::string_view text) {
  pid_t value = 0;
  const auto got = std::from_chars(text.data(), text.data() + text.size(), value);
  if (got.ec != std::errc{} || got.ptr != text.data() + text.size() || value <= 0)
    return std::nullopt;
  return value;
}

// A group is of one user, as in budget.cc.
std::string group_key(std::uint32_t uid, std::string_view group) {
  return std::to_string(uid) + "/" + std::string(group);
}

struct Memory {
  std::uint64_t anonymous_bytes, code_pages;
};

// Of /proc/PID/statm; nothing: it is gone. Thousands are read each second, so nothing is allocated.
std::optional<Memory> read_memory(pid_t pid) {
  std::array<char, 32> path{};
  std::array<char, 160> text{};
  std::snprintf(path.data(), path.size(), "/proc/%d/statm", pid);
  const UniqueFd file(::open(path.data(), O_RDONLY | O_CLOEXEC));
  if (!file.valid()) return std::nullopt;
  const ssize_t got = ::read(file.get(), text.data(), text.size() - 1);
  if (got <= 0) return std::nullopt;
  std::array<std::uint64_t, 4> fields{};  // size, resident, shared, code: in pages
  const char* at = text.data();
  const char* const end = at + got;
  for (std::uint64_t& field : fields) {
    const auto number = std::from_chars(at, end, field);
    if (number.ec != std::errc{}) return std::nullopt;
    at = number.ptr + 1;
    if (at > end) at = end;
  }
  return Memory{(fields[1] - std::min(fields[2], fields[1])) * kPage, fields[3]};
}

std::string plain_path(std::string_view path) {
  std::string plain = std::filesystem::path(path).lexically_normal().string();
  while (plain.size() > 1 && plain.ends_with('/')) plain.pop_back();
  return plain;
}

}  // namespace

Finder::Finder(Os& os, const Registry& registry, Injector& injector, const Access& access,
               const Limits& limits, const std::string& runtime_dir, Room room,
               const std::atomic<bool>& draining)
    : os_(os),
      registry_(registry),
      injector_(injector),
      access_(access),
      limits_(limits),
      runtime_dir_(plain_path(std::filesystem::absolute(runtime_dir).string())),
      room_(std::move(room)),
      draining_(draining),
      wake_(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {}

bool Finder::is_ours(Stage stage) {
  return stage >= Stage::announced;
}

std::uint64_t Finder::pause_us(std::uint64_t now_us) const {
  return next_us_ > now_us ? next_us_ - now_us : 0;
}

void Finder::step(std::uint64_t now_us) {
  std::uint64_t count = 0;
  (void)!::read(wake_.get(), &count, sizeof(count));
  forget_clients();
  take_orders();
  if (now_us >= scan_at_us_ || look_at_all_) scan(now_us);
  next_us_ = scan_at_us_;
  for (auto& [pid, p] : processes_) {
    const Stage before = p.stage;
    switch (p.stage) {
      case Stage::fresh: {
        const InjectorJob job{InjectorJob::Kind::look, pid, {}};
        if (injector_.submit(job)) p.stage = Stage::looking;
        break;
      }
      case Stage::announced:
        if (now_us >= p.sample_at_us || p.ordered) sample(pid, p, now_us);
        break;
      case Stage::arriving:
        if (now_us > p.until_us)
          put_off(p, "its agent has come, and has not become a client", now_us);
        break;
      default:
        break;
    }
    changed_ = changed_ || p.stage != before;
    if (p.stage == Stage::announced)
      next_us_ = std::min(next_us_, p.ordered ? p.retry_at_us : p.sample_at_us);
    if (p.stage == Stage::arriving || p.stage == Stage::fresh)
      next_us_ = std::min(next_us_, now_us + 5 * kMs);
  }
  if (std::exchange(changed_, false)) publish();
}

// All processes, but for those that are clients already: what is new, what is another program by
// now, what has ended.
void Finder::scan(std::uint64_t now_us) {
  scan_at_us_ = now_us + kScanUs;
  const auto names = os_.list_directory("/proc");
  if (!names) return;
  std::set<pid_t> clients;
  group_bytes_.clear();
  for (const auto& client : registry_.all()) {
    if (client->gone()) continue;
    clients.insert(client->pid());
    if (client->record.group[0] != '\0')
      group_bytes_[group_key(client->uid, client->record.group)] += client->rss_bytes;
  }
  for (auto& [pid, p] : processes_) p.seen = false;
  const pid_t self = ::getpid();
  for (const std::string& name : *names) {
    const auto pid = number(name);
    if (!pid || clients.contains(*pid) || *pid == self) continue;
    const auto known = processes_.find(*pid);
    if (known == processes_.end()) {
      if (processes_.size() >= kMostKnown) continue;
      Process& p = processes_[*pid];
      p.row.pid = *pid;
      begin_anew(p, now_us);
      continue;
    }
    Process& p = known->second;
    p.seen = true;
    if (!p.group.empty() && is_ours(p.stage))
      group_bytes_[group_key(p.row.uid, p.group)] += p.row.resident_bytes;
    if (now_us >= p.look_at_us || look_at_all_) look_again(*pid, p, now_us);
  }
  const auto ended = std::erase_if(processes_, [](const auto& item) { return !item.second.seen; });
  changed_ = changed_ || ended != 0;
  look_at_all_ = false;
}

// Those that have become clients since the last scan, by an agent of ours or by themselves.
void Finder::forget_clients() {
  if (std::ranges::none_of(processes_, [](const auto& item) { return is_ours(item.second.stage); }))
    return;
  for (const auto& client : registry_.all()) {
    if (!client->gone() && processes_.erase(client->pid()) != 0) changed_ = true;
  }
}

// Whether it is another program by now: that has code of another size, nearly always, and to look
// at that is cheap. When it has not, the injector notices, before anything is done.
void Finder::look_again(pid_t pid, Process& process, std::uint64_t now_us) {
  process.look_at_us = now_us + (now_us - process.born_us < kYoungUs ? kScanUs : kOldLookUs);
  if (process.stage != Stage::other && process.stage != Stage::refused)
    return;  // announced: at each sample
  const auto memory = read_memory(pid);
  if (!memory) return;
  if (process.code_pages == 0) process.code_pages = memory->code_pages;
  // Now and then for sure: a program may have executed itself, with another environment.
  if (memory->code_pages != process.code_pages || now_us - process.born_us > kSureUs)
    begin_anew(process, now_us);
}

void Finder::begin_anew(Process& process, std::uint64_t now_us) {
  Process anew;
  anew.seen = true;
  anew.born_us = now_us;
  anew.row.pid = process.row.pid;
  anew.look_at_us = now_us + kScanUs;
  process = std::move(anew);
}

void Finder::on_reports(std::uint64_t now_us) {
  while (const auto report = injector_.take()) {
    const auto known = processes_.find(report->job.pid);
    if (known == processes_.end()) continue;
    Process& p = known->second;
    changed_ = true;
    if (report->job.kind == InjectorJob::Kind::look && p.stage == Stage::looking) {
      learn(*report, p);
    } else if (report->job.kind == InjectorJob::Kind::send && p.stage == Stage::sending) {
      learn_of_agent(*report, p, now_us);
    }
  }
}

void Finder::learn(const InjectorReport& report, Process& process) {
  process.identity = report.job.identity;
  process.stage = Stage::other;
  const Wishes& wishes = report.wishes;
  const std::string wanted_dir =
      wishes.runtime_dir[0] != '\0' ? wishes.runtime_dir : kUsualRuntimeDir;
  if (report.found != InjectorReport::Found::library || wishes.disabled ||
      plain_path(wanted_dir) != runtime_dir_) {
    return;
  }
  const auto of_user = std::ranges::count_if(processes_, [&](const auto& item) {
    return is_ours(item.second.stage) && item.second.row.uid == report.uid;
  });
  if (static_cast<std::size_t>(of_user) >= kMostOfOneUser) return;
  process.stage = Stage::announced;
  process.row.name = wishes.name;
  process.row.uid = report.uid;
  process.row.resident_max_bytes = wishes.resident_max_bytes;
  process.group = wishes.group;
  process.group_max_bytes = wishes.group_max_bytes;
  ucred who{};
  who.pid = report.job.pid;
  who.uid = report.uid;
  who.gid = report.gid;
  if (!access_.may_be_client(who)) {
    process.stage = Stage::refused;
    process.row.refused = true;
    process.row.reason = "this user may not be a client (access.users, access.groups)";
  }
}

// What it may have; wire::kNoLimit: no budget.
std::uint64_t Finder::budget_of(pid_t pid, const Process& process) const {
  const std::uint64_t bytes = process.row.resident_bytes;
  std::uint64_t budget = process.row.resident_max_bytes;
  if (process.group_max_bytes != wire::kNoLimit) {
    const auto all = group_bytes_.find(group_key(process.row.uid, process.group));
    const std::uint64_t others =
        all == group_bytes_.end() ? 0 : all->second - std::min(all->second, bytes);
    budget = std::min(budget, process.group_max_bytes - std::min(process.group_max_bytes, others));
  }
  if (bytes >= limits_.min_size) budget = std::min(budget, room_(pid, bytes));
  return budget;
}

// How much it has, and whether that is too much.
void Finder::sample(pid_t pid, Process& process, std::uint64_t now_us) {
  const auto memory = read_memory(pid);
  if (!memory) return;  // the next scan misses it
  if (process.code_pages == 0) process.code_pages = memory->code_pages;
  if (memory->code_pages != process.code_pages) return begin_anew(process, now_us);
  const std::uint64_t bytes = memory->anonymous_bytes;
  const std::uint64_t before = std::exchange(process.row.resident_bytes, bytes);
  changed_ = changed_ || before != bytes;
  const std::uint64_t budget = budget_of(pid, process);
  const bool small = bytes < limits_.min_size && budget >= limits_.min_size;
  const bool presses = !small && budget != wire::kNoLimit && bytes > budget - budget / 8;
  process.sample_every_us = bytes > before || presses
                                ? kFastUs
                                : std::clamp(2 * process.sample_every_us, kFastUs, kSlowUs);
  // Many are looked at in one step.
  process.sample_at_us = (now_us + process.sample_every_us) / kFastUs * kFastUs;
  if ((presses || process.ordered) && now_us >= process.retry_at_us && !draining_)
    send(pid, process, now_us);
}

void Finder::send(pid_t pid, Process& process, std::uint64_t now_us) {
  const InjectorJob job{InjectorJob::Kind::send, pid, process.identity};
  if (injector_.submit(job)) {
    process.stage = Stage::sending;
  } else {
    process.retry_at_us = now_us + kOrderedRetryUs;
  }
}

void Finder::put_off(Process& process, std::string reason, std::uint64_t now_us) {
  process.stage = Stage::announced;
  process.row.reason = std::move(reason);
  const std::uint64_t later = std::min(kFirstRetryUs << std::min(process.tries, 10U), kLastRetryUs);
  ++process.tries;
  process.retry_at_us = now_us + (process.ordered ? kOrderedRetryUs : later);
  process.sample_at_us = process.retry_at_us;
}

void Finder::learn_of_agent(const InjectorReport& report, Process& process, std::uint64_t now_us) {
  const std::string reason(report.reason, ::strnlen(report.reason, sizeof(report.reason)));
  switch (report.sent) {
    case Sent::sent:
      process.stage = Stage::arriving;
      process.until_us = now_us + kArriveUs;
      log::debug("an agent is on its way to {} (pid {})", process.row.name, process.row.pid);
      return;
    case Sent::not_now:
      put_off(process, reason, now_us);
      return;
    case Sent::late:
      // The thread may be where it was sent, and there is room for one.
      put_off(process, reason, now_us);
      process.retry_at_us = std::max(process.retry_at_us, now_us + kLateRetryUs);
      return;
    case Sent::refused:
      process.stage = Stage::refused;
      process.row.refused = true;
      process.row.reason = reason;
      log::info("{} (pid {}) cannot be managed: {}", process.row.name, process.row.pid, reason);
      return;
    case Sent::gone:
      begin_anew(process, now_us);
      return;
  }
}

bool Finder::fits(const Order& order, const Announced& row) {
  return order.all || row.name == order.who || std::to_string(row.pid) == order.who;
}

void Finder::take_orders() {
  std::vector<Order> orders;
  {
    const RankedLock lock(mutex_);
    orders = orders_;
    if (orders_seen_ != orders_made_) look_at_all_ = changed_ = true;
    orders_seen_ = orders_made_;
  }
  for (auto& [pid, p] : processes_) {
    if (!is_ours(p.stage) || (orders.empty() && !p.ordered)) continue;
    changed_ = true;
    p.ordered = std::ranges::any_of(orders, [&](const Order& order) { return fits(order, p.row); });
  }
}

void Finder::publish() {
  std::vector<Announced> rows;
  bool busy = false;
  for (const auto& [pid, p] : processes_) {
    if (is_ours(p.stage)) rows.push_back(p.row);
    const bool known = p.stage == Stage::other || p.stage == Stage::refused ||
                       (p.stage == Stage::announced && !p.ordered);
    busy = busy || !known;
  }
  const RankedLock lock(mutex_);
  rows_.swap(rows);
  busy_ = busy;
  orders_taken_ = orders_seen_;
}

std::vector<Announced> Finder::announced() const {
  const RankedLock lock(mutex_);
  return rows_;
}

std::vector<Announced> Finder::summon(const std::string* pid_or_name,
                                      const std::atomic<bool>& stop) {
  Order order;
  order.all = pid_or_name == nullptr;
  if (pid_or_name != nullptr) order.who = *pid_or_name;
  std::uint64_t mine = 0;
  {
    const RankedLock lock(mutex_);
    orders_.push_back(order);
    mine = ++orders_made_;
  }
  const std::uint64_t one = 1;
  (void)!::write(wake_.get(), &one, sizeof(one));
  const std::uint64_t until_us = os_.now_us() + kSummonUs;
  std::vector<Announced> left;
  for (bool busy = true; busy && !stop && os_.now_us() < until_us;) {
    os_.sleep_us(2 * kMs);
    const RankedLock lock(mutex_);
    busy = orders_taken_ < mine || busy_;
  }
  const RankedLock lock(mutex_);
  const auto done = std::ranges::find_if(orders_, [&](const Order& other) {
    return other.who == order.who && other.all == order.all;
  });
  if (done != orders_.end()) orders_.erase(done);
  for (const Announced& row : rows_) {
    if (fits(order, row)) left.push_back(row);
  }
  return left;
}

}  // namespace foldswap
