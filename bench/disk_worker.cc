// disk_worker: the program that bench/disk.sh runs over foldswap and over kernel swap.
//
//   disk_worker MIB
//
// Maps MIB of anonymous memory whose pages are a function of their number and version, look like a
// heap of small objects, and can be compared at any time. Then obeys one command a line, and
// answers each with one line of JSON:
//   fill               writes every page
//   sweep              reads every page in order, each timed
//   random COUNT SEED  reads pages at random, each timed
//   churn COUNT ORDER  writes new contents: ORDER permuted (passes over all pages, each in an order
//                      of its own), uniform (any page at any time) or skewed (most of it to few)
//   check              compares every byte
// A timed read takes all bytes of the page into a sum; the sums are compared when the clock no
// longer runs. What it needs for that is locked in memory. Wrong bytes end it with status 3.
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <iostream>
#include <span>
#include <sstream>
#include <string>

#include "bench/bench_common.h"

namespace {

constexpr std::size_t kPage = 4096, kWords = kPage / 8;
using Page = std::array<std::uint64_t, kWords>;

// splitmix64
class Random {
 public:
  explicit Random(std::uint64_t seed) : state_(seed) {}
  std::uint64_t next() {
    std::uint64_t z = (state_ += 0x9e3779b97f4a7c15ULL);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ULL;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebULL;
    return z ^ (z >> 31);
  }
  std::uint64_t below(std::uint64_t bound) { return next() % bound; }
  double unit() { return static_cast<double>(next() >> 11) * 0x1p-53; }

 private:
  std::uint64_t state_;
};

std::uint64_t now_ns() {
  timespec now{};
  (void)clock_gettime(CLOCK_MONOTONIC, &now);
  return static_cast<std::uint64_t>(now.tv_sec) * 1'000'000'000 +
         static_cast<std::uint64_t>(now.tv_nsec);
}

[[noreturn]] void fail(const char* what) {
  std::perror(what);
  std::exit(1);
}

std::byte* map(std::size_t bytes) {
  void* const memory =
      mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) fail("disk_worker: mmap");
  (void)madvise(memory, bytes, MADV_NOHUGEPAGE);
  return static_cast<std::byte*>(memory);
}

template <typename T>
std::span<T> locked(std::size_t count) {
  auto* const memory = map(count * sizeof(T));
  if (mlock(memory, count * sizeof(T)) != 0) fail("disk_worker: mlock");
  return {reinterpret_cast<T*>(memory), count};
}

// Objects of 64 bytes: a count, pointers into one neighbourhood, small numbers; and at the end a
// part that differs from page to page in size and says nothing, so that sizes differ.
void make(Page& page, std::uint64_t number, std::uint32_t version) {
  Random random(number << 24 ^ version);
  const std::uint64_t near = 0x00007f0000000000ULL | (random.next() & 0xffff00000ULL);
  for (std::size_t i = 0; i < kWords; i += 8) {
    const std::uint64_t r = random.next();
    page[i] = 1 + (r & 3);
    page[i + 1] = near + (r >> 2 & 0xfff0);
    page[i + 2] = 0x0000555500004000ULL;
    page[i + 3] = r >> 20 & 0xff;
    page[i + 4] = near + (r >> 28 & 0xfff0);
    page[i + 5] = 0;
    page[i + 6] = r >> 44 & 0xff;
    page[i + 7] = ~std::uint64_t{0};
  }
  const std::size_t noise = random.below(33);
  for (std::size_t i = 0; i < noise; ++i) page[kWords - 1 - i] = random.next();
}

std::uint64_t sum_of(const Page& page) {
  std::uint64_t sum = 0;
  for (std::size_t i = 0; i < kWords; ++i) sum += page[i] ^ i << 32;
  return sum;
}

class Worker {
 public:
  explicit Worker(std::size_t pages)
      : pages_(pages),
        data_(reinterpret_cast<Page*>(map(pages * kPage))),
        version_(locked<std::uint32_t>(pages)),
        order_(locked<std::uint32_t>(pages)),
        sums_(locked<std::uint64_t>(pages)),
        ns_(locked<std::uint32_t>(pages)),
        number_(locked<std::uint32_t>(pages)) {
    for (std::size_t i = 0; i < pages; ++i) order_[i] = static_cast<std::uint32_t>(i);
  }

  void fill() {
    const std::uint64_t begin = now_ns();
    for (std::size_t i = 0; i < pages_; ++i) write(i);
    done("fill", pages_, begin);
  }

  void sweep() {
    for (std::size_t i = 0; i < pages_; ++i) number_[i] = static_cast<std::uint32_t>(i);
    read("sweep", pages_);
  }

