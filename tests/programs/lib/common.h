// What the end-to-end test clients share: page contents that can be made again and compared at any
// time, a region of memory with a shadow of what must be in it, options, and a line-by-line talk
// with the test.
//
// Contents: a page is a pure function of a 64-bit key and a Kind, so that a program can verify
// gigabytes without holding a copy. Thread safety: everything here is for one thread; threads of a
// program share a Region only by pages. Errors: a wrong byte prints where and what to stderr and
// ends the process with status 3; a system call that must not fail ends it with status 4.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace testprog {

inline constexpr std::size_t kPage = 4096;
inline constexpr int kExitWrongBytes = 3;
inline constexpr int kExitBroken = 4;

// splitmix64 (Steele, Lea and Flood 2014): small, seedable, good enough to be incompressible.
class Random {
 public:
  explicit Random(std::uint64_t seed) : state_(seed) {}
  std::uint64_t next() {
    std::uint64_t z = (state_ += 0x9e3779b97f4a7c15ULL);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ULL;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebULL;
    return z ^ (z >> 31);
  }
  std::uint64_t below(std::uint64_t bound) { return next() % bound; }

 private:
  std::uint64_t state_;
};

// What pages look like. mixed: mostly heap, some random, a few zero and same-filled ones.
// same: each is filled with one word, some with zeros. sizes: compress to anything from nothing to
// a whole page: some random, the rest heap.
enum class Kind { heap, random, mixed, same, sizes };

Kind parse_kind(const std::string& text);
void fill_page(std::byte* page, std::uint64_t key, Kind kind);
void check_page(const std::byte* page, std::uint64_t key, Kind kind);  // ends the process if wrong
void check_zero(const std::byte* page);                                // likewise

[[noreturn]] void broken(const char* what);  // prints errno's text too
[[noreturn]] void wrong(const char* what);   // ends with kExitWrongBytes
template <typename T>
T must(T result, const char* what) {
  if (result == static_cast<T>(-1)) broken(what);
  return result;
}

// Anonymous private memory, page-aligned, no huge pages unless asked for.
std::byte* map_bytes(std::size_t bytes, int extra_flags = 0);
// The same at a 2 MiB boundary.
std::byte* map_aligned(std::size_t bytes);

// Memory with a shadow: each page has the key of its contents, 0 for "reads as zeros". Does not own
// the mapping: programs unmap, move and share it in every way. After fork both sides have their own
// shadow; a child calls diverge() so that what it writes differs from what its parent writes.
class Region {
 public:
  Region(std::byte* base, std::size_t pages, std::uint64_t seed, Kind kind)
      : base_(base), keys_(pages, 0), seed_(seed), kind_(kind) {}

  [[nodiscard]] std::size_t pages() const { return keys_.size(); }
  [[nodiscard]] std::size_t bytes() const { return keys_.size() * kPage; }
  [[nodiscard]] std::byte* page(std::size_t i) const { return base_ + i * kPage; }
  [[nodiscard]] std::byte* base() const { return base_; }
  [[nodiscard]] std::uint64_t key(std::size_t i) const { return keys_[i]; }
  [[nodiscard]] Kind kind() const { return kind_; }

  void write(std::size_t i);  // new contents
  void write_all();
  void check(std::size_t i) const;  // ends the process if a byte is wrong
  void check_all() const;
  void check_random(Random& random, std::size_t count) const;

  void diverge(std::uint64_t salt) { seed_ = Random(seed_ ^ salt).next(); }
  void forget(std::size_t i) { keys_[i] = 0; }      // now reads as zeros
  void moved_to(std::byte* base) { base_ = base; }  // after mremap
  void resize(std::size_t pages) { keys_.resize(pages, 0); }

 private:
  std::byte* base_;
  std::vector<std::uint64_t> keys_;
  std::uint64_t seed_;
  std::uint64_t writes_ = 0;  // atomic built-ins: threads write different pages at once
  Kind kind_;
};

// --name=value options; unknown names end the program.
class Options {
 public:
  Options(int argc, char** argv);
  [[nodiscard]] std::uint64_t number(const std::string& name, std::uint64_t otherwise) const;
  [[nodiscard]] std::string text(const std::string& name, const std::string& otherwise) const;
  [[nodiscard]] bool has(const std::string& name) const;

 private:
  std::vector<std::pair<std::string, std::string>> values_;
};

// The talk with the test: whole lines, unbuffered. next_command gives "" at the end of the input.
void say(const std::string& line);
std::string next_command();
bool stdin_closed();  // does not block: has the test closed our input, or sent anything?

double seconds_now();  // monotonic
void sleep_ms(unsigned ms);

// Ends the process with status 5 when `progress` stands still for `seconds`. For hangs that must
// not become a test time-out without a word. The returned handle is never joined.
void watch_progress(const std::uint64_t* progress, unsigned seconds);

}  // namespace testprog
