// What every thread and every child of the torture client is doing, and did last: the story that a
// failing run tells. Also the watchdog that turns a hang into such a story.
//
// The journal lies in shared memory, which foldswap never takes out and which parents and children
// both see. A slot is written by its owner alone and may be read, torn, by whoever reports.
// Errors: fail() and the watchdog print everything and end the process.
#pragma once

#include <sys/types.h>

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <string>

namespace testprog::torture {

inline constexpr int kExitHang = 5;
inline constexpr int kExitCrash = 6;  // SIGSEGV or SIGBUS

struct Operation {
  const char* name;  // a literal: the same address in every process of the family
  std::uint64_t address;
  std::uint64_t pages;
  std::uint64_t detail;
};

struct Slot {
  static constexpr std::size_t kKept = 128;
  std::atomic<pid_t> pid;  // 0: free
  std::atomic<pid_t> tid;
  std::uint64_t owner;  // as in keys
  std::uint64_t seed;   // of its generator
  std::atomic<std::uint64_t> count;
  std::array<Operation, kKept> kept;

  void note(const char* name, std::uint64_t address = 0, std::uint64_t pages = 0,
            std::uint64_t detail = 0);
  void note(const char* name, const void* address, std::uint64_t pages = 0,
            std::uint64_t detail = 0) {
    note(name, reinterpret_cast<std::uint64_t>(address), pages, detail);
  }
};

// Before the first thread. `replay` is printed with every failure.
void open_journal(std::string replay, unsigned hang_s);
[[nodiscard]] Slot& claim_slot(std::uint64_t owner, std::uint64_t seed);
void enter_slot(Slot& slot);    // by the thread or child that it is for
void release_slot(Slot& slot);  // its owner has ended

// One word that all of the family shares: children whose parents are gone and that nobody waits
// for.
[[nodiscard]] std::atomic<std::int64_t>& strays();

void start_watchdog();
// In a forked child, which has no watchdog: ends it if it takes too long.
void set_child_alarm();
void catch_crashes();          // once per process
void use_alternative_stack();  // once per thread; for the above

[[noreturn]] void fail(const Slot& slot, const std::string& what);  // wrong bytes: status 3
[[noreturn]] void fail_call(const Slot& slot, const char* call, int error);  // status 4

}  // namespace testprog::torture
