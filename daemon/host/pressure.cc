#include "daemon/host/pressure.h"

#include <charconv>

#include "daemon/host/log.h"

namespace foldswap {
namespace {

constexpr std::uint64_t kLookUs = 100'000;
constexpr std::uint64_t kWindowUs = 1'000'000;  // of PSI
constexpr const char* kSystemPsi = "/proc/pressure/memory";

std::optional<std::uint64_t> number_after(std::string_view text, std::string_view word) {
  const std::size_t at = text.find(word);
  if (at == std::string_view::npos) return std::nullopt;
  const std::size_t digits = text.find_first_of("0123456789", at + word.size());
  if (digits == std::string_view::npos) return std::nullopt;
  std::uint64_t value = 0;
  (void)std::from_chars(text.data() + digits, text.data() + text.size(), value);
  return value;
}

}  // namespace

std::optional<std::uint64_t> meminfo_bytes(std::string_view text, std::string_view key) {
  const auto kib = number_after(text, std::string(key) + ":");
  return kib ? std::optional(*kib * 1024) : std::nullopt;
}

std::optional<std::uint64_t> psi_some_us(std::string_view text) {
  const std::size_t line = text.find("some ");
  return line == std::string_view::npos ? std::nullopt : number_after(text.substr(line), "total=");
}

std::string psi_path(Os& os) {
  const auto text = os.read_file("/proc/self/cgroup");
  if (!text) return kSystemPsi;
  const std::size_t at = text->find("0::/");
  if (at == std::string::npos) return kSystemPsi;
  const std::string group = text->substr(at + 3, text->find('\n', at) - at - 3);
  const std::string own = "/sys/fs/cgroup" + group + "/memory.pressure";
  return group != "/" && os.read_file(own) ? own : kSystemPsi;
}

bool Pressure::high(const Limits& limits) {
  const std::uint64_t now_us = os_.now_us();
  if (looked_us_ != 0 && now_us - looked_us_ < kLookUs) return high_;
  looked_us_ = now_us;
  high_ = false;
  if (limits.available_low_bytes != 0) {
    const auto text = os_.read_file("/proc/meminfo");
    const auto available = text ? meminfo_bytes(*text, "MemAvailable") : std::nullopt;
    high_ = available && *available < limits.available_low_bytes;
  }
  if (limits.stall_ms_per_s != 0 && !absent_)
    high_ = stalled(now_us, limits.stall_ms_per_s) || high_;
  return high_;
}

bool Pressure::stalled(std::uint64_t now_us, std::uint32_t limit_ms) {
  if (path_.empty()) path_ = psi_path(os_);
  if (stall_at_us_ != 0 && now_us - stall_at_us_ < kWindowUs) return now_us < stalled_until_us_;
  const auto text = os_.read_file(path_);
  const auto total = text ? psi_some_us(*text) : std::nullopt;
  if (!total) {
    absent_ = true;
    log::info("no pressure stall information ({}): memory pressure is told by MemAvailable alone",
              path_);
    return false;
  }
  if (stall_at_us_ != 0 && *total >= stall_us_) {
    const std::uint64_t lost_ms =
        (*total - stall_us_) * kWindowUs / (now_us - stall_at_us_) / 1'000;
    if (lost_ms >= limit_ms) stalled_until_us_ = now_us + kWindowUs;
  }
  stall_us_ = *total;
  stall_at_us_ = now_us;
  return now_us < stalled_until_us_;
}

}  // namespace foldswap
