// The shell around the deterministic core: fault threads and evict threads, which call
// FaultService::step and Evictor::step when there is something to do, and wait when there is not.
//
// FaultThread waits in epoll on its clients' userfaultfds and an eventfd (kick); it spins for
// `fault.spin_us` before it sleeps. EvictThread waits on futexes: one word of its own (kick) and
// each client's Mailbox::to_daemon (futex_waitv). Thread safety: add() and kick() from any thread;
// the rest is the thread's own.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <thread>
#include <vector>

#include "base/mutex.h"
#include "daemon/evict/evictor.h"
#include "daemon/fault/fault_service.h"

namespace foldswap {

class FaultThread {
 public:
  using Removed = std::function<void(Client&)>;  // the reader has let go of a gone client
  FaultThread(Os& os, const Tunables& tunables, std::unique_ptr<FaultService> service,
              Removed removed);
  FaultThread(const FaultThread&) = delete;
  FaultThread& operator=(const FaultThread&) = delete;
  ~FaultThread() { stop(); }
  [[nodiscard]] Status start();
  // At the end of a step, and for good. Returns when it has.
  void stop();
  // How often it has looked for work; at least once a second.
  [[nodiscard]] std::uint64_t turns() const { return turns_.load(std::memory_order_relaxed); }
  void add(std::shared_ptr<Client> client);
  void kick(Client& client);

 private:
  struct Served {
    std::shared_ptr<Client> client;
    std::uint64_t due_us = 0;  // step again then; 0: when something happens
    bool ready = false;
  };
  void run();
  void take_new();
  bool step_ready(std::uint64_t now_us);
  [[nodiscard]] std::uint64_t next_due_us() const;
  bool wait(std::uint64_t timeout_us);

  Os& os_;
  const Tunables& tunables_;
  std::unique_ptr<FaultService> service_;
  Removed removed_;
  UniqueFd epoll_, kick_;
  std::atomic<bool> stop_{false};
  std::atomic<bool> kicked_{false};
  std::atomic<std::uint64_t> turns_{0};
  std::vector<std::unique_ptr<Served>> served_;
  RankedMutex<LockRank::leaf> mutex_;
  std::vector<std::shared_ptr<Client>> new_ FS_GUARDED_BY(mutex_);
  std::thread thread_;
};

class EvictThread {
 public:
  EvictThread(Os& os, std::unique_ptr<Evictor> evictor, BudgetBook& budgets);
  EvictThread(const EvictThread&) = delete;
  EvictThread& operator=(const EvictThread&) = delete;
  ~EvictThread() { stop(); }
  void start();
  void stop();  // as FaultThread's
  [[nodiscard]] std::uint64_t turns() const { return turns_.load(std::memory_order_relaxed); }
  void add(std::shared_ptr<Client> client);
  void kick();

 private:
  void run();
  Os& os_;
  std::unique_ptr<Evictor> evictor_;
  BudgetBook& budgets_;
  std::atomic<bool> stop_{false};
  std::uint32_t kick_word_ = 0;  // (futex)
  std::atomic<std::uint64_t> turns_{0};
  std::vector<std::shared_ptr<Client>> clients_;
  RankedMutex<LockRank::leaf> mutex_;
  std::vector<std::shared_ptr<Client>> new_ FS_GUARDED_BY(mutex_);
  std::thread thread_;
};

}  // namespace foldswap
