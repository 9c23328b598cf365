// foldswap_sim: the daemon's core on a simulated machine, stepped in any order, killed at any step;
// every byte that a program reads is compared. See sim/machine.h.
//
//   foldswap_sim --seed N [--steps N] [--trace N] [--watch PAGE]    one run
//   foldswap_sim --seconds S [--seed N]              one run after the other, and one of a random
//   seed
//   foldswap_sim --runs N [--seed N] [--steps N]     so many short ones, from this seed on; in each
//   the daemon dies at least once
//   foldswap_sim --mutants N [--seed N] [--steps N]  each order that a mutation turns round must be
//   noticed in N such runs, and the same seeds be good without
//   With --runs: [--table], what happened to pages in what state; a cell that is empty is an error.
//   Any of these: [--mutation NAME] (base/mutation.h)
//
// A run is decided by its seed, and by nothing else: the same program repeats it, step by step.
// Exit status: 0, or 1 when something was wrong; then the end of its trace is printed, and the
// command that repeats it.
#include <fcntl.h>
#include <poll.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <set>
#include <string>
#include <string_view>

#include <spdlog/details/null_mutex.h>
#include <spdlog/fmt/fmt.h>
#include <spdlog/sinks/base_sink.h>
#include <spdlog/spdlog.h>

#include "base/mapping.h"
#include "base/mutation.h"
#include "base/unique_fd.h"
#include "sim/machine.h"
#include "sim_version.h"

namespace {

foldswap::sim::World* g_world = nullptr;

}  // namespace

// Pool waits for other threads like this; and there are none but the other fibers.
extern "C" int sched_yield() noexcept {
  if (g_world != nullptr && g_world->scheduler.on_fiber()) g_world->scheduler.yield();
  return 0;
}

extern "C" int nanosleep(const timespec*, timespec*) {
  return sched_yield();
}

namespace foldswap::sim {
namespace {

constexpr std::uint64_t kDefaultSteps = 60'000, kBriskSteps = 2'000;
constexpr const char* kVersion = FOLDSWAP_SIM_VERSION;

// The daemon's log: into the trace, and its kills are counted.
class LogSink final : public spdlog::sinks::base_sink<spdlog::details::null_mutex> {
 public:
  explicit LogSink(World& world) : world_(world) {}

 private:
  void sink_it_(const spdlog::details::log_msg& message) override {
    const std::string text(message.payload.data(), message.payload.size());
    world_.trace(lines_.insert(text).first->c_str());
    constexpr std::string_view kKilled = ": killed: ";
    const std::size_t at = text.find(kKilled);
    if (at == std::string::npos) return;
    const std::string_view reason = std::string_view(text).substr(at + kKilled.size());
    const auto& kills = world_.counts.kills;
    const bool known_before = std::ranges::any_of(kills, [](std::uint64_t n) { return n != 0; });
    if (reason.empty() && known_before) return;  // a later daemon finds a client that is doomed
    const auto* const known = std::find(kKillReasons, kKillReasons + kUnknownReason, reason);
    ++world_.counts.kills[static_cast<std::size_t>(known - kKillReasons)];
    if (known == kKillReasons + kUnknownReason) world_.fail("a client is killed: " + text);
  }
  void flush_() override {}

  World& world_;
  std::set<std::string> lines_;  // the trace points here
};

struct Options {
  std::uint64_t seed = 1, steps = 0, seconds = 0, runs = 0, mutants = 0;
  std::string_view mutation;
  bool quiet = false;  // nothing is printed of the run
  bool table = false;
  std::uint64_t watch = 0;
  std::size_t trace = 80;

