// fault_bench: what one fault costs, and what an idle client costs at start-up.
//
//   fault_bench BUILD_DIR
//
// 1. One fault, p50 and p99: a program touches evicted pages one at a time, in random order, under
// foldswap; beside it, in the same
//    run and alternating, the same program over a bare userfaultfd round trip: a handler process
//    that spins as long as the daemon does, is pinned alike, and answers with one UFFDIO_COPY of a
//    page it has at hand. Both see the same pages, the same pauses and the same order.
// 2. Start-up: /bin/true, plain and as a client, many times each, alternating.
//
// Prints medians over rounds and the ratio. Not a test: nothing here fails for being slow.
#include <fcntl.h>
#include <linux/futex.h>
#include <poll.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <numeric>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "base/os.h"
#include "bench/bench_common.h"

namespace foldswap {
namespace {

using bench::quantile;
using bench::read_line;
using bench::spawn;
using bench::wait_for;

constexpr std::size_t kPages = 4096, kPage = 4096;
constexpr int kRounds = 5;
constexpr std::uint64_t kSpinUs = 20;  // the daemon's default, fault.spin_us

std::uint64_t now_ns() {
  return real_os().now_ns();
}

void pin(int cpu) {
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(static_cast<unsigned>(cpu), &set);
  (void)::sched_setaffinity(0, sizeof(set), &set);
}

struct Figures {
  double p50_us = 0, p99_us = 0;
};

// Heap-like: half of it text that repeats, half numbers that do not.
void fill(std::byte* area) {
  std::mt19937_64 random(42);
  for (std::size_t at = 0; at < kPages * kPage; at += 64) {
    std::array<char, 64> line{};
    std::snprintf(line.data(), line.size(), "record %zu of the table, key %zu,", at / 64, at % 997);
    const std::uint64_t number = random();
    std::memcpy(line.data() + 56, &number, sizeof(number));
    std::memcpy(area + at, line.data(), line.size());
  }
}

// Touches every page once, in an order that read-ahead cannot guess; a fault at a time.
std::vector<double> touch_all(const std::byte* area) {
  std::vector<std::size_t> order(kPages);
  std::iota(order.begin(), order.end(), 0U);
  std::ranges::shuffle(order, std::mt19937(7));
  std::vector<double> us;
  us.reserve(kPages);
  for (const std::size_t page : order) {
    const std::uint64_t begin = now_ns();
    (void)*reinterpret_cast<const volatile std::uint8_t*>(area + page * kPage + 128);
    us.push_back(static_cast<double>(now_ns() - begin) / 1000.0);
    const std::uint64_t pause = now_ns();
    while (now_ns() - pause < 5'000) {
    }
  }
  return us;
}

// The bare peer: a process that answers faults on a userfaultfd with a page it has at hand.
[[noreturn]] void bare_handler(int uffd) {
  pin(1);
  std::vector<std::byte> page(kPage, std::byte{1});
  std::uint64_t worked_at = 0;
  for (;;) {
    pollfd ready{uffd, POLLIN, 0};
    const bool spin = now_ns() - worked_at < kSpinUs * 1'000;
    if (::poll(&ready, 1, spin ? 0 : -1) < 0) ::_exit(0);
    std::array<uffd_msg, 64> messages{};
    const int n = real_os().uffd_read(uffd, messages);
    for (int i = 0; i < n; ++i) {
      const std::uint64_t address =
          messages[static_cast<std::size_t>(i)].arg.pagefault.address & ~(kPage - 1);
      (void)real_os().uffd_copy(uffd, address, page.data(), kPage);
      worked_at = now_ns();
    }
  }
}

Figures bare_round() {
  const int device = ::open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);
  const int uffd = ::ioctl(device, USERFAULTFD_IOC_NEW, O_CLOEXEC | O_NONBLOCK);
  if (uffd < 0 || real_os().uffd_api(uffd, UFFD_FEATURE_THREAD_ID) != 0) {
    std::fprintf(stderr, "fault_bench: no userfaultfd here\n");
    std::exit(1);
  }
  void* area =
      ::mmap(nullptr, kPages * kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  (void)real_os().uffd_register(uffd, reinterpret_cast<std::uint64_t>(area), kPages * kPage);
  const pid_t handler = ::fork();
  if (handler == 0) bare_handler(uffd);
  pin(0);
  const auto us = touch_all(static_cast<const std::byte*>(area));
  ::kill(handler, SIGKILL);
  ::waitpid(handler, nullptr, 0);
  ::munmap(area, kPages * kPage);
  ::close(uffd);
  ::close(device);
  return {quantile(us, 0.5), quantile(us, 0.99)};
}

// The part that runs as a client: fault_bench --client ROUNDS; talks over stdin and stdout.
int client_main() {
  pin(0);
  void* area =
      ::mmap(nullptr, kPages * kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  fill(static_cast<std::byte*>(area));
  std::string line;
  std::puts("ready");
  std::fflush(stdout);
  char command[16];
  while (std::fgets(command, sizeof(command), stdin) != nullptr) {
    const auto us = touch_all(static_cast<const std::byte*>(area));
    std::printf("%f %f\n", quantile(us, 0.5), quantile(us, 0.99));
    std::fflush(stdout);
  }
  return 0;
}

class Bench {
 public:
  explicit Bench(const std::string& build) : daemon_(build) {
    // The reader sits where the bare handler sits; its program has the other CPU to itself.
    for (const auto& task :
         std::filesystem::directory_iterator("/proc/" + std::to_string(daemon_.pid()) + "/task")) {
      cpu_set_t set;
      CPU_ZERO(&set);
      CPU_SET(1, &set);
      (void)::sched_setaffinity(std::stoi(task.path().filename().string()), sizeof(set), &set);
    }
  }

  void faults() {
    std::array<int, 2> to{}, from{};
    if (::pipe2(to.data(), O_CLOEXEC) != 0 || ::pipe2(from.data(), O_CLOEXEC) != 0) return;
    const pid_t client =
        spawn(daemon_.command({"run", "--name", "bench", "--require", "--", self_, "--client"}),
              to[0], from[1]);
    (void)client;
    std::vector<double> bare50, bare99, ours50, ours99;
    if (read_line(from[0]) != "ready") {
      std::fprintf(stderr, "fault_bench: the client did not start\n");
      return;
    }
    for (int round = 0; round < kRounds; ++round) {
      const Figures bare = bare_round();
      bare50.push_back(bare.p50_us);
      bare99.push_back(bare.p99_us);
      const pid_t reclaim =
          spawn(daemon_.command({"reclaim", "--client", "bench"}), -1, null_.get());
      if (wait_for(reclaim) != 0) std::fprintf(stderr, "fault_bench: reclaim failed\n");
      (void)!::write(to[1], "go\n", 3);
      double p50 = 0, p99 = 0;
      if (std::sscanf(read_line(from[0]).c_str(), "%lf %lf", &p50, &p99) != 2) return;
      ours50.push_back(p50);
      ours99.push_back(p99);
    }
    ::close(to[1]);
    (void)wait_for(client);
    const double b50 = quantile(bare50, 0.5), o50 = quantile(ours50, 0.5);
    const double b99 = quantile(bare99, 0.5), o99 = quantile(ours99, 0.5);
    std::printf("one fault, medians of %d rounds of %zu pages (us)\n", kRounds, kPages);
    std::printf("  %-28s p50 %7.2f   p99 %7.2f\n", "bare userfaultfd round trip", b50, b99);
    std::printf("  %-28s p50 %7.2f   p99 %7.2f\n", "foldswap (zstd:1)", o50, o99);
    std::printf("  %-28s p50 %7.2f   p99 %7.2f\n", "ratio", o50 / b50, o99 / b99);
  }

  void start_up() {
    constexpr int kRuns = 300;
    std::vector<double> plain, client;
    const std::string library = daemon_.library();
    ::setenv("FOLDSWAP_RUNTIME_DIR", daemon_.dir().c_str(), 1);
    for (int i = 0; i < kRuns; ++i) {
      for (const bool ours : {false, true}) {
        if (ours) ::setenv("LD_PRELOAD", library.c_str(), 1);
        const std::uint64_t begin = now_ns();
        const pid_t pid = spawn({"/bin/true"}, -1, -1);
        ::unsetenv("LD_PRELOAD");
        (void)wait_for(pid);
        (ours ? client : plain).push_back(static_cast<double>(now_ns() - begin) / 1000.0);
      }
    }
    ::unsetenv("FOLDSWAP_RUNTIME_DIR");
    const double p = quantile(plain, 0.5), c = quantile(client, 0.5);
    std::printf("start-up of /bin/true, medians of %d runs (us)\n", kRuns);
    std::printf("  plain %.0f   as a client %.0f   difference %.0f   ratio %.2f\n", p, c, c - p,
                c / p);
  }

 private:
  bench::Daemon daemon_;
  const std::string self_ = std::filesystem::read_symlink("/proc/self/exe").string();
  UniqueFd null_{::open("/dev/null", O_WRONLY | O_CLOEXEC)};
};

}  // namespace
}  // namespace foldswap

int main(int argc, char** argv) {
  if (argc == 2 && std::strcmp(argv[1], "--client") == 0) return foldswap::client_main();
  if (argc != 2) {
    std::fprintf(stderr, "usage: fault_bench BUILD_DIR\n");
    return 2;
  }
  foldswap::Bench bench(argv[1]);
  bench.faults();
  bench.start_up();
  return 0;
}
