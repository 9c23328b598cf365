#include "tests/programs/space/space.h"

#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <thread>

namespace testprog {

std::uint64_t progress = 0;

void made_progress() {
  __atomic_fetch_add(&progress, 1, __ATOMIC_RELAXED);
}

namespace {

constexpr std::size_t kExtentPages = 512;

thread_local sigjmp_buf fault_exit;
thread_local volatile bool fault_expected = false;

void on_fault(int number, siginfo_t* info, void*) {
  if (fault_expected) {
    fault_expected = false;
    siglongjmp(fault_exit, 1);
  }
  std::fprintf(stderr, "WRONG: signal %d at %p\n", number, info->si_addr);
  _exit(kExitWrongBytes);
}

// Places are handed out once and for all: a place that was used may be in quarantine, or have a
// history.
std::byte* new_place(std::size_t pages, bool aligned) {
  static std::uint64_t next = 0x200000000000ULL;
  constexpr std::uint64_t kExtent = kExtentPages * kPage;
  const std::uint64_t start = next + (aligned ? 0 : kExtent - 64 * kPage);
  next = (start + pages * kPage + 3 * kExtent) / kExtent * kExtent;
  void* memory = mmap(reinterpret_cast<void*>(start), pages * kPage, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE, -1, 0);
  if (memory == MAP_FAILED) broken("mmap at a new place");
  return static_cast<std::byte*>(memory);
}

// Reads watched pages without end and compares them with what they may show before, during and
// after act().
class Watchers {
 public:
  explicit Watchers(const Operation& operation) : operation_(operation) {
    const Region& region = *operation.regions[0];
    base_ = region.base();
    for (std::size_t i = 0; i < region.pages(); ++i) before_.push_back(region.key(i));
    kind_ = region.kind();
    for (std::size_t t = 0; t < threads_.size(); ++t) {
      threads_[t] = std::thread([this, t] { watch(operation_.seed + t); });
    }
  }
  Watchers(const Watchers&) = delete;
  Watchers& operator=(const Watchers&) = delete;
  ~Watchers() {
    stop_ = true;
    for (auto& thread : threads_) thread.join();
  }

  void begins() { __atomic_store_n(&phase_, 1, __ATOMIC_SEQ_CST); }
  void is_done() { __atomic_store_n(&phase_, 2, __ATOMIC_SEQ_CST); }
  void await_reads(std::uint64_t more) const {
    const std::uint64_t until = __atomic_load_n(&reads_, __ATOMIC_RELAXED) + more;
    while (__atomic_load_n(&reads_, __ATOMIC_RELAXED) < until) sleep_ms(0);
  }

 private:
  void watch(std::uint64_t seed) {
    Random random(seed);
    std::array<std::byte, kPage> copy;
    std::size_t at = 0;
    while (!__atomic_load_n(&stop_, __ATOMIC_SEQ_CST)) {
      // Runs, so that windows of read-ahead come up, and single pages.
      at = random.below(16) == 0 ? random.below(before_.size()) : (at + 1) % before_.size();
      const int early = __atomic_load_n(&phase_, __ATOMIC_SEQ_CST);
      const bool read = try_read(base_ + at * kPage, copy.data());
      const int late = __atomic_load_n(&phase_, __ATOMIC_SEQ_CST);
      judge(at, early, late, read, copy.data());
      __atomic_fetch_add(&reads_, 1, __ATOMIC_RELAXED);
    }
  }

  void judge(std::size_t at, int early, int late, bool read, const std::byte* copy) const {
    const After& after = operation_.after[at];
    const bool old = read && holds(copy, before_[at], kind_);
    const bool good = late == 0    ? old
                      : early == 2 ? fits(after, read, copy, old)
                                   : old || fits(after, read, copy, old) ||
                                         (read && is_mixed(after, copy, before_[at]));
    if (good) return;
    std::fprintf(stderr, "WRONG: page %zu, phase %d to %d: %s, first bytes %016llx\n", at, early,
                 late, read ? "read" : "fault", read ? first_word(copy) : 0ULL);
    _exit(kExitWrongBytes);
  }

  bool fits(const After& after, bool read, const std::byte* copy, bool old) const {
    switch (after.what) {
      case After::What::fault:
      case After::What::guard:
        return !read;
      case After::What::either:
        return read && (old || holds(copy, 0, kind_));
      default:
        return read && std::memcmp(copy, contents(after).data(), kPage) == 0;
    }
  }

  using Copy = std::array<std::byte, kPage>;
  Copy contents(const After& after) const {
    Copy page{};
    if (after.what == After::What::bytes) fill_page(page.data(), after.key, kind_);
    if (after.what == After::What::file) fill_page(page.data(), file_key(after.key), Kind::heap);
    return page;
  }

  // The operation came in the middle of the read: the page was copied in part before, in part
  // after.
  bool is_mixed(const After& after, const std::byte* copy, std::uint64_t old_key) const {
    const Copy last = contents(after);
    Copy old;
    fill_page(old.data(), old_key, kind_);
    for (std::size_t i = 0; i < kPage; ++i) {
      if (copy[i] != old[i] && copy[i] != last[i]) return false;
    }
    return after.what != After::What::fault;  // a guard: zeros
  }

