// MapsText: the text of /proc/thread-self/maps, mapping by mapping, without allocating and without
// libc's state. Thread safety: a plain value, one thread's; the agent may use it (2 KiB of its
// stack).
#pragma once

#include <sys/mman.h>

#include <cstdint>

#include "preload/proc_text.h"

namespace foldswap::preload {

class MapsText {
 public:
  struct Vma {
    std::uint64_t start = 0, end = 0;
    int protection = 0;
    bool private_anonymous = false;
  };

  // Not /proc/self, which is empty once the leader has ended.
  explicit MapsText(const char* path = "/proc/thread-self/maps") : text_(path) {}

  // start-end rwxp offset major:minor inode [path]
  [[nodiscard]] bool next(Vma& vma) {
    int c = 0;
    vma.start = text_.number(c, 16);
    if (c != '-') return false;
    vma.end = text_.number(c, 16);
    vma.protection = 0;
    if (text_.get() == 'r') vma.protection |= PROT_READ;
    if (text_.get() == 'w') vma.protection |= PROT_WRITE;
    if (text_.get() == 'x') vma.protection |= PROT_EXEC;
    const bool is_private = text_.get() == 'p';
    text_.get();
    for (int field = 0; field < 2; ++field) {  // offset, device
      do c = text_.get();
      while (c > ' ');
    }
    const std::uint64_t inode = text_.number(c, 10);
    bool kernel_made = false;  // [vdso], [vvar]
    int before = 0;
    for (; c != '\n' && c != ProcText::kEnd; before = c, c = text_.get()) {
      if (before == '[' && c == 'v') kernel_made = true;
    }
    vma.private_anonymous = is_private && inode == 0 && !kernel_made;
    return c == '\n';
  }

 private:
  ProcText text_;
};

}  // namespace foldswap::preload
