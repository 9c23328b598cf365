// World: what all of a simulation shares: chance, clock, fibers, counts, and the trace of what has
// happened. Thread safety: none.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <iterator>
#include <string>
#include <utility>
#include <vector>

#include "sim/random.h"
#include "sim/scheduler.h"
#include "sim/table.h"

namespace foldswap::sim {

struct Space;

// What happened, for the log of a run that failed and for the digest that two runs of one seed must
// have in common.
struct TraceEntry {
  std::uint64_t clock_ns = 0;
  const char* what = "";
  Owner owner = kDaemon;
  std::array<std::uint64_t, 3> values{};
};

// Why a client was killed, or killed itself. What the daemon logs as its reason; whatever else it
// says is a failure.
inline constexpr const char* kKillReasons[] = {
    "its mremap calls cannot be put in order",
    "not every page of its parent could be taken over",
    "SIGBUS, in a child that could not be taken over",
    "a reason that is not known",
};
inline constexpr std::size_t kUnknownReason = std::size(kKillReasons) - 1;
inline constexpr std::size_t kSigbusInChild = kUnknownReason - 1;

// Numbers alone: those of several runs can be added up, and passed on in shared memory.
struct Counts {
  std::uint64_t turns = 0, accesses = 0, faults = 0, moved = 0, discards = 0, maps = 0, unmaps = 0,
                remaps = 0, forks = 0, exits = 0, agents = 0, crashes = 0, crashes_in_recovery = 0,
                disk_reads = 0, disk_writes = 0, disk_errors = 0, refused_memory = 0, reclaims = 0,
                refused_agents = 0, stopped_agents = 0, pages_checked = 0, releases = 0;
  // Of the daemon's own, summed up at the end of a run.
  std::uint64_t evicted = 0, faults_zero = 0, faults_same = 0, faults_pool = 0, faults_disk = 0,
                faults_rescued = 0, aborted = 0;
  std::array<std::uint64_t, std::size(kKillReasons)> kills{};
  std::uint64_t damaged = 0, poisoned = 0;  // objects on disk; accesses that got SIGBUS for it
  Table table{};                            // if World::on_event is set

  void add(const Counts& other);
};

struct World {
  explicit World(std::uint64_t s) : seed(s), random(s), scheduler(random, clock_ns) {}

  const std::uint64_t seed;
  Random random;
  std::uint64_t clock_ns = 1'000'000'000;
  Scheduler scheduler;
  Counts counts;
  std::string failure;  // the first thing that was wrong; empty: nothing was

  // Nothing happens by chance any more that the system could not have prevented: no deaths, no
  // failing disk. For the end of a run.
  bool calm = false;

  // What happens to pages of a process, told before it does. Nothing: nobody counts.
  std::function<void(Happens event, const Space& space, std::uint64_t start, std::uint64_t end)>
      on_event;
  void happens(Happens event, const Space& space, std::uint64_t start, std::uint64_t end) const {
    if (on_event) on_event(event, space, start, end);
  }

  std::uint64_t watched_page = 0;  // its entries are noted in the trace when they change
  std::uint64_t digest = 0xcbf29ce484222325;
  void trace(const char* what, std::uint64_t a = 0, std::uint64_t b = 0, std::uint64_t c = 0);
  // Likewise, and without a part in the digest.
  void note(const char* what, std::uint64_t a = 0, std::uint64_t b = 0, std::uint64_t c = 0);
  [[nodiscard]] std::string tail(std::size_t most) const;
  // Notes it; the run ends at the next turn.
  void fail(const std::string& why);

 private:
  std::vector<TraceEntry> entries_;
  std::size_t next_ = 0;
};

}  // namespace foldswap::sim
