// The frame of the space_* programs: one operation on the address space, tried against pages in
// every state. An operation is a class with three steps: plan() fills its regions and says what
// each watched page will show once the operation is done, act() makes the system calls, settle()
// tells the shadow and verifies. Between plan() and act() the pages are brought into the state.
//
// The test does its part when asked on stdout, and answers each line with "go":
//   evict            take out everything of us
//   evict N          N bytes
//   churn            begin to reclaim and restore without end, with a small budget; calm: stop that
// Everything runs on the main thread, but for the watchers of the state `faulting`.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "tests/programs/lib/common.h"

namespace testprog {

// resident: every second time in ranges that have been out before (registered ones).
// same: out as same-filled pages. flight: the test evicts and restores meanwhile.
// faulting: all out, and two threads fault on them while the operation is done.
enum class State { resident, out, same, flight, faulting };
const char* name_of(State state);

// What a page shows once the operation is done.
struct After {
  enum class What {
    bytes,   // those of `key`
    zeros,   // or what it was: MADV_FREE
    either,  // the old bytes or zeros
    fault,   // SIGSEGV
    guard,   // likewise; while the guard is made, zeros as well
    file,    // the page of the test's file with number `key`
  };
  What what = What::bytes;
  std::uint64_t key = 0;
};

class Operation {
 public:
  Operation() : random(0) {}
  Operation(const Operation&) = delete;
  Operation& operator=(const Operation&) = delete;
  virtual ~Operation() = default;
  virtual void plan() = 0;
  virtual void act() = 0;
  virtual void settle() = 0;

  State state = State::resident;
  Random random;

 protected:
  // A new region, written, at a place that was never used before and with nothing beside it; across
  // a border of extents unless `aligned`. Advice is given before anything is written. Regions of
  // one seed have the same contents.
  struct Shape {
    std::size_t pages;
    bool aligned = false;
    int advice = 0;  // 0: none
    std::uint64_t seed = 0;
  };
  Region make_region(const Shape& shape);
  // Some pages of a region: whole, a head, a tail or a middle part.
  void choose(const Region& region);
  // All pages keep what they have; those of the choice are to show `what`.
  void expect(const Region& region, After::What what);

  std::size_t first = 0, count = 0;  // the choice

 public:
  std::vector<const Region*> regions;  // to be brought into the state
  std::vector<After> after;            // of the pages of regions[0]; empty: not watched
  std::uint64_t seed = 0;
};

// Most operations have one region and a choice of its pages.
class OnRegion : public Operation {
 public:
  static constexpr std::size_t kPages = 640;
  void plan() override;

 protected:
  [[nodiscard]] virtual After::What shows() const { return After::What::bytes; }
  void plan_shape(const Shape& shape);

  Region& region() { return *region_; }
  std::byte* start() { return region_->page(first); }
  [[nodiscard]] std::size_t bytes() const { return count * kPage; }
  [[nodiscard]] bool chosen(std::size_t i) const { return i >= first && i < first + count; }
  void forget();  // the choice reads as zeros now
  // Reads everything; writes some of it and reads again: a page that is late would show.
  void verify();
  void check_rest();      // the pages outside the choice
  void must_fault_all();  // the choice

 private:
  std::optional<Region> region_;
};

using Maker = std::unique_ptr<Operation> (*)();
template <typename T>
std::unique_ptr<Operation> make_operation() {
  return std::make_unique<T>();
}

// Every state, some rounds each; a flight lasts --flight_ms.
void run_matrix(Maker maker, const Options& options);

// Asks the test and waits for it.
void ask(const std::string& what);
// Until nearly all of a region is out. Ends the process when that is not possible.
void evict(const Region& region, std::size_t least_percent = 97);

std::size_t present_pages(const std::byte* start, std::size_t pages);  // by /proc/self/pagemap
// The test then counts as skipped.
[[noreturn]] void tell_skip(const std::string& why);

// A user-mode read of a page, or write to it; false: SIGSEGV or SIGBUS.
bool try_read(const std::byte* page, std::byte* copy);
bool try_write(std::byte* page);
void must_fault(const std::byte* page);
void catch_faults();  // installs the handler that these need; run_matrix does it

// Whether `copy` is what a page with this key must hold; key 0: zeros.
bool holds(const std::byte* copy, std::uint64_t key, Kind kind);

// A file of this many pages, unlinked; page i holds what fill_page makes of file_key(i).
int make_file(std::size_t pages);
std::uint64_t file_key(std::size_t i);
void check_file_page(const std::byte* page, std::size_t i);

// Anonymous memory over whatever is there.
void map_over(std::byte* place, std::size_t pages);

// Runs `check` in a forked child and expects it to end well.
template <typename Check>
void in_child(Check check);
int fork_child();               // 0 in the child
[[noreturn]] void end_child();  // success
void await_child(int child);

template <typename Check>
void in_child(Check check) {
  const int child = fork_child();
  if (child == 0) {
    check();
    end_child();
  }
  await_child(child);
}

// The main of a program: the operation of this table that --op=NAME names, in every state; then
// "done".
struct Named {
  const char* name;
  Maker maker;
};
int run_named(std::span<const Named> operations, const Options& options);

// The same for work that has no states.
struct Work {
  const char* name;
  void (*body)(const Options&, std::uint64_t seed);
};
int run_work(std::span<const Work> table, const Options& options);
// --ms from now.
class Timed {
 public:
  explicit Timed(const Options& options)
      : end_(seconds_now() + static_cast<double>(options.number("ms", 1200)) / 1000) {}
  [[nodiscard]] bool over() const { return seconds_now() >= end_; }

 private:
  double end_;
};

extern std::uint64_t progress;  // watched: 60 s without a step are a hang
void made_progress();

}  // namespace testprog
