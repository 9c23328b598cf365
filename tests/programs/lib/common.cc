#include "tests/programs/lib/common.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <thread>

namespace testprog {
namespace {

constexpr std::size_t kWords = kPage / 8;
using Page = std::array<std::uint64_t, kWords>;

// Looks like the heap of a program with small objects: a header, a pointer into one neighbourhood,
// a small count, a bit of payload. One random word serves eight.
void make_heap(Page& out, Random& random) {
  const std::uint64_t neighbourhood = 0x00007f0000000000ULL | (random.next() & 0xffff00000ULL);
  for (std::size_t i = 0; i < kWords; i += 8) {
    const std::uint64_t r = random.next();
    out[i] = 1 + (r & 3);
    out[i + 1] = neighbourhood + ((r >> 2) & 0xfff0);
    out[i + 2] = 0x0000555500004000ULL;
    out[i + 3] = (r >> 20) & 0xff;
    out[i + 4] = neighbourhood + ((r >> 28) & 0xfff0);
    out[i + 5] = 0;
    out[i + 6] = (r >> 44) & 0xffff;
    out[i + 7] = ~std::uint64_t{0};
  }
}

void make_page(Page& out, std::uint64_t key, Kind kind) {
  Random random(key);
  if (kind == Kind::mixed) {
    const std::uint64_t draw = random.below(16);
    if (draw == 0) return out.fill(0);
    if (draw == 1) return out.fill(random.next());
    kind = draw < 5 ? Kind::random : Kind::heap;
  }
  if (kind == Kind::same) return out.fill(random.below(4) == 0 ? 0 : random.next());
  if (kind == Kind::sizes) {
    const std::size_t noise = random.below(kWords + 1);
    make_heap(out, random);
    for (std::size_t i = 0; i < noise; ++i) out[i] = random.next();
    return;
  }
  if (kind == Kind::heap) return make_heap(out, random);
  for (auto& word : out) word = random.next();
}

[[noreturn]] void wrong_bytes(const std::byte* page, const Page& expected) {
  const auto* want = reinterpret_cast<const std::byte*>(expected.data());
  std::size_t at = 0;
  while (at + 1 < kPage && page[at] == want[at]) ++at;
  std::size_t zeros = 0;
  for (std::size_t i = 0; i < kPage; ++i) zeros += page[i] == std::byte{0} ? 1U : 0U;
  std::fprintf(
      stderr,
      "WRONG BYTES: page %p offset %zu: expected %02x, found %02x (%zu of 4096 bytes are 0)\n",
      static_cast<const void*>(page), at, std::to_integer<unsigned>(want[at]),
      std::to_integer<unsigned>(page[at]), zeros);
  _exit(kExitWrongBytes);
}

void compare(const std::byte* page, const Page& expected) {
  if (std::memcmp(page, expected.data(), kPage) != 0) wrong_bytes(page, expected);
}

}  // namespace

Kind parse_kind(const std::string& text) {
  if (text == "heap") return Kind::heap;
  if (text == "random") return Kind::random;
  if (text == "mixed") return Kind::mixed;
  if (text == "same") return Kind::same;
  if (text == "sizes") return Kind::sizes;
  errno = EINVAL;
  broken("--kind");
}

void fill_page(std::byte* page, std::uint64_t key, Kind kind) {
  Page contents;
  make_page(contents, key, kind);
  std::memcpy(page, contents.data(), kPage);
}

void check_page(const std::byte* page, std::uint64_t key, Kind kind) {
  Page expected;
  make_page(expected, key, kind);
  compare(page, expected);
}

void check_zero(const std::byte* page) {
  static constexpr Page kZero{};
  compare(page, kZero);
}

void broken(const char* what) {
  std::fprintf(stderr, "BROKEN: %s: %s\n", what, std::strerror(errno));
  _exit(kExitBroken);
}

void wrong(const char* what) {
  std::fprintf(stderr, "WRONG: %s\n", what);
  _exit(kExitWrongBytes);
}

std::byte* map_bytes(std::size_t bytes, int extra_flags) {
  void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | extra_flags, -1, 0);
  if (memory == MAP_FAILED) broken("mmap");
  return static_cast<std::byte*>(memory);
}

