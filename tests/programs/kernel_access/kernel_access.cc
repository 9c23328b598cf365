// System calls on memory that is out: the kernel itself meets the missing pages, and has to wait
// for them like anybody else. --case=NAME chooses one of the cases of kernel_access_*.cc; --seed,
// --dir (a directory on a real disk, for files). Says "done" when every byte was right. Exit status
// 77: not possible here, the reason is on stderr.
#include "tests/programs/kernel_access/kernel_access.h"

#include <fcntl.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstdlib>

#include "tests/programs/lib/residence.h"

namespace kernel_access {
namespace {

const Options* given = nullptr;
std::uint64_t memories = 0;  // so that each Memory has contents of its own
// Untouched pages around each Memory: what lies next to a thread's control block is never taken
// out, and the kernel puts the stacks of new threads right below what was mapped last.
constexpr std::size_t kCushion = 4;

}  // namespace

const Options& options() {
  return *given;
}

Memory::Memory(std::size_t pages, Kind kind)
    : Memory(pages, kind, Random(options().number("seed", 1) + (++memories << 32)).next()) {}

Memory::Memory(std::size_t pages, Kind kind, std::uint64_t seed)
    : Region(map_bytes((pages + 2 * kCushion) * kPage) + kCushion * kPage, pages, seed, kind) {
  write_all();
}

std::size_t pages_in(Bytes bytes) {
  static const Residence residence;
  return residence.pages_in(bytes.data(), bytes.size());
}

void press() {
  say("evict");
  if (next_command() != "go") wrong("the test has no answer");
}

void evict(std::initializer_list<Bytes> ranges) {
  std::size_t in = 0;
  for (int tries = 0; tries < 40; ++tries) {
    press();
    in = 0;
    for (const Bytes& range : ranges) in += pages_in(range);
    if (in == 0) return;
    sleep_ms(10);
  }
  wrong((std::to_string(in) + " pages stay in").c_str());
}

void same(const void* a, const void* b, std::size_t bytes, const char* what) {
  if (std::memcmp(a, b, bytes) != 0) wrong(what);
}

void whole(long result, std::size_t expected, const char* what) {
  if (result < 0) broken(what);
  if (static_cast<std::size_t>(result) == expected) return;
  wrong((std::string(what) + " gave " + std::to_string(result) + " of " + std::to_string(expected))
            .c_str());
}

Pipe::Pipe() {
  std::array<int, 2> fds{};
  must(pipe2(fds.data(), O_CLOEXEC), "pipe2");
  out = fds[0];
  in = fds[1];
  must(fcntl(in, F_SETPIPE_SZ, kCapacity), "F_SETPIPE_SZ");
}

Pipe::~Pipe() {
  close(out);
  close(in);
}

int open_scratch(int flags) {
  return testprog::open_scratch(options().text("dir", "/tmp"), flags);
}

void InCall::announce() {
  tid_.store(gettid());
}

bool InCall::inside() const {
  const std::string path = "/proc/self/task/" + std::to_string(tid_.load()) + "/syscall";
  const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) return false;
  std::array<char, 256> text{};
  const ssize_t n = read(fd, text.data(), text.size() - 1);
  close(fd);
  char* end = nullptr;
  const long number = std::strtol(text.data(), &end, 10);
  return n > 0 && end != text.data() && number == number_;  // "running" has no number
}

void InCall::wait_until_inside() const {
  for (int tries = 0; tries < 3000; ++tries) {
    if (tid_.load() != 0 && inside()) return;
    sleep_ms(10);
  }
  wrong("a thread does not get to its system call");
}

void InCall::must_be_inside() const {
  if (!inside()) wrong("the call ended before it could");
}

}  // namespace kernel_access

int main(int argc, char** argv) {
  using namespace kernel_access;
  const Options parsed(argc, argv);
  given = &parsed;
  const std::string wanted = parsed.text("case", "");
  for (const auto cases :
       {call_cases(), send_cases(), wait_cases(), signal_cases(), ring_cases()}) {
    for (const Case& one : cases) {
      if (wanted != one.name) continue;
      one.body();
      say("done");
      return 0;
    }
  }
  errno = EINVAL;
  broken("--case");
}