  static unsigned long long first_word(const std::byte* copy) {
    unsigned long long word = 0;
    std::memcpy(&word, copy, sizeof(word));
    return word;
  }

  const Operation& operation_;
  std::byte* base_ = nullptr;
  Kind kind_ = Kind::mixed;
  std::vector<std::uint64_t> before_;
  int phase_ = 0;
  bool stop_ = false;
  std::uint64_t reads_ = 0;
  std::array<std::thread, 2> threads_;
};

void bring_into_state(const Operation& operation, std::uint64_t round) {
  const bool evicted_once = operation.state == State::resident && round % 2 == 1;
  if (operation.state == State::resident && !evicted_once) return;
  if (operation.state == State::flight) return;
  for (const Region* region : operation.regions) evict(*region);
  if (!evicted_once) return;
  for (const Region* region : operation.regions) region->check_all();
}

void one_round(Operation& operation, std::uint64_t round) {
  operation.plan();
  bring_into_state(operation, round);
  if (operation.state == State::faulting && !operation.after.empty()) {
    Watchers watchers(operation);
    watchers.await_reads(1 + operation.random.below(200));
    watchers.begins();
    operation.act();
    watchers.is_done();
    watchers.await_reads(100);
  } else {
    if (operation.state == State::flight && operation.random.below(2) == 0) {
      sleep_ms(static_cast<unsigned>(operation.random.below(4)));
    }
    operation.act();
  }
  operation.settle();
  made_progress();
}

void rounds_of(Maker maker, State state, std::uint64_t seed, std::uint64_t rounds, double seconds) {
  const double end = seconds_now() + seconds;
  for (std::uint64_t n = 0; n < rounds && (seconds == 0 || seconds_now() < end); ++n) {
    const auto operation = maker();
    operation->state = state;
    operation->seed = seed * 1000 + static_cast<std::uint64_t>(state) * 100'000'000 + n;
    operation->random = Random(operation->seed);
    one_round(*operation, n);
    for (const Region* region : operation->regions) {
      must(munmap(region->base(), region->bytes()), "munmap at the end of a round");
    }
  }
}

}  // namespace

const char* name_of(State state) {
  static constexpr std::array kNames{"resident", "out", "same", "flight", "faulting"};
  return kNames[static_cast<std::size_t>(state)];
}

Region Operation::make_region(const Shape& shape) {
  const Kind kind = state == State::same ? Kind::same : Kind::mixed;
  std::byte* place = new_place(shape.pages, shape.aligned);
  if (shape.advice != 0) must(madvise(place, shape.pages * kPage, shape.advice), "madvise");
  Region region(place, shape.pages, shape.seed != 0 ? shape.seed : random.next(), kind);
  region.write_all();
  return region;
}

void Operation::choose(const Region& region) {
  const std::size_t pages = region.pages();
  switch (random.below(4)) {
    case 0:
      first = 0;
      count = pages;
      break;
    case 1:
      first = 0;
      count = 1 + random.below(pages - 1);
      break;
    case 2:
      first = 1 + random.below(pages - 1);
      count = pages - first;
      break;
    default:
      first = 1 + random.below(pages - 2);
      count = 1 + random.below(pages - 1 - first);
  }
}

void Operation::expect(const Region& region, After::What what) {
  after.resize(region.pages());
  for (std::size_t i = 0; i < region.pages(); ++i) {
    const bool in_choice = i >= first && i < first + count;
    after[i] = in_choice ? After{what, region.key(i)} : After{After::What::bytes, region.key(i)};
  }
}

void OnRegion::plan() {
  plan_shape({.pages = kPages});
}

void OnRegion::plan_shape(const Shape& shape) {
  region_.emplace(make_region(shape));
  choose(*region_);
  expect(*region_, shows());
  regions = {&*region_};
}

void OnRegion::forget() {
  for (std::size_t i = first; i < first + count; ++i) region_->forget(i);
}

void OnRegion::verify() {
  region_->check_all();
  for (std::size_t i = 0; i < region_->pages(); i += 1 + random.below(5)) region_->write(i);
  region_->check_all();
}

void OnRegion::check_rest() {
  for (std::size_t i = 0; i < region_->pages(); ++i) {
    if (!chosen(i)) region_->check(i);
  }
}

void OnRegion::must_fault_all() {
  for (std::size_t i = first; i < first + count; i += 1 + count / 16) must_fault(region_->page(i));
  must_fault(region_->page(first + count - 1));
}

void run_matrix(Maker maker, const Options& options) {
  const std::uint64_t seed = options.number("seed", 1);
  catch_faults();
  rounds_of(maker, State::resident, seed, 4, 0);
  rounds_of(maker, State::out, seed, 5, 0);
  rounds_of(maker, State::same, seed, 3, 0);
  rounds_of(maker, State::faulting, seed, 4, 0);
  ask("churn");
  rounds_of(maker, State::flight, seed, 100'000,
            static_cast<double>(options.number("flight_ms", 500)) / 1000);
  ask("calm");
}

int run_named(std::span<const Named> operations, const Options& options) {
  for (const Named& operation : operations) {
    if (operation.name != options.text("op", "")) continue;
    watch_progress(&progress, 60);
    run_matrix(operation.maker, options);
    say("done");
    return 0;
  }
  errno = EINVAL;
  broken("--op");
}

int run_work(std::span<const Work> table, const Options& options) {
  for (const Work& work : table) {
    if (work.name != options.text("op", "")) continue;
    watch_progress(&progress, 60);
    catch_faults();
    work.body(options, options.number("seed", 1));
    say("done");
    return 0;
  }
  errno = EINVAL;
  broken("--op");
}

void ask(const std::string& what) {
  say(what);
  if (next_command() != "go") {
    errno = EPROTO;
    broken("the test did not answer");
  }
  made_progress();
}

void evict(const Region& region, std::size_t least_percent) {
  std::size_t present = 0;
  for (int tries = 0; tries < 60; ++tries) {
    ask("evict");
    present = 0;
    for (std::size_t i = 0; i < region.pages(); ++i) {
      // What came back as zeros for a read is the kernel's zero page: nothing to take out.
      if (present_pages(region.page(i), 1) == 0) continue;
      present += holds(region.page(i), 0, region.kind()) ? 0U : 1U;
    }
    if (present * 100 <= region.pages() * (100 - least_percent)) return;
    sleep_ms(50);
  }
  std::fprintf(stderr, "%zu of %zu pages cannot be evicted\n", present, region.pages());
  wrong("a region stays in memory");
}

std::size_t present_pages(const std::byte* start, std::size_t pages) {
  static const int fd = must(open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC), "pagemap");
  std::vector<std::uint64_t> words(pages);
  const auto at = static_cast<off_t>(reinterpret_cast<std::uintptr_t>(start) / kPage * 8);
  if (pread(fd, words.data(), pages * 8, at) != static_cast<ssize_t>(pages * 8)) broken("pagemap");
  std::size_t present = 0;
  for (const std::uint64_t word : words) present += word >> 63;
  return present;
}

