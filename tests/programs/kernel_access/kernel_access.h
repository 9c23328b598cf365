// What the cases of the kernel_access client share: memory that is known to be out when the kernel
// meets it, threads that are known to be inside a system call, and the list of cases.
//
// A case asks for eviction itself: evict() says "evict" on stdout, the test reclaims everything and
// answers "go". So each case reads top to bottom: fill, evict, call, compare. One thread talks with
// the test; what other threads do is up to the case. Errors end the program, as in common.h.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstring>
#include <initializer_list>
#include <span>
#include <string>
#include <thread>
#include <utility>

#include "tests/programs/lib/common.h"
#include "tests/programs/lib/scratch.h"

namespace kernel_access {

using namespace testprog;

using Bytes = std::span<const std::byte>;

// Memory of its own mapping, filled with contents that differ from all other Memory of this run.
class Memory : public Region {
 public:
  explicit Memory(std::size_t pages, Kind kind = Kind::mixed);
  Memory(std::size_t pages, Kind kind, std::uint64_t seed);
  [[nodiscard]] Bytes span() const { return {base(), bytes()}; }
  // A T at the start of page i, or `before` bytes short of its end: across a border of pages.
  template <typename T>
  [[nodiscard]] T* at(std::size_t i) const {
    return reinterpret_cast<T*>(page(i));
  }
  template <typename T>
  [[nodiscard]] T* across(std::size_t i, std::size_t before) const {
    return reinterpret_cast<T*>(page(i + 1) - before);
  }
};

[[nodiscard]] std::size_t pages_in(Bytes bytes);
void press();  // the test takes out what can be taken out
// Returns when no page of the ranges is in; ends the program when that cannot be reached.
void evict(std::initializer_list<Bytes> ranges);

void same(const void* a, const void* b, std::size_t bytes, const char* what);
// The result of a call that must not be cut short.
void whole(long result, std::size_t expected, const char* what);

const Options& options();

struct Pipe {
  Pipe();
  ~Pipe();
  Pipe(const Pipe&) = delete;
  Pipe& operator=(const Pipe&) = delete;
  int out;                                      // to read from
  int in;                                       // to write to
  static constexpr int kCapacity = 256 * 4096;  // bytes, and as many pages as vmsplice can queue
};

// A file in --dir that has no name any more.
int open_scratch(int flags);

// A thread that is known to sit in system call `number` when the constructor is through.
class InCall {
 public:
  template <typename Body>
  InCall(long number, Body body)
      : number_(number), thread_([this, body = std::move(body)] {
          announce();
          body();
        }) {
    wait_until_inside();
  }
  ~InCall() { join(); }
  InCall(const InCall&) = delete;
  InCall& operator=(const InCall&) = delete;

  void must_be_inside() const;  // still
  [[nodiscard]] pthread_t handle() { return thread_.native_handle(); }
  void join() {
    if (thread_.joinable()) thread_.join();
  }

 private:
  void announce();
  void wait_until_inside() const;
  [[nodiscard]] bool inside() const;

  const long number_;
  std::atomic<int> tid_{0};
  std::thread thread_;
};

struct Case {
  const char* name;
  void (*body)();
};
[[nodiscard]] std::span<const Case> call_cases();    // kernel_access_calls.cc
[[nodiscard]] std::span<const Case> send_cases();    // kernel_access_send.cc
[[nodiscard]] std::span<const Case> wait_cases();    // kernel_access_waits.cc
[[nodiscard]] std::span<const Case> signal_cases();  // kernel_access_signals.cc
[[nodiscard]] std::span<const Case> ring_cases();    // kernel_access_rings.cc

}  // namespace kernel_access
