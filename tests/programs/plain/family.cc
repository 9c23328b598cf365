// A family of processes that the test leads through the first one, one line a command, each
// answered by one line. "at I COMMAND" passes COMMAND to the I-th child, which may pass it on.
//   verify        check every page                                   -> ok
//   write N       rewrite N random pages                             -> ok
//   fork          a child that obeys, too                            -> its pid
//   rawfork       the same by a raw clone(), without fork handlers   -> its pid
//   storm N K     N threads fork K children each, at the same time; every child verifies and ends
//                 -> ok
//   brief N       N children that end at once                        -> ok
//   inherit       fork in a signal handler that runs at the end of a fork -> ok
//   end I         the I-th child ends                                -> ok
//   quit, or the end of the input: children end with us              -> bye
// --mb, --kind, --seed.
#include <signal.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <sstream>
#include <thread>

#include "tests/programs/lib/common.h"

using namespace testprog;

namespace {

struct Child {
  pid_t pid;
  int commands, answers;
};

// How a process of the family talks: the first one with the test, the others with their parent.
int in = STDIN_FILENO, out = STDOUT_FILENO;

std::string read_line(int fd) {
  std::string line;
  for (char c = 0; read(fd, &c, 1) == 1 && c != '\n';) line += c;
  return line;
}

void write_line(int fd, std::string line) {
  line += '\n';
  if (write(fd, line.data(), line.size()) != static_cast<ssize_t>(line.size())) _exit(kExitBroken);
}

class Member {
 public:
  Member(Region region, std::uint64_t seed) : region_(std::move(region)), random_(seed) {}

  void obey_all() {
    for (std::string line = read_line(in); !line.empty() && line != "quit"; line = read_line(in)) {
      write_line(out, obey(line));
    }
  }

 private:
  std::string obey(const std::string& line) {
    std::istringstream words(line);
    std::string command;
    words >> command;
    std::uint64_t a = 0, b = 0;
    if (command == "at") {
      words >> a;
      std::string rest;
      std::getline(words >> std::ws, rest);
      write_line(children_.at(a).commands, rest);
      return read_line(children_.at(a).answers);
    }
    words >> a >> b;
    if (command == "verify")
      region_.check_all();
    else if (command == "write")
      write_some(a);
    else if (command == "fork")
      return std::to_string(beget(fork));
    else if (command == "rawfork")
      return std::to_string(beget(raw_fork));
    else if (command == "storm")
      storm(a, b);
    else if (command == "brief")
      brief(a);
    else if (command == "inherit")
      fork_in_handler();
    else if (command == "end")
      end(a);
    else
      return "what is '" + line + "'?";
    return "ok";
  }

  void write_some(std::uint64_t count) {
    while (count-- > 0) region_.write(random_.below(region_.pages()));
  }

  static pid_t raw_fork() {
    return static_cast<pid_t>(syscall(SYS_clone, SIGCHLD, nullptr, nullptr, nullptr, nullptr));
  }

  pid_t beget(pid_t (*make)()) {
    int commands[2], answers[2];
    must(pipe(commands), "pipe");
    must(pipe(answers), "pipe");
    const pid_t pid = must(make(), "fork");
    if (pid != 0) {
      close(commands[0]);
      close(answers[1]);
      children_.push_back({pid, commands[1], answers[0]});
      return pid;
    }
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    // What only our parent may hold, or nobody would ever see an end.
    close(commands[1]);
    close(answers[0]);
    for (const Child& sibling : children_) {
      close(sibling.commands);
      close(sibling.answers);
    }
    children_.clear();
    in = commands[0];
    out = answers[1];
    region_.diverge(static_cast<std::uint64_t>(getpid()));
    obey_all();
    _exit(0);
  }

  static void await(pid_t pid) {
    int status = 0;
    must(waitpid(pid, &status, 0), "waitpid");
    if (status != 0) wrong("a child failed");
  }

  void storm(std::uint64_t threads, std::uint64_t children) {
    std::vector<std::thread> forkers;
    for (std::uint64_t t = 0; t < threads; ++t) {
      forkers.emplace_back([this, children, t] {
        for (std::uint64_t i = 0; i < children; ++i) {
          const pid_t pid = must(fork(), "fork");
          if (pid == 0) {
            Random random(t * 1000 + i);
            region_.check_random(random, 300);
            _exit(0);
          }
          await(pid);
        }
      });
    }
    for (auto& forker : forkers) forker.join();
  }

  static void brief(std::uint64_t count) {
    while (count-- > 0) {
      const pid_t pid = must(fork(), "fork");
      if (pid == 0) _exit(0);
      await(pid);
    }
  }

  // A signal that comes during fork() is delivered at its end, before its handlers have all run.
  void fork_in_handler() {
    struct sigaction action{};
    action.sa_handler = [](int) {
      const pid_t pid = fork();
      if (pid == 0) _exit(0);
      waitpid(pid, nullptr, 0);
    };
    must(sigaction(SIGUSR2, &action, nullptr), "sigaction");
    const pid_t self = getpid();
    std::atomic<bool> stop{false};
    std::thread shooter([&] {
      while (!stop) {
        kill(self, SIGUSR2);
        sleep_ms(1);
      }
    });
    for (int i = 0; i < 20; ++i) {
      const pid_t pid = fork();
      if (pid == 0) {
        signal(SIGUSR2, SIG_IGN);
        Random random(static_cast<std::uint64_t>(i));
        region_.check_random(random, 100);
        _exit(0);
      }
      int status = 0;
      while (waitpid(pid, &status, 0) < 0 && errno == EINTR) {
      }
      if (status != 0) wrong("a child failed");
    }
    stop = true;
    shooter.join();
  }

  void end(std::uint64_t which) {
    const Child child = children_.at(which);
    close(child.commands);
    close(child.answers);
    await(child.pid);
  }

  Region region_;
  Random random_;
  std::vector<Child> children_;
};

}  // namespace

int main(int argc, char** argv) {
  const Options options(argc, argv);
  const std::size_t pages = options.number("mb", 32) * 256;
  const std::uint64_t seed = options.number("seed", 1);
  signal(SIGPIPE, SIG_IGN);
  Region region(map_bytes(pages * kPage), pages, seed, parse_kind(options.text("kind", "mixed")));
  region.write_all();
  write_line(out, "ready");
  Member(std::move(region), seed).obey_all();
  write_line(out, "bye");
  return 0;
}
