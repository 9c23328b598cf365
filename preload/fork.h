// fork(): serialises the library's requests around it, and tells the daemon which FORK event a
// child belongs to. Thread safety: install_fork_handlers() for the constructor.
#pragma once

namespace foldswap::preload {

void install_fork_handlers();

}  // namespace foldswap::preload
