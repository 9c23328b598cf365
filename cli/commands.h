// The commands of `foldswap`, as CLI11 knows them. Parsing the command line only chooses what to
// do; it is done by calling Session::action afterwards. A command is its options, one request to
// the daemon, and how its answer is shown. Errors: what the command line alone can be blamed for is
// thrown as CLI::ParseError (exit status 2); everything else is an exit status with one line on
// standard error. Thread safety: single-threaded.
#pragma once

#include <CLI/CLI.hpp>
#include <functional>
#include <string>
#include <vector>

namespace foldswap::cli {

struct Session {
  std::string runtime_dir;  // as given; empty: the default
  // What stood after the first "--" on the command line; `run` alone takes it.
  std::vector<std::string> after_dashes;
  bool had_dashes = false;
  std::function<int()> action;
};

// Adds all commands to `app`; both must outlive the parse and the action.
void add_commands(CLI::App& app, Session& session);

// The whole of `foldswap` behind main: parses, acts, returns the exit status.
[[nodiscard]] int command_line(std::vector<std::string> arguments);

}  // namespace foldswap::cli
