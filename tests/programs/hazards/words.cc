// Words that the kernel itself writes, in pages that the test evicts when asked ("evict", answered
// with "go"): mutexes of constructors that ran before anything preloaded, words where clone() has
// the end of a thread told, and that keeping such pages in ends with them. --op= names the case.
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdio>
#include <thread>
#include <vector>

#include "tests/programs/lib/common.h"
#include "tests/programs/lib/early.h"

// libc's other name for clone().
extern "C" int __clone(int (*function)(void*), void* stack, int flags, void* argument,
                       ...) noexcept;

using namespace testprog;

namespace {

constexpr std::size_t kRegionPages = 2048;
constexpr unsigned kMostSeconds = 20;

void evict() {
  say("evict");
  static_cast<void>(next_command());
}

void make_robust(pthread_mutex_t& mutex) {
  pthread_mutexattr_t attributes;
  pthread_mutexattr_init(&attributes);
  pthread_mutexattr_setrobust(&attributes, PTHREAD_MUTEX_ROBUST);
  if (pthread_mutex_init(&mutex, &attributes) != 0) broken("pthread_mutex_init");
  pthread_mutexattr_destroy(&attributes);
}

timespec soon() {
  timespec time{};
  clock_gettime(CLOCK_REALTIME, &time);
  time.tv_sec += kMostSeconds;
  return time;
}

void expect_owner_dead(pthread_mutex_t& mutex) {
  const timespec until = soon();
  if (pthread_mutex_timedlock(&mutex, &until) != EOWNERDEAD) wrong("EOWNERDEAD is lost");
  pthread_mutex_consistent(&mutex);
  pthread_mutex_unlock(&mutex);
}

// Threads that hold one mutex each, and end without letting go once told to.
class Owners {
 public:
  explicit Owners(const std::vector<pthread_mutex_t*>& mutexes) {
    for (pthread_mutex_t* mutex : mutexes) {
      threads_.emplace_back([this, mutex] {
        if (pthread_mutex_lock(mutex) != 0) wrong("a robust mutex could not be locked");
        ++holding_;
        while (!leave_) sleep_ms(10);
      });
    }
    while (holding_ != threads_.size()) sleep_ms(5);
  }
  Owners(const Owners&) = delete;
  Owners& operator=(const Owners&) = delete;
  ~Owners() {
    leave_ = true;
    for (auto& thread : threads_) thread.join();
  }

