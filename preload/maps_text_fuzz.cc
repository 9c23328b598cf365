// libFuzzer target for the library's own look at /proc/thread-self/maps: names of any bytes,
// written as the kernel writes them, make no mapping look like another. Of any other text it reads
// no more than there is, and every number as what it says.
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <string>
#include <vector>

#include "base/page.h"
#include "base/testing/fuzz_input.h"
#include "base/unique_fd.h"
#include "preload/maps_text.h"

namespace foldswap::preload {
namespace {

UniqueFd file_of(const std::string& text) {
  UniqueFd fd(::memfd_create("maps", MFD_CLOEXEC));
  if (::write(fd.get(), text.data(), text.size()) != static_cast<ssize_t>(text.size()))
    wrong("cannot write");
  return fd;
}

std::string path_of(const UniqueFd& fd) {
  return "/proc/self/fd/" + std::to_string(fd.get());
}

void anything(FuzzInput& input) {
  const unsigned base = input.byte() % 2 == 0 ? 10 : 16;
  const std::string text = input.rest();
  const UniqueFd fd = file_of(text);
  MapsText maps(path_of(fd).c_str());
  MapsText::Vma vma;
  std::size_t mappings = 0;
  while (maps.next(vma)) ++mappings;
  if (mappings > static_cast<std::size_t>(std::ranges::count(text, '\n')))
    wrong("more mappings than lines: " + text);
  // Numbers, and what is between them.
  ProcText numbers(path_of(fd).c_str());
  for (std::size_t at = 0;;) {
    std::uint64_t meant = 0;
    const auto value_of = [&](char c) {
      const unsigned digit = c >= '0' && c <= '9'   ? static_cast<unsigned>(c - '0')
                             : c >= 'a' && c <= 'f' ? static_cast<unsigned>(c - 'a') + 10
                                                    : 99;
      return digit < base ? digit : 99;
    };
    for (; at < text.size() && value_of(text[at]) != 99; ++at)
      meant = meant * base + value_of(text[at]);
    int after = 0;
    if (numbers.number(after, base) != meant) wrong("another number: " + text);
    const int due = at < text.size() ? static_cast<unsigned char>(text[at]) : ProcText::kEnd;
    if (after != due) wrong("another character after a number: " + text);
    if (due == ProcText::kEnd) return;
    ++at;
  }
}

void mappings(FuzzInput& input) {
  std::string text;
  std::vector<MapsText::Vma> meant;
  std::uint64_t at = kPageBytes;
  while (!input.empty() && meant.size() < 64) {
    MapsText::Vma vma;
    vma.start = at + input.number(2) * kPageBytes;
    vma.end = vma.start + (1 + input.number(2)) * kPageBytes;
    at = vma.end;
    const std::uint32_t bits = input.byte();
    const bool is_private = (bits & 1) != 0, of_file = (bits & 2) != 0;
    std::string rights = "---s";
    if ((bits & 4) != 0) rights[0] = 'r', vma.protection |= PROT_READ;
    if ((bits & 8) != 0) rights[1] = 'w', vma.protection |= PROT_WRITE;
    if ((bits & 16) != 0) rights[2] = 'x', vma.protection |= PROT_EXEC;
    if (is_private) rights[3] = 'p';
    std::string name;
    // PR_SET_VMA_ANON_NAME refuses brackets; files may have them.
    for (const char c : input.text(40))
      name += c == '\n' || c == 0 || (!of_file && c == '[') ? '_' : c;
    const bool special = !of_file && (bits & 32) != 0;
    name = of_file            ? "/" + name
           : special          ? "[vdso]"
           : (bits & 64) != 0 ? "[anon:" + name + "]"
                              : "";
    vma.private_anonymous = is_private && !of_file && !special;
    char line[200];
    std::snprintf(line, sizeof(line), "%08llx-%08llx %s 00001000 fe:00 %llu      %s\n",
                  static_cast<unsigned long long>(vma.start),
                  static_cast<unsigned long long>(vma.end), rights.c_str(),
                  static_cast<unsigned long long>(of_file ? 1 + input.number(4) : 0), name.c_str());
    text += line;
    meant.push_back(vma);
  }
  const UniqueFd fd = file_of(text);
  MapsText read(path_of(fd).c_str());
  for (const MapsText::Vma& b : meant) {
    MapsText::Vma a;
    if (!read.next(a)) wrong("a mapping is missing: " + text);
    if (a.start != b.start || a.end != b.end || a.protection != b.protection ||
        a.private_anonymous != b.private_anonymous) {
      wrong("a mapping is read as another: " + text);
    }
  }
  MapsText::Vma more;
  if (read.next(more)) wrong("a mapping too many: " + text);
}

}  // namespace
}  // namespace foldswap::preload

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t bytes) {
  foldswap::FuzzInput input(data, bytes);
  if (input.byte() % 4 != 0) {
    foldswap::preload::mappings(input);
  } else {
    foldswap::preload::anything(input);
  }
  return 0;
}
