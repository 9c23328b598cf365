// Calls that are under way for long: their buffers are evicted after the call began, and the kernel
// meets them missing when it has something to write there. And futexes, which wait on the memory
// itself.
#include <fcntl.h>
#include <linux/futex.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cerrno>
#include <thread>
#include <vector>

#include "tests/programs/kernel_access/kernel_access.h"

namespace kernel_access {
namespace {

long futex(const std::uint32_t* word, int operation, std::uint32_t value,
           const timespec* timeout = nullptr, std::uint32_t* other = nullptr,
           std::uint32_t value3 = 0) {
  return syscall(SYS_futex, word, operation, value, timeout, other, value3);
}

const timespec* count_as_timeout(std::size_t count) {  // calls that take a second count there
  return reinterpret_cast<const timespec*>(count);
}

// -- futex

// The word is out when the call begins.
void futex_out() {
  const Memory memory(8);
  auto* word = memory.at<std::uint32_t>(0);
  *word = 7;
  evict({memory.span()});
  if (futex(word, FUTEX_WAIT_PRIVATE, 8) != -1 || errno != EAGAIN) wrong("a wait on another value");
  const timespec short_time{.tv_sec = 0, .tv_nsec = 20'000'000};
  evict({memory.span()});
  if (futex(word, FUTEX_WAIT_PRIVATE, 7, &short_time) != -1 || errno != ETIMEDOUT) {
    wrong("a wait on the right value");
  }
  evict({memory.span()});
  if (must(futex(word, FUTEX_WAKE_PRIVATE, 1), "FUTEX_WAKE") != 0) wrong("who was woken?");
  // The same by the page itself, as processes that share memory do it.
  evict({memory.span()});
  if (futex(word, FUTEX_WAIT, 8) != -1 || errno != EAGAIN) wrong("a shared wait");
  for (const std::size_t i : {1UL, 2UL, 3UL, 4UL, 5UL, 6UL, 7UL}) memory.check(i);
}

// The word goes out while a thread waits on it.
void futex_waiter() {
  const Memory memory(8);
  for (const int shared : {FUTEX_PRIVATE_FLAG, 0}) {
    auto* word = memory.at<std::uint32_t>(0);
    auto* second = memory.at<std::uint32_t>(4);
    *word = 1;
    *second = 1;
    long result = -1;
    InCall waiter(SYS_futex, [&] { result = futex(word, FUTEX_WAIT | shared, 1); });
    evict({memory.span()});
    waiter.must_be_inside();
    __atomic_store_n(word, 2U, __ATOMIC_RELEASE);
    if (must(futex(word, FUTEX_WAKE | shared, 1), "FUTEX_WAKE") != 1) wrong("nobody was woken");
    waiter.join();
    if (result != 0) wrong("the waiter's result");

    // Out again while it is moved to another word, which is out, too.
    *word = 1;
    InCall moved(SYS_futex, [&] { result = futex(word, FUTEX_WAIT | shared, 1); });
    evict({memory.span()});
    if (must(futex(word, FUTEX_CMP_REQUEUE | shared, 0, count_as_timeout(1), second, 1),
             "FUTEX_CMP_REQUEUE") != 1) {
      wrong("nobody was moved");
    }
    evict({memory.span()});
    if (must(futex(second, FUTEX_WAKE | shared, 1), "FUTEX_WAKE") != 1) wrong("nobody was there");
    moved.join();
    if (result != 0) wrong("the moved waiter's result");
  }
}

// What programs use: a condition variable and its mutex, out while threads wait.
void condition_variable() {
  const Memory memory(8);
  auto* mutex = memory.at<pthread_mutex_t>(0);
  auto* condition = memory.at<pthread_cond_t>(2);
  auto* turn = memory.at<int>(4);
  if (pthread_mutex_init(mutex, nullptr) != 0 || pthread_cond_init(condition, nullptr) != 0) {
    broken("pthread_mutex_init");
  }
  *turn = 0;
  const auto wait_for = [&](int wanted) {
    pthread_mutex_lock(mutex);
    while (*turn != wanted) pthread_cond_wait(condition, mutex);
    ++*turn;
    pthread_cond_broadcast(condition);
    pthread_mutex_unlock(mutex);
  };
  InCall second(SYS_futex, [&] { wait_for(2); });
  InCall first(SYS_futex, [&] { wait_for(1); });
  evict({memory.span()});
  first.must_be_inside();
  second.must_be_inside();
  pthread_mutex_lock(mutex);
  *turn = 1;
  pthread_mutex_unlock(mutex);
  evict({memory.span()});
  pthread_cond_broadcast(condition);
  first.join();
  second.join();
  if (*turn != 3) wrong("the turns of a condition variable");
}

// The kernel itself changes a mutex with priority inheritance, and gives EFAULT where it finds the
// page missing (FUTEX_LOCK_PI is one of the few calls that cannot wait for a page). So its page
// must never be taken out.
void inheriting_mutex() {
  constexpr int kThreads = 3;
  const Memory memory(8);
  auto* mutex = memory.at<pthread_mutex_t>(2);
  pthread_mutexattr_t attributes;
  if (pthread_mutexattr_init(&attributes) != 0 ||
      pthread_mutexattr_setprotocol(&attributes, PTHREAD_PRIO_INHERIT) != 0 ||
      pthread_mutex_init(mutex, &attributes) != 0) {
    broken("pthread_mutex_init");
  }
  evict({{memory.page(4), 4 * kPage}});  // all but the mutex, which nobody has touched meanwhile
  if (pages_in({memory.page(2), kPage}) != 1) wrong("the mutex was taken out");
  std::atomic<bool> stop{false};
  std::uint64_t inside = 0, total = 0;  // under the mutex
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&] {
      while (!stop.load()) {
        if (pthread_mutex_lock(mutex) != 0) wrong("pthread_mutex_lock");
        if (++inside != 1) wrong("two threads hold the mutex");
        sleep_ms(1);
        ++total;
        --inside;
        if (pthread_mutex_unlock(mutex) != 0) wrong("pthread_mutex_unlock");
      }
    });
  }
  for (int n = 0; n < 20; ++n) press();
  stop.store(true);
  for (std::thread& thread : threads) thread.join();
  if (total == 0) wrong("nobody got the mutex");
}

