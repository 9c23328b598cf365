// The daemon's answers for people: `foldswap stats` and `foldswap clients` without --json.
//
// Fields that an older or newer daemon does not send count as 0. Names come from clients, which may
// be hostile: control characters never reach the terminal. Thread safety: functions without state.
#pragma once

#include <string>
#include <vector>

#include "cli/admin_client.h"

namespace foldswap::cli {

// Lines of cells under a heading; columns are as wide as their widest cell. Cells of `left` columns
// start at the left, numbers (all others) end at the right.
class Table {
 public:
  explicit Table(std::vector<std::string> heading, std::size_t left_columns = 0);
  void add(std::vector<std::string> cells);
  [[nodiscard]] std::string text(const std::string& indent) const;

 private:
  std::vector<std::vector<std::string>> rows_;
  std::size_t left_columns_;
};

[[nodiscard]] std::string render_stats(const Json& stats);
[[nodiscard]] std::string render_clients(const Json& clients);

// "2 d 3 h", "4 h 5 min", "59 s".
[[nodiscard]] std::string human_duration(std::uint64_t seconds);
// `text` with every control character replaced by '?'.
[[nodiscard]] std::string printable(std::string text);

}  // namespace foldswap::cli
