// Runs probe.cc under the preload library and talks to it. Thread safety: one thread.
#pragma once

#include <sys/types.h>

#include <string>
#include <vector>

#include "base/unique_fd.h"

namespace foldswap::preload_test {

class Probe {
 public:
  struct Options {
    std::string runtime_dir;
    // "NAME=VALUE", beside LD_PRELOAD and FOLDSWAP_RUNTIME_DIR
    std::vector<std::string> environment = {};
    bool preload = true;
    bool seccomp = false;
    bool late = false;  // its agent comes when the daemon sends one; else at start
  };
  explicit Probe(const Options& options);
  ~Probe();
  Probe(const Probe&) = delete;
  Probe& operator=(const Probe&) = delete;

  [[nodiscard]] pid_t pid() const { return pid_; }
  void send(const std::string& command);
  [[nodiscard]] std::string answer();  // "" at the end of its output
  [[nodiscard]] std::string ask(const std::string& command);
  [[nodiscard]] long number(const std::string& command);
  [[nodiscard]] unsigned long address(const std::string& command);
  // Ends its input (unless it ended by itself) and waits: exit status, or 1000 + signal; -1: it
  // hangs.
  [[nodiscard]] int finish();
  // All it wrote to stderr; after finish().
  [[nodiscard]] std::string complaints();

  // Field of /proc/PID/task/TID/status ("Uid"), of the agent.
  [[nodiscard]] std::string agent_status(const std::string& field) const;
  [[nodiscard]] pid_t agent_tid() const;  // 0: none

 private:
  pid_t pid_ = -1;
  bool reaped_ = false;
  std::string buffer_;
  UniqueFd in_, out_, err_;
};

}  // namespace foldswap::preload_test
