// libFuzzer target for what /proc says of a client. A client chooses the names of its mappings and
// threads, and how many of them there are. So the input is a list of mappings with names of any
// bytes, written as the kernel writes it: what is read must be what was meant, whatever the names
// are. And any text at all must be survived.
#include <algorithm>
#include <string>
#include <vector>

#include "base/page.h"
#include "base/testing/fuzz_input.h"
#include "daemon/host/proc_reader.h"
#include "daemon/testing/fake_os.h"

namespace foldswap {
namespace {

// The kernel writes these as octal numbers.
std::string escaped(const std::string& name) {
  std::string out;
  for (const char c : name) {
    if (c == '\n') {
      out += "\\012";
    } else if (c != 0) {
      out += c;
    }
  }
  return out;
}

std::string hex(std::uint64_t value) {
  char text[20];
  std::snprintf(text, sizeof(text), "%08llx", static_cast<unsigned long long>(value));
  return text;
}

// What touches a range, cut to it: of a kernel that tells by the text of maps alone.
void parts_of_range(const std::string& maps, const std::vector<VmaInfo>& meant, std::uint64_t start,
                    std::uint64_t end) {
  FakeOs os;
  os.texts["/proc/7/maps"] = maps;
  const auto parts = ProcessMappings(os, 7).of_range(start, end);
  if (maps.empty() || start >= end) return;  // a process without memory, whose threads are asked
  if (!parts) wrong("its mappings cannot be read: " + maps);
  std::size_t i = 0;
  for (const VmaInfo& vma : meant) {
    if (vma.end <= start || vma.start >= end) continue;
    if (i == parts->size()) wrong("a part is missing: " + maps);
    const ProcessMapping& part = (*parts)[i++];
    if (part.start != std::max(vma.start, start) || part.end != std::min(vma.end, end) ||
        part.whole_start != vma.start || part.whole_end != vma.end ||
        part.ordinary != vma.ordinary) {
      wrong("a part is another one: " + maps);
    }
  }
  if (i != parts->size()) wrong("a part too many: " + maps);
}

void smaps(FuzzInput& input) {
  const std::uint64_t bounds[] = {input.number(4) * kPage, input.number(4) * kPage};
  static const char* const kFlags[] = {"rd", "wr", "mr", "lo", "dc", "wf", "gd", "ht",
                                       "um", "uw", "ac", "sd", "nh", "io", "pf", "rr"};
  std::string text, maps;
  std::vector<VmaInfo> meant;
  std::uint64_t at = kPageBytes;
  while (!input.empty() && meant.size() < 64) {
    VmaInfo vma;
    vma.start = at + input.number(2) * kPageBytes;
    vma.end = vma.start + (1 + input.number(2)) * kPageBytes;
    at = vma.end;
    const std::uint32_t bits = input.byte();
    const bool is_private = (bits & 1) != 0, of_file = (bits & 2) != 0;
    const std::string rights = {(bits & 4) != 0 ? 'r' : '-', (bits & 8) != 0 ? 'w' : '-',
                                (bits & 16) != 0 ? 'x' : '-', is_private ? 'p' : 's'};
    const std::uint64_t inode = of_file ? 1 + input.number(4) : 0;
    std::string name;
    if (of_file) {
      name = "/" + escaped(input.text(40));
    } else if ((bits & 32) != 0) {
      name = "[anon:" + escaped(input.text(40)) + "]";
    } else if ((bits & 64) != 0) {
      name = "[heap]";
    }
    vma.ordinary = is_private && !of_file;
    vma.manageable = vma.ordinary && rights == "rw-p";
    const std::uint64_t anonymous_kib = input.number(3);
    vma.anonymous_bytes = anonymous_kib * 1024;
    const std::uint64_t flags = input.number(2);
    std::string flag_line = "VmFlags: ";
    for (unsigned i = 0; i < 16; ++i) {
      if ((flags >> i & 1) == 0) continue;
      const std::string flag = kFlags[i];
      flag_line += flag + " ";
      if (flag == "um" || flag == "uw") vma.registered = true;
      for (const char* never : {"lo", "dc", "wf", "gd", "ht", "io", "pf"})
        if (flag == never) vma.manageable = false;
    }
    const std::string line = hex(vma.start) + "-" + hex(vma.end) + " " + rights +
                             " 00000000 00:00 " + std::to_string(inode) + "                     " +
                             name + "\n";
    maps += line;
    text += line + "Size:      4 kB\nAnonymous:   " + std::to_string(anonymous_kib) + " kB\n" +
            flag_line + "\n";
    meant.push_back(vma);
  }
  const auto read = parse_smaps(text);
  if (read.size() != meant.size()) wrong("another number of mappings: " + text);
  for (std::size_t i = 0; i < read.size(); ++i) {
    const VmaInfo &a = read[i], &b = meant[i];
    if (a.start != b.start || a.end != b.end || a.anonymous_bytes != b.anonymous_bytes ||
        a.ordinary != b.ordinary || a.manageable != b.manageable || a.registered != b.registered) {
      wrong("mapping " + std::to_string(i) + " is read as another: " + text);
    }
  }
  const std::uint64_t first = bounds[0] % (at + kPage), last = bounds[1] % (at + kPage);
  parts_of_range(maps, meant, std::min(first, last), std::max(first, last));
}

// A thread may be called anything, too.
void stat(FuzzInput& input) {
  const std::uint64_t ticks = input.number(6), began = input.number(6);
  const int cpu = static_cast<int>(input.byte());
  std::string text = "12 (" + escaped(input.text(15)) + ") S";
  for (int field = 4; field <= 52; ++field) {
    text += " " + (field == 14   ? std::to_string(ticks)
                   : field == 22 ? std::to_string(began)
                   : field == 39 ? std::to_string(cpu)
                                 : std::to_string(field));
  }
  ThreadInfo thread;
  if (!parse_stat(text, thread)) wrong("not read: " + text);
  if (thread.state != 'S' || thread.user_ticks != ticks || thread.start_ticks != began ||
      thread.cpu != cpu) {
    wrong("read as another: " + text);
  }
}

void anything(FuzzInput& input) {
  const std::string text = input.rest();
  (void)parse_smaps(text);
  ThreadInfo thread;
  (void)parse_stat(text, thread);
  if (parse_asleep_elsewhere(text) && text.starts_with("running"))
    wrong("a thread that runs proves nothing: " + text);
}

}  // namespace
}  // namespace foldswap

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t bytes) {
  foldswap::FuzzInput input(data, bytes);
  switch (input.byte() % 3) {
    case 0:
      foldswap::smaps(input);
      break;
    case 1:
      foldswap::stat(input);
      break;
    default:
      foldswap::anything(input);
  }
  return 0;
}
