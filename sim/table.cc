#include "sim/table.h"

#include <spdlog/fmt/fmt.h>

namespace foldswap::sim {
namespace {

constexpr const char* kStateNames[] = {"present", "absent", "same",   "pooled",
                                       "on disk", "out",    "wanted", "bad"};
constexpr const char* kEventNames[] = {"read", "write", "discard", "unmap",  "remap<",    "remap>",
                                       "fork", "exit",  "death",   "marked", "unregister"};
static_assert(std::size(kStateNames) == kPageStates && std::size(kEventNames) == kEvents);

struct Rule {
  Happens event;
  std::array<bool, kPageStates> never;
  const char* text;
};
//                                       present absent same  pooled disk  out   wanted bad
constexpr Rule kRules[] = {
    {Happens::marked,
     {false, true, false, false, false, false, false, true},
     "the evictor finds what is in memory; neither nothing nor a poison marker is"},
    {Happens::unregister,
     {false, false, true, true, true, true, true, false},
     "nothing is unregistered that has left, or may be leaving (HAZARDS 2)"},
};

// Number of the rule that says so, from 1 on; 0: it can be.
std::size_t ruled_out(std::size_t state, std::size_t event) {
  for (std::size_t i = 0; i < std::size(kRules); ++i) {
    if (static_cast<std::size_t>(kRules[i].event) == event && kRules[i].never[state]) return i + 1;
  }
  return 0;
}

}  // namespace

std::string print(const Table& table) {
  std::string text = fmt::format("{:10}", "");
  for (const char* const name : kEventNames) text += fmt::format(" {:>10}", name);
  text += '\n';
  for (std::size_t state = 0; state < kPageStates; ++state) {
    text += fmt::format("{:10}", kStateNames[state]);
    for (std::size_t event = 0; event < kEvents; ++event) {
      const std::size_t rule = ruled_out(state, event);
      const std::uint64_t count = table[state][event];
      text += rule != 0 && count == 0 ? fmt::format(" {:>8}-{}", "", rule)
                                      : fmt::format(" {:>10}", count);
    }
    text += '\n';
  }
  for (std::size_t i = 0; i < std::size(kRules); ++i) {
    text += fmt::format("-{}: {}\n", i + 1, kRules[i].text);
  }
  return text;
}

std::string wrong_cells(const Table& table) {
  std::string text;
  for (std::size_t state = 0; state < kPageStates; ++state) {
    for (std::size_t event = 0; event < kEvents; ++event) {
      const bool can_be = ruled_out(state, event) == 0, was = table[state][event] != 0;
      if (can_be != was)
        text += fmt::format("{} x {}: {}\n", kStateNames[state], kEventNames[event],
                            was ? "cannot be, and was" : "never seen");
    }
  }
  return text;
}

}  // namespace foldswap::sim
