#include "daemon/fault/thread_stopper.h"

#include <pthread.h>
#include <sys/ptrace.h>
#include <sys/wait.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <csignal>
#include <string>
#include <utility>

#include "daemon/host/call_restart.h"
#include "daemon/host/log.h"

namespace foldswap {
namespace {

constexpr std::uint64_t kLookUs = 100;

// A signal on its way to a stopped thread, to be given to it when it is let go; 0: none.
int signal_of(int status) {
  return status >> 16 == 0 ? WSTOPSIG(status) : 0;
}

// False: it was killed meanwhile, and is still to be reaped.
bool detach(pid_t tid, int status) {
  let_call_restart(tid, status);
  return ::ptrace(PTRACE_DETACH, tid, nullptr, static_cast<long>(signal_of(status))) == 0;
}

// The traced threads of one client.
class Traced {
 public:
  Traced(pid_t pid, pid_t agent) : pid_(pid), agent_(agent) {}
  Traced(const Traced&) = delete;
  Traced& operator=(const Traced&) = delete;
  ~Traced() = default;
  // Lets go of all of them; `late` gets those that have not stopped yet.
  void let_go(std::vector<pid_t>& late) {
    look();
    for (const Thread& thread : threads_) {
      // One that was killed while it was stopped is to be reaped, or its parent waits for ever
      // (HAZARDS 54).
      if (!thread.stopped || !detach(thread.tid, thread.status)) late.push_back(thread.tid);
    }
    threads_.clear();
  }

  // Threads that came since the last look are seized, too. `late` are ours already.
  // False: there was none.
  bool seize_new(const std::vector<pid_t>& late) {
    bool any = false;
    somebody_elses_ = false;
    for (const pid_t tid : read_tids(real_os(), pid_)) {
      if (tid == agent_ || std::ranges::find(threads_, tid, &Thread::tid) != threads_.end())
        continue;
      if (::ptrace(PTRACE_SEIZE, tid, nullptr, nullptr) != 0) {
        somebody_elses_ = somebody_elses_ || (errno != ESRCH && lives(tid) &&
                                              std::ranges::find(late, tid) == late.end());
        continue;
      }
      (void)::ptrace(PTRACE_INTERRUPT, tid, nullptr, nullptr);
      threads_.push_back({tid, false, 0});
      any = true;
    }
    return any;
  }

  void look() {
    for (Thread& thread : threads_) {
      int status = 0;
      if (thread.stopped || ::waitpid(thread.tid, &status, __WALL | WNOHANG) != thread.tid)
        continue;
      if (!WIFSTOPPED(status)) {
        thread.tid = 0;  // it has ended
        continue;
      }
      thread.stopped = true;
      thread.status = status;
    }
    std::erase_if(threads_, [](const Thread& thread) { return thread.tid == 0; });
  }

  [[nodiscard]] bool empty() const { return threads_.empty(); }
  // At the last look: some thread is traced by somebody else, or may not be traced.
  [[nodiscard]] bool somebody_elses() const { return somebody_elses_; }

 private:
  struct Thread {
    pid_t tid;
    bool stopped;
    int status;
  };

  // A zombie cannot be traced either, and does nothing (HAZARDS 54).
  [[nodiscard]] bool lives(pid_t tid) const {
    const auto stat = real_os().read_file("/proc/" + std::to_string(pid_) + "/task/" +
                                          std::to_string(tid) + "/stat");
    ThreadInfo thread;
    return stat && parse_stat(*stat, thread) && thread.state != 'Z' && thread.state != 'X';
  }

  const pid_t pid_, agent_;
  bool somebody_elses_ = false;
  std::vector<Thread> threads_;
};

}  // namespace

ThreadStopper::ThreadStopper(Os& os, KickReader kick_reader)
    : os_(os), kick_reader_(std::move(kick_reader)), thread_([this] { run(); }) {}

ThreadStopper::~ThreadStopper() {
  ending_ = true;
  add_word(word_);
  os_.futex_wake(&word_);
  thread_.join();
}

void ThreadStopper::stop(std::shared_ptr<Client> client) {
  if (client == nullptr) return;
  {
    const RankedLock lock(mutex_);
    if (std::ranges::find(wanted_, client) != wanted_.end()) return;
    wanted_.push_back(std::move(client));
  }
  add_word(word_);
  os_.futex_wake(&word_);
}

void ThreadStopper::run() {
  ::pthread_setname_np(::pthread_self(), "fs-stopper");
  while (!ending_) {
    const std::array<FutexWait, 1> wait{{{&word_, load_word(word_)}}};
    std::vector<std::shared_ptr<Client>> wanted;
    {
      const RankedLock lock(mutex_);
      wanted.swap(wanted_);
    }
    for (const auto& client : wanted) {
      if (!ending_) hold(*client);
    }
    let_go_later();
    if (wanted.empty() && !ending_) os_.futex_wait_any(wait, late_.empty() ? 60'000'000 : 1'000);
  }
}

void ThreadStopper::let_go_later() {
  std::erase_if(late_, [](pid_t tid) {
    int status = 0;
    const pid_t got = ::waitpid(tid, &status, __WALL | WNOHANG);
    if (got == 0) return false;
    if (got == tid && WIFSTOPPED(status)) (void)detach(tid, status);
    return true;
  });
}

void ThreadStopper::hold(Client& client) {
  const pid_t pid = client.pid();
  if (pid <= 0 || client.gone()) {
    client.stop_armed = true;  // nothing will come of it
    return;
  }
  const auto agent = client.mailbox == nullptr
                         ? pid_t{0}
                         : static_cast<pid_t>(load_word(client.mailbox->agent_tid));
  log::debug("{}: its threads are stopped, so that a fault can be answered", client.label());
  Traced traced(pid, agent);
  const std::uint64_t end_us = os_.now_us() + kMostStopUs;
  while (client.stop_wanted && !client.gone() && !ending_ && os_.now_us() < end_us) {
    if (!traced.seize_new(late_)) client.stop_armed = true;
    client.unstoppable = traced.somebody_elses();
    traced.look();
    if (traced.empty()) {
      kick_reader_(client);
      return;
    }
    kick_reader_(client);
    os_.sleep_us(kLookUs);
  }
  traced.let_go(late_);
}

}  // namespace foldswap
