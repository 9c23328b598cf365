// A client gone mad: it finds the mailbox and the transfer area that the library has mapped into it
// and writes whatever it likes there while its pages are evicted. What becomes of its own data is
// its own fault; nobody else may notice. --what=mailbox|layout|transfer, --mb, --seed. Says
// "ready", then scribbles until killed or the end of its input, when it leaves without looking at
// anything.
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>

#include "base/wire.h"
#include "tests/programs/lib/common.h"

using namespace testprog;
namespace wire = foldswap::wire;

namespace {

struct Shared {
  std::byte* mailbox = nullptr;
  std::byte* transfer = nullptr;
};

void consider(Shared& shared, std::uint64_t start, std::uint64_t bytes) {
  auto* address = reinterpret_cast<std::byte*>(start);
  if (bytes == wire::kTransferBytes) shared.transfer = address;
  std::uint32_t magic = 0;
  std::memcpy(&magic, address, sizeof(magic));
  if (bytes == wire::kMailboxBytes && magic == wire::kMagic) shared.mailbox = address;
}

// Shared mappings of memfds are ours to find: the program itself makes none.
Shared find_shared() {
  Shared shared;
  FILE* maps = std::fopen("/proc/self/maps", "r");
  if (maps == nullptr) broken("maps");
  char line[512];
  while (std::fgets(line, sizeof(line), maps) != nullptr) {
    unsigned long start = 0;
    unsigned long end = 0;
    char flags[8] = {};
    if (std::sscanf(line, "%lx-%lx %7s", &start, &end, flags) != 3) continue;
    if (std::strstr(line, "memfd:") != nullptr && std::strcmp(flags, "rw-s") == 0) {
      consider(shared, start, end - start);
    }
  }
  std::fclose(maps);
  return shared;
}

void scribble_bytes(std::byte* area, std::size_t bytes, Random& random) {
  const std::uint64_t garbage = random.next();
  std::memcpy(area + random.below(bytes / 8) * 8, &garbage, sizeof(garbage));
}

// Half the time plausible values: valid states, small counts, addresses that exist.
void scribble_field(std::byte* mailbox, Random& random) {
  const std::uint32_t small = static_cast<std::uint32_t>(random.below(6));
  std::memcpy(mailbox + random.below(sizeof(wire::Mailbox) / 4) * 4, &small, sizeof(small));
}

void scribble_mailbox(std::byte* mailbox, Random& random) {
  if (random.below(2) == 0) return scribble_field(mailbox, random);
  scribble_bytes(mailbox, sizeof(wire::Mailbox), random);
}

void hold_layout(std::byte* mailbox) {
  std::uint32_t incarnation = 0;
  std::memcpy(&incarnation, mailbox + offsetof(wire::Mailbox, incarnation), sizeof(incarnation));
  auto* word = reinterpret_cast<std::uint32_t*>(mailbox + offsetof(wire::Mailbox, layout));
  __atomic_store_n(word, (incarnation << 2) | wire::kLayoutAgent, __ATOMIC_SEQ_CST);
}

}  // namespace

int main(int argc, char** argv) {
  const Options options(argc, argv);
  const std::string what = options.text("what", "mailbox");
  const std::size_t pages = options.number("mb", 32) * 256;
  Random random(options.number("seed", 1));
  Region region(map_bytes(pages * kPage), pages, 1, Kind::mixed);
  region.write_all();
  const Shared shared = find_shared();
  if (shared.mailbox == nullptr || shared.transfer == nullptr) {
    errno = ENOENT;
    broken("the library's shared areas");
  }
  say("ready");
  for (std::uint64_t n = 0; n % 1024 != 0 || !stdin_closed(); ++n) {
    if (what == "layout") {
      hold_layout(shared.mailbox);
    } else if (what == "transfer") {
      scribble_bytes(shared.transfer, wire::kTransferBytes, random);
    } else {
      scribble_mailbox(shared.mailbox, random);
    }
    if (n % 4096 == 0) sleep_ms(1);
  }
  _exit(0);
}
