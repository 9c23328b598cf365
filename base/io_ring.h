// The kernel's IoRing (base/os.h): io_uring through liburing. A library of its own (foldswap_io),
// because the command line links foldswap_base and does without liburing.
// Thread safety: as IoRing. The ring may be made on one thread and used by another from then on.
// Errors: of io_uring_setup(2); ENOSYS or EPERM where the system does not want io_uring.
#pragma once

#include <cstddef>
#include <memory>
#include <span>

#include "base/os.h"
#include "base/result.h"

namespace foldswap {

// Buffers that cannot be registered (RLIMIT_MEMLOCK) are used without: IoRing::note() says so.
[[nodiscard]] Result<std::unique_ptr<IoRing>> make_io_ring(int fd, std::span<std::byte> buffers,
                                                           unsigned depth);

// From now on real_os() makes such rings.
void use_io_uring();

}  // namespace foldswap
