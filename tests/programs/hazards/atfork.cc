// Fork handlers of a library whose constructor ran before anything preloaded (early.h). They do
// what such handlers do, before the fork and on both sides of it, with pages out: the test evicts
// when asked ("evict", answered with "go"). --op= names what they do. Every byte is verified in
// parent and child.
#include <pthread.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdlib>
#include <thread>

#include "tests/programs/lib/common.h"
#include "tests/programs/lib/early.h"

using namespace testprog;

namespace {

constexpr std::size_t kRegionPages = 2048, kBufferPages = 1024, kForks = 4;
constexpr unsigned kMostSeconds = 60;
std::uint64_t progress = 0;

void evict() {
  say("evict");
  static_cast<void>(next_command());
  __atomic_fetch_add(&progress, 1, __ATOMIC_RELAXED);
}

Region* buffer = nullptr;  // what the handlers work on

// -- what they do

void grow_by_realloc() {
  static void* memory = nullptr;
  static std::size_t bytes = kBufferPages * kPage;
  const auto check = [] {
    const auto* words = static_cast<const std::uint64_t*>(memory);
    for (std::size_t i = 0; i < kBufferPages * kPage / 8; ++i) {
      if (words[i] != i * 0x9e3779b97f4a7c15ULL) wrong("what realloc has moved");
    }
  };
  if (memory == nullptr) {
    memory = std::malloc(bytes);
    auto* words = static_cast<std::uint64_t*>(memory);
    for (std::size_t i = 0; i < bytes / 8; ++i) words[i] = i * 0x9e3779b97f4a7c15ULL;
    return;
  }
  bytes += 64 * kPage;
  void* const grown = std::realloc(memory, bytes);
  if (grown == nullptr) broken("realloc");
  memory = grown;
  check();
}

void grow_by_mremap() {
  const std::size_t pages = buffer->pages() + 16;
  void* const moved = mremap(buffer->base(), buffer->bytes(), pages * kPage, MREMAP_MAYMOVE);
  if (moved == MAP_FAILED) broken("mremap");
  buffer->moved_to(static_cast<std::byte*>(moved));
  buffer->resize(pages);
  buffer->check_all();
}

void advise(int advice) {
  must(madvise(buffer->base(), buffer->bytes(), advice), "madvise");
}

void change_user() {
  must(seteuid(65534), "seteuid");
  must(seteuid(0), "seteuid back");
  must(setegid(0), "setegid");
}

void new_namespace() {
  static bool done = false;
  if (done) return;
  done = true;
  must(unshare(CLONE_NEWUSER), "unshare");
}

void check_child(pid_t child) {
  int status = -1;
  must(waitpid(child, &status, 0), "waitpid");
  if (status != 0) wrong("a child failed");
}

void fork_again() {
  static bool within = false;
  if (within) return;
  within = true;
  const pid_t child = must(fork(), "a fork in a handler");
  if (child == 0) {
    buffer->check_all();
    _exit(0);
  }
  check_child(child);
  within = false;
}

// A mutex whose holder grows a buffer while the handler waits for it.
class Holder {
 public:
  Holder() : thread_([this] { run(); }) {}
  Holder(const Holder&) = delete;
  Holder& operator=(const Holder&) = delete;
  ~Holder() {
    over_ = true;
    thread_.join();
  }

  void wait_for() {
    wanted_ = true;
    while (!holding_) sleep_ms(1);
    pthread_mutex_lock(&mutex_);
  }
  void let_go() { pthread_mutex_unlock(&mutex_); }

 private:
  void run() {
    while (!over_) {
      if (!wanted_) {
        sleep_ms(1);
        continue;
      }
      wanted_ = false;
      pthread_mutex_lock(&mutex_);
      holding_ = true;
      sleep_ms(50);  // the other one waits by now
      grow_by_realloc();
      grow_by_mremap();
      holding_ = false;
      pthread_mutex_unlock(&mutex_);
    }
  }

  pthread_mutex_t mutex_ = PTHREAD_MUTEX_INITIALIZER;
  std::atomic<bool> wanted_{false}, holding_{false}, over_{false};
  std::thread thread_;
};
Holder* holder = nullptr;

void choose(const std::string& op) {
  if (op == "realloc") {
    grow_by_realloc();
    hooks = {grow_by_realloc, grow_by_realloc, grow_by_realloc};
  } else if (op == "mremap") {
    hooks = {grow_by_mremap, grow_by_mremap, grow_by_mremap};
  } else if (op == "madvise") {
    hooks = {[] { advise(MADV_DONTFORK); }, [] { advise(MADV_DOFORK); }, nullptr};
  } else if (op == "set_ids") {
    hooks = {change_user, change_user, change_user};
  } else if (op == "unshare_before") {
    hooks = {new_namespace, nullptr, nullptr};
  } else if (op == "unshare_in_child") {
    hooks = {nullptr, nullptr, new_namespace};
  } else if (op == "fork") {
    hooks = {fork_again, fork_again, fork_again};
  } else if (op == "waits_for_thread") {
    grow_by_realloc();
    holder = new Holder;
    hooks = {[] { holder->wait_for(); }, [] { holder->let_go(); }, nullptr};
  } else {
    errno = EINVAL;
    broken("--op");
  }
}

}  // namespace

int main(int argc, char** argv) {
  const Options options(argc, argv);
  const std::string op = options.text("op", "");
  const std::uint64_t seed = options.number("seed", 1);
  Region region(map_aligned(kRegionPages * kPage), kRegionPages, seed, Kind::mixed);
  region.write_all();
  static Region worked_on(map_aligned(kBufferPages * kPage), kBufferPages, seed + 1, Kind::heap);
  worked_on.write_all();
  buffer = &worked_on;
  // Of one thread alone: unshare() of a user namespace.
  if (!op.starts_with("unshare")) watch_progress(&progress, kMostSeconds);
  choose(op);
  for (std::size_t i = 0; i < kForks; ++i) {
    // In another namespace it is a client no longer.
    if (i == 0 || op != "unshare_before") evict();
    const pid_t child = must(fork(), "fork");
    if (child == 0) {
      region.check_all();
      if (op != "madvise") buffer->check_all();
      region.diverge(i);
      for (std::size_t page = 0; page < region.pages(); page += 3) region.write(page);
      region.check_all();
      _exit(0);
    }
    region.check_all();
    buffer->check_all();
    check_child(child);
  }
  hooks = {};
  delete holder;
  region.check_all();
  buffer->check_all();
  say("done");
  return 0;
}
