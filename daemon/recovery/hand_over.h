// Handing over: how descriptors get from one program to the next, which may be of another version,
// while no process of ours is there (DESIGN §10). The service manager has them meanwhile
// (descriptor_store.h), whether we ended well or were killed, keeper and daemon in one moment. The
// next keeper is given what the manager has; what the state notes is put under its number, because
// that is how the state knows it, and the rest is closed.
//
// Thread safety: none; when there is one thread.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "base/result.h"
#include "daemon/recovery/descriptor_store.h"
#include "daemon/state/state.h"

namespace foldswap {

// What the manager has given to this process, out of the way of where it belongs.
struct Given {
  int state_fd = -1;  // below kFirstNoted; -1: nothing was given
  struct One {
    StoredName name;
    int fd = -1;
  };
  std::vector<One> others;
  std::uint64_t taken_ns = 0;  // CLOCK_BOOTTIME
};
// Error: something is missing, or none of ours; the store has it all still.
[[nodiscard]] Result<Given> take_from_store();

// Puts what was given under its number; what is not noted, and all that was given but the state
// file, is closed. What is noted and was not given is lost: its client is killed, with a line on
// stderr. Error: nothing was changed; a daemon may be at work on the state still (it has the lock
// in `runtime_dir`), or have been when the manager gave us what it had. The manager tries again.
[[nodiscard]] Status place_given(Os& os, const Given& given, const std::string& runtime_dir);

}  // namespace foldswap