// -- calls that wait for data

void blocked_read() {
  const Memory from(16), to(16);
  const Pipe pipe;
  long result = -1;
  InCall reader(SYS_read, [&] { result = read(pipe.out, to.base() + 100, to.bytes() - 200); });
  evict({to.span(), from.span()});
  reader.must_be_inside();
  whole(write(pipe.in, from.base(), from.bytes() - 200), from.bytes() - 200, "write");
  reader.join();
  // The reader may have been woken by the first of the pages.
  if (result <= 0) wrong("the read's result");
  same(to.base() + 100, from.base(), static_cast<std::size_t>(result), "what the read got");
  from.check_all();
}

void blocked_write() {
  const Memory from(128), to(128);
  const Pipe pipe;
  must(fcntl(pipe.in, F_SETPIPE_SZ, 64 * 1024), "F_SETPIPE_SZ");
  long result = -1;
  InCall writer(SYS_write, [&] { result = write(pipe.in, from.base(), from.bytes()); });
  evict({from.span(), to.span()});
  writer.must_be_inside();
  for (std::size_t at = 0; at < to.bytes();) {
    const long n = must(read(pipe.out, to.base() + at, to.bytes() - at), "read");
    if (n == 0) wrong("the pipe ended");
    at += static_cast<std::size_t>(n);
  }
  writer.join();
  whole(result, from.bytes(), "the blocked write");
  same(to.base(), from.base(), to.bytes(), "what the blocked write wrote");
  from.check_all();
}

// Header, vector, data and control message each on pages of their own.
void blocked_recvmsg() {
  const Memory from(4), data(4), header_memory(1), vector(1), control(2);
  std::array<int, 2> pair{};
  must(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair.data()), "socketpair");
  auto* parts = vector.at<iovec>(0);
  parts[0] = {data.base() + 1, kPage};
  parts[1] = {data.base() + 2 * kPage, 2 * kPage};
  auto* header = header_memory.at<msghdr>(0);
  *header = {};
  header->msg_iov = parts;
  header->msg_iovlen = 2;
  header->msg_control = control.across<std::byte>(0, 24);
  header->msg_controllen = CMSG_SPACE(sizeof(int));
  long result = -1;
  InCall receiver(SYS_recvmsg, [&] { result = recvmsg(pair[0], header, MSG_CMSG_CLOEXEC); });
  evict({data.span(), header_memory.span(), vector.span(), control.span()});
  receiver.must_be_inside();

  iovec source{.iov_base = from.base(), .iov_len = 2 * kPage};
  alignas(cmsghdr) std::array<char, CMSG_SPACE(sizeof(int))> rights{};
  msghdr message{};
  message.msg_iov = &source;
  message.msg_iovlen = 1;
  message.msg_control = rights.data();
  message.msg_controllen = rights.size();
  cmsghdr* part = CMSG_FIRSTHDR(&message);
  *part = {.cmsg_len = CMSG_LEN(sizeof(int)), .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS};
  std::memcpy(CMSG_DATA(part), &pair[1], sizeof(int));
  whole(sendmsg(pair[1], &message, 0), 2 * kPage, "sendmsg");
  receiver.join();
  whole(result, 2 * kPage, "recvmsg");
  same(data.base() + 1, from.base(), kPage, "the first part");
  same(data.base() + 2 * kPage, from.base() + kPage, kPage, "the second part");
  data.check(3);
  int passed = -1;
  const cmsghdr* got = CMSG_FIRSTHDR(header);
  if (got == nullptr || got->cmsg_type != SCM_RIGHTS) wrong("the control message");
  std::memcpy(&passed, CMSG_DATA(got), sizeof(int));
  must(close(passed), "close of the passed descriptor");
  close(pair[0]);
  close(pair[1]);
}

