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

// The control page of this process as a client, or as one that is about to be; null: it is none, or
// a vfork child, which shares our memory, but what it is and may is its own.
[[nodiscard]] Control* own_control();

// Makes a call by which the program may change its rights (0: it has), and has the agent follow.
template <typename Call, typename Follow>
auto followed(Call call, Follow follow) {
  if (inert()) return call();
  const auto made = [&] {
    // An agent that arrives meanwhile has the rights from before: it waits for the end of this call
    // and looks again (agent.cc).
    if (live() != nullptr) return call();
    const QuietCall quiet;
    return call();
  };
  const auto result = made();
  if (result == 0 && library.alive != nullptr) follow();
  return result;
}

}  // namespace foldswap::preload
