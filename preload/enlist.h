// What the constructor and the agent of a forked child do alike to become a client. Thread safety:
// for whoever makes the process a client, alone. Nothing here touches libc's state.
#pragma once

#include "preload/areas.h"
#include "preload/fd.h"
#include "preload/handshake.h"
#include "preload/reason.h"
#include "preload/state.h"

namespace foldswap::preload {

// The daemon's areas are as large as this library needs them.
[[nodiscard]] bool check_areas(const Greeting& greeting, Reason& reason);
// For the calling process, from the device that came with Welcome.
[[nodiscard]] bool make_userfaultfd(const Greeting& greeting, Fd& uffd, Reason& reason);
// The handshake has failed. The daemon may have registered staging, to see whose the userfaultfd
// is, and have died: unmapping it would wait for ever for somebody to read of it.
void withdraw(Fd& uffd, const Areas& areas);
// Where areas lie, except `mailbox`, which the caller publishes.
void note_areas(Control& control, const Areas& areas);

}  // namespace foldswap::preload
