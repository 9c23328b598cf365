#include "preload/testing/probe_process.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <filesystem>
#include <fstream>
#include <thread>

namespace foldswap::preload_test {
namespace {

constexpr int kPatienceMs = 15'000;

struct Pipe {
  UniqueFd read, write;
  Pipe() {
    int fds[2] = {-1, -1};
    EXPECT_EQ(::pipe2(fds, O_CLOEXEC), 0);
    read.reset(fds[0]);
    write.reset(fds[1]);
  }
};

std::vector<char*> pointers(std::vector<std::string>& strings) {
  std::vector<char*> result;
  for (std::string& text : strings) result.push_back(text.data());
  result.push_back(nullptr);
  return result;
}

}  // namespace

Probe::Probe(const Options& options) {
  Pipe in, out, err;
  std::vector<std::string> arguments{FOLDSWAP_PROBE};
  if (options.seccomp) arguments.emplace_back("seccomp");
  std::vector<std::string> environment = options.environment;
  environment.push_back("FOLDSWAP_RUNTIME_DIR=" + options.runtime_dir);
  if (!options.late) environment.emplace_back("FOLDSWAP_REQUIRE=1");
  if (options.preload) {
    environment.push_back((options.seccomp ? "PROBE_PRELOAD=" : "LD_PRELOAD=") +
                          std::string(FOLDSWAP_LIBRARY));
  }
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_adddup2(&actions, in.read.get(), 0);
  posix_spawn_file_actions_adddup2(&actions, out.write.get(), 1);
  posix_spawn_file_actions_adddup2(&actions, err.write.get(), 2);
  posix_spawn_file_actions_addclosefrom_np(&actions, 3);
  EXPECT_EQ(::posix_spawn(&pid_, FOLDSWAP_PROBE, &actions, nullptr, pointers(arguments).data(),
                          pointers(environment).data()),
            0);
  posix_spawn_file_actions_destroy(&actions);
  in_ = std::move(in.write);
  out_ = std::move(out.read);
  err_ = std::move(err.read);
}

Probe::~Probe() {
  if (reaped_ || pid_ <= 0) return;
  ::kill(pid_, SIGKILL);
  ::waitpid(pid_, nullptr, 0);
}

void Probe::send(const std::string& command) {
  const std::string line = command + "\n";
  EXPECT_EQ(::write(in_.get(), line.data(), line.size()), static_cast<ssize_t>(line.size()));
}

std::string Probe::answer() {
  for (;;) {
    if (const auto end = buffer_.find('\n'); end != std::string::npos) {
      std::string line = buffer_.substr(0, end);
      buffer_.erase(0, end + 1);
      return line;
    }
    pollfd ready{out_.get(), POLLIN, 0};
    char text[4096];
    const ssize_t got =
        ::poll(&ready, 1, kPatienceMs) == 1 ? ::read(out_.get(), text, sizeof(text)) : 0;
    if (got <= 0) {
      ADD_FAILURE() << "the probe does not answer";
      return "";
    }
    buffer_.append(text, static_cast<std::size_t>(got));
  }
}

std::string Probe::ask(const std::string& command) {
  send(command);
  return answer();
}

long Probe::number(const std::string& command) {
  const std::string text = ask(command);
  return text.empty() ? -1'000'000 : std::stol(text);
}

unsigned long Probe::address(const std::string& command) {
  const std::string text = ask(command);
  return text.empty() ? 0 : std::stoul(text);
}

int Probe::finish() {
  in_.reset();
  for (int waited = 0; waited < kPatienceMs; ++waited) {
    int status = 0;
    if (::waitpid(pid_, &status, WNOHANG) == pid_) {
      reaped_ = true;
      return WIFEXITED(status) ? WEXITSTATUS(status) : 1000 + WTERMSIG(status);
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  return -1;
}

std::string Probe::complaints() {
  std::string all;
  char text[4096];
  for (ssize_t got = 0; (got = ::read(err_.get(), text, sizeof(text))) > 0;) {
    all.append(text, static_cast<std::size_t>(got));
  }
  return all;
}

pid_t Probe::agent_tid() const {
  std::error_code error;
  const std::string tasks = "/proc/" + std::to_string(pid_) + "/task";
  for (const auto& task : std::filesystem::directory_iterator(tasks, error)) {
    std::ifstream file(task.path() / "comm");
    std::string name;
    if (std::getline(file, name) && name == "foldswap-agent") {
      return static_cast<pid_t>(std::stol(task.path().filename()));
    }
  }
  return 0;
}

std::string Probe::agent_status(const std::string& field) const {
  std::ifstream file("/proc/" + std::to_string(pid_) + "/task/" + std::to_string(agent_tid()) +
                     "/status");
  for (std::string line; std::getline(file, line);) {
    if (line.starts_with(field + ":")) return line.substr(field.size() + 1);
  }
  return "";
}

}  // namespace foldswap::preload_test
