// Whether the agent has the rights of the thread group leader: user, groups, capabilities,
// no_new_privs, seccomp filters. A program that has given something up must not keep a thread that
// has it. Thread safety: the agent's.
#pragma once

namespace foldswap::preload {

// False also when it cannot be told (no /proc).
[[nodiscard]] bool has_leaders_rights();

}  // namespace foldswap::preload