 private:
  std::atomic<std::size_t> holding_{0};
  std::atomic<bool> leave_{false};
  std::vector<std::thread> threads_;
};

void early_robust() {
  const std::vector<pthread_mutex_t*> mutexes{early().robust, early().across};
  for (int round = 0; round < 2; ++round) {
    {
      const Owners owners(mutexes);
      evict();
    }
    for (pthread_mutex_t* mutex : mutexes) expect_owner_dead(*mutex);
  }
}

// Somebody waits when the owner ends.
void early_inheriting() {
  std::thread waiter;
  {
    const Owners owner({early().inheriting});
    waiter = std::thread([] { expect_owner_dead(*early().inheriting); });
    sleep_ms(200);
    evict();
  }
  waiter.join();
  if (pthread_mutex_lock(early().inheriting) != 0) wrong("a mutex that is consistent again");
  pthread_mutex_unlock(early().inheriting);
}

// -- threads of clone()

constexpr int kThread = CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SIGHAND | CLONE_THREAD |
                        CLONE_SYSVSEM | CLONE_CHILD_CLEARTID;
constexpr std::size_t kStackBytes = 64 * 1024;
int go_on = 0;  // (atomic)

// Shares the thread block of whoever made it, so it does system calls only.
int stand(void*) {
  while (__atomic_load_n(&go_on, __ATOMIC_SEQ_CST) == 0) syscall(SYS_sched_yield);
  syscall(SYS_exit, 0);
  return 0;
}

std::byte* new_stack() {
  void* const stack = mmap(nullptr, kStackBytes, PROT_READ | PROT_WRITE,
                           MAP_PRIVATE | MAP_ANONYMOUS | MAP_STACK, -1, 0);
  if (stack == MAP_FAILED) broken("mmap of a stack");
  return static_cast<std::byte*>(stack) + kStackBytes;
}

// A word at the end of each page.
int* word_of(std::byte* memory, std::size_t page) {
  return reinterpret_cast<int*>(memory + (page + 1) * kPage) - 1;
}

void expect_end(int* word) {
  const timespec most{.tv_sec = kMostSeconds, .tv_nsec = 0};
  for (int value = 0; (value = __atomic_load_n(word, __ATOMIC_SEQ_CST)) != 0;) {
    if (syscall(SYS_futex, word, FUTEX_WAIT, value, &most, nullptr, 0) != 0 && errno == ETIMEDOUT) {
      wrong("the end of a thread was never told");
    }
  }
}

void ends_are_told() {
  constexpr std::size_t kThreads = 12;
  std::byte* const memory = map_bytes(kThreads * kPage);
  for (std::size_t i = 0; i < kThreads; ++i) *word_of(memory, i) = 1;
  evict();  // the words are out when the threads are made
  for (std::size_t i = 0; i < kThreads; ++i) {
    int* const word = word_of(memory, i);
    void* const stack = new_stack();
    switch (i % 3) {
      case 0:
        must(clone(stand, stack, kThread | CLONE_PARENT_SETTID, nullptr, word, nullptr, word),
             "clone");
        break;
      case 1:
        must(__clone(stand, stack, kThread, nullptr, nullptr, nullptr, word), "__clone");
        break;
      default:
        must(clone(stand, stack, kThread | CLONE_CHILD_SETTID, nullptr, nullptr, nullptr, word),
             "clone");
    }
  }
  sleep_ms(200);
  evict();
  __atomic_store_n(&go_on, 1, __ATOMIC_SEQ_CST);
  for (std::size_t i = 0; i < kThreads; ++i) expect_end(word_of(memory, i));
}

// Whoever makes a thread with CLONE_VFORK stands still until that has ended; the rest of the
// program, and eviction, go on. (A thread that is refused leaves everything as it was.)
void vfork_stands_still() {
  std::byte* const memory = map_bytes(2 * kPage);
  *word_of(memory, 0) = *word_of(memory, 1) = 1;
  std::thread other([] {
    sleep_ms(300);
    evict();
    __atomic_store_n(&go_on, 1, __ATOMIC_SEQ_CST);
  });
  const int child =
      must(clone(stand, new_stack(), CLONE_VM | CLONE_VFORK | CLONE_CHILD_CLEARTID | SIGCHLD,
                 nullptr, nullptr, nullptr, word_of(memory, 0)),
           "clone");
  other.join();
  int status = -1;
  must(waitpid(child, &status, 0), "waitpid");
  if (status != 0) wrong("the child failed");
  expect_end(word_of(memory, 0));
  errno = 0;
  constexpr int kRefused = CLONE_VM | CLONE_THREAD | CLONE_CHILD_CLEARTID;
  if (clone(stand, new_stack(), kRefused, nullptr, nullptr, nullptr, word_of(memory, 1)) != -1 ||
      errno != EINVAL) {
    wrong("a clone that the kernel refuses");
  }
  if (*word_of(memory, 1) != 1) wrong("the word of a refused clone");
}

// -- the end of it

std::vector<pthread_mutex_t*> robust_pages(std::size_t count) {
  std::byte* const memory = map_bytes(count * kPage);
  std::vector<pthread_mutex_t*> mutexes;
  for (std::size_t i = 0; i < count; ++i) {
    mutexes.push_back(reinterpret_cast<pthread_mutex_t*>(memory + i * kPage));
    make_robust(*mutexes.back());
  }
  return mutexes;
}

constexpr std::size_t kTooMany = 300;

void destroyed() {
  for (int round = 0; round < 2; ++round) {
    const auto mutexes = robust_pages(kTooMany);
    evict();
    for (pthread_mutex_t* mutex : mutexes) {
      if (pthread_mutex_destroy(mutex) != 0) wrong("a mutex cannot be destroyed");
    }
  }
  evict();
}

// Those that are left are still kept in.
void most_destroyed() {
  auto mutexes = robust_pages(kTooMany);
  constexpr std::size_t kLeft = 40;
  while (mutexes.size() > kLeft) {
    pthread_mutex_destroy(mutexes.front());
    mutexes.erase(mutexes.begin());
  }
  {
    const Owners owners(mutexes);
    evict();
  }
  for (pthread_mutex_t* mutex : mutexes) expect_owner_dead(*mutex);
}

void unmapped() {
  const auto mutexes = robust_pages(kTooMany);
  must(munmap(mutexes.front(), kTooMany * kPage), "munmap");
  sleep_ms(5000);  // somebody has to notice
  evict();
}

// Without ever being destroyed, as when an arena is thrown away as a whole.
void reused() {
  for (int round = 0; round < 8; ++round) {
    const auto mutexes = robust_pages(100);
    for (pthread_mutex_t* mutex : mutexes)
      fill_page(reinterpret_cast<std::byte*>(mutex), 1, Kind::same);
  }
  const auto alive = robust_pages(20);
  {
    const Owners owners(alive);
    evict();
  }
  for (pthread_mutex_t* mutex : alive) expect_owner_dead(*mutex);
}

void ended() {
  std::byte* const memory = map_bytes(kTooMany * kPage);
  __atomic_store_n(&go_on, 1, __ATOMIC_SEQ_CST);
  for (std::size_t i = 0; i < kTooMany; ++i) {
    *word_of(memory, i) = 1;
    std::byte* const stack = new_stack();
    must(clone(stand, stack, kThread, nullptr, nullptr, nullptr, word_of(memory, i)), "clone");
    expect_end(word_of(memory, i));
    must(munmap(stack - kStackBytes, kStackBytes), "munmap");
  }
  sleep_ms(5000);  // somebody has to notice
  evict();
}

// Memory that nobody may read for a while is not gone, and what lies in it is a mutex again later.
void closed_for_a_while() {
  const auto mutexes = robust_pages(40);
  must(mprotect(mutexes.front(), 40 * kPage, PROT_NONE), "mprotect");
  for (pthread_mutex_t* mutex : robust_pages(130)) pthread_mutex_destroy(mutex);
  must(mprotect(mutexes.front(), 40 * kPage, PROT_READ | PROT_WRITE), "mprotect");
  {
    const Owners owners(mutexes);
    evict();
  }
  for (pthread_mutex_t* mutex : mutexes) expect_owner_dead(*mutex);
}

// More at once than the library has room to note; when they are destroyed it is as before.
void beyond_counting() {
  constexpr std::size_t kBeyond = 9'000;
  for (pthread_mutex_t* mutex : robust_pages(kBeyond)) pthread_mutex_destroy(mutex);
  evict();
}

void expect_exit(pid_t child, const char* what) {
  int status = 0;
  const double begun = seconds_now();
  while (must(waitpid(child, &status, WNOHANG), "waitpid") == 0) {
    if (seconds_now() - begun > kMostSeconds) {
      kill(child, SIGKILL);
      wrong(what);
    }
    sleep_ms(1);
  }
  if (status != 0) wrong(what);
}

// The child of a fork that runs no handlers forks in its turn, whatever another thread of its
// parent was doing.
void raw_forks() {
  std::atomic<bool> stop{false};
  std::thread maker([&] {
    pthread_mutex_t mutex;
    while (!stop) {
      make_robust(mutex);
      pthread_mutex_destroy(&mutex);
    }
  });
  for (int i = 0; i < 60; ++i) {
    const auto child = static_cast<pid_t>(must(_Fork(), "_Fork"));
    if (child == 0) {
      const pid_t grandchild = fork();
      if (grandchild == 0) _exit(0);
      int status = 1;
      waitpid(grandchild, &status, 0);
      _exit(status == 0 ? 0 : 1);
    }
    expect_exit(child, "the child of a raw fork hangs in its own fork");
  }
  stop = true;
  maker.join();
  evict();
}

// In such a child the words are out, and nobody takes requests.
void ends_in_a_raw_child() {
  std::byte* const memory = map_bytes(4 * kPage);
  for (std::size_t i = 0; i < 4; ++i) *word_of(memory, i) = 1;
  evict();
  const auto child = static_cast<pid_t>(must(syscall(SYS_fork), "fork"));
  if (child == 0) {
    for (std::size_t i = 0; i < 4; ++i)
      must(clone(stand, new_stack(), kThread, nullptr, nullptr, nullptr, word_of(memory, i)),
           "clone");
    sleep_ms(100);
    __atomic_store_n(&go_on, 1, __ATOMIC_SEQ_CST);
    for (std::size_t i = 0; i < 4; ++i) expect_end(word_of(memory, i));
    _exit(0);
  }
  expect_exit(child, "a thread of the child of a raw fork");
}

bool in_child = false;
void fork_in_handler(int) {
  if (in_child) return;
  if (fork() == 0) in_child = true;
}

// A handler forks in the middle of a call of ours, and both go on with it.
void fork_within_a_call() {
  signal(SIGALRM, fork_in_handler);
  pthread_mutex_t mutex;
  for (int round = 0; round < 200 && !in_child; ++round) {
    ualarm(200, 0);
    for (int i = 0; i < 100 && !in_child; ++i) {
      make_robust(mutex);
      pthread_mutex_destroy(&mutex);
    }
  }
  if (in_child) {  // it becomes a client, and is one like any other
    sleep_ms(120);
    const pid_t grandchild = fork();
    if (grandchild == 0) _exit(0);
    int status = 1;
    waitpid(grandchild, &status, 0);
    _exit(status == 0 && seteuid(geteuid()) == 0 ? 0 : 1);
  }
  ualarm(0, 0);
  int status = 0;
  for (pid_t child = 0; (child = waitpid(-1, &status, 0)) > 0;) {
    if (status != 0) wrong("a child that was forked in a handler");
  }
  evict();
}

void run(const std::string& op) {
  if (op == "closed_for_a_while") return closed_for_a_while();
  if (op == "beyond_counting") return beyond_counting();
  if (op == "raw_forks") return raw_forks();
  if (op == "ends_in_a_raw_child") return ends_in_a_raw_child();
  if (op == "fork_within_a_call") return fork_within_a_call();
  if (op == "early_robust") return early_robust();
  if (op == "early_inheriting") return early_inheriting();
  if (op == "ends_are_told") return ends_are_told();
  if (op == "vfork_stands_still") return vfork_stands_still();
  if (op == "destroyed") return destroyed();
  if (op == "most_destroyed") return most_destroyed();
  if (op == "unmapped") return unmapped();
  if (op == "reused") return reused();
  if (op == "ended") return ended();
  errno = EINVAL;
  broken("--op");
}

}  // namespace

int main(int argc, char** argv) {
  const Options options(argc, argv);
  Region region(map_aligned(kRegionPages * kPage), kRegionPages, options.number("seed", 1),
                Kind::mixed);
  region.write_all();
  run(options.text("op", ""));
  region.check_all();
  say("done");
  return 0;
}