void tell_skip(const std::string& why) {
  say("skip " + why);
  static_cast<void>(next_command());
  _exit(0);
}

void catch_faults() {
  struct sigaction action{};
  action.sa_sigaction = on_fault;
  action.sa_flags = SA_SIGINFO | SA_NODEFER;
  must(sigaction(SIGSEGV, &action, nullptr), "sigaction");
  must(sigaction(SIGBUS, &action, nullptr), "sigaction");
}

// No signal mask is saved: SA_NODEFER leaves it as it is.
bool try_read(const std::byte* page, std::byte* copy) {
  if (sigsetjmp(fault_exit, 0) != 0) return false;
  fault_expected = true;
  std::memcpy(copy, page, kPage);
  fault_expected = false;
  return true;
}

bool try_write(std::byte* page) {
  if (sigsetjmp(fault_exit, 0) != 0) return false;
  fault_expected = true;
  auto* byte = reinterpret_cast<volatile unsigned char*>(page);
  const unsigned char old = *byte;
  *byte = old;
  fault_expected = false;
  return true;
}

void must_fault(const std::byte* page) {
  std::array<std::byte, kPage> copy;
  if (!try_read(page, copy.data())) return;
  std::fprintf(stderr, "WRONG: page %p can be read\n", static_cast<const void*>(page));
  _exit(kExitWrongBytes);
}

bool holds(const std::byte* copy, std::uint64_t key, Kind kind) {
  std::array<std::byte, kPage> expected{};
  if (key != 0) fill_page(expected.data(), key, kind);
  return std::memcmp(copy, expected.data(), kPage) == 0;
}

std::uint64_t file_key(std::size_t i) {
  return Random(i + 77).next() | 1;
}

int make_file(std::size_t pages) {
  const int fd = must(static_cast<int>(memfd_create("space", MFD_CLOEXEC)), "memfd_create");
  std::array<std::byte, kPage> page;
  for (std::size_t i = 0; i < pages; ++i) {
    fill_page(page.data(), file_key(i), Kind::heap);
    if (write(fd, page.data(), kPage) != static_cast<ssize_t>(kPage)) broken("write to a file");
  }
  return fd;
}

void check_file_page(const std::byte* page, std::size_t i) {
  check_page(page, file_key(i), Kind::heap);
}

void map_over(std::byte* place, std::size_t pages) {
  void* memory = mmap(place, pages * kPage, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) broken("mmap");
}

int fork_child() {
  return must(fork(), "fork");
}

void end_child() {
  _exit(0);
}

void await_child(int child) {
  int status = 0;
  must(waitpid(child, &status, 0), "waitpid");
  if (status != 0) wrong("a child failed");
}

}  // namespace testprog
