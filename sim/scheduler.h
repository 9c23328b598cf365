// Scheduler: the threads of the simulated machine, as fibers on one real thread. Exactly one runs;
// which one goes on is chance. A fiber that is dropped stops where it is, for ever: nothing of it
// is destroyed, as when a thread is killed.
//
// Thread safety: none. Units: nanoseconds of the simulated clock.
#pragma once

#include <ucontext.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/mapping.h"
#include "base/mutex.h"
#include "sim/random.h"

namespace foldswap::sim {

// Whose fiber it is: the daemon's, or a process's (its pid).
using Owner = int;
inline constexpr Owner kDaemon = 0;
inline constexpr std::uint64_t kNever = ~std::uint64_t{0};

class Scheduler {
 public:
  using Ready = std::function<bool()>;

  Scheduler(Random& random, std::uint64_t& clock_ns) : random_(random), clock_ns_(clock_ns) {}
  Scheduler(const Scheduler&) = delete;
  Scheduler& operator=(const Scheduler&) = delete;
  ~Scheduler() = default;

  void spawn(Owner owner, std::string name, std::function<void()> body);
  // All fibers of this owner. When the one that runs is among them, this does not return.
  void drop(Owner owner);

  // -- on a fiber
  void yield();
  // Until `ready` says so (true), or until then (false). It is asked between turns, and changes
  // nothing.
  bool wait(Ready ready, std::uint64_t deadline_ns = kNever);
  [[nodiscard]] bool on_fiber() const { return current_ != nullptr; }
  [[nodiscard]] bool on_fiber_of(Owner owner) const {
    return current_ != nullptr && current_->owner == owner;
  }
  [[nodiscard]] Owner owner() const { return current_->owner; }
  [[nodiscard]] const std::string& name() const { return current_->name; }
  // Another one for each fiber that there ever was, from 1 on.
  [[nodiscard]] std::uint32_t number() const { return current_->number; }

  // -- between turns
  // One turn of one fiber. False: none can go on, now or ever.
  bool turn();
  // Called with the owner before a fiber goes on, and with kDaemon when it has stopped.
  void on_switch(std::function<void(Owner)> hook) { hook_ = std::move(hook); }
  // The fiber that has been waiting longest, but for those of `but`: since when, and its name.
  struct Waiting {
    std::uint64_t turns = 0, since_ns = 0;
    std::string name;
  };
  [[nodiscard]] Waiting longest_wait(Owner but) const;

 private:
  struct Fiber {
    Owner owner;
    std::uint32_t number;
    std::string name;
    std::function<void()> body;
    ucontext_t context{};
    Mapping stack;
    Ready ready;  // nothing: it can go on
    std::uint64_t deadline_ns = kNever;
    std::uint64_t waits_since_turn = 0, waits_since_ns = 0;
    bool timed_out = false, over = false;
    rank_check::Held held{};
  };
  static void enter(unsigned high, unsigned low);
  void run(Fiber& fiber);
  void leave(Fiber& fiber);
  void sweep();

  Random& random_;
  std::uint64_t& clock_ns_;
  std::vector<std::unique_ptr<Fiber>> fibers_;
  std::vector<Mapping> spare_stacks_;
  Fiber* current_ = nullptr;
  ucontext_t outside_{};
  std::uint64_t turns_ = 0;
  std::uint32_t spawned_ = 0;
  std::function<void(Owner)> hook_;
};

}  // namespace foldswap::sim