void blocked_poll() {
  const Memory memory(4), events(4);
  const Pipe pipe;
  auto* set = memory.across<pollfd>(0, sizeof(pollfd));  // one entry on each page
  set[0] = {.fd = pipe.in, .events = POLLERR, .revents = 77};
  set[1] = {.fd = pipe.out, .events = POLLIN, .revents = 77};
  long result = -1;
  InCall poller(SYS_poll, [&] { result = poll(set, 2, -1); });
  const int queue = must(epoll_create1(EPOLL_CLOEXEC), "epoll_create1");
  epoll_event event{.events = EPOLLIN, .data = {.u64 = 0x0123456789abcdefULL}};
  must(epoll_ctl(queue, EPOLL_CTL_ADD, pipe.out, &event), "epoll_ctl");
  auto* list = events.across<epoll_event>(1, 5);
  long count = -1;
  InCall waiter(SYS_epoll_wait, [&] { count = epoll_wait(queue, list, 4, -1); });
  evict({memory.span(), events.span()});
  poller.must_be_inside();
  waiter.must_be_inside();
  whole(write(pipe.in, "x", 1), 1, "write");
  poller.join();
  waiter.join();
  if (result != 1 || set[0].revents != 0 || set[1].revents != POLLIN) wrong("poll's answer");
  epoll_event got{};
  std::memcpy(static_cast<void*>(&got), static_cast<void*>(list), sizeof(got));
  if (count != 1 || got.events != EPOLLIN || got.data.u64 != event.data.u64) {
    wrong("epoll_wait's answer");
  }
  close(queue);
}

void nothing_to_do(int) {}

// What the kernel writes when a child ends, a signal comes, or a sleep is cut short.
void blocked_waits() {
  std::array<int, 2> gate{};
  must(pipe2(gate.data(), O_CLOEXEC), "pipe2");
  const pid_t child = must(fork(), "fork");  // before anything is out: its pages stay shared
  if (child == 0) {
    close(gate[1]);
    char c = 0;
    static_cast<void>(read(gate[0], &c, 1));
    _exit(7);
  }
  close(gate[0]);
  const Memory about_child(2), about_signal(2), left(2);
  auto* ended = about_child.across<siginfo_t>(0, 20);
  auto* caught = about_signal.across<siginfo_t>(0, 20);
  auto* rest = left.across<std::byte>(0, 8);
  sigset_t usr1;
  sigemptyset(&usr1);
  sigaddset(&usr1, SIGUSR1);
  must(pthread_sigmask(SIG_BLOCK, &usr1, nullptr), "pthread_sigmask");
  struct sigaction action{};
  action.sa_handler = nothing_to_do;
  must(sigaction(SIGUSR2, &action, nullptr), "sigaction");
  long waited = -1, signal = -1, slept = 0;
  InCall parent(SYS_waitid,
                [&] { waited = syscall(SYS_waitid, P_PID, child, ended, WEXITED, nullptr); });
  InCall catcher(SYS_rt_sigtimedwait, [&] { signal = sigwaitinfo(&usr1, caught); });
  const timespec long_time{.tv_sec = 1000, .tv_nsec = 0};
  InCall sleeper(SYS_nanosleep, [&] { slept = syscall(SYS_nanosleep, &long_time, rest); });
  evict({about_child.span(), about_signal.span(), left.span()});
  parent.must_be_inside();
  close(gate[1]);
  parent.join();
  if (waited != 0 || ended->si_pid != child || ended->si_status != 7) wrong("waitid's answer");
  catcher.must_be_inside();
  const sigval value{.sival_int = 4711};
  must(sigqueue(getpid(), SIGUSR1, value), "sigqueue");
  catcher.join();
  if (signal != SIGUSR1 || caught->si_value.sival_int != 4711) wrong("sigwaitinfo's answer");
  sleeper.must_be_inside();
  if (pthread_kill(sleeper.handle(), SIGUSR2) != 0) broken("pthread_kill");
  sleeper.join();
  timespec remaining{};
  std::memcpy(&remaining, rest, sizeof(remaining));
  if (slept != -1 || remaining.tv_sec < 100 || remaining.tv_sec > 1000)
    wrong("what was left of a sleep");
}

constexpr Case kCases[] = {{"futex_out", futex_out},
                           {"futex_waiter", futex_waiter},
                           {"condition_variable", condition_variable},
                           {"inheriting_mutex", inheriting_mutex},
                           {"blocked_read", blocked_read},
                           {"blocked_write", blocked_write},
                           {"blocked_recvmsg", blocked_recvmsg},
                           {"blocked_poll", blocked_poll},
                           {"blocked_waits", blocked_waits}};

}  // namespace

std::span<const Case> wait_cases() {
  return kCases;
}

}  // namespace kernel_access
