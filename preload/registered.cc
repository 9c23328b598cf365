#include "preload/registered.h"

#include <sys/mman.h>

#include <algorithm>

#include "base/mutation.h"
#include "preload/proc_text.h"
#include "preload/state.h"

namespace foldswap::preload {
namespace {

constexpr std::uint64_t kBit = 4ULL << 20;
// Where it cannot be known what is registered, this much is tried.
constexpr std::uint64_t kMostUnknown = 4ULL << 30;

constexpr int kFlag(char first, char second) {
  return first << 8 | second;
}

// "VmFlags: rd wr mr ...": whether it can be read and is registered for missing pages.
bool read_flags(ProcText& smaps, int& c) {
  bool readable = false, registered = false;
  int flag = 0;
  for (c = smaps.get(); c != '\n' && c != ProcText::kEnd; c = smaps.get()) {
    flag = c == ' ' ? 0 : (flag << 8 | c);
    readable = readable || flag == kFlag('r', 'd');
    registered = registered || flag == kFlag('u', 'm');
  }
  return readable && registered;
}

// Skips a line but for its first word, of which `c` is the first character; true: it is VmFlags.
bool is_flags(ProcText& smaps, int& c) {
  constexpr char kWanted[] = "VmFlags:";
  std::size_t same = 0;
  while (same < sizeof(kWanted) - 1 && c == kWanted[same]) {
    if (++same == sizeof(kWanted) - 1) return true;
    c = smaps.get();
  }
  return false;
}

void skip_line(ProcText& text, int& c) {
  while (c != '\n' && c != ProcText::kEnd) c = text.get();
}

void read_bit(std::uint64_t start, std::uint64_t end) {
  if (sys::call(SYS_madvise, start, end - start, MADV_POPULATE_READ) == 0) return;
  // It stops at the first page that cannot be read; what lies behind counts as well.
  for (std::uint64_t page = start; page < end; page += kPage) {
    sys::call(SYS_madvise, page, kPage, MADV_POPULATE_READ);
  }
}

void read_in(std::uint64_t start, std::uint64_t end) {
  for (std::uint64_t at = start; at < end; at += kBit) read_bit(at, std::min(end, at + kBit));
}

}  // namespace

RegisteredParts::RegisteredParts(std::uint64_t start, std::uint64_t end)
    : smaps_("/proc/thread-self/smaps"), start_(start), end_(end), over_(!smaps_.open()) {}

RegisteredParts::Next RegisteredParts::next(wire::Range& part) {
  int c = over_ ? ProcText::kEnd : smaps_.get();
  for (; c != ProcText::kEnd; c = smaps_.get()) {
    bool found = false;
    if (c >= 'A' && c <= 'Z') {
      if (is_flags(smaps_, c)) {
        flags_seen_ = true;
        found = read_flags(smaps_, c) && from_ < end_ && to_ > start_;
      }
    } else {
      from_ = smaps_.rest_of_number(c, 16);
      to_ = smaps_.number(c, 16);
      if (from_ >= end_) break;
    }
    skip_line(smaps_, c);
    if (!found) continue;
    const std::uint64_t first = std::max(from_, start_);
    part = {first, std::min(to_, end_) - first};
    return Next::part;
  }
  over_ = true;
  return flags_seen_ || from_ >= end_ ? Next::end : Next::unknown;
}

void bring_in(std::uint64_t start, std::uint64_t end) {
  if (mutated(Mutation::advice_without_end)) return read_in(start, end);
  RegisteredParts parts(start, end);
  wire::Range part;
  RegisteredParts::Next next = RegisteredParts::Next::part;
  while ((next = parts.next(part)) == RegisteredParts::Next::part) {
    read_in(part.start, part.start + part.bytes);
  }
  if (next == RegisteredParts::Next::unknown) read_in(start, std::min(end, start + kMostUnknown));
}

}  // namespace foldswap::preload
