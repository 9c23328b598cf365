// A file without a name, for what test programs read and write. With O_DIRECT it must be on a disk:
// where the file system refuses that, or (tmpfs) only pretends, the program ends with status 77 and
// the reason on stderr. Other errors end it as in common.h.
#pragma once

#include <string>

namespace testprog {

int open_scratch(const std::string& directory, int flags);

[[noreturn]] void skip(const std::string& reason);  // status 77

}  // namespace testprog
