// churn_bench: what a client pays for memory that has nothing to do with foldswap.
//
//   churn_bench BUILD_DIR [ROUNDS]
//
// Three processes do the same works (churn_works.h), by turns, in rounds whose order turns round as
// well: one plain; one a client with nothing out; one a client of which half of a 64 MiB region is
// out, so that interposed calls ask the daemon, while the memory that churns is not registered.
// Prints medians, and the ratio of plain to client (1: as fast as plain; the goal is 0.95 with
// nothing out): of the medians; of the fastest turns, and of the CPU time of the process and its
// children, because on a machine that others use medians of wall time mean little. Not a test:
// nothing here fails for being slow.
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/resource.h>

#include <array>
#include <cstdio>
#include <cstring>
#include <fstream>

#include "base/unique_fd.h"
#include "base/wire.h"
#include "bench/bench_common.h"
#include "bench/churn_works.h"

namespace foldswap::bench {
namespace {

constexpr std::size_t kPage = 4096;
constexpr std::size_t kRegionBytes = 64UL << 20;
constexpr double kTurnNs = 25e6;  // what one turn of a work should take
constexpr double kGoal = 0.95;
constexpr int kRounds = 21;

struct Turn {
  double wall_ns = 0, cpu_ns = 0;
};

double cpu_ns() {
  timespec own{};
  ::clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &own);
  double sum = static_cast<double>(own.tv_sec) * 1e9 + static_cast<double>(own.tv_nsec);
  rusage children{};
  ::getrusage(RUSAGE_CHILDREN, &children);
  for (const timeval& t : {children.ru_utime, children.ru_stime}) {
    sum += static_cast<double>(t.tv_sec) * 1e9 + static_cast<double>(t.tv_usec) * 1e3;
  }
  return sum;
}

// KiB of this process that a userfaultfd is registered for (`um` among the VmFlags), but for what
// `region` covers.
std::size_t registered_kib_outside(const void* region) {
  std::ifstream smaps("/proc/self/smaps");
  const auto from = reinterpret_cast<std::uint64_t>(region);
  std::uint64_t start = 0, end = 0;
  std::size_t kib = 0;
  for (std::string line; std::getline(smaps, line);) {
    unsigned long a = 0, b = 0;
    if (std::sscanf(line.c_str(), "%lx-%lx ", &a, &b) == 2) {
      start = a;
      end = b;
    }
    const bool inside = start >= from && end <= from + kRegionBytes;
    if (line.starts_with("VmFlags:") && line.find(" um") != std::string::npos && !inside) {
      kib += (end - start) / 1024;
    }
  }
  return kib;
}

// The process that works: churn_bench --work. A line "NUMBER OPS" in, a line "WALL CPU" out;
// "registered" is answered with registered_kib_outside().
int work_main() {
  auto* const region =
      ::mmap(nullptr, kRegionBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (region == MAP_FAILED) return 1;
  for (std::size_t at = 0; at < kRegionBytes; at += sizeof(at)) {
    std::memcpy(static_cast<char*>(region) + at, &at, sizeof(at));
  }
  std::puts("ready");
  std::fflush(stdout);
  for (std::array<char, 64> line{}; std::fgets(line.data(), line.size(), stdin) != nullptr;) {
    std::size_t number = 0;
    unsigned long ops = 0;
    if (std::sscanf(line.data(), "%zu %lu", &number, &ops) != 2 || number >= works().size()) {
      std::printf("%zu\n", registered_kib_outside(region));
    } else {
      const double cpu = cpu_ns();
      const std::uint64_t wall = real_os().now_ns();
      works()[number].run(ops);
      const auto wall_ns = static_cast<double>(real_os().now_ns() - wall);
      std::printf("%f %f\n", wall_ns, cpu_ns() - cpu);
    }
    std::fflush(stdout);
  }
  return 0;
}

class Worker {
 public:
  explicit Worker(std::vector<std::string> command) {
    std::array<int, 2> to{}, from{};
    if (::pipe2(to.data(), O_CLOEXEC) != 0 || ::pipe2(from.data(), O_CLOEXEC) != 0) return;
    command.push_back(std::filesystem::read_symlink("/proc/self/exe").string());
    command.emplace_back("--work");
    pid_ = spawn(command, to[0], from[1]);
    ::close(to[0]);
    ::close(from[1]);
    to_.reset(to[1]);
    from_.reset(from[0]);
    if (read_line(from_.get()) != "ready") {
      std::fprintf(stderr, "churn_bench: a process did not start\n");
      std::exit(1);
    }
  }
  Worker(const Worker&) = delete;
  Worker& operator=(const Worker&) = delete;
  ~Worker() {
    to_.reset();
    (void)wait_for(pid_);
  }

  std::string ask(const std::string& line) {
    (void)!::write(to_.get(), (line + "\n").c_str(), line.size() + 1);
    return read_line(from_.get());
  }

  Turn turn(std::size_t work, std::uint64_t ops) {
    Turn t;
    const std::string answer = ask(std::to_string(work) + " " + std::to_string(ops));
    if (std::sscanf(answer.c_str(), "%lf %lf", &t.wall_ns, &t.cpu_ns) != 2) {
      std::fprintf(stderr, "churn_bench: a process ended in '%s'\n", works()[work].name);
      std::exit(1);
    }
    return t;
  }

 private:
  pid_t pid_ = -1;
  UniqueFd to_, from_;
};

struct Series {
  std::vector<double> wall, cpu;
};

std::uint64_t calibrate(Worker& plain, std::size_t work) {
  for (std::uint64_t ops = 1;; ops *= 2) {
    if (plain.turn(work, ops).wall_ns >= kTurnNs / 2) return ops * 2;
  }
}

double best(const std::vector<double>& values) {
  return *std::ranges::min_element(values);
}

// Ratios of plain to client: 1 is as fast as plain.
void row(const Work& work, std::uint64_t ops, const Series& plain, const Series& client,
         bool judged) {
  const auto us = [&](const std::vector<double>& v) {
    return median(v) / static_cast<double>(ops) / 1000;
  };
  const double wall = median(plain.wall) / median(client.wall);
  const double cpu = median(plain.cpu) / median(client.cpu);
  const double fastest = best(plain.wall) / best(client.wall);
  const bool under = judged && work.judged && std::max({wall, cpu, fastest}) < kGoal;
  std::printf("  %-32s %10.2f %10.2f %7.3f %7.3f %7.3f%s\n", work.name, us(plain.wall),
              us(client.wall), wall, fastest, cpu, under ? "  under 0.95" : "");
}

void table(const char* title, const std::vector<std::uint64_t>& ops,
           const std::vector<Series>& plain, const std::vector<Series>& client, bool judged) {
  std::printf("%s\n  %-32s %10s %10s %7s %7s %7s\n", title, "", "plain us", "client us", "ratio",
              "fastest", "cpu");
  for (std::size_t w = 0; w < works().size(); ++w) {
    row(works()[w], ops[w], plain[w], client[w], judged);
  }
}

// Half of the region out. A reclaim takes what has not been used for longest, the region; what else
// it took comes back in the turns that are not counted.
void take_half_out(const Daemon& daemon, const std::string& client) {
  const UniqueFd null{::open("/dev/null", O_WRONLY | O_CLOEXEC)};
  const pid_t reclaim = spawn(
      daemon.command({"reclaim", "--client", client, "--bytes", std::to_string(kRegionBytes / 2)}),
      -1, null.get());
  if (wait_for(reclaim) != 0) std::fprintf(stderr, "churn_bench: reclaim came short\n");
}

void run(const std::string& build, int rounds) {
  const Daemon daemon(build);
  Worker plain({});
  Worker idle(daemon.command({"run", "--name", "idle", "--require", "--"}));
  Worker half(daemon.command({"run", "--name", "half", "--require", "--"}));
  const std::array<Worker*, 3> workers{&plain, &idle, &half};
  take_half_out(daemon, "half");

  const std::size_t n = works().size();
  std::vector<std::uint64_t> ops(n);
  std::array<std::vector<Series>, 3> series{};
  for (auto& s : series) s.resize(n);
  for (std::size_t w = 0; w < n; ++w) {
    ops[w] = calibrate(plain, w);
    for (Worker* worker : workers) (void)worker->turn(w, ops[w]);  // not counted
    for (int round = 0; round < rounds; ++round) {
      for (std::size_t k = 0; k < workers.size(); ++k) {
        const std::size_t who = (k + static_cast<std::size_t>(round)) % workers.size();
        const Turn t = workers[who]->turn(w, ops[w]);
        series[who][w].wall.push_back(t.wall_ns);
        series[who][w].cpu.push_back(t.cpu_ns);
      }
    }
  }
  std::printf("churn, medians of %d rounds; per operation\n", rounds);
  table("nothing out", ops, series[0], series[1], true);
  table("half of another 64 MiB out", ops, series[0], series[2], false);
  std::printf("  KiB registered outside that region: %s (%llu are the library's own)\n",
              half.ask("registered").c_str(), wire::kStagingBytes / 1024ULL);
}

}  // namespace
}  // namespace foldswap::bench

int main(int argc, char** argv) {
  if (argc == 2 && std::strcmp(argv[1], "--work") == 0) return foldswap::bench::work_main();
  const int rounds = argc == 3 ? std::atoi(argv[2]) : foldswap::bench::kRounds;
  if (argc < 2 || argc > 3 || rounds < 1) {
    std::fprintf(stderr, "usage: churn_bench BUILD_DIR [ROUNDS]\n");
    return 2;
  }
  foldswap::bench::run(argv[1], rounds);
  return 0;
}
