// Stacks, robust mutexes, the ends of threads and long discards, while the test takes everything
// out. --op=NAME, --seed, --ms. The talk is that of
// space.h.
#include <pthread.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cerrno>
#include <thread>

#include "tests/programs/space/space.h"

using namespace testprog;

namespace {

constexpr std::size_t kFrame = 4 * kPage;

// Fills a frame, goes deeper, and finds the frame as it was on the way back. `bottom` is called at
// the depth where it turns.
template <typename Bottom>
[[gnu::noinline]] void recurse(std::size_t depth, std::uint64_t seed, Bottom& bottom) {
  std::array<std::uint64_t, kFrame / 8> frame;
  Random random(seed + depth);
  for (auto& word : frame) word = random.next();
  asm volatile("" : : "r"(frame.data()) : "memory");
  made_progress();
  if (depth == 0) {
    bottom();
  } else {
    recurse(depth - 1, seed, bottom);
  }
  asm volatile("" : : "r"(frame.data()) : "memory");
  Random again(seed + depth);
  for (const auto word : frame) {
    if (word != again.next()) wrong("a stack lost bytes");
  }
}

// The main thread's stack grows to some 6 MiB and comes back, again and again.
void main_stack(const Options& options, std::uint64_t seed) {
  Random random(seed);
  Region region(map_aligned(1024 * kPage), 1024, seed, Kind::mixed);  // stacks of main stay in
  region.write_all();
  ask("evict");
  ask("churn");
  for (const Timed timed(options); !timed.over();) {
    auto pause = [&] { sleep_ms(static_cast<unsigned>(random.below(10))); };
    recurse(10 + random.below(360), random.next(), pause);
    region.check_random(random, 100);
  }
  ask("calm");
}

// Threads sleep deep in their stacks while these are taken out; then they go deeper, and return.
void thread_stack(const Options&, std::uint64_t seed) {
  constexpr std::size_t kThreads = 6, kStack = 4U << 20, kDepth = 100;
  for (int round = 0; round < 4; ++round) {
    std::array<pthread_t, kThreads> threads;
    struct Sleeper {
      std::byte* stack;
      std::uint64_t seed;
      pthread_barrier_t* down;
      pthread_barrier_t* up;
    };
    std::array<Sleeper, kThreads> sleepers;
    pthread_barrier_t down, up;
    pthread_barrier_init(&down, nullptr, kThreads + 1);
    pthread_barrier_init(&up, nullptr, kThreads + 1);
    for (std::size_t t = 0; t < kThreads; ++t) {
      sleepers[t] = {map_bytes(kStack), seed + t, &down, &up};
      pthread_attr_t attributes;
      pthread_attr_init(&attributes);
      pthread_attr_setstack(&attributes, sleepers[t].stack, kStack);
      const auto body = [](void* argument) -> void* {
        const Sleeper& me = *static_cast<Sleeper*>(argument);
        auto deeper = [] {};
        auto bottom = [&] {
          pthread_barrier_wait(me.down);
          pthread_barrier_wait(me.up);
          recurse(kDepth, me.seed + 999, deeper);
        };
        recurse(kDepth, me.seed, bottom);
        return nullptr;
      };
      if (pthread_create(&threads[t], &attributes, body, &sleepers[t]) != 0) {
        broken("pthread_create");
      }
      pthread_attr_destroy(&attributes);
    }
    pthread_barrier_wait(&down);
    for (int n = 0; n < 20; ++n) {
      ask("evict");
      std::size_t present = 0;
      for (const Sleeper& s : sleepers) present += present_pages(s.stack, kStack / kPage);
      if (present < kThreads * 20) break;
      if (n == 19) wrong("the stacks stay in memory");
    }
    pthread_barrier_wait(&up);
    for (std::size_t t = 0; t < kThreads; ++t) {
      if (pthread_join(threads[t], nullptr) != 0) broken("pthread_join");
      must(munmap(sleepers[t].stack, kStack), "munmap");
    }
    pthread_barrier_destroy(&down);
    pthread_barrier_destroy(&up);
  }
}

// Mutexes in the midst of pages that come and go; each thread dies holding several, and another
// thread is asleep on one of them.
void robust_mutex(const Options& options, std::uint64_t seed) {
  constexpr std::size_t kMutexes = 24, kStride = 5;  // in pages
  Region region(map_aligned(kMutexes * kStride * kPage), kMutexes * kStride, seed, Kind::mixed);
  std::array<pthread_mutex_t*, kMutexes> mutexes;
  pthread_mutexattr_t attributes;
  pthread_mutexattr_init(&attributes);
  pthread_mutexattr_setrobust(&attributes, PTHREAD_MUTEX_ROBUST);
  for (std::size_t m = 0; m < kMutexes; ++m) {
    // Some lie across a border of pages.
    std::byte* page = region.page(m * kStride);
    std::byte* place = page + (m % 3 == 0 ? kPage - 16 : m % 3 == 1 ? 0 : 1024);
    mutexes[m] = reinterpret_cast<pthread_mutex_t*>(place);
    if (pthread_mutex_init(mutexes[m], &attributes) != 0) broken("pthread_mutex_init");
  }
  pthread_mutexattr_destroy(&attributes);
  const auto is_data = [](std::size_t i) { return i % kStride >= 2; };
  for (std::size_t i = 0; i < region.pages(); ++i) {
    if (is_data(i)) region.write(i);
  }
  const auto acquire = [&](std::size_t m, bool must_be_dead) {
    const int error = pthread_mutex_lock(mutexes[m]);
    if (error == EOWNERDEAD) {
      pthread_mutex_consistent(mutexes[m]);
    } else if (error != 0 || must_be_dead) {
      errno = error;
      wrong("EOWNERDEAD is lost");
    }
  };
  ask("evict");
  ask("churn");
  Random random(seed);
  for (const Timed timed(options); !timed.over();) {
    const std::size_t from = random.below(kMutexes - 4);
    std::size_t held = 0;
    std::thread owner([&] {
      for (std::size_t m = from; m < from + 4; ++m) acquire(m, false);
      __atomic_store_n(&held, 1, __ATOMIC_SEQ_CST);
      sleep_ms(static_cast<unsigned>(random.below(8)));  // and so it ends
    });
    while (__atomic_load_n(&held, __ATOMIC_SEQ_CST) == 0) sleep_ms(0);
    std::thread sleeper([&] {
      acquire(from + 1, true);
      pthread_mutex_unlock(mutexes[from + 1]);
    });
    owner.join();
    sleeper.join();
    for (const std::size_t m : {from, from + 2, from + 3}) {
      acquire(m, true);
      pthread_mutex_unlock(mutexes[m]);
    }
    for (std::size_t i = 0; i < region.pages(); ++i) {
      if (is_data(i)) region.check(i);
    }
    made_progress();
  }
  ask("calm");
}

// Threads begin and end while all around their blocks of control (tid word, robust list, rseq) is
// taken out. The kernel writes there at the end, and whoever joins waits for that.
void thread_exit(const Options& options, std::uint64_t seed) {
  Region region(map_aligned(512 * kPage), 512, seed, Kind::mixed);
  region.write_all();
  thread_local std::array<std::uint64_t, 64> mine;  // in the block itself
  ask("evict");
  ask("churn");
  Random random(seed);
  for (const Timed timed(options); !timed.over();) {
    std::array<std::thread, 8> threads;
    for (std::size_t t = 0; t < threads.size(); ++t) {
      threads[t] = std::thread([&region, seed = random.next()] {
        Random own(seed);
        for (auto& word : mine) word = own.next();
        sleep_ms(static_cast<unsigned>(own.below(12)));
        Random again(seed);
        for (const auto word : mine) {
          if (word != again.next()) wrong("a thread's own variable is lost");
        }
        again.next();
        region.check_random(again, 4);
      });
    }
    if (random.below(2) == 0) {
      for (auto& thread : threads) thread.join();
    } else {
      for (std::size_t t = threads.size(); t-- > 0;) threads[t].join();
    }
    made_progress();
  }
  ask("calm");
}

// A large range is discarded again and again, while its pages are on their way out and others read
// all over it. The event comes first, the end of the pages takes its time, the more so for a thread
// that others push aside: what is evicted in that time must not come back from the dead.
class LateDiscard {
 public:
  explicit LateDiscard(const Region& region) : region_(region) {
    for (std::size_t t = 0; t < readers_.size(); ++t) {
      readers_[t] = std::thread([this, t] { read(t); });
    }
    discarder_ = std::thread([this] { discard(); });
  }
  LateDiscard(const LateDiscard&) = delete;
  LateDiscard& operator=(const LateDiscard&) = delete;
  ~LateDiscard() {
    begin(kStop);
    discarder_.join();
    for (auto& reader : readers_) reader.join();
  }
  void once() {
    begin(kGo);
    order_.wait(kGo);
  }

