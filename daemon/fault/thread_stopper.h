// ThreadStopper: the last resort of HAZARDS 5. Threads of a client that change its address space
// without a pause keep every COPY at EAGAIN, so that no fault is ever answered. Then all threads of
// that client but its agent are stopped (ptrace: seize, interrupt), the reader catches up, and they
// go on. Its parent and the program itself do not see it: system calls that the stop has ended go
// on as well (daemon/host/call_restart.h).
//
// Thread safety: stop() from any thread. One thread of its own, because the kernel ties a traced
// thread to the one that traces it; so one client at a time, each for kMostStopUs at most.
// Errors: threads that cannot be traced (a debugger has them, no privilege) go on as before, and
// Client::unstoppable says so: then the reader must find another way (HAZARDS 39).
#pragma once

#include <functional>
#include <memory>
#include <thread>
#include <vector>

#include "base/mutex.h"
#include "daemon/client/client.h"

namespace foldswap {

class ThreadStopper {
 public:
  using KickReader = std::function<void(Client&)>;

  ThreadStopper(Os& os, KickReader kick_reader);
  ThreadStopper(const ThreadStopper&) = delete;
  ThreadStopper& operator=(const ThreadStopper&) = delete;
  ~ThreadStopper();
  // Until Client::stop_wanted is lowered again, or kMostStopUs have passed.
  void stop(std::shared_ptr<Client> client);

 private:
  void run();
  void hold(Client& client);
  void let_go_later();

  Os& os_;
  KickReader kick_reader_;
  std::atomic<bool> ending_{false};
  std::uint32_t word_ = 0;  // (futex)
  RankedMutex<LockRank::leaf> mutex_;
  std::vector<std::shared_ptr<Client>> wanted_ FS_GUARDED_BY(mutex_);
  // Traced threads that had not stopped when their client was let go, because they sleep in the
  // kernel. Each will stop when it comes out, and is let go then. The stopper's.
  std::vector<pid_t> late_;
  std::thread thread_;
};

}  // namespace foldswap