  void random(std::size_t count, std::uint64_t seed) {
    count = std::min(count, pages_);
    Random random(seed);
    for (std::size_t i = 0; i < count; ++i)
      number_[i] = static_cast<std::uint32_t>(random.below(pages_));
    read("random", count);
  }

  void churn(std::size_t count, const std::string& kind) {
    const std::uint64_t begin = now_ns();
    for (std::size_t i = 0; i < count; ++i) write(next_of(kind));
    done("churn", count, begin);
  }

  void check() {
    const std::uint64_t begin = now_ns();
    for (std::size_t i = 0; i < pages_; ++i) {
      make(expected_, i, version_[i]);
      if (std::memcmp(&data_[i], &expected_, kPage) != 0) wrong(i);
    }
    done("check", pages_, begin);
  }

 private:
  void write(std::size_t i) {
    make(expected_, i, ++version_[i]);
    std::memcpy(&data_[i], &expected_, kPage);
  }

  std::size_t next_of(const std::string& kind) {
    if (kind == "uniform") return churn_.below(pages_);
    if (kind == "skewed")
      return order_[static_cast<std::size_t>(std::pow(churn_.unit(), 4) *
                                             static_cast<double>(pages_))];
    if (at_ == 0) {
      for (std::size_t i = pages_ - 1; i > 0; --i)
        std::swap(order_[i], order_[churn_.below(i + 1)]);
    }
    const std::size_t page = order_[at_];
    at_ = (at_ + 1) % pages_;
    return page;
  }

  void read(const char* what, std::size_t count) {
    const std::uint64_t begin = now_ns();
    for (std::size_t i = 0; i < count; ++i) {
      const Page& page = data_[number_[i]];
      const std::uint64_t from = now_ns();
      sums_[i] = sum_of(page);
      ns_[i] = static_cast<std::uint32_t>(std::min<std::uint64_t>(now_ns() - from, ~0U));
    }
    const std::uint64_t end = now_ns();
    for (std::size_t i = 0; i < count; ++i) {
      make(expected_, number_[i], version_[number_[i]]);
      if (sums_[i] != sum_of(expected_)) wrong(number_[i]);
    }
    std::vector<double> us;
    us.reserve(count);
    double total = 0;
    for (std::size_t i = 0; i < count; ++i) us.push_back(ns_[i] / 1000.0);
    for (const double one : us) total += one;
    const auto at = [&](double share) { return foldswap::bench::quantile(us, share); };
    std::printf(
        "{\"what\": \"%s\", \"accesses\": %zu, \"seconds\": %.4f, \"mean_us\": %.3f, "
        "\"p50_us\": %.3f, \"p99_us\": %.3f, \"p999_us\": %.3f, \"max_us\": %.1f}\n",
        what, count, static_cast<double>(end - begin) / 1e9, total / static_cast<double>(count),
        at(0.5), at(0.99), at(0.999), at(1.0));
    std::fflush(stdout);
  }

  static void done(const char* what, std::size_t pages, std::uint64_t begin) {
    std::printf("{\"what\": \"%s\", \"accesses\": %zu, \"seconds\": %.4f}\n", what, pages,
                static_cast<double>(now_ns() - begin) / 1e9);
    std::fflush(stdout);
  }

  [[noreturn]] void wrong(std::size_t page) const {
    std::fprintf(stderr, "disk_worker: WRONG BYTES in page %zu, version %u\n", page,
                 version_[page]);
    std::exit(3);
  }

  std::size_t pages_;
  Page* data_;
  std::span<std::uint32_t> version_, order_;
  std::span<std::uint64_t> sums_;
  std::span<std::uint32_t> ns_, number_;
  Page expected_{};
  Random churn_{11};
  std::size_t at_ = 0;
};

}  // namespace

int main(int argc, char** argv) {
  const std::size_t mib = argc == 2 ? std::strtoul(argv[1], nullptr, 10) : 0;
  if (mib == 0) {
    std::fprintf(stderr, "usage: disk_worker MIB\n");
    return 2;
  }
  Worker worker(mib << 20 >> 12);
  std::puts("{\"what\": \"ready\"}");
  std::fflush(stdout);
  for (std::string line; std::getline(std::cin, line);) {
    std::istringstream words(line);
    std::string command, order;
    std::size_t count = 0;
    words >> command;
    if (command == "fill") {
      worker.fill();
    } else if (command == "sweep") {
      worker.sweep();
    } else if (command == "random") {
      std::uint64_t seed = 0;
      words >> count >> seed;
      worker.random(count, seed);
    } else if (command == "churn") {
      words >> count >> order;
      worker.churn(count, order);
    } else if (command == "check") {
      worker.check();
    } else {
      std::fprintf(stderr, "disk_worker: what is %s?\n", command.c_str());
      return 2;
    }
  }
  return 0;
}
