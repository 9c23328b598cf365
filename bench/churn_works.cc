#include "bench/churn_works.h"

#include <malloc.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <thread>
#include <vector>

namespace foldswap::bench {
namespace {

constexpr std::size_t kPage = 4096;

[[noreturn]] void give_up(const char* what) {
  std::perror(what);
  std::exit(1);
}

void touch(void* area, std::size_t bytes) {
  for (std::size_t at = 0; at < bytes; at += kPage) static_cast<volatile char*>(area)[at] = 1;
}

template <std::size_t bytes>
void map_touch_unmap(std::uint64_t ops) {
  for (std::uint64_t i = 0; i < ops; ++i) {
    void* const area =
        ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (area == MAP_FAILED) give_up("mmap");
    touch(area, bytes);
    ::munmap(area, bytes);
  }
}

// Sizes from 16 bytes to 64 KiB, small ones far more often; now and then one that malloc maps by
// itself. The first byte of each is written.
class Sizes {
 public:
  std::size_t next() {
    state_ = state_ * 6364136223846793005ULL + 1442695040888963407ULL;
    const auto bits = static_cast<std::size_t>(state_ >> 33);
    if (bits % 1024 == 0) return 256UL << 10;
    const std::size_t magnitude = 4 + (bits % 13) * (bits / 13 % 13) / 13;  // 2^4 to 2^15
    return (std::size_t{1} << magnitude) + (bits >> 8) % (std::size_t{1} << magnitude);
  }

 private:
  std::uint64_t state_ = 88172645463325252ULL;
};

void malloc_free(std::uint64_t ops) {
  std::array<char*, 2048> held{};
  Sizes sizes;
  for (std::uint64_t i = 0; i < ops; ++i) {
    char*& slot = held[i * 7919 % held.size()];
    std::free(slot);
    slot = static_cast<char*>(std::malloc(sizes.next()));
    if (slot == nullptr) give_up("malloc");
    *static_cast<volatile char*>(slot) = 1;
  }
  for (char* slot : held) std::free(slot);
}

void malloc_free_4_threads(std::uint64_t ops) {
  std::vector<std::jthread> threads;
  for (int i = 0; i < 4; ++i) threads.emplace_back(malloc_free, ops);
}

// One block from 4 KiB to 8 MiB in steps of a half, as a growing vector does. Most steps are
// mremaps inside realloc. Filled: each new page is written, else only the last byte of each size
// is.
template <bool filled>
void realloc_growth(std::uint64_t ops) {
  // Fixed, or glibc learns from the first free to keep such blocks in its heap.
  ::mallopt(M_MMAP_THRESHOLD, 128 << 10);
  for (std::uint64_t i = 0; i < ops; ++i) {
    char* block = nullptr;
    for (std::size_t old = 0, bytes = kPage; bytes <= (8UL << 20);
         old = bytes, bytes += bytes / 2) {
      block = static_cast<char*>(std::realloc(block, bytes));
      if (block == nullptr) give_up("realloc");
      if (filled) touch(block + old, bytes - old);
      static_cast<volatile char*>(block)[bytes - 1] = 1;
    }
    std::free(block);
  }
}

void thread_create_join(std::uint64_t ops) {
  for (std::uint64_t i = 0; i < ops; ++i) std::thread([] {}).join();
}

void await(pid_t pid) {
  if (pid < 0) give_up("fork");
  ::waitpid(pid, nullptr, 0);
}

void fork_exit(std::uint64_t ops) {
  for (std::uint64_t i = 0; i < ops; ++i) {
    const pid_t pid = ::fork();
    if (pid == 0) ::_exit(0);
    await(pid);
  }
}

void fork_exec(std::uint64_t ops) {
  for (std::uint64_t i = 0; i < ops; ++i) {
    const pid_t pid = ::fork();
    if (pid == 0) {
      ::execl("/bin/true", "true", nullptr);
      ::_exit(127);
    }
    await(pid);
  }
}

constexpr std::array kWorks{
    Work{"mmap+touch+munmap 64 KiB", map_touch_unmap<64UL << 10>, true},
    Work{"mmap+touch+munmap 2 MiB", map_touch_unmap<2UL << 20>, true},
    Work{"malloc/free, 1 thread", malloc_free, true},
    Work{"malloc/free, 4 threads", malloc_free_4_threads, true},
    Work{"realloc growth to 8 MiB, filled", realloc_growth<true>, true},
    Work{"realloc growth to 8 MiB, bare", realloc_growth<false>, true},
    Work{"thread create+join", thread_create_join, false},
    Work{"fork+exit", fork_exit, false},
    Work{"fork+exec /bin/true", fork_exec, false},
};

}  // namespace

std::span<const Work> works() {
  return kWorks;
}

}  // namespace foldswap::bench
