// fork(): serialises the library's requests and other forks around it, so that the daemon can tell
// which FORK event a child belongs to, and begins the child's life as a client (child.h).
//
// Our handlers are the innermost (HAZARDS 37): registered before anybody else's, they run last of
// all before the fork and first of all after it. So other people's handlers find nothing held, no
// signal blocked and no call announced, and may do whatever they like. In a process that is no
// client, and has noted nothing, they count the fork and make no system call. Thread safety: any
// thread, from the first constructor on.
#pragma once

namespace foldswap::preload {

// Once; called before anybody's handlers are registered.
void install_fork_handlers();

}  // namespace foldswap::preload
