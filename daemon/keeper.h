// Keeper: the tiny parent that holds every descriptor while the daemon dies (DESIGN §10).
// Single-threaded, maps nothing, parses nothing. It clones the daemon with CLONE_FILES, so that
// both share one descriptor table: whatever the daemon gets - a forked child's userfaultfd above
// all, which exists nowhere else - is held at once, and survives the daemon's death. When the
// daemon is ended by a signal the keeper clones the next one into the same table; that finds the
// state file under the number that it is told, and everything else noted there (take_over.h).
//
// A daemon that ends by itself with status 0 ends the keeper, and so does any before the first one
// has served. One that dies, or cannot start, before it serves is followed by the next after a
// pause that doubles, up to a second: whatever is wrong, the clients' descriptors stay open.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

namespace foldswap {

// What a daemon finds in its descriptor table.
struct Inherited {
  int state_fd = -1;  // the state file (state.h); -1: there is no keeper
  int ready_fd = -1;  // an eventfd: see tell_ready()
  int first_fd = 0;   // descriptors below are the keeper's own, or its parent's
  bool after_a_death = false;
};

// The daemon serves.
void tell_ready(const Inherited& inherited);

// Runs `daemon` in a child that shares this process' descriptors, again after each
// death, passes SIGTERM, SIGINT and SIGUSR2 on, and returns the exit status of the program.
// Single-threaded when called. `state_bytes`: size of the state file, which is made here.
int run_keeper(const std::string& runtime_dir, std::uint64_t state_bytes,
               const std::function<int(const Inherited&)>& daemon);

}  // namespace foldswap
