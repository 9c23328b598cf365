// foldswapd: start-up, as a list of passes.
#include <fcntl.h>
#include <spdlog/async.h>
#include <spdlog/sinks/stdout_sinks.h>
#include <spdlog/spdlog.h>
#include <sys/mman.h>
#include <sys/resource.h>

#include <CLI/CLI.hpp>
#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <iostream>

#include "base/io_ring.h"
#include "daemon/host/notify.h"
#include "daemon/host/version.h"
#include "daemon/recovery/hand_over.h"
#include "daemon/recovery/keeper.h"
#include "daemon/recovery/take_over.h"
#include "daemon/server/daemon.h"
#include "daemon/state/noted_fds.h"

namespace foldswap {
namespace {

struct Options {
  std::optional<std::filesystem::path> config_file;
  std::string runtime_dir;
  bool keeper = false;
  std::vector<std::string> settings;
};

// Logging is asynchronous and drops rather than waits: the sink may be a pipe whose reader is one
// of our clients.
void start_logging() {
  spdlog::init_thread_pool(8192, 1);
  auto logger = std::make_shared<spdlog::async_logger>(
      "foldswapd", std::make_shared<spdlog::sinks::stderr_sink_mt>(), spdlog::thread_pool(),
      spdlog::async_overflow_policy::overrun_oldest);
  logger->set_pattern("%Y-%m-%dT%H:%M:%S.%e %l foldswapd: %v");
  logger->flush_on(spdlog::level::info);
  // The worker thread may use a logger until spdlog::shutdown() has joined it; this reference
  // outlives that.
  static std::shared_ptr<spdlog::logger> keep;
  keep = logger;
  spdlog::set_default_logger(std::move(logger));
}

// The daemon's own memory must never wait for memory.
void guard_own_memory() {
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
  constexpr int kOnFault = 4;  // MCL_ONFAULT: the state files are sparse
  if (::mlockall(MCL_CURRENT | MCL_FUTURE | kOnFault) != 0) {
    spdlog::warn("cannot lock own memory ({}): under pressure faults may be slow",
                 std::strerror(errno));
  }
#endif
  const UniqueFd score(::open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC));
  if (!score.valid() || ::write(score.get(), "-900", 4) != 4) {
    spdlog::debug("cannot lower the OOM score");
  }
}

void raise_descriptor_limit() {
  rlimit limit{};
  if (::getrlimit(RLIMIT_NOFILE, &limit) != 0) return;
  limit.rlim_cur = limit.rlim_max;
  (void)::setrlimit(RLIMIT_NOFILE, &limit);
}

int complain(const std::string& text) {
  std::cerr << "foldswapd: " << text << "\n";
  return 1;
}

// With a descriptor of its own: that of the keeper stays open whatever goes wrong here.
Result<UniqueFd> own_state_fd(const Inherited& inherited) {
  UniqueFd fd(::fcntl(inherited.state_fd, F_DUPFD_CLOEXEC, 0));
  if (!fd.valid()) return fail_errno("no descriptor for the state file");
  return fd;
}

Result<std::unique_ptr<State>> find_state(const Inherited& inherited) {
  if (inherited.state_fd < 0) return State::create(real_os());
  auto fd = own_state_fd(inherited);
  if (!fd) return std::unexpected(fd.error());
  if (!inherited.after_a_death || !State::begun(real_os(), fd->get()))
    return State::create(real_os(), std::move(*fd));
  auto state = State::take_over(real_os(), std::move(*fd));
  if (!state) return state;
  if ((*state)->header().unnoted == 0) close_others(noted_fds(**state), inherited.first_fd);
  return state;
}

// The manager has it all, for sure.
int hand_over(DescriptorStore* store) {
  const auto done = store != nullptr ? store->complete() : fail("there is no descriptor store");
  return done ? kHandedOver : complain(done.error().text());
}

// Whoever is told to hand over takes part in nothing. No status: the manager cannot take it all, so
// this daemon has to serve, and does what Daemon::run does then.
std::optional<int> hand_over_at_once(const Inherited& inherited) {
  if (!manager_listens() || !State::begun(real_os(), inherited.state_fd)) return kHandedOver;
  auto fd = own_state_fd(inherited);
  if (!fd) return complain(fd.error().text());
  auto state = State::open(real_os(), std::move(*fd));
  if (!state) return complain(state.error().text());
  if (!can_store(**state)) return std::nullopt;
  return hand_over(DescriptorStore::make(**state).get());
}

// Whether the clients may be left to somebody else. Without a store, the keeper has to live.
Status may_hand_over(const Inherited& inherited, const State& state) {
  if (inherited.keeper_pid == 0) return fail("there is no keeper");
  if (manager_listens()) return can_store(state);
  if (::getppid() != inherited.keeper_pid) return fail("the keeper is gone");
  return {};
}

// The daemon has stopped its threads, and nothing of it is destroyed: what it holds stays open.
int hand_over(std::unique_ptr<Daemon> owner) {
  spdlog::shutdown();
  Daemon& daemon = *owner.release();
  daemon.state().forget_settings();  // who restarts it wants what the files say
  return manager_listens() ? hand_over(daemon.descriptor_store()) : kHandedOver;
}

int run_daemon(const Options& options, Config config, const Inherited& inherited) {
  // 0. What a daemon that died has left behind, and no more of it than that.
  if (inherited.asked == SIGUSR2) {
    if (const auto status = hand_over_at_once(inherited)) return *status;
  }
  if (inherited.after_a_death && State::begun(real_os(), inherited.state_fd)) {
    if (auto ok = State::fits(real_os(), inherited.state_fd); !ok) {
      (void)complain(ok.error().text());
      return kRefused;
    }
  }
  auto state = find_state(inherited);
  if (!state) return complain(state.error().text());
  for (const std::string& setting : (*state)->settings()) {
    if (auto done = set_assignment(config, setting); !done) (void)complain(done.error().text());
  }
  // 1. The helpers are forked while this process has one thread and no client's descriptor.
  auto vetting = Vetting::start();
  if (!vetting) return complain(vetting.error().text());
  auto injector = Injector::start();
  if (!injector) return complain(injector.error().text());
  // 2. Signals are taken by a descriptor; every thread inherits the mask.
  sigset_t signals;
  sigemptyset(&signals);
  for (const int signal : {SIGTERM, SIGINT, SIGUSR2, SIGPIPE, SIGHUP}) sigaddset(&signals, signal);
  (void)::pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  if (inherited.asked != 0) (void)::raise(inherited.asked);
  // 3. Logging, limits.
  start_logging();
  raise_descriptor_limit();
  guard_own_memory();
  use_io_uring();
  // 4. State, pool, threads, sockets.
  auto daemon = Daemon::create(real_os(), std::move(config), options.runtime_dir,
                               {std::move(*vetting), std::move(*injector)}, std::move(*state));
  if (!daemon) {
    spdlog::shutdown();
    return complain(daemon.error().text());
  }
  // 5. Serve.
  Daemon& d = **daemon;
  const auto ending = d.run({.alive = [&] { tell_alive(inherited); },
                             .may_hand_over = [&] { return may_hand_over(inherited, d.state()); }});
  if (ending && *ending == Daemon::Ending::handed_over) return hand_over(std::move(*daemon));
  // As in Daemon::create(): what was taken over must not be closed.
  if (!ending && d.state().header().incarnation > 1) (void)daemon->release();
  daemon->reset();
  spdlog::shutdown();
  return ending ? 0 : complain(ending.error().text());
}

int start(int argc, char** argv) {
  Options options;
  CLI::App app{"foldswapd: compressed swap in user space"};
  std::string config_file;
  app.add_option("--config", config_file,
                 "configuration file (default: /etc/foldswap/foldswap.toml)");
  app.add_option("--runtime-dir", options.runtime_dir,
                 "directory of the sockets (default: $FOLDSWAP_RUNTIME_DIR or /run/foldswap)");
  app.add_flag(
      "--keeper", options.keeper,
      "a parent process holds every descriptor, and starts the next daemon when one dies or "
      "hands over (SIGUSR2)");
  app.add_option("--set", options.settings,
                 "KEY=VALUE: overrides the configuration; may be repeated")
      ->allow_extra_args(false);
  app.set_version_flag("--version", std::string("foldswapd ") + kVersion);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : 2;
  }
  if (options.runtime_dir.empty()) {
    const char* from_env = std::getenv("FOLDSWAP_RUNTIME_DIR");
    options.runtime_dir = from_env != nullptr && *from_env != 0 ? from_env : "/run/foldswap";
  }
  if (!config_file.empty()) options.config_file = config_file;
  auto config = load_config(options.config_file);
  if (!config) return complain(config.error().text());
  for (const std::string& setting : options.settings) {
    if (auto done = set_assignment(*config, setting); !done) {
      (void)complain("--set: " + done.error().text());
      return 2;
    }
  }
  if (auto ok = check_kernel(real_os()); !ok) return complain(ok.error().text());
  if (!options.keeper) return run_daemon(options, std::move(*config), Inherited{});
  if (const int fd = state_to_judge(); fd >= 0) {
    const auto fits = State::fits(real_os(), fd);
    return fits ? 0 : complain(fits.error().text());
  }
  raise_descriptor_limit();
  return run_keeper({.runtime_dir = options.runtime_dir,
                     .state_bytes = State::file_bytes(),
                     .arguments = argv,
                     .daemon = [&](const Inherited& inherited) {
                       return run_daemon(options, *config, inherited);
                     }});
}

}  // namespace
}  // namespace foldswap

int main(int argc, char** argv) {
  return foldswap::start(argc, argv);
}
