// The agent's rights: never more than those of the thread group leader (user, groups, capabilities,
// bounding set, no_new_privs, seccomp filters). A program that has given something up must not keep
// a thread that has it. Thread safety: the agent's.
#pragma once

namespace foldswap::preload {

// Gives up what the leader does not have. False: it still has more, or it cannot be told (no
// /proc), so it must go.
[[nodiscard]] bool give_up_rights();

}  // namespace foldswap::preload
