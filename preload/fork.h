// fork(): serialises the library's requests and other forks around it, so that the daemon can tell
// which FORK event a child belongs to, and begins the child's life as a client (child.h). Thread
// safety: install_fork_handlers() for the constructor.
#pragma once

namespace foldswap::preload {

void install_fork_handlers();

}  // namespace foldswap::preload
