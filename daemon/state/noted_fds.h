// Every descriptor that the state notes (NotedFd): whoever comes after a daemon finds it under the
// same number, and whoever keeps copies must have it. Thread safety: of atomics, so any thread;
// what is in inboxes only before any thread is started, or between two steps of all. Errors: none.
#pragma once

#include <functional>
#include <set>

#include "daemon/state/state.h"

namespace foldswap {

// Its descriptors were being closed, or its handshake, or its fork, had not come so far: it has no
// userfaultfd yet, and whoever waits for an answer must see its socket close.
[[nodiscard]] bool is_nobodys(const ClientRecord& record);
// Each note of a record, or of the state, that counts; without what is in inboxes. The pidfd comes
// before the rest of its client: who has it can kill.
void for_noted(const ClientRecord& record, const std::function<void(const NotedFd&)>& visit);
using VisitNote =
    std::function<void(const NotedFd&, const ClientRecord*)>;  // nullptr: of no client
void for_noted(const State& state, const VisitNote& visit);
// Every descriptor that the state notes, the userfaultfds in inboxes among them.
[[nodiscard]] std::set<int> noted_fds(const State& state);

}  // namespace foldswap
