// Evictor: takes cold pages out of the clients of one evict thread (DESIGN §5). Reads top to bottom
// as one eviction:
//   budget -> plan (policy) -> mark OUT -> post to the agent -> results -> compress, store, publish
//   -> settled
//
// Shape (DESIGN §10): step() does what can be done now and never waits for a client; every system
// call goes through the Os seam. Two commands per client may be under way (one per staging half),
// so that the agent moves while we compress. Thread safety: one instance per evict thread; with the
// readers it shares what client.h says. Invariants: a page is OUT from before its command is posted
// until it is published, put back or rescued; a batch holds a pool reservation for its worst case,
// so that storing cannot fail for the pool's limit.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <unordered_map>

#include "base/os.h"
#include "daemon/client/client.h"
#include "daemon/client/page_store.h"
#include "daemon/config/tunables.h"
#include "daemon/disk/disk_traffic.h"
#include "daemon/evict/budget.h"
#include "daemon/evict/policy.h"
#include "daemon/evict/thread_guard.h"

namespace foldswap {

class Evictor {
 public:
  using KickReader = std::function<void(Client&)>;

  Evictor(Os& os, State& state, PageStore& store, BudgetBook& budgets, const Tunables& tunables,
          std::unique_ptr<PageCodec> codec, KickReader kick_reader);
  // From here a full pool need not stay full. Before the first step; it outlives the evictor.
  void wait_for_room(DiskTraffic& traffic) { traffic_ = &traffic; }

  // Microseconds after which to call again at the latest.
  std::uint64_t step(Client& client);
  // The client has left this evictor's care.
  void forget(const Client& client) { guards_.erase(client.id); }

 private:
  // -- one eviction, in order
  static void take_order(Client& client);
  [[nodiscard]] std::uint32_t pages_wanted(Client& client, std::uint64_t now_us);
  bool begin_batch(Client& client, std::uint32_t half, std::uint32_t wanted, std::uint64_t now_us);
  void note_pool_full(Client& client, std::uint64_t now_us);
  void end_turn(Client& client, std::uint64_t now_us);
  [[nodiscard]] std::uint32_t mark_out(Client& client, std::uint32_t half, EvictionPlan& plan);
  static void note_closed(const Client& client, EvictionPlan& plan, wire::Command& command);
  void post(Client& client, std::uint32_t half, const EvictionPlan& plan, std::uint32_t epoch,
            std::uint32_t threads_created);
  void take_results(Client& client, std::uint32_t half, std::uint64_t now_us);
  std::uint32_t note_results(Client& client, std::uint32_t half);
  void publish_batch(Client& client, std::uint32_t half);
  void publish_page(Client& client, std::uint32_t half, std::uint32_t slot, Entry out);
  void settle(Client& client, std::uint32_t half, std::uint64_t now_us);
  void end_batch(Client& client, std::uint32_t half);

  // -- trouble
  void abandon_batches(Client& client);
  void resolve_lost_agent(Client& client, std::uint64_t now_us);
  // -- an agent that is stopped (evictor_stopped.cc)
  // Microseconds after which to look again; 0: nobody waits for it.
  std::uint64_t watch_agent(Client& client, std::uint64_t now_us);
  [[nodiscard]] bool agent_stopped(const Client& client) const;
  void take_over_batch(Client& client, std::uint32_t half);
  [[nodiscard]] bool fetch_staging(Client& client, std::uint32_t half);

  // -- housekeeping (evictor_housekeeping.cc)
  void housekeeping(Client& client, std::uint64_t now_us);
  void list_stale(Client& client);
  void refresh_vmas(Client& client, std::uint64_t now_us, std::uint64_t max_age_us);
  bool list_registered(Client& client, bool everything);
  [[nodiscard]] static bool may_leave(Client& client, std::uint64_t now_us);
  void release_when_empty(Client& client, std::uint64_t now_us);
  bool note_unregistered(Client& client, std::uint32_t served);
  [[nodiscard]] bool is_ours(Client& client, const VmaInfo& vma);
  void free_transfer(Client& client);
  void finish_reclaim(Client& client);

  Os& os_;
  State& state_;
  Counters& counters_;
  PageStore& store_;
  BudgetBook& budgets_;
  const Tunables& tunables_;
  std::unique_ptr<PageCodec> codec_;
  std::unique_ptr<EvictionPolicy> policy_;
  KickReader kick_reader_;
  Mapping page_;  // one page: what is compressed is ours alone
  std::unordered_map<std::uint64_t, ThreadGuard> guards_;
  std::uint64_t pool_full_said_us_ = 0;
  DiskTraffic* traffic_ = nullptr;
};

}  // namespace foldswap
