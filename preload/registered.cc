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

int registered_parts(std::uint64_t start, std::uint64_t end, wire::Range (&parts)[kMostParts]) {
  ProcText smaps("/proc/thread-self/smaps");
  if (!smaps.open()) return -1;
  int count = 0;
  bool flags_seen = false;
  std::uint64_t from = 0, to = 0;  // the mapping whose lines are being read
  for (int c = smaps.get(); c != ProcText::kEnd && count < kMostParts; c = smaps.get()) {
    if (c >= 'A' && c <= 'Z') {
      if (is_flags(smaps, c)) {
        flags_seen = true;
        if (read_flags(smaps, c) && from < end && to > start) {
          const std::uint64_t first = std::max(from, start);
          parts[count++] = {first, std::min(to, end) - first};
        }
      }
    } else {
      from = smaps.rest_of_number(c, 16);
      to = smaps.number(c, 16);
      if (from >= end) break;
    }
    skip_line(smaps, c);
  }
  return flags_seen || from >= end ? count : -1;
}

void bring_in(std::uint64_t start, std::uint64_t end) {
  if (mutated(Mutation::advice_without_end)) return read_in(start, end);
  for (std::uint64_t from = start; from < end;) {
    wire::Range parts[kMostParts];
    const int count = registered_parts(from, end, parts);
    if (count < 0) return read_in(from, std::min(end, from + kMostUnknown));
    for (int i = 0; i < count; ++i) read_in(parts[i].start, parts[i].start + parts[i].bytes);
    if (count < kMostParts) return;
    from = parts[count - 1].start + parts[count - 1].bytes;
  }
}

}  // namespace foldswap::preload
