// Control: the admin socket. One request line of JSON per connection, one reply line (see
// docs/ARCHITECTURE.md, "The command line and the daemon"). Each connection has a short-lived
// thread of its own, because reclaim, restore and drain wait for clients. Thread safety:
// accept_one() from the control thread; commands run on their own threads against atomics and
// snapshots. Errors: every bad request gets {"ok":false,"exit":1|2,"error":"..."}; a request is at
// most 64 KiB and has 10 s to arrive.
#pragma once

#include <atomic>
#include <list>
#include <thread>

#include "daemon/admission/access.h"
#include "daemon/admission/vetting.h"
#include "daemon/host/log_limit.h"
#include "daemon/server/admin_commands.h"
#include "daemon/server/admin_requests.h"

namespace foldswap {

class Control {
 public:
  Control(AdminCommands& daemon, const Access& access, Vetting& vetting)
      : daemon_(daemon), access_(access), vetting_(vetting) {}
  Control(const Control&) = delete;
  Control& operator=(const Control&) = delete;
  ~Control();  // ends what is running, and returns when it has
  void accept_one(int listener);

 private:
  struct Session {
    std::atomic<bool> done{false};
    std::thread thread;
  };
  void serve(UniqueFd socket);
  void reap(bool all);

  AdminCommands& daemon_;
  const Access& access_;
  Vetting& vetting_;
  LogLimit log_limit_;
  std::atomic<bool> stop_{false};
  AdminRequests requests_{daemon_, stop_};
  std::list<Session> sessions_;
};

}  // namespace foldswap
