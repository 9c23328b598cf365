// Mappings that go, or come, without the kernel telling anybody (shmat raises no event), and
// mappings of other kinds at the place of ordinary ones. Between two steps the test takes pages
// out. Every byte is verified.
//   --row=shmat          shmat over a part; then ordinary memory over that and what lies behind,
//                        half of it never touched: that reads as zeros
//   --row=shmat_grow     shmat over the end, shmdt, and what is left grows over the hole in place
//   --row=shmat_moved    shmat over a part, shmdt, and other memory that is out moves there
//   --row=shmat_forked   shmat over a part, ordinary memory there, and a child looks at it
//   --row=brk            the heap shrinks, shared memory comes and goes in its place, it grows
//   again
//   --raw=1              shmat by the system call itself
// Steps: "ready N" -> "go" for each, then "done".
#include <sys/ipc.h>
#include <sys/mman.h>
#include <sys/shm.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstring>

#include "tests/programs/lib/common.h"

using namespace testprog;

namespace {

constexpr std::size_t kPages = 4096, kPart = 1024;

bool g_raw = false;
int g_step = 0;

void step() {
  say("ready " + std::to_string(++g_step));
  if (next_command() != "go") _exit(kExitBroken);
}

// Shared memory of `pages` pages over whatever is at `at`, written to.
void attach(std::byte* at, std::size_t pages) {
  const int id = must(shmget(IPC_PRIVATE, pages * kPage, IPC_CREAT | 0600), "shmget");
  const long place = g_raw ? syscall(SYS_shmat, id, at, SHM_REMAP)
                           : reinterpret_cast<long>(shmat(id, at, SHM_REMAP));
  must(shmctl(id, IPC_RMID, nullptr), "shmctl");
  if (place != reinterpret_cast<long>(at)) broken("shmat");
  for (std::size_t i = 0; i < pages * kPage; ++i) {
    if (at[i] != std::byte{0}) wrong("new shared memory is not empty");
  }
  std::memset(at, 0x55, pages * kPage);
}

std::byte* map_at(std::byte* at, std::size_t pages) {
  void* const place = mmap(at, pages * kPage, PROT_READ | PROT_WRITE,
                           MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
  if (place != at) broken("mmap");
  return at;
}

// Room behind it, so that nothing else comes there.
std::byte* reserve(std::size_t pages) {
  void* const room =
      mmap(nullptr, pages * kPage, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (room == MAP_FAILED) broken("mmap");
  return static_cast<std::byte*>(room);
}

void check_first(const Region& region, std::size_t pages) {
  for (std::size_t i = 0; i < pages; ++i) region.check(i);
}

// The last kPart pages of a region have been replaced, and half of the new ones are touched.
Region half_used(std::byte* at) {
  Region fresh(map_at(at, 2 * kPart), 2 * kPart, 77, Kind::heap);
  for (std::size_t i = 0; i < kPart; i += 2) fresh.write(i);
  for (std::size_t i = kPart; i < 2 * kPart; ++i) fresh.write(i);
  return fresh;
}

void over_a_part(Region& region) {
  std::byte* const part = region.page(kPages - kPart);
  attach(part, kPart);
  must(shmdt(part), "shmdt");
  const Region fresh = half_used(part);
  step();
  fresh.check_all();  // what was never written reads as zeros
  check_first(region, kPages - kPart);
}

void grows_in_place(Region& region) {
  std::byte* const part = region.page(kPages - kPart);
  must(munmap(region.page(kPages), kPages * kPage), "munmap");  // room to grow
  attach(part, kPart);
  must(shmdt(part), "shmdt");
  const std::size_t bytes = (kPages - kPart) * kPage;
  if (mremap(region.base(), bytes, kPages * kPage, 0) != region.base()) broken("mremap");
  for (std::size_t i = kPages - kPart; i < kPages; ++i) region.forget(i);
  region.check_all();
  step();
  region.check_all();
}

void moved_there(Region& region) {
  Region other(map_bytes(kPart * kPage), kPart, 5, Kind::mixed);
  other.write_all();
  step();
  std::byte* const part = region.page(kPages - kPart);
  attach(part, kPart);
  must(shmdt(part), "shmdt");
  if (mremap(other.base(), kPart * kPage, kPart * kPage, MREMAP_MAYMOVE | MREMAP_FIXED, part) !=
      part)
    broken("mremap");
  other.moved_to(part);
  other.check_all();
  step();
  other.check_all();
  check_first(region, kPages - kPart);
}

void forked(Region& region) {
  std::byte* const part = region.page(kPages - kPart);
  attach(part, kPart);
  must(shmdt(part), "shmdt");
  const Region fresh = half_used(part);
  step();
  const pid_t child = must(fork(), "fork");
  fresh.check_all();
  check_first(region, kPages - kPart);
  if (child == 0) _exit(0);
  int status = 0;
  must(waitpid(child, &status, 0), "waitpid");
  if (status != 0) wrong("the child found wrong bytes");
}

void heap() {
  auto* const start = static_cast<std::byte*>(sbrk(0));
  auto* const base = reinterpret_cast<std::byte*>(
      (reinterpret_cast<std::uint64_t>(start) + kPage - 1) & ~(kPage - 1));
  must(brk(base + kPages * kPage), "brk");
  Region region(base, kPages, 9, Kind::mixed);
  region.write_all();
  step();
  std::byte* const part = region.page(kPages - kPart);
  must(brk(part), "brk");
  attach(part, kPart);
  must(shmdt(part), "shmdt");
  must(brk(base + kPages * kPage), "brk");
  for (std::size_t i = kPages - kPart; i < kPages; ++i) region.forget(i);
  region.check_all();
  step();
  region.check_all();
}

}  // namespace

int main(int argc, char** argv) {
  const Options options(argc, argv);
  const std::string row = options.text("row", "");
  g_raw = options.number("raw", 0) != 0;
  if (row == "brk") {
    heap();
    say("done");
    return 0;
  }
  std::byte* const room = reserve(2 * kPages);
  Region region(map_at(room, kPages), kPages, options.number("seed", 1), Kind::mixed);
  region.write_all();
  step();
  if (row == "shmat") over_a_part(region);
  if (row == "shmat_grow") grows_in_place(region);
  if (row == "shmat_moved") moved_there(region);
  if (row == "shmat_forked") forked(region);
  say("done");
}
