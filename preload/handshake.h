// The client's side of the handshake on client.sock (base/wire.h): connect, Welcome, Hello, Ready.
// Thread safety: for the constructor and a forked child's agent, one at a time. Errors are one
// sentence in a Reason. Nothing here blocks longer than its time limit, or touches libc's state.
#pragma once

#include <cstdint>

#include "base/wire.h"
#include "preload/fd.h"
#include "preload/reason.h"

namespace foldswap::preload {

struct Greeting {
  Fd socket;
  wire::Welcome welcome{};
  Fd fds[wire::kWelcomeFds];
};

// Connects to the daemon and receives its Welcome. Both steps wait at most `limit_ms`.
[[nodiscard]] bool greet(const char* socket_path, long limit_ms, Greeting& greeting,
                         Reason& reason);

// Sends `hello`, with `attached` (-1: nothing) as its descriptor, and waits for Ready. `came` gets
// the descriptor that may come with it (null: none is expected).
[[nodiscard]] bool introduce(const Greeting& greeting, const wire::Hello& hello, int attached,
                             long limit_ms, wire::Ready& ready, Fd* came, Reason& reason);

// Whether to try the whole handshake again: the daemon was not there, or ended in the middle, and
// its keeper (RUNTIME_DIR/keeper.pid) is about to start the next one. Pauses before it says so, for
// some five seconds in all; `waited_ms` is 0 at first.
[[nodiscard]] bool comes_back(const char* socket_path, const Reason& reason, long& waited_ms);

// A Hello with header and kind filled in, everything else empty or unlimited.
[[nodiscard]] wire::Hello make_hello(wire::HelloKind kind);

}  // namespace foldswap::preload
