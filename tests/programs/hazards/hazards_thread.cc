// Clients for the hazards around threads and locked memory; --row=NN is the row of HAZARDS.md.
//   9   threads end while the pages around their descriptors may be out; robust mutexes lose their
//   owner 11  agent's credentials and the end of main: see behave.cc; here: threads, set*id and
//   signals all blocked 14  works on while the test stops and continues it at random 21  mlockall
//   and munlockall with pages out
#include <pthread.h>
#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <thread>

#include "tests/programs/lib/common.h"

using namespace testprog;

namespace {

Region make_region(const Options& options) {
  const std::size_t pages = options.number("mb", 24) * 256;
  Region region(map_aligned(pages * kPage), pages, options.number("seed", 1), Kind::mixed);
  region.write_all();
  return region;
}

struct Robust {
  pthread_mutex_t mutex;
  std::array<std::byte, 3 * kPage> around;  // each mutex on pages of its own
};

void make_robust(pthread_mutex_t& mutex) {
  pthread_mutexattr_t attributes;
  pthread_mutexattr_init(&attributes);
  pthread_mutexattr_setrobust(&attributes, PTHREAD_MUTEX_ROBUST);
  if (pthread_mutex_init(&mutex, &attributes) != 0) broken("pthread_mutex_init");
  pthread_mutexattr_destroy(&attributes);
}

// Sleepers hold a robust mutex each and end when told to; the test evicts everything in between.
int thread_exit(const Options& options) {
  constexpr std::size_t kThreads = 12;
  Region region = make_region(options);
  auto* robust = reinterpret_cast<Robust*>(map_bytes(kThreads * sizeof(Robust)));
  for (std::size_t t = 0; t < kThreads; ++t) make_robust(robust[t].mutex);
  for (std::uint64_t round = 0; round < options.number("rounds", 6); ++round) {
    bool leave = false;
    std::size_t asleep = 0;
    std::vector<std::thread> threads;
    for (std::size_t t = 0; t < kThreads; ++t) {
      threads.emplace_back([&, t] {
        if (pthread_mutex_lock(&robust[t].mutex) != 0) wrong("a robust mutex could not be locked");
        __atomic_fetch_add(&asleep, 1, __ATOMIC_SEQ_CST);
        while (!__atomic_load_n(&leave, __ATOMIC_SEQ_CST)) sleep_ms(20);
      });
    }
    while (__atomic_load_n(&asleep, __ATOMIC_SEQ_CST) != kThreads) sleep_ms(5);
    say("round");
    static_cast<void>(next_command());
    __atomic_store_n(&leave, true, __ATOMIC_SEQ_CST);
    for (auto& thread : threads) thread.join();
    for (std::size_t t = 0; t < kThreads; ++t) {
      if (pthread_mutex_lock(&robust[t].mutex) != EOWNERDEAD) wrong("EOWNERDEAD is lost");
      pthread_mutex_consistent(&robust[t].mutex);
      pthread_mutex_unlock(&robust[t].mutex);
    }
    region.check_all();
  }
  say("done");
  return 0;
}

int raw_agent(const Options& options) {
  static Region region = make_region(options);
  sigset_t all;
  sigfillset(&all);
  must(sigprocmask(SIG_SETMASK, &all, nullptr), "sigprocmask");
  std::array<std::thread, 4> threads;
  for (auto& thread : threads) thread = std::thread([] { region.check_all(); });
  say("ready");
  static_cast<void>(next_command());
  must(setresgid(65534, 65534, 65534), "setresgid");
  must(setresuid(65534, 65534, 0), "setresuid");
  must(seteuid(0), "seteuid back");
  must(setresuid(65534, 65534, 65534), "setresuid");
  for (auto& thread : threads) thread.join();
  region.check_all();
  say("main leaves");
  std::thread([] {
    sleep_ms(200);
    region.check_all();
    say("done");
  }).detach();
  pthread_exit(nullptr);
}

int stopped(const Options& options) {
  Region region = make_region(options);
  Random random(options.number("seed", 1));
  say("ready");
  while (!stdin_closed()) {
    const std::size_t first = random.below(region.pages() - 64);
    switch (random.below(4)) {
      case 0:
        must(madvise(region.page(first), 16 * kPage, MADV_DONTNEED), "madvise");
        for (std::size_t i = first; i < first + 16; ++i) region.forget(i);
        break;
      case 1:
        for (std::size_t i = first; i < first + 64; ++i) region.write(i);
        break;
      default:
        region.check_random(random, 64);
    }
  }
  region.check_all();
  say("done");
  return 0;
}

int lock_all(const Options& options) {
  Region region = make_region(options);
  for (int round = 0; round < 3; ++round) {
    say("unlocked");
    static_cast<void>(next_command());  // everything is out by now
    must(mlockall(MCL_CURRENT | MCL_FUTURE), "mlockall");
    region.check_all();
    say("locked");
    static_cast<void>(next_command());  // and the test has tried to evict
    region.check_all();
    for (std::size_t i = 0; i < region.pages(); i += 3) region.write(i);
    must(munlockall(), "munlockall");
  }
  say("unlocked");
  static_cast<void>(next_command());
  region.check_all();
  say("done");
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  const Options options(argc, argv);
  switch (options.number("row", 0)) {
    case 9:
      return thread_exit(options);
    case 11:
      return raw_agent(options);
    case 14:
      return stopped(options);
    case 21:
      return lock_all(options);
    default:
      errno = EINVAL;
      broken("--row");
  }
}
