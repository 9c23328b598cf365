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
// A daemon that serves and then shows no sign of life any more is killed.
//
// Handing over (SIGUSR2) is how another version gets to work without draining. The daemon stops at
// a clean point, with everything left as it is. Under a service manager with a descriptor store,
// which has every descriptor at any time (descriptor_store.h), the keeper ends with kHandedOver;
// the manager starts the next one. Otherwise the keeper executes its own program file anew, if that
// can take the state over. When the keeper is killed, the daemon that it leaves behind hands over
// by itself, if there is such a store, and else serves on. When both are, the manager starts the
// next keeper likewise.
//
// Under a service manager it says when the daemon serves (READY=1), and it answers the manager's
// watchdog.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

namespace foldswap {

// Exit statuses, of daemon and keeper. The unit file knows kHandedOver, too.
inline constexpr int kHandedOver = 3;
// The state is of another version; nothing was touched.
inline constexpr int kRefused = 4;

// What a daemon finds in its descriptor table, and what else it is to know.
struct Inherited {
  int state_fd = -1;   // the state file (state.h); -1: there is no keeper
  int pulse_fd = -1;   // an eventfd: see tell_alive()
  int first_fd = 0;    // descriptors below are the keeper's own, or its parent's
  int keeper_pid = 0;  // 0: there is none
  int asked = 0;       // SIGTERM, SIGINT, SIGUSR2: what a predecessor has not done yet
  bool after_a_death = false;
};

// The daemon serves: when it begins, and then again at least every two seconds.
void tell_alive(const Inherited& inherited);

struct KeeperSetup {
  std::string runtime_dir;
  std::uint64_t state_bytes = 0;  // size of the state file
  char** arguments = nullptr;     // the program's own
  std::function<int(const Inherited&)> daemon;
};

// Runs the daemon in a child that shares this process' descriptors, again after each death, passes
// SIGTERM, SIGINT and SIGUSR2 on, and returns the exit status of the program. Single-threaded when
// called.
int run_keeper(const KeeperSetup& setup);

// This process was only started to tell whether it could take over what the keeper that started it
// has: the descriptor of that state file, or -1.
[[nodiscard]] int state_to_judge();

}  // namespace foldswap
