// Threads discard memory of their own without a pause, as allocators and garbage collectors do,
// while another reads what is out. Nobody tells it when: it begins when most of its memory is out,
// so that a debugger can have its input. --how=
//   discard  --threads threads, each over and over its --own pages; --apart: in extents where
//            nothing else lies; --movers: threads that move memory to and fro by mremap besides;
//            --forks: so many forks besides
//   calls    besides, threads sleep in system calls that end with EINTR when they are interrupted:
//            none may, until each gets signals of its own, and sees each of them
// --mb, --seed, --reads, --bound_s: how long one read may take.
#include <linux/aio_abi.h>
#include <pthread.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/sem.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <csignal>
#include <cstdio>
#include <memory>
#include <thread>
#include <vector>

#include "tests/programs/lib/common.h"
#include "tests/programs/lib/residence.h"

using namespace testprog;

namespace {

constexpr std::size_t kExtentPages = 512;
std::uint64_t progress = 0;
std::atomic<bool> stopping{false};

void made_progress() {
  __atomic_fetch_add(&progress, 1, __ATOMIC_RELAXED);
}

// A few pages at the start of each extent are the discarders', or every other extent is.
bool is_discarded(std::size_t page, std::size_t own, bool apart) {
  return apart ? page / kExtentPages % 2 == 1 : page % kExtentPages < own;
}

class Discarders {
 public:
  Discarders(Region& region, const Options& options) {
    const std::size_t threads = options.number("threads", 8), own = options.number("own", 1);
    const std::size_t step = options.has("apart") ? 2 * kExtentPages : kExtentPages;
    for (std::size_t t = 0; t < threads; ++t) {
      const std::size_t first = t * step + (options.has("apart") ? kExtentPages : 0);
      if (first + own > region.pages()) break;
      threads_.emplace_back([&region, first, own] {
        const auto discard = [&](std::size_t page) {
          must(madvise(region.page(page), kPage, MADV_DONTNEED), "madvise");
        };
        for (std::size_t n = 0; n < own; ++n) {
          discard(first + n);
          region.forget(first + n);
        }
        for (std::size_t n = 0; !stopping; n = n + 1 == own ? 0 : n + 1) discard(first + n);
      });
    }
  }
  Discarders(const Discarders&) = delete;
  Discarders& operator=(const Discarders&) = delete;
  ~Discarders() {
    stopping = true;
    for (auto& thread : threads_) thread.join();
  }

 private:
  std::vector<std::thread> threads_;
};

// To and fro between two places, of which one is always empty; what it holds is compared each time.
class Mover {
 public:
  explicit Mover(std::uint64_t seed)
      : home_(map_aligned(2 * kBytes)), region_(home_, kBytes / kPage, seed, Kind::mixed) {
    region_.write_all();
  }
  [[nodiscard]] const Region& region() const { return region_; }
  void run() {
    for (std::size_t n = 0; !stopping; ++n) {
      std::byte* const from = home_ + (n % 2) * kBytes;
      std::byte* const to = home_ + ((n + 1) % 2) * kBytes;
      void* const moved = mremap(from, kBytes, kBytes, MREMAP_MAYMOVE | MREMAP_FIXED, to);
      if (moved == MAP_FAILED) broken("mremap");
      region_.moved_to(to);
      region_.check(n % region_.pages());
      made_progress();
    }
    region_.check_all();
  }

