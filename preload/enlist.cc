#include "preload/enlist.h"

#include <fcntl.h>
#include <linux/ioctl.h>
#include <linux/userfaultfd.h>

namespace foldswap::preload {
namespace {

// Debian 12's headers have it; older ones do not.
constexpr unsigned long kUserfaultfdNew = _IO(0xAA, 0x00);

}  // namespace

bool check_areas(const Greeting& greeting, Reason& reason) {
  if (greeting.welcome.mailbox_bytes >= wire::kMailboxBytes &&
      greeting.welcome.transfer_bytes >= wire::kTransferBytes) {
    return true;
  }
  reason << "foldswapd's mailbox or transfer area is too small";
  return false;
}

bool make_userfaultfd(const Greeting& greeting, Fd& uffd, Reason& reason) {
  const long fd = sys::call(SYS_ioctl, greeting.fds[wire::kFdUserfaultDevice].get(),
                            kUserfaultfdNew, O_CLOEXEC | O_NONBLOCK);
  if (fd < 0) {
    reason.error("making a userfaultfd", fd);
    return false;
  }
  uffd.reset(static_cast<int>(fd));
  return true;
}

void withdraw(Fd& uffd, const Areas& areas) {
  if (!uffd.valid()) return;
  uffdio_range range{areas.staging.range().start, areas.staging.bytes()};
  sys::call(SYS_ioctl, uffd.get(), UFFDIO_UNREGISTER, &range);
  uffd.reset();
}

void note_areas(Control& control, const Areas& areas) {
  control.staging = areas.staging.start();
  control.transfer = areas.transfer.start();
  control.own[2] = areas.mailbox.range();
  control.own[3] = areas.transfer.range();
}

}  // namespace foldswap::preload
