#include "sim/world.h"

#include <algorithm>
#include <bit>

#include <spdlog/fmt/fmt.h>

namespace foldswap::sim {
namespace {

constexpr std::size_t kEntries = 1 << 16;

}  // namespace

void Counts::add(const Counts& other) {
  using Numbers = std::array<std::uint64_t, sizeof(Counts) / sizeof(std::uint64_t)>;
  auto sum = std::bit_cast<Numbers>(*this);
  const auto more = std::bit_cast<Numbers>(other);
  for (std::size_t i = 0; i < sum.size(); ++i) sum[i] += more[i];
  *this = std::bit_cast<Counts>(sum);
}

void World::trace(const char* what, std::uint64_t a, std::uint64_t b, std::uint64_t c) {
  const Owner owner = scheduler.on_fiber() ? scheduler.owner() : -1;
  const auto mix = [&](std::uint64_t value) { digest = (digest ^ value) * 0x100000001b3; };
  for (const char* p = what; *p != 0; ++p) mix(static_cast<std::uint64_t>(*p));
  for (const std::uint64_t value : {clock_ns, static_cast<std::uint64_t>(owner), a, b, c})
    mix(value);
  note(what, a, b, c);
}

void World::note(const char* what, std::uint64_t a, std::uint64_t b, std::uint64_t c) {
  const Owner owner = scheduler.on_fiber() ? scheduler.owner() : -1;
  const TraceEntry entry{clock_ns, what, owner, {a, b, c}};
  if (entries_.size() < kEntries) {
    entries_.push_back(entry);
  } else {
    entries_[next_] = entry;
  }
  next_ = (next_ + 1) % kEntries;
}

std::string World::tail(std::size_t most) const {
  std::string text;
  const std::size_t count = std::min(most, entries_.size());
  for (std::size_t i = entries_.size() - count; i < entries_.size(); ++i) {
    const TraceEntry& e = entries_[entries_.size() < kEntries ? i : (next_ + i) % kEntries];
    const std::string who = e.owner == kDaemon ? "daemon"
                            : e.owner < 0      ? "machine"
                                               : std::to_string(e.owner);
    text += fmt::format("{:>16} {:>9}  {:<22} {:#x} {} {:#x}\n", e.clock_ns, who, e.what,
                        e.values[0], e.values[1], e.values[2]);
  }
  return text;
}

void World::fail(const std::string& why) {
  if (!failure.empty()) return;
  failure = why;
  trace("FAILED");
}

}  // namespace foldswap::sim