 private:
  enum Order : int { kRest, kGo, kStop };

  void begin(Order order) {
    order_ = order;
    order_.notify_all();
  }
  void read(std::uint64_t seed) {
    Random random(seed);
    while (order_ != kStop) {
      order_.wait(kRest);
      const volatile std::byte* page = region_.page(random.below(region_.pages()));
      static_cast<void>(std::to_integer<int>(*page));
    }
  }
  void discard() {
    must(setpriority(PRIO_PROCESS, static_cast<id_t>(gettid()), 10), "setpriority");
    while (true) {
      order_.wait(kRest);
      if (order_ == kStop) return;
      must(madvise(region_.base(), region_.bytes(), MADV_DONTNEED), "madvise");
      begin(kRest);
    }
  }

  const Region& region_;
  std::atomic<int> order_{kRest};
  std::array<std::thread, 2> readers_;
  std::thread discarder_;
};

void long_discard(const Options& options, std::uint64_t seed) {
  constexpr std::size_t kPages = 32 * 256;
  Region region(map_aligned(kPages * kPage), kPages, seed, Kind::heap);
  Region still(map_aligned(1024 * kPage), 1024, seed + 1, Kind::mixed);  // can always go
  still.write_all();
  Random random(seed);
  ask("evict");
  ask("churn 4M");
  LateDiscard late(region);
  for (const Timed timed(options); !timed.over();) {
    map_over(region.base(), kPages);  // not registered at first: quickly filled
    region.write_all();
    late.once();
    for (std::size_t i = 0; i < kPages; ++i) region.forget(i);
    region.check_random(random, 1000);  // a batch from the dead has some hundred pages
    still.check_random(random, 20);
    made_progress();
  }
  ask("calm");
  region.check_all();
  still.check_all();
}

// Most pages cannot move, because a child has them too, and a thread touches others all the time:
// an order to take everything out must come to an end all the same.
void unevictable(const Options&, std::uint64_t seed) {
  Region region(map_aligned(1280 * kPage), 1280, seed, Kind::mixed);
  region.write_all();
  Region touched(map_aligned(64 * kPage), 64, seed + 1, Kind::mixed);
  const int child = fork_child();
  if (child == 0) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    for (;;) pause();
  }
  touched.write_all();
  bool stop = false;
  std::thread toucher([&] {
    Random random(seed);
    for (; !__atomic_load_n(&stop, __ATOMIC_RELAXED); sleep_ms(20)) touched.check_random(random, 1);
  });
  const double begun = seconds_now();
  for (int n = 0; n < 3; ++n) ask("evict");
  if (seconds_now() - begun > 30) wrong("an order to take everything out does not end");
  __atomic_store_n(&stop, true, __ATOMIC_RELAXED);
  toucher.join();
  must(kill(child, SIGKILL), "kill");
  must(waitpid(child, nullptr, 0), "waitpid");
  region.check_all();
  touched.check_all();
}

constexpr std::array<Work, 6> kWork{{{"main_stack", main_stack},
                                     {"thread_stack", thread_stack},
                                     {"robust_mutex", robust_mutex},
                                     {"thread_exit", thread_exit},
                                     {"long_discard", long_discard},
                                     {"unevictable", unevictable}}};

}  // namespace

int main(int argc, char** argv) {
  return run_work(kWork, Options(argc, argv));
}
