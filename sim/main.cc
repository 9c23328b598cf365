// foldswap_sim: the daemon's core on a simulated machine, stepped in any order, killed at any step;
// every byte that a program reads is compared. See sim/machine.h.
//
//   foldswap_sim --seed N [--steps N] [--trace N] [--watch PAGE]    one run
//   foldswap_sim --seconds S [--seed N]              one run after the other, and one of a random
//   seed
//
// A run is decided by its seed, and by nothing else: the same program repeats it, step by step.
// Exit status: 0, or 1 when something was wrong; then the end of its trace is printed, and the
// command that repeats it.
#include <fcntl.h>
#include <poll.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

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
#include <spdlog/sinks/base_sink.h>
#include <spdlog/spdlog.h>

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

constexpr std::uint64_t kDefaultSteps = 60'000;
constexpr const char* kVersion = FOLDSWAP_SIM_VERSION;

// What a client may be killed for: a race that nobody can decide. Whatever else kills one is a
// failure.
constexpr const char* kKnownReasons[] = {
    "its mremap calls cannot be put in order",
    "not every page of its parent could be taken over",
};

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
    const std::string reason = text.substr(at + kKilled.size());
    ++world_.counts.kills[reason];
    for (const char* known : kKnownReasons) {
      if (reason == known) return;
    }
    world_.fail("a client is killed: " + text);
  }
  void flush_() override {}

  World& world_;
  std::set<std::string> lines_;  // the trace points here
};

struct Options {
  std::uint64_t seed = 1, steps = kDefaultSteps, seconds = 0;
  std::uint64_t watch = 0;
  std::size_t trace = 80;
  bool seed_given = false;
};

void print_counts(const Counts& c) {
  std::printf(
      "%llu steps; programs: %llu accesses, %llu faults, %llu discards, %llu mmaps, %llu munmaps, "
      "%llu mremaps, %llu forks, %llu exits; %llu agents, %llu refused; pages: %llu moved, %llu "
      "evicted, %llu "
      "checked "
      "at the end; faults: %llu zero, %llu same, %llu pool, %llu disk, %llu rescued; %llu aborted "
      "commands, %llu reclaims; disk: %llu reads, %llu writes, %llu errors; %llu times no memory; "
      "%llu "
      "deaths of the daemon, %llu of them in recovery\n",
      static_cast<unsigned long long>(c.turns), static_cast<unsigned long long>(c.accesses),
      static_cast<unsigned long long>(c.faults), static_cast<unsigned long long>(c.discards),
      static_cast<unsigned long long>(c.maps), static_cast<unsigned long long>(c.unmaps),
      static_cast<unsigned long long>(c.remaps), static_cast<unsigned long long>(c.forks),
      static_cast<unsigned long long>(c.exits), static_cast<unsigned long long>(c.agents),
      static_cast<unsigned long long>(c.refused_agents), static_cast<unsigned long long>(c.moved),
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
      static_cast<unsigned long long>(c.crashes_in_recovery));
  for (const auto& [reason, times] : c.kills)
    std::printf("killed, %llu times: %s\n", static_cast<unsigned long long>(times), reason.c_str());
}

// In a process of its own: what dead daemons leave goes with it.
[[noreturn]] void run_one(const Options& options) {
  World world(options.seed);
  g_world = &world;
  world.watched_page = options.watch;
  auto logger = std::make_shared<spdlog::logger>("sim", std::make_shared<LogSink>(world));
  logger->set_level(spdlog::level::info);
  spdlog::set_default_logger(logger);
  auto* const machine = new Machine(world);
  machine->run(options.steps);
  g_world = nullptr;
  const bool good = world.failure.empty();
  std::printf("seed %llu (%s): %s, digest %016llx\n", static_cast<unsigned long long>(options.seed),
              kVersion, good ? "all right" : "FAILED",
              static_cast<unsigned long long>(world.digest));
  if (!good || options.seconds == 0) {
    std::printf("%s\n", machine->describe().c_str());
    print_counts(world.counts);
  }
  if (!good) {
    std::printf("%s\n%s\nagain: foldswap_sim --seed %llu --steps %llu --trace 1000\n",
                world.tail(options.trace).c_str(), world.failure.c_str(),
                static_cast<unsigned long long>(options.seed),
                static_cast<unsigned long long>(options.steps));
  }
  std::fflush(nullptr);
  ::_exit(good ? 0 : 1);
}

bool run_in_child(const Options& options) {
  std::fflush(nullptr);
  const pid_t child = ::fork();
  if (child == 0) run_one(options);
  int status = 0;
  if (child < 0 || ::waitpid(child, &status, 0) != child) {
    std::perror("foldswap_sim: fork");
    return false;
  }
  if (WIFSIGNALED(status))
    std::printf(
        "seed %llu (%s): ended by signal %d\nagain: foldswap_sim --seed %llu --steps %llu\n",
        static_cast<unsigned long long>(options.seed), kVersion, WTERMSIG(status),
        static_cast<unsigned long long>(options.seed),
        static_cast<unsigned long long>(options.steps));
  return WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

int run_for(Options options) {
  const auto now = [] { return static_cast<std::uint64_t>(::time(nullptr)); };
  const std::uint64_t end = now() + options.seconds;
  std::uint64_t failed = 0, runs = 0;
  const std::uint64_t first = options.seed;
  const auto one = [&](std::uint64_t seed) {
    options.seed = seed;
    ++runs;
    failed += run_in_child(options) ? 0 : 1;
  };
  one(std::random_device()() + 1'000'000ULL);
  for (std::uint64_t seed = first; now() < end && failed < 5; ++seed) one(seed);
  std::printf("%llu runs, %llu failed\n", static_cast<unsigned long long>(runs),
              static_cast<unsigned long long>(failed));
  return failed == 0 ? 0 : 1;
}

bool parse(int argc, char** argv, Options& options) {
  for (int i = 1; i + 1 < argc; i += 2) {
    const std::string_view name = argv[i], value = argv[i + 1];
    std::uint64_t number = 0;
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
    } else if (name == "--watch") {
      options.watch = number;
    } else if (name == "--trace") {
      options.trace = number;
    } else {
      return false;
    }
  }
  return argc % 2 == 1;
}

}  // namespace
}  // namespace foldswap::sim

int main(int argc, char** argv) {
  foldswap::sim::Options options;
  if (!foldswap::sim::parse(argc, argv, options)) {
    std::fprintf(
        stderr,
        "usage: foldswap_sim [--seed N] [--steps N] [--seconds S] [--trace N] [--watch PAGE]\n");
    return 2;
  }
  rlimit files{};
  if (::getrlimit(RLIMIT_NOFILE, &files) == 0) {
    files.rlim_cur = files.rlim_max;
    (void)::setrlimit(RLIMIT_NOFILE, &files);
  }
  if (options.seconds != 0) return foldswap::sim::run_for(options);
  foldswap::sim::run_one(options);
}
