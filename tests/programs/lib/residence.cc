#include "tests/programs/lib/residence.h"

#include <fcntl.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <array>
#include <string>

#include "base/uapi.h"
#include "tests/programs/lib/common.h"

namespace testprog {

Residence::Residence(pid_t pid)
    : fd_(must(open(pid == 0 ? "/proc/self/pagemap"
                             : ("/proc/" + std::to_string(pid) + "/pagemap").c_str(),
                    O_RDONLY | O_CLOEXEC),
               "open pagemap")) {}

Residence::~Residence() {
  close(fd_);
}

std::size_t Residence::pages_in(std::uint64_t start, std::size_t bytes) const {
  namespace uapi = foldswap::uapi;
  const std::uint64_t end = (start + bytes + kPage - 1) / kPage * kPage;
  uapi::PmScanArg arg{};
  arg.size = sizeof(arg);
  arg.start = start / kPage * kPage;
  arg.end = end;
  arg.category_inverted = uapi::kPageIsPfnZero;
  arg.category_mask = uapi::kPageIsPfnZero;
  arg.category_anyof_mask = uapi::kPageIsPresent | uapi::kPageIsSwapped;
  arg.return_mask = arg.category_anyof_mask;
  std::array<uapi::PageRegion, 64> found{};
  arg.vec = reinterpret_cast<std::uint64_t>(found.data());
  arg.vec_len = found.size();
  std::size_t in = 0;
  while (arg.start < end) {
    const int count = must(ioctl(fd_, uapi::kPagemapScan, &arg), "PAGEMAP_SCAN");
    for (int i = 0; i < count; ++i) {
      const uapi::PageRegion& region = found[static_cast<std::size_t>(i)];
      in += (region.end - region.start) / kPage;
    }
    arg.start = arg.walk_end;
  }
  return in;
}

}  // namespace testprog
