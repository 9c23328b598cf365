// Small programs in one, each doing something that a library in the process could disturb. The test
// runs every mode plainly and under foldswap and compares output, errors and exit status. First
// argument: the mode.
#include <dirent.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <spawn.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <thread>

#include "tests/programs/lib/common.h"

using namespace testprog;

namespace {

constexpr std::size_t kPages = 4096;  // 16 MiB for the modes that verify memory

Region make_region() {
  Region region(map_bytes(kPages * kPage), kPages, 7, Kind::mixed);
  region.write_all();
  return region;
}

// Waits for the test to evict us, then works on.
void let_evict_and_check(const Region& region) {
  say("ready");
  static_cast<void>(next_command());
  region.check_all();
}

int list_fds() {
  std::vector<std::string> names;
  DIR* dir = opendir("/proc/self/fd");
  if (dir == nullptr) broken("opendir");
  while (const dirent* entry = readdir(dir)) {
    std::array<char, 256> target{};
    const std::string path = std::string("/proc/self/fd/") + entry->d_name;
    if (readlink(path.c_str(), target.data(), target.size() - 1) < 0) continue;
    std::string text = target.data();
    text.resize(std::min(text.find_first_of("[#"), text.size()));  // numbers differ each time
    if (text.starts_with("/proc/")) text = "proc";
    names.push_back(std::string(entry->d_name) + " " + text);
  }
  closedir(dir);
  std::sort(names.begin(), names.end());
  for (const auto& name : names) say(name);
  return 0;
}

int signal_state() {
  sigset_t blocked;
  must(sigprocmask(SIG_BLOCK, nullptr, &blocked), "sigprocmask");
  for (int s = 1; s < NSIG; ++s) {
    struct sigaction action{};
    const bool known = sigaction(s, nullptr, &action) == 0;
    if (sigismember(&blocked, s) == 1) say("blocked " + std::to_string(s));
    if (known && action.sa_handler != SIG_DFL) say("not default " + std::to_string(s));
  }
  say("umask " + std::to_string(umask(0)));
  return 0;
}

int environment(char** envp) {
  std::vector<std::string> lines;
  for (; *envp != nullptr; ++envp) {
    const std::string line = *envp;
    if (line.starts_with("FOLDSWAP_") || line.starts_with("LD_PRELOAD=")) continue;
    // `foldswap run` adds to it what such programs need behind a preloaded library.
    if (line.starts_with("ASAN_OPTIONS=")) continue;
    lines.push_back(line);
  }
  std::sort(lines.begin(), lines.end());
  for (const auto& line : lines) say(line);
  return 0;
}

int exec_chain(char** argv) {
  const int left = std::atoi(argv[2]);
  if (left == 0) {
    say(std::atoi(argv[3]) == getpid() ? "same pid" : "another pid");
    const Region region = make_region();
    let_evict_and_check(region);
    return 7;
  }
  const Region region = make_region();
  region.check_all();
  const std::string next = std::to_string(left - 1);
  const std::string first = argv[3] != nullptr ? argv[3] : std::to_string(getpid());
  execl("/proc/self/exe", argv[0], "exec_chain", next.c_str(), first.c_str(), nullptr);
  broken("exec");
}

int close_all() {
  const Region region = make_region();
  must(close_range(3, ~0U, 0), "close_range");
  for (int fd = 3; fd < 1024; ++fd) close(fd);
  let_evict_and_check(region);
  const int fd = must(open("/dev/null", O_RDONLY), "open");
  say("next fd " + std::to_string(fd));
  return 0;
}

// Every thread of the process, ours or not, must have given up root.
void check_thread_is_nobody(const std::string& status_path) {
  FILE* file = std::fopen(status_path.c_str(), "r");
  if (file == nullptr) return;  // the thread has just ended
  std::array<char, 256> line{};
  while (std::fgets(line.data(), line.size(), file) != nullptr) {
    const std::string text = line.data();
    if ((text.starts_with("Uid:") || text.starts_with("Gid:")) &&
        text.substr(4) != "\t65534\t65534\t65534\t65534\n") {
      wrong(("a thread keeps other credentials: " + text).c_str());
    }
  }
  std::fclose(file);
}

void check_all_threads_are_nobody() {
  DIR* dir = opendir("/proc/self/task");
  if (dir == nullptr) broken("opendir");
  while (const dirent* entry = readdir(dir)) {
    if (entry->d_name[0] == '.') continue;
    check_thread_is_nobody(std::string("/proc/self/task/") + entry->d_name + "/status");
  }
  closedir(dir);
}

int become_nobody() {
  const Region region = make_region();
  sigset_t all;
  sigfillset(&all);
  must(pthread_sigmask(SIG_BLOCK, &all, nullptr), "sigmask");
  must(setgid(65534), "setgid");
  must(setuid(65534), "setuid");
  if (setuid(0) == 0) wrong("root again after setuid(nobody)");
  check_all_threads_are_nobody();
  let_evict_and_check(region);
  say("uid " + std::to_string(getuid()));
  return 0;
}

int block_signals() {
  sigset_t all;
  sigfillset(&all);
  must(sigprocmask(SIG_SETMASK, &all, nullptr), "sigprocmask");
  const Region region = make_region();
  let_evict_and_check(region);
  must(kill(getpid(), SIGUSR1), "kill");
  sigset_t pending;
  must(sigpending(&pending), "sigpending");
  say(sigismember(&pending, SIGUSR1) == 1 ? "pending" : "lost");
  return 0;
}

int main_leaves() {
  static Region region = make_region();
  say("ready");
  static_cast<void>(next_command());
  std::thread([] {
    sleep_ms(300);
    region.check_all();
    say("last thread done");
  }).detach();
  pthread_exit(nullptr);
}

int thread_churn() {
  std::array<std::uint64_t, 16> sums{};
  for (int round = 0; round < 100; ++round) {
    std::vector<std::thread> threads;
    for (std::size_t t = 0; t < sums.size(); ++t) {
      threads.emplace_back([&sums, t] { sums[t] += t + 1; });
    }
    for (auto& thread : threads) thread.join();
  }
  std::uint64_t sum = 0;
  for (const std::uint64_t one : sums) sum += one;
  say("sum " + std::to_string(sum));
  return 0;
}

int spawn_children(char** envp) {
  const Region region = make_region();
  let_evict_and_check(region);
  std::fflush(stdout);
  if (std::system("echo from system; exit 3") != 3 << 8) wrong("system");
  const std::array<const char*, 4> argv{"sh", "-c", "echo from spawn; exit 4", nullptr};
  pid_t child = 0;
  const int error =
      posix_spawn(&child, "/bin/sh", nullptr, nullptr, const_cast<char**>(argv.data()), envp);
  int status = 0;
  if (error != 0 || waitpid(child, &status, 0) != child || status != 4 << 8) wrong("posix_spawn");
  child = vfork();
  if (child == 0) {
    execl("/bin/sh", "sh", "-c", "echo from vfork; exit 5", nullptr);
    _exit(127);
  }
  if (waitpid(child, &status, 0) != child || status != 5 << 8) wrong("vfork");
  FILE* pipe = popen("echo from popen", "r");
  std::array<char, 64> line{};
  if (pipe == nullptr || std::fgets(line.data(), line.size(), pipe) == nullptr) wrong("popen");
  say(line.data());
  if (pclose(pipe) != 0) wrong("pclose");
  region.check_all();
  return 0;
}

volatile sig_atomic_t signals_seen = 0;
const Region* handler_region = nullptr;

void on_signal(int) {
  handler_region->check(static_cast<std::size_t>(signals_seen) * 37 % handler_region->pages());
  signals_seen = signals_seen + 1;
}

int signal_stack() {
  Region region = make_region();
  handler_region = &region;
  stack_t stack{};
  stack.ss_size = 64 * 1024;
  stack.ss_sp = map_bytes(stack.ss_size);
  must(sigaltstack(&stack, nullptr), "sigaltstack");
  struct sigaction action{};
  action.sa_handler = on_signal;
  action.sa_flags = SA_ONSTACK | SA_RESTART;
  must(sigaction(SIGUSR1, &action, nullptr), "sigaction");
  must(sigaction(SIGALRM, &action, nullptr), "sigaction");
  let_evict_and_check(region);
  say("ready");
  static_cast<void>(next_command());
  for (int n = 0; n < 1000; ++n) must(kill(getpid(), n % 2 == 0 ? SIGUSR1 : SIGALRM), "kill");
  region.check_all();
  say("signals " + std::to_string(signals_seen));
  return 0;
}

// Blocks of every size come and go; each carries its own pattern.
int alloc_churn() {
  Random random(5);
  struct Block {
    unsigned char* data;
    std::size_t bytes;
    unsigned char tag;
  };
  std::vector<Block> blocks;
  std::uint64_t total = 0;
  for (int n = 0; n < 40000; ++n) {
    if (blocks.size() < 400 || random.below(2) == 0) {
      const std::size_t bytes = std::size_t{1} << random.below(20);
      auto* data = static_cast<unsigned char*>(std::malloc(bytes));
      const auto tag = static_cast<unsigned char>(random.next());
      if (data == nullptr) broken("malloc");
      std::memset(data, tag, bytes);
      blocks.push_back({data, bytes, tag});
    }
    if (blocks.size() < 300) continue;
    std::swap(blocks[random.below(blocks.size())], blocks.back());
    Block block = blocks.back();
    blocks.pop_back();
    if (block.data[0] != block.tag || block.data[block.bytes - 1] != block.tag)
      wrong("a block changed");
    if (random.below(4) == 0) {
      block.data = static_cast<unsigned char*>(std::realloc(block.data, block.bytes * 2));
      if (block.data == nullptr || block.data[block.bytes - 1] != block.tag)
        wrong("realloc lost bytes");
    }
    total += block.bytes;
    std::free(block.data);
  }
  say("bytes " + std::to_string(total));
  return 0;
}

int forks() {
  Region region = make_region();
  let_evict_and_check(region);
  for (int n = 0; n < 20; ++n) {
    const pid_t child = must(fork(), "fork");
    if (child == 0) {
      region.check(static_cast<std::size_t>(n) * 100);
      _exit(n);
    }
    int status = 0;
    must(waitpid(child, &status, 0), "waitpid");
    say("child " + std::to_string(WEXITSTATUS(status)));
  }
  region.check_all();
  return 0;
}

int outputs() {
  std::printf("to stdout\n");
  std::fprintf(stderr, "to stderr\n");
  std::fflush(stdout);
  return 42;
}

}  // namespace

int main(int argc, char** argv, char** envp) {
  const std::string mode = argc > 1 ? argv[1] : "";
  if (mode == "list_fds") return list_fds();
  if (mode == "signal_state") return signal_state();
  if (mode == "environment") return environment(envp);
  if (mode == "exec_chain") return exec_chain(argv);
  if (mode == "close_all") return close_all();
  if (mode == "become_nobody") return become_nobody();
  if (mode == "block_signals") return block_signals();
  if (mode == "main_leaves") return main_leaves();
  if (mode == "thread_churn") return thread_churn();
  if (mode == "spawn_children") return spawn_children(envp);
  if (mode == "signal_stack") return signal_stack();
  if (mode == "alloc_churn") return alloc_churn();
  if (mode == "forks") return forks();
  if (mode == "outputs") return outputs();
  if (mode == "exit_at_once") _exit(9);
  if (mode == "abort") std::abort();
  errno = EINVAL;
  broken(mode.c_str());
}