  [[nodiscard]] bool brisk() const { return runs != 0 || mutants != 0; }
};

// What happened in a run in a process of its own: shared memory.
struct Outcome {
  Counts counts;
  char failure[256];
};

// Orders that this program must notice when they are the wrong ones.
struct Mutant {
  std::string_view name;
  Mutation mutation;
};
constexpr Mutant kMutants[] = {
    {"entry_before_checksum", Mutation::entry_before_checksum},
    {"free_before_copy", Mutation::free_before_copy},
    {"inbox_before_applied", Mutation::inbox_before_applied},
    {"staging_before_publish", Mutation::staging_before_publish},
    {"h16_quarantine", Mutation::h16_quarantine},
    {"h38_staging_stays", Mutation::h38_staging_stays},
};

// False: there is none of this name, or no choice in this build.
bool activate(std::string_view name) {
#if defined(FOLDSWAP_RUNTIME_MUTATIONS)
  for (const Mutant& mutant : kMutants) {
    if (mutant.name != name) continue;
    active_mutation = mutant.mutation;
    return true;
  }
#endif
  return name.empty();
}

// How a run can be had once more.
std::string again(const Options& options) {
  return fmt::format("again: foldswap_sim {}--seed {} --steps {} --trace 1000{}{}",
                     options.brisk() ? "--runs 1 " : "", options.seed, options.steps,
                     options.mutation.empty() ? "" : " --mutation ", options.mutation);
}

void print_counts(const Counts& c) {
  std::printf(
      "%llu steps; programs: %llu accesses, %llu faults, %llu discards, %llu mmaps, %llu munmaps, "
      "%llu mremaps, %llu forks, %llu exits; %llu agents, %llu refused, %llu times stopped; pages: "
      "%llu moved, %llu "
      "evicted, %llu "
      "checked "
      "at the end; faults: %llu zero, %llu same, %llu pool, %llu disk, %llu rescued; %llu aborted "
      "commands, %llu reclaims; disk: %llu reads, %llu writes, %llu errors; %llu times no memory; "
      "%llu "
      "deaths of the daemon, %llu of them in recovery; %llu objects damaged, %llu times SIGBUS\n",
      static_cast<unsigned long long>(c.turns), static_cast<unsigned long long>(c.accesses),
      static_cast<unsigned long long>(c.faults), static_cast<unsigned long long>(c.discards),
      static_cast<unsigned long long>(c.maps), static_cast<unsigned long long>(c.unmaps),
      static_cast<unsigned long long>(c.remaps), static_cast<unsigned long long>(c.forks),
      static_cast<unsigned long long>(c.exits), static_cast<unsigned long long>(c.agents),
      static_cast<unsigned long long>(c.refused_agents),
      static_cast<unsigned long long>(c.stopped_agents), static_cast<unsigned long long>(c.moved),
      static_cast<unsigned long long>(c.evicted), static_cast<unsigned long long>(c.pages_checked),
      static_cast<unsigned long long>(c.faults_zero),
      static_cast<unsigned long long>(c.faults_same),
      static_cast<unsigned long long>(c.faults_pool),
      static_cast<unsigned long long>(c.faults_disk),
      static_cast<unsigned long long>(c.faults_rescued), static_cast<unsigned long long>(c.aborted),
      static_cast<unsigned long long>(c.reclaims), static_cast<unsigned long long>(c.disk_reads),
      static_cast<unsigned long long>(c.disk_writes),
      static_cast<unsigned long long>(c.disk_errors),
      static_cast<unsigned long long>(c.refused_memory), static_cast<unsigned long long>(c.crashes),
      static_cast<unsigned long long>(c.crashes_in_recovery),
      static_cast<unsigned long long>(c.damaged), static_cast<unsigned long long>(c.poisoned));
  for (std::size_t i = 0; i < c.kills.size(); ++i) {
    if (c.kills[i] != 0)
      std::printf("killed, %llu times: %s\n", static_cast<unsigned long long>(c.kills[i]),
                  kKillReasons[i]);
  }
}

// Where a run in another process leaves what happened in it.
Outcome* shared_outcome() {
  static const UniqueFd file(::memfd_create("sim-outcome", MFD_CLOEXEC));
  static const bool sized = ::ftruncate(file.get(), sizeof(Outcome)) == 0;
  static const Mapping area = Mapping::shared(file.get(), sizeof(Outcome)).value();
  return sized ? area.as<Outcome>() : nullptr;
}

void report(const Options& options, const World& world, const Machine& machine) {
  const bool good = world.failure.empty();
  const bool several = options.runs > 1 || options.seconds != 0;
  if (options.quiet || (good && options.runs > 1)) return;
  std::printf("seed %llu (%s): %s, digest %016llx\n", static_cast<unsigned long long>(options.seed),
              kVersion, good ? "all right" : "FAILED",
              static_cast<unsigned long long>(world.digest));
  if (!good || !several) {
    std::printf("%s\n", machine.describe().c_str());
    print_counts(world.counts);
  }
  if (!good) {
    std::printf("%s\n%s\n%s\n", world.tail(options.trace).c_str(), world.failure.c_str(),
                again(options).c_str());
  }
}

// In a process of its own: what dead daemons leave goes with it.
[[noreturn]] void run_one(const Options& options, Outcome& outcome) {
  (void)activate(options.mutation);
  World world(options.seed);
  g_world = &world;
  world.watched_page = options.watch;
  auto logger = std::make_shared<spdlog::logger>("sim", std::make_shared<LogSink>(world));
  logger->set_level(spdlog::level::info);
  spdlog::set_default_logger(logger);
  auto* const machine = new Machine(world);
  if (options.table) machine->count_events();
  machine->run(options.steps, options.brisk());
  g_world = nullptr;
  outcome.counts = world.counts;
  world.failure.copy(outcome.failure, sizeof(outcome.failure) - 1);
  report(options, world, *machine);
  std::fflush(nullptr);
  ::_exit(world.failure.empty() ? 0 : 1);
}

bool run_in_child(const Options& options, Outcome& outcome) {
  outcome = {};
  std::fflush(nullptr);
  const pid_t child = ::fork();
  if (child == 0) run_one(options, outcome);
  int status = 0;
  if (child < 0 || ::waitpid(child, &status, 0) != child) {
    std::perror("foldswap_sim: fork");
    return false;
  }
  if (WIFSIGNALED(status)) {
    fmt::format("ended by signal {}", WTERMSIG(status))
        .copy(outcome.failure, sizeof(outcome.failure) - 1);
    if (!options.quiet)
      std::printf("seed %llu (%s): %s\n%s\n", static_cast<unsigned long long>(options.seed),
                  kVersion, outcome.failure, again(options).c_str());
  }
  return WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

constexpr std::uint64_t kMostFailures = 5;

int run_for(Options options) {
  const auto now = [] { return static_cast<std::uint64_t>(::time(nullptr)); };
  const std::uint64_t end = now() + options.seconds;
  std::uint64_t failed = 0, runs = 0;
  const std::uint64_t first = options.seed;
  const auto one = [&](std::uint64_t seed) {
    options.seed = seed;
    ++runs;
    failed += run_in_child(options, *shared_outcome()) ? 0 : 1;
  };
  one(std::random_device()() + 1'000'000ULL);
  for (std::uint64_t seed = first; now() < end && failed < kMostFailures; ++seed) one(seed);
  std::printf("%llu runs, %llu failed\n", static_cast<unsigned long long>(runs),
              static_cast<unsigned long long>(failed));
  return failed == 0 ? 0 : 1;
}

int run_many(Options options) {
  Outcome& outcome = *shared_outcome();
  Counts sum;
  std::uint64_t failed = 0, runs = 0, fewest_deaths = ~std::uint64_t{0};
  for (const std::uint64_t first = options.seed; runs < options.runs && failed < kMostFailures;
       ++runs) {
    options.seed = first + runs;
    if (!run_in_child(options, outcome)) {
      ++failed;
      continue;
    }
    sum.add(outcome.counts);
    fewest_deaths = std::min(fewest_deaths, outcome.counts.crashes);
  }
  print_counts(sum);
  const bool died = fewest_deaths != 0;
  if (!died) std::printf("there was a run in which the daemon did not die\n");
  std::printf("%llu runs of %llu steps, %llu deaths of the daemon or more in each, %llu failed\n",
              static_cast<unsigned long long>(runs), static_cast<unsigned long long>(options.steps),
              static_cast<unsigned long long>(failed < runs ? fewest_deaths : 0),
              static_cast<unsigned long long>(failed));
  std::string wrong;
  if (options.table) {
    wrong = wrong_cells(sum.table);
    std::printf("%s%s", print(sum.table).c_str(), wrong.c_str());
  }
  return failed == 0 && died && wrong.empty() ? 0 : 1;
}

int run_mutants(Options options) {
  Outcome& outcome = *shared_outcome();
  options.quiet = true;
  const std::uint64_t first = options.seed;
  std::uint64_t last = first, missed = 0;
  for (const Mutant& mutant : kMutants) {
    options.mutation = mutant.name;
    bool good = true;
    for (options.seed = first; options.seed < first + options.mutants; ++options.seed) {
      good = run_in_child(options, outcome);
      if (!good) break;
    }
    missed += good ? 1 : 0;
    if (!good) last = std::max(last, options.seed);
    std::printf("%.*s: %s\n", static_cast<int>(mutant.name.size()), mutant.name.data(),
                good
                    ? "NOT NOTICED"
                    : fmt::format("noticed at seed {}: {}", options.seed, outcome.failure).c_str());
    std::fflush(nullptr);
  }
  options.mutation = {};
  options.quiet = false;
  options.runs = last - first + 1;
  options.seed = first;
  std::printf("without a mutation:\n");
  const int status = run_many(options);
  return missed == 0 ? status : 1;
}

bool parse(int argc, char** argv, Options& options) {
  const bool table = argc > 1 && std::string_view(argv[argc - 1]) == "--table";
  if (table) --argc;
  options.table = table;
  for (int i = 1; i + 1 < argc; i += 2) {
    const std::string_view name = argv[i], value = argv[i + 1];
    std::uint64_t number = 0;
    if (name == "--mutation") {
      options.mutation = value;
      if (!activate(value)) return false;
      continue;
    }
    const bool hex = value.starts_with("0x");
    const auto [end, ec] = std::from_chars(value.data() + (hex ? 2 : 0),
                                           value.data() + value.size(), number, hex ? 16 : 10);
    if (ec != std::errc{} || end != value.data() + value.size()) return false;
    if (name == "--seed") {
      options.seed = number;
    } else if (name == "--steps") {
      options.steps = number;
    } else if (name == "--seconds") {
      options.seconds = number;
    } else if (name == "--runs") {
      options.runs = number;
    } else if (name == "--mutants") {
      options.mutants = number;
    } else if (name == "--watch") {
      options.watch = number;
    } else if (name == "--trace") {
      options.trace = number;
    } else {
      return false;
    }
  }
  if (options.steps == 0) options.steps = options.brisk() ? kBriskSteps : kDefaultSteps;
  return argc % 2 == 1;
}

}  // namespace
}  // namespace foldswap::sim

int main(int argc, char** argv) {
  foldswap::sim::Options options;
  if (!foldswap::sim::parse(argc, argv, options)) {
    std::fprintf(stderr,
                 "usage: foldswap_sim [--seed N] [--steps N] [--seconds S | --runs N [--table] | "
                 "--mutants N] "
                 "[--mutation NAME] [--trace N] [--watch PAGE]\n");
    return 2;
  }
  rlimit files{};
  if (::getrlimit(RLIMIT_NOFILE, &files) == 0) {
    files.rlim_cur = files.rlim_max;
    (void)::setrlimit(RLIMIT_NOFILE, &files);
  }
  if (options.seconds != 0) return foldswap::sim::run_for(options);
  if (options.mutants != 0) return foldswap::sim::run_mutants(options);
  if (options.runs > 1) return foldswap::sim::run_many(options);
  foldswap::sim::run_one(options, *foldswap::sim::shared_outcome());
}
