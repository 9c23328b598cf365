// Keeper: the tiny parent that holds every descriptor while the daemon dies (DESIGN §10).
// Single-threaded, maps nothing, parses nothing. It clones the daemon with CLONE_FILES, so that
// both share one descriptor table: whatever the daemon gets - a forked child's userfaultfd above
// all, which exists nowhere else - is held at once, and survives the daemon's death. What it cannot
// do yet is start another daemon that takes the clients over: when the daemon dies they wait, with
// what is out still out, and never read zeros.
#pragma once

#include <functional>
#include <string>

namespace foldswap {

// Runs `daemon` in a child that shares this process' descriptors, passes SIGTERM, SIGINT and
// SIGUSR2 on, and returns the exit status of the program. Single-threaded when called.
int run_keeper(const std::string& runtime_dir, const std::function<int()>& daemon);

}  // namespace foldswap
