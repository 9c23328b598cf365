// What a stranger's Hello may be (base/wire.h). The message is whatever a client sent: nothing of
// it is believed before these have looked at it. Thread safety: pure functions; the vetting helper
// and the control thread call them. Errors: texts for whoever sent it.
#pragma once

#include <sys/types.h>

#include <cstddef>
#include <string>

#include "base/result.h"
#include "base/wire.h"

namespace foldswap {

// What recvmsg(2) said of it.
struct Arrived {
  ssize_t bytes = 0;
  int flags = 0;
  std::size_t descriptors = 0;
  bool is_userfaultfd = false;  // the one that came
};
// Empty when the message is what the protocol says. Bytes of `hello` that did not come are zeros.
[[nodiscard]] std::string check_message(const wire::Hello& hello, const Arrived& arrived);
// Staging and the library's own ranges lie in the address space.
[[nodiscard]] Status check_ranges(const wire::Hello& hello);
// What a stranger calls itself goes to logs and terminals: printable ASCII without quotes and
// backslashes, and a NUL. Both have wire::kNameBytes; `from` need not end in a NUL.
void copy_name(char* to, const char* from);

}  // namespace foldswap
