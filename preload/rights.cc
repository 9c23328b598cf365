#include "preload/rights.h"

#include "preload/proc_text.h"

namespace foldswap::preload {
namespace {

constexpr const char* kCompared[] = {"Uid", "Gid", "Groups", "Cap", "NoNewPrivs", "Seccomp"};

bool begins_with(const char* text, const char* start) {
  for (; *start != '\0'; ++text, ++start) {
    if (*text != *start) return false;
  }
  return true;
}

// The word before the colon, cut. False: the text is over.
template <std::size_t Room>
bool read_key(ProcText& text, char (&key)[Room]) {
  std::size_t length = 0;
  int c = text.get();
  for (; c != ':' && c != '\n' && c != ProcText::kEnd; c = text.get()) {
    if (length + 1 < Room) key[length++] = static_cast<char>(c);
  }
  key[length] = '\0';
  return c == ':';
}

void skip_line(ProcText& text) {
  for (int c = text.get(); c != '\n' && c != ProcText::kEnd;) c = text.get();
}

bool same_line(ProcText& a, ProcText& b) {
  for (;;) {
    const int c = a.get();
    if (b.get() != c) return false;
    if (c == '\n' || c == ProcText::kEnd) return true;
  }
}

}  // namespace

bool has_leaders_rights() {
  ProcText leader("/proc/self/status"), mine("/proc/thread-self/status");
  char key[16], same_key[16];
  bool compared = false;
  while (read_key(leader, key)) {
    if (!read_key(mine, same_key)) return false;
    bool matters = false;
    for (const char* name : kCompared) matters = matters || begins_with(key, name);
    if (matters) {
      if (!begins_with(same_key, key) || !same_line(leader, mine)) return false;
      compared = true;
    } else {
      skip_line(leader);
      skip_line(mine);
    }
  }
  return compared;
}

}  // namespace foldswap::preload
