// How a process goes on without its agent: everything that is out comes back, nothing is registered
// any more, the agent ends. For calls that the kernel refuses to processes of several threads, and
// for those by which the program gives up what the agent would keep (filters, namespaces, its
// root). Another agent may come later. Thread safety: any thread of the program, with nothing held.
#pragma once

#include "preload/arrival.h"
#include "preload/request.h"

namespace foldswap::preload {

// While it lives no agent comes; and the one that was there has gone, unless `only_if_alone` and
// the program has threads of its own, in which case the kernel will refuse the call anyway. It
// makes no system call in a process without an agent.
class WithoutAgent {
 public:
  explicit WithoutAgent(bool only_if_alone);
  WithoutAgent(const WithoutAgent&) = delete;
  WithoutAgent& operator=(const WithoutAgent&) = delete;
  ~WithoutAgent() = default;

 private:
  const Alone alone_;
};

// Has the agent, if there is one, give up what the leader does not have (rights.h), and waits for
// that.
void have_rights_followed();

// Makes a call by which the program may give up rights, and has the agent follow. `succeeded` says
// whether it did.
template <typename Call, typename Succeeded>
auto with_rights_followed(Call call, Succeeded succeeded) {
  if (inert()) return call();
  const auto made = [&] {
    // An agent that arrives meanwhile has the rights from before: it waits for the end of this call
    // and looks again.
    if (live() != nullptr) return call();
    const QuietCall quiet;
    return call();
  };
  const auto result = made();
  if (succeeded(result) && library.alive != nullptr) have_rights_followed();
  return result;
}

}  // namespace foldswap::preload
