// Does this userfaultfd belong to the address space that this page map shows? Nothing else ties the
// two together: credentials name who connected, thread numbers in messages are those of somebody
// else's pid namespace, and both can be had for a different process. So the kernel is asked: a page
// of the client's staging area that is not there appears in the page map once it has been filled
// through the userfaultfd.
//
// For staging only: memory of ours in which nothing is ever looked for. Nobody else fills it at the
// same moment (the agent does not run yet). Thread safety: none needed; whoever may COPY into the
// client (its reader, or the handshake before there is one).
#pragma once

#include <cstdint>

#include "base/os.h"

namespace foldswap {

enum class Proof : std::uint8_t { proved, refuted, later };

// Registers the staging area on the way. `later`: a change of the address space is under way.
[[nodiscard]] Proof prove_address_space(Os& os, int uffd, int pagemap_fd, std::uint64_t staging);

// Whether a page is there, swapped pages and guards (any page-table entry) included; also true when
// that cannot be told.
[[nodiscard]] bool page_there(Os& os, int pagemap_fd, std::uint64_t page);

}  // namespace foldswap
