// The client's side of the handshake on client.sock (base/wire.h): connect, Welcome, Hello, Ready.
// Thread safety: for the constructor and the fork child's handler, which are alone. errors are one
// sentence in a Reason. Nothing here blocks longer than its time limit.
#pragma once

#include <cstdint>

#include "base/unique_fd.h"
#include "base/wire.h"
#include "preload/reason.h"

namespace foldswap::preload {

struct Greeting {
  UniqueFd socket;
  wire::Welcome welcome{};
  UniqueFd fds[wire::kWelcomeFds];
};

// Connects to the daemon and receives its Welcome. Both steps wait at most `limit_ms`.
[[nodiscard]] bool greet(const char* socket_path, long limit_ms, Greeting& greeting,
                         Reason& reason);

// Sends `hello`, with `attached` (-1: nothing) as its descriptor, and waits for Ready.
[[nodiscard]] bool introduce(const Greeting& greeting, const wire::Hello& hello, int attached,
                             long limit_ms, Reason& reason);

// A Hello with header and kind filled in, everything else empty or unlimited.
[[nodiscard]] wire::Hello make_hello(wire::HelloKind kind);

}  // namespace foldswap::preload
