// What the benchmarks share: child processes, their pipes, a daemon of their own, quantiles.
//
// For a benchmark's main thread. Errors end the benchmark with a line on stderr, or show as pid -1.
#pragma once

#include <spawn.h>
#include <sys/types.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <string>
#include <vector>

#include "base/os.h"

namespace foldswap::bench {

inline double quantile(std::vector<double> values, double share) {
  std::ranges::sort(values);
  return values[static_cast<std::size_t>(share * static_cast<double>(values.size() - 1))];
}

inline double median(const std::vector<double>& values) {
  return quantile(values, 0.5);
}

// in, out: what becomes its stdin and stdout; -1: as ours.
inline pid_t spawn(const std::vector<std::string>& args, int in, int out) {
  std::vector<char*> argv;
  for (const auto& a : args) argv.push_back(const_cast<char*>(a.c_str()));
  argv.push_back(nullptr);
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  if (in >= 0) posix_spawn_file_actions_adddup2(&actions, in, 0);
  if (out >= 0) posix_spawn_file_actions_adddup2(&actions, out, 1);
  pid_t pid = -1;
  if (::posix_spawnp(&pid, argv[0], &actions, nullptr, argv.data(), environ) != 0) pid = -1;
  posix_spawn_file_actions_destroy(&actions);
  return pid;
}

// The exit status; 128 for a death by signal.
inline int wait_for(pid_t pid) {
  int status = 0;
  while (::waitpid(pid, &status, 0) < 0 && errno == EINTR) {
  }
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128;
}

inline std::string read_line(int fd) {
  std::string line;
  char c = 0;
  while (::read(fd, &c, 1) == 1 && c != '\n') line += c;
  return line;
}

// A foldswapd of the benchmark's own, in a temporary directory, until the end of the scope.
class Daemon {
 public:
  explicit Daemon(std::string build) : build_(std::move(build)) {
    std::string name = (std::filesystem::temp_directory_path() / "foldswap-bench-XXXXXX").string();
    dir_ = ::mkdtemp(name.data());
    pid_ = spawn({build_ + "/bin/foldswapd", "--runtime-dir", dir_, "--set", "log.level=error"}, -1,
                 -1);
    for (int i = 0; i < 500 && !std::filesystem::exists(dir_ + "/client.sock"); ++i) {
      real_os().sleep_us(10'000);
    }
  }
  Daemon(const Daemon&) = delete;
  Daemon& operator=(const Daemon&) = delete;
  ~Daemon() {
    ::kill(pid_, SIGTERM);
    (void)wait_for(pid_);
    std::filesystem::remove_all(dir_);
  }

  [[nodiscard]] pid_t pid() const { return pid_; }
  [[nodiscard]] const std::string& dir() const { return dir_; }
  [[nodiscard]] std::string library() const { return build_ + "/lib/libfoldswap.so"; }

  // `foldswap ARGS` against this daemon.
  [[nodiscard]] std::vector<std::string> command(const std::vector<std::string>& args) const {
    std::vector<std::string> all{build_ + "/bin/foldswap", "--runtime-dir", dir_};
    all.insert(all.end(), args.begin(), args.end());
    return all;
  }

 private:
  std::string build_, dir_;
  pid_t pid_ = -1;
};

}  // namespace foldswap::bench
