// Memory that a forked child must not find as it was: MADV_WIPEONFORK, MADV_DONTFORK (HAZARDS 12).
// The daemon takes nothing out of it, but what it knows of the mappings may be a second old, and
// mremap takes such a mapping along to where an ordinary one has been. So whoever makes or moves
// one tells the daemon to look anew.
//
// Remembered is one interval around all that ever had such advice, wherever mremap has taken it
// since. It never shrinks: a call too many costs a look, one too few a page. A forked child
// inherits it.
//
// Thread safety: any thread of the program, in a client or not.
#pragma once

#include <cstdint>

#include "preload/state.h"

namespace foldswap::preload {

// Before such advice is given.
void note_hidden(std::uint64_t start, std::uint64_t bytes);

// After mremap (`control`: of a client, else null), before its announcement ends.
void follow_hidden(Control* control, std::uint64_t from, std::uint64_t old_bytes, std::uint64_t to,
                   std::uint64_t new_bytes);

// What was seen of this process's mappings is void: the next plan looks anew, one that is already
// made counts for nothing.
void look_anew(Control& control);

}  // namespace foldswap::preload
