// Clients that end, or become something else, while pages of theirs are out and threads of theirs
// wait for them. --how=
//   exec         the program becomes --to=self|PATH, --depth times, out of --from=main|thread,
//   while
//                --readers threads read
//   leave        exit_group(7), out of main or another thread (--from), while threads read
//   stand        the readers start at a first byte, main leaves at a second one; it touches nothing
//                that could be out, so that it leaves even while the daemon stands still
//   family       parent, child and grandchild read and write until the input ends; the test kills
//                some
//   abort        a handler for SIGSEGV, on a stack that is out, reads pages that are out and aborts
//   main_leaves  main calls pthread_exit, four threads go on until the input ends; --idle=1: they
//                sleep until then, and at last cut guards into pages that are out
//   sharing      a child that sleeps shares what is resident; what is out is read page by page
//   core         writes what its memory holds to --image and aborts when told to
// All say "ready" once their memory is filled. --mb, --seed, --readers, --writers (threads that
// read pages themselves; that have the kernel read them).
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <thread>

#include "tests/programs/lib/common.h"

using namespace testprog;

namespace {

constexpr int kLeaveCode = 7;
std::uint64_t progress = 0;

void made_progress() {
  __atomic_fetch_add(&progress, 1, __ATOMIC_RELAXED);
}

Region make_region(const Options& options) {
  const std::size_t pages = options.number("mb", 16) * 256;
  Region region(map_aligned(pages * kPage), pages, options.number("seed", 1), Kind::mixed);
  region.write_all();
  return region;
}

void wait_for(const int* gate) {
  while (gate != nullptr && __atomic_load_n(gate, __ATOMIC_SEQ_CST) == 0) sleep_ms(1);
}

void read_for_ever(const Region& region, std::uint64_t seed, const int* gate) {
  Random random(seed);
  wait_for(gate);
  while (true) region.check_random(random, 16);
}

// The kernel reads them: faults inside of a system call.
void write_for_ever(const Region& region, std::uint64_t seed, const int* gate) {
  Random random(seed);
  std::array<int, 2> fds{};
  std::array<std::byte, kPage> got{};
  must(pipe2(fds.data(), O_CLOEXEC), "pipe2");
  wait_for(gate);
  while (true) {
    const std::size_t i = random.below(region.pages());
    must(write(fds[1], region.page(i), kPage), "write to a pipe");
    must(read(fds[0], got.data(), kPage), "read from a pipe");
    region.check(i);
  }
}

// --readers and --writers threads that read pages at random for ever: the process ends under them.
// They begin at once, or when `gate` becomes 1.
void start_readers(const Options& options, const Region& region, const int* gate = nullptr) {
  const std::uint64_t seed = options.number("seed", 1) * 100;
  for (std::uint64_t t = 0; t < options.number("readers", 4); ++t)
    std::thread(read_for_ever, std::cref(region), seed + t, gate).detach();
  for (std::uint64_t t = 0; t < options.number("writers", 2); ++t)
    std::thread(write_for_ever, std::cref(region), seed + 50 + t, gate).detach();
}

// Runs `body`, which does not return, in main or in a thread of its own.
template <typename Body>
[[noreturn]] void leave_from(const Options& options, Body body) {
  if (options.text("from", "main") == "main") body();
  std::thread(body).join();
  broken("a body that came back");
}

// The same command line, one level less deep; the last level is --to.
[[noreturn]] void become_next(char** argv, std::uint64_t depth, const std::string& to) {
  if (depth == 0) {
    execl(to.c_str(), to.c_str(), "--mb=8", nullptr);
    broken("exec of another program");
  }
  const std::string next = "--depth=" + std::to_string(depth - 1);
  std::vector<char*> arguments;
  for (char** a = argv; *a != nullptr; ++a) {
    if (!std::string(*a).starts_with("--depth=")) arguments.push_back(*a);
  }
  arguments.push_back(const_cast<char*>(next.c_str()));
  arguments.push_back(nullptr);
  execv("/proc/self/exe", arguments.data());
  broken("exec of itself");
}

int exec_chain(const Options& options, char** argv) {
  static Region region = make_region(options);
  const std::uint64_t depth = options.number("depth", 3);
  const std::string to = options.text("to", "self");
  Random random(options.number("seed", 1) + depth);
  say("ready");
  static_cast<void>(next_command());  // everything is out by now
  if (depth == 0 && to == "self") {
    region.check_all();
    say("done");
    return 0;
  }
  start_readers(options, region);
  leave_from(options, [&] {
    sleep_ms(static_cast<unsigned>(random.below(8)));
    region.check_random(random, 32);
    become_next(argv, depth, to);
  });
}

int leave(const Options& options) {
  static Region region = make_region(options);
  Random random(options.number("seed", 1));
  say("ready");
  static_cast<void>(next_command());
  start_readers(options, region);
  leave_from(options, [&] {
    sleep_ms(static_cast<unsigned>(random.below(20)));
    region.check_random(random, 8);
    syscall(SYS_exit_group, kLeaveCode);
  });
}

int stand(const Options& options) {
  static Region region = make_region(options);
  int gate = 0;
  std::array<char, 8> byte{};
  start_readers(options, region, &gate);
  say("ready");
  // Only the stack and the thread's control block from here: neither is ever taken out. (Nor may
  // the dynamic linker have work left, whose memory may be: LD_BIND_NOW.)
  must(read(STDIN_FILENO, byte.data(), 1), "read");  // the daemon stands still now
  __atomic_store_n(&gate, 1, __ATOMIC_SEQ_CST);
  must(read(STDIN_FILENO, byte.data(), 1), "read");
  syscall(SYS_exit_group, kLeaveCode);
  return 0;
}

// One of the family: its bytes differ from the others' after the first writes.
[[noreturn]] void live(Region& region, const std::string& role, std::uint64_t seed) {
  watch_progress(&progress, 60);
  region.diverge(seed);
  Random random(seed);
  say("pid " + role + " " + std::to_string(getpid()));
  while (!stdin_closed()) {
    region.check_random(random, 32);
    for (int n = 0; n < 16; ++n) region.write(random.below(region.pages()));
    made_progress();
  }
  region.check_all();
  say("ok " + role);
  _exit(0);
}

int family(const Options& options) {
  Region region = make_region(options);
  const std::uint64_t seed = options.number("seed", 1);
  say("ready");
  static_cast<void>(next_command());  // the test evicts from here on
  if (must(fork(), "fork") != 0) live(region, "parent", seed);
  for (std::size_t i = 0; i < region.pages(); i += 7) region.check(i);
  if (must(fork(), "fork") != 0) live(region, "child", seed + 1);
  live(region, "grandchild", seed + 2);
}

int sharing(const Options& options) {
  const Region region = make_region(options);
  std::array<int, 2> fds{};
  must(pipe2(fds.data(), O_CLOEXEC), "pipe2");
  say("ready");
  static_cast<void>(next_command());  // half of it is out by now
  if (must(fork(), "fork") == 0) {
    char byte = 0;
    must(close(fds[1]), "close");
    must(read(fds[0], &byte, 1), "read");  // until the parent ends
    region.check_all();
    say("child ok");
    _exit(0);
  }
  say("shared");
  static_cast<void>(next_command());  // the budget is less than what the child shares by now
  const double start = seconds_now();
  for (std::size_t n = 0; n < region.pages(); ++n) region.check(n * 1021 % region.pages());
  std::fprintf(stderr, "read everything in %.2f s\n", seconds_now() - start);
  say("done");
  return 0;
}

Region* handler_region = nullptr;

void read_and_abort(int) {
  handler_region->check_all();
  say("in the handler");
  std::abort();
}

int abort_in_handler(const Options& options) {
  static Region region = make_region(options);
  handler_region = &region;
  constexpr std::size_t kStackBytes = 256 * kPage;
  stack_t stack{};
  stack.ss_sp = map_aligned(kStackBytes);
  stack.ss_size = kStackBytes;
  for (std::size_t i = 0; i < kStackBytes; i += kPage) static_cast<char*>(stack.ss_sp)[i] = 1;
  must(sigaltstack(&stack, nullptr), "sigaltstack");
  struct sigaction action{};
  action.sa_handler = read_and_abort;
  action.sa_flags = SA_ONSTACK;
  must(sigaction(SIGSEGV, &action, nullptr), "sigaction");
  std::byte* forbidden = region.page(region.pages() / 2);
  say("ready");
  static_cast<void>(next_command());
  start_readers(options, region);
  std::byte* guard = map_bytes(kPage);
  must(mprotect(guard, kPage, PROT_NONE), "mprotect");
  *guard = *forbidden;
  return 0;
}

// What a guard replaced must read as zeros, and not as what was out.
void cut_guards(Region& region) {
  constexpr int kGuardInstall = 102, kGuardRemove = 103;
  for (std::size_t i = 10; i < region.pages(); i += 100) {
    if (madvise(region.page(i), kPage, kGuardInstall) != 0) return;  // Linux before 6.13
    must(madvise(region.page(i), kPage, kGuardRemove), "madvise(GUARD_REMOVE)");
    region.forget(i);
  }
}

void work_without_main(Region& region, std::uint64_t seed, bool idle) {
  Random random(seed);
  while (!stdin_closed()) {
    made_progress();
    if (idle) {
      sleep_ms(20);
      continue;
    }
    region.check_random(random, 32);
    for (int n = 0; n < 4; ++n) region.write(random.below(region.pages()));
  }
  if (idle) cut_guards(region);
  region.check_all();
}

int main_leaves(const Options& options) {
  constexpr std::size_t kThreads = 4;
  static std::vector<Region> regions;
  static std::size_t working = kThreads;
  const std::size_t pages = options.number("mb", 16) * 256 / kThreads;
  const bool idle = options.number("idle", 0) != 0;
  for (std::size_t t = 0; t < kThreads; ++t) {
    regions.emplace_back(map_aligned(pages * kPage), pages, options.number("seed", 1) + t,
                         Kind::mixed);
    regions.back().write_all();
  }
  watch_progress(&progress, 60);
  say("ready");
  static_cast<void>(next_command());  // everything is out by now
  for (std::size_t t = 0; t < kThreads; ++t) {
    std::thread([t, idle] {
      work_without_main(regions[t], t, idle);
      if (__atomic_sub_fetch(&working, 1, __ATOMIC_SEQ_CST) != 0) return;
      say("done");
      std::exit(0);  // the thread that watches would keep the process
    }).detach();
  }
  say("main leaves");
  pthread_exit(nullptr);
}

int core(const Options& options) {
  Region region = make_region(options);
  const std::string image = options.text("image", "");
  const int fd = must(open(image.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600), "open");
  for (std::size_t i = 0; i < region.pages(); ++i) {
    if (write(fd, region.page(i), kPage) != static_cast<ssize_t>(kPage)) broken("write");
  }
  must(close(fd), "close");
  const rlimit all{.rlim_cur = RLIM_INFINITY, .rlim_max = RLIM_INFINITY};
  must(setrlimit(RLIMIT_CORE, &all), "setrlimit");
  say("at " + std::to_string(reinterpret_cast<std::uintptr_t>(region.base())));
  say("ready");
  if (next_command() == "abort") std::abort();
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  const Options options(argc, argv);
  const std::string how = options.text("how", "");
  if (how == "exec") return exec_chain(options, argv);
  if (how == "leave") return leave(options);
  if (how == "stand") return stand(options);
  if (how == "family") return family(options);
  if (how == "sharing") return sharing(options);
  if (how == "abort") return abort_in_handler(options);
  if (how == "main_leaves") return main_leaves(options);
  if (how == "core") return core(options);
  errno = EINVAL;
  broken("--how");
}