 private:
  static constexpr std::size_t kBytes = 16 * kPage;
  std::byte* const home_;
  Region region_;
};

void wait_until_out(const Region& region) {
  const Residence here;
  for (int i = 0; i < 1'200; ++i, sleep_ms(50)) {
    if (here.pages_in(region.base(), region.bytes()) < region.pages() / 2) return;
  }
  broken("its memory stays in");
}

void fork_once(const Region& region, std::size_t page) {
  const pid_t child = must(fork(), "fork");
  if (child == 0) {
    region.check(page);
    _exit(0);
  }
  int status = 0;
  must(waitpid(child, &status, 0), "waitpid");
  if (status != 0) wrong("the child's memory");
}

// Reads from the end, so that no window is read ahead.
void read_pages(Region& region, const Options& options) {
  const std::size_t own = options.number("own", 1);
  const bool apart = options.has("apart");
  const std::size_t reads = options.number("reads", 200), forks = options.number("forks", 0);
  double worst = 0;
  std::size_t n = 0;
  for (std::size_t page = 0; n < reads;) {
    page = page == 0 ? region.pages() - 1 : page - 1;
    if (page % 7 != 0 || is_discarded(page, own, apart)) continue;
    ++n;
    const double begun = seconds_now();
    region.check(page);
    worst = std::max(worst, seconds_now() - begun);
    made_progress();
    if (forks != 0 && n % (reads / forks) == 0) fork_once(region, page);
  }
  std::fprintf(stderr, "the slowest read: %.3f s\n", worst);
}

int discard(const Options& options) {
  const std::size_t pages = options.number("mb", 16) * 256;
  static Region region(map_aligned(pages * kPage), pages, options.number("seed", 1), Kind::mixed);
  region.write_all();
  std::vector<std::unique_ptr<Mover>> movers;
  for (std::size_t m = 0; m < options.number("movers", 0); ++m)
    movers.push_back(std::make_unique<Mover>(m + 1));
  say("ready");
  wait_until_out(region);
  watch_progress(&progress, static_cast<unsigned>(options.number("bound_s", 10)));
  {
    const Discarders discarders(region, options);
    std::vector<std::thread> moving;
    for (auto& mover : movers) moving.emplace_back([&mover] { mover->run(); });
    read_pages(region, options);
    stopping = true;
    for (auto& thread : moving) thread.join();
  }
  region.check_all();
  say("done");
  return 0;
}

// -- threads asleep in system calls

thread_local std::uint64_t* handled_here = nullptr;

void handle(int) {
  __atomic_fetch_add(handled_here, 1, __ATOMIC_SEQ_CST);
}

// One thread that makes the same call again and again. A signal that comes between two of them
// interrupts none, except where the call itself lets it in.
class Sleeper {
 public:
  using Call = long (*)();
  Sleeper(const char* name, Call call, bool lets_in) : name_(name), lets_in_(lets_in) {
    thread_ = std::thread([this, call] { run(call); });
    while (!ready_) sleep_ms(1);
  }
  [[nodiscard]] std::uint64_t interrupted() const { return interrupted_; }
  [[nodiscard]] const char* name() const { return name_; }
  void signal() {
    ++sent_;
    if (pthread_kill(thread_.native_handle(), SIGUSR1) != 0) broken("pthread_kill");
    for (int i = 0; __atomic_load_n(&handled_, __ATOMIC_SEQ_CST) != sent_; ++i, sleep_ms(1)) {
      if (i == 10'000) wrong(name_);  // a signal is lost
    }
    for (int i = 0; lets_in_ && interrupted_ != sent_; ++i, sleep_ms(1)) {
      if (i == 10'000) wrong(name_);  // its EINTR is
    }
  }
  void end() {
    ending_ = true;
    while (!ended_) {
      if (pthread_kill(thread_.native_handle(), SIGUSR1) != 0) broken("pthread_kill");
      sleep_ms(2);
    }
    thread_.join();
    if (interrupted_ == 0) wrong(name_);
  }

 private:
  void run(Call call) {
    handled_here = &handled_;
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    pthread_sigmask(lets_in_ ? SIG_BLOCK : SIG_UNBLOCK, &set, nullptr);
    ready_ = true;
    while (!ending_) {
      if (call() != -1 || errno != EINTR) broken(name_);
      ++interrupted_;
    }
    ended_ = true;
  }

  const char* const name_;
  const bool lets_in_;
  std::uint64_t handled_ = 0, sent_ = 0;
  std::atomic<std::uint64_t> interrupted_{0};
  std::atomic<bool> ready_{false}, ending_{false}, ended_{false};
  std::thread thread_;
};

int epoll_fd = -1, semaphore = -1;
std::array<int, 2> pair{-1, -1};
aio_context_t aio = 0;
epoll_event event;

long wait_for_epoll() {
  return epoll_wait(epoll_fd, &event, 1, -1);
}
long wait_for_epoll_limited() {
  return epoll_wait(epoll_fd, &event, 1, 1'000'000);
}
long wait_for_epoll_masked() {
  sigset_t none;
  sigemptyset(&none);
  return epoll_pwait(epoll_fd, &event, 1, -1, &none);
}
long wait_for_semaphore() {
  sembuf down{0, -1, 0};
  return semop(semaphore, &down, 1);
}
long wait_for_signal() {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGUSR2);
  return sigtimedwait(&set, nullptr, nullptr);
}
long wait_for_aio() {
  io_event done{};
  return syscall(SYS_io_getevents, aio, 1, 1, &done, nullptr);
}
long wait_for_socket() {
  char byte = 0;
  return recv(pair[0], &byte, 1, 0);
}
long wait_by_reading() {
  char byte = 0;
  return read(pair[0], &byte, 1);
}

void make_calls_ready() {
  epoll_fd = must(epoll_create1(EPOLL_CLOEXEC), "epoll_create1");
  semaphore = must(semget(IPC_PRIVATE, 1, 0600), "semget");
  must(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair.data()), "socketpair");
  timeval limit{100'000, 0};
  must(setsockopt(pair[0], SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit)), "setsockopt");
  must(syscall(SYS_io_setup, 4, &aio), "io_setup");
  struct sigaction action{};
  action.sa_handler = handle;  // without SA_RESTART
  must(sigaction(SIGUSR1, &action, nullptr), "sigaction");
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGUSR2);
  pthread_sigmask(SIG_BLOCK, &set, nullptr);
}

