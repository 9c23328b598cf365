// Handing over: how descriptors get from one program to the next, which may be of another version,
// while no process of ours is there (DESIGN §10). The service manager keeps them meanwhile
// (FDSTORE=1, sd_notify(3)), each under the number that it had, as its name; the state file under
// "state-N", where N is how many others there are. The next program puts each back under its
// number, because that is how the state knows it (NotedFd in state.h).
//
// What is in the store is good from store_descriptors() until a daemon begins to work on the state
// (StateHeader::stored): from there descriptors come and go, and the store does not follow.
//
// Thread safety: none; when there is one thread.
#pragma once

#include <cstddef>
#include <optional>
#include <string_view>

#include "base/result.h"
#include "daemon/state.h"

namespace foldswap {

// As many as FileDescriptorStoreMax= in systemd/foldswapd.service.in. Their names must fit into one
// environment variable, of 128 KiB.
inline constexpr std::size_t kMostStored = 16'384;

// Numbers below are the keeper's own: what is noted lies above, in every version.
inline constexpr int kFirstNoted = 16;

struct StoredName {
  bool state = false;
  int number = -1;  // of the descriptor; of the state file: how many others there are
};
// Nothing: it is none of ours.
[[nodiscard]] std::optional<StoredName> parse_stored_name(std::string_view name);

// Whether the manager has a store, and all of it would fit. It does not answer, so somebody must
// have told us: systemd from 254 on ($FDSTORE), or the unit ($FOLDSWAP_FDSTORE). Error: why not.
[[nodiscard]] Status can_store(const State& state);
// After nobody works on the state any more. Error: not all of it is there for sure.
[[nodiscard]] Status store_descriptors(State& state);
// The store is good no longer: a daemon goes to work on the state.
void stop_trusting_store(State& state);
// Nothing of it is needed any more: the clients are served, by a process that holds everything.
void empty_store(State& state);

// What the manager has given to this process, each put under its number; the state file under any
// number below kFirstNoted. -1: nothing was given. Error: it is not all there, or cannot be put
// there; the store has it still.
[[nodiscard]] Result<int> take_from_store();

}  // namespace foldswap
