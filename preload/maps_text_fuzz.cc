// libFuzzer target for the library's own look at /proc/thread-self/maps: names of any bytes,
// written as the kernel writes them, make no mapping look like another.
#include <sys/mman.h>
#include <unistd.h>

#include <string>
#include <vector>

#include "base/page.h"
#include "base/testing/fuzz_input.h"
#include "base/unique_fd.h"
#include "preload/maps_text.h"

namespace foldswap::preload {
namespace {

void check(FuzzInput& input) {
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
  const UniqueFd fd(::memfd_create("maps", MFD_CLOEXEC));
  if (::write(fd.get(), text.data(), text.size()) != static_cast<ssize_t>(text.size()))
    wrong("cannot write");
  MapsText read(("/proc/self/fd/" + std::to_string(fd.get())).c_str());
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
  foldswap::preload::check(input);
  return 0;
}