int calls(const Options& options) {
  const std::size_t pages = options.number("mb", 16) * 256;
  static Region region(map_aligned(pages * kPage), pages, options.number("seed", 1), Kind::mixed);
  region.write_all();
  make_calls_ready();
  std::array<std::unique_ptr<Sleeper>, 8> sleepers{
      std::make_unique<Sleeper>("epoll_wait", wait_for_epoll, false),
      std::make_unique<Sleeper>("epoll_wait with a limit", wait_for_epoll_limited, false),
      std::make_unique<Sleeper>("epoll_pwait", wait_for_epoll_masked, true),
      std::make_unique<Sleeper>("semop", wait_for_semaphore, false),
      std::make_unique<Sleeper>("sigtimedwait", wait_for_signal, false),
      std::make_unique<Sleeper>("io_getevents", wait_for_aio, false),
      std::make_unique<Sleeper>("recv", wait_for_socket, false),
      std::make_unique<Sleeper>("read", wait_by_reading, false)};
  say("ready");
  wait_until_out(region);
  watch_progress(&progress, static_cast<unsigned>(options.number("bound_s", 10)));
  {
    const Discarders discarders(region, options);
    read_pages(region, options);
    for (const auto& sleeper : sleepers) {
      if (sleeper->interrupted() != 0) wrong(sleeper->name());
    }
    say("signals");
    std::thread reader([&] {  // so that threads go on being stopped
      for (std::size_t page = 0; !stopping; page = (page + 7) % region.pages()) {
        if (!is_discarded(page, options.number("own", 1), options.has("apart"))) region.check(page);
      }
    });
    for (int n = 0; n < 50; ++n) {
      for (const auto& sleeper : sleepers) sleeper->signal();
      made_progress();
    }
    stopping = true;
    reader.join();
  }
  for (const auto& sleeper : sleepers) sleeper->end();
  must(semctl(semaphore, 0, IPC_RMID), "semctl");
  region.check_all();
  say("done");
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  const Options options(argc, argv);
  const std::string how = options.text("how", "discard");
  if (how == "discard") return discard(options);
  if (how == "calls") return calls(options);
  broken("--how");
}
