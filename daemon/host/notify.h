// What foldswapd tells its service manager, in the protocol of sd_notify(3), and no more of it than
// is needed: datagrams to $NOTIFY_SOCKET. Thread safety: free functions without state.
#pragma once

#include <optional>
#include <string>
#include <string_view>

#include "base/unique_fd.h"

namespace foldswap {

// What the manager has told in an environment variable. Nothing: it is not set, or no number.
[[nodiscard]] std::optional<unsigned> number_in_environment(const char* name);
// Somebody listens.
[[nodiscard]] bool manager_listens();
// For all of the below; notify() waits so long at most. Not valid: nobody listens.
[[nodiscard]] UniqueFd manager_socket(int patience_ms = 10'000);

// Lines of KEY=VALUE, with a descriptor if `fd` is one. Waits while the manager's queue is full.
// False: it was not sent.
bool notify(int socket, std::string_view message, int fd = -1);
// Likewise, and never waits: what does not fit is dropped.
bool notify_now(int socket, std::string_view message, int fd = -1);

// A line on stderr, if there is room: never waits, because who reads it may be a client that waits
// for us.
void say_now(const std::string& line);

// Returns when the manager has read everything that was sent before. False: not within
// `timeout_ms`.
[[nodiscard]] bool notify_barrier(int socket, int timeout_ms);

}  // namespace foldswap