std::byte* map_aligned(std::size_t bytes) {
  constexpr std::uintptr_t kExtent = 2U << 20;
  std::byte* raw = map_bytes(bytes + kExtent);
  const auto address = reinterpret_cast<std::uintptr_t>(raw);
  const std::uintptr_t skip = (kExtent - address % kExtent) % kExtent;
  if (skip > 0) must(munmap(raw, skip), "munmap");
  if (skip < kExtent) must(munmap(raw + skip + bytes, kExtent - skip), "munmap");
  return raw + skip;
}

void Region::write(std::size_t i) {
  const std::uint64_t serial = __atomic_fetch_add(&writes_, 1, __ATOMIC_RELAXED);
  keys_[i] = Random(seed_ + (serial << 20)).next() | 1;
  fill_page(page(i), keys_[i], kind_);
}

void Region::write_all() {
  for (std::size_t i = 0; i < pages(); ++i) write(i);
}

void Region::check(std::size_t i) const {
  if (keys_[i] == 0) return check_zero(page(i));
  check_page(page(i), keys_[i], kind_);
}

void Region::check_all() const {
  for (std::size_t i = 0; i < pages(); ++i) check(i);
}

void Region::check_random(Random& random, std::size_t count) const {
  for (std::size_t n = 0; n < count; ++n) check(random.below(pages()));
}

Options::Options(int argc, char** argv) {
  for (int i = 1; i < argc; ++i) {
    const std::string argument = argv[i];
    const std::size_t equals = argument.find('=');
    if (!argument.starts_with("--") || equals == std::string::npos) {
      errno = EINVAL;
      broken(argv[i]);
    }
    values_.emplace_back(argument.substr(2, equals - 2), argument.substr(equals + 1));
  }
}

std::string Options::text(const std::string& name, const std::string& otherwise) const {
  for (const auto& [key, value] : values_) {
    if (key == name) return value;
  }
  return otherwise;
}

std::uint64_t Options::number(const std::string& name, std::uint64_t otherwise) const {
  const std::string value = text(name, "");
  return value.empty() ? otherwise : std::strtoull(value.c_str(), nullptr, 0);
}

bool Options::has(const std::string& name) const {
  return !text(name, "").empty();
}

void say(const std::string& line) {
  const std::string out = line + "\n";
  if (::write(STDOUT_FILENO, out.data(), out.size()) != static_cast<ssize_t>(out.size())) {
    broken("write to stdout");
  }
}

std::string next_command() {
  std::string line;
  char c = 0;
  while (true) {
    const ssize_t n = ::read(STDIN_FILENO, &c, 1);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return "";
    if (c == '\n') return line;
    line.push_back(c);
  }
}

bool stdin_closed() {
  pollfd p{.fd = STDIN_FILENO, .events = POLLIN, .revents = 0};
  return ::poll(&p, 1, 0) > 0;
}

double seconds_now() {
  timespec now{};
  clock_gettime(CLOCK_MONOTONIC, &now);
  return static_cast<double>(now.tv_sec) + static_cast<double>(now.tv_nsec) * 1e-9;
}

void sleep_ms(unsigned ms) {
  timespec left{.tv_sec = ms / 1000, .tv_nsec = static_cast<long>(ms % 1000) * 1000000L};
  while (nanosleep(&left, &left) != 0 && errno == EINTR) {
  }
}

void watch_progress(const std::uint64_t* progress, unsigned seconds) {
  std::thread([progress, seconds] {
    std::uint64_t last = __atomic_load_n(progress, __ATOMIC_RELAXED);
    double since = seconds_now();
    while (true) {
      sleep_ms(200);
      const std::uint64_t now = __atomic_load_n(progress, __ATOMIC_RELAXED);
      if (now != last) {
        last = now;
        since = seconds_now();
      } else if (seconds_now() - since > seconds) {
        std::fprintf(stderr, "HANG: no progress for %u s\n", seconds);
        _exit(5);
      }
    }
  }).detach();
}

}  // namespace testprog
