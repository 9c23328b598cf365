// Address-space events of one client, collected and applied as a set (DESIGN §5, HAZARDS 1).
//
// Events are not read in the order of the changes: a thread that has changed the address space may
// be overtaken before it queues its event. So UNMAP, REMAP and FORK are kept (in the client's
// inbox, where read(2) put them) until PROBE says that no change is under way, and then applied
// together: children first (each without what was discarded before its own fork), then moves (a
// move that vacates a range before one that occupies it), then what was unmapped and is not
// registered again. REMOVE comes before its change and is applied at once, unless a move that is
// still kept touches its range, or a FORK is kept.
//
// Threads that change the address space without a pause let PROBE never come to rest, and the inbox
// fills. Nothing of it can be applied ahead: a FORK may have come before any of it, and not be read
// yet. So the reader has those threads stopped (HAZARDS 5); a client with which that does not work
// is killed when its inbox has been full for kMostFullUs.
//
// Thread safety: the reader's alone. It runs with no batch of the client in flight when the set
// holds a REMAP or FORK. A step lets go of kMostPages pages at most, so that nobody else's faults
// wait for a large munmap; applying an event again goes on where it stopped. Errors: a set that has
// no provable order kills the client (DESIGN §10), never guesses.
#pragma once

#include <memory>
#include <span>

#include "base/os.h"
#include "daemon/client/client.h"
#include "daemon/client/fork_host.h"
#include "daemon/client/page_store.h"
#include "daemon/fault/fork_clone.h"
#include "daemon/state/events.h"

namespace foldswap {

class AddressSpace {
 public:
  AddressSpace(Os& os, PageStore& store, ForkHost& host, ForkClone::ReadMore read_more)
      : os_(os), store_(store), host_(host), read_more_(std::move(read_more)) {}

  // True when every event of the inbox has been applied (or there was none); false: try again soon.
  [[nodiscard]] bool apply(Client& client, std::uint64_t now_us);
  // Lets go of everything in the inbox, of a client that is answered nothing more. Its children
  // that were not taken over are doomed.
  void forget_events(Client& client);

 private:
  [[nodiscard]] bool wait_for_rest(Client& client, std::uint64_t now_us);
  // False: there was more to let go than one step may do; call again.
  [[nodiscard]] bool apply_early_removes(Client& client, std::uint64_t now_us);
  void apply_remove(Client& client, const uffd_msg& message, std::uint64_t now_us);
  // False: call again, a child cannot be asked now.
  [[nodiscard]] bool apply_forks(Client& parent, std::span<const Move> moves, std::uint64_t now_us);
  void end_taking_over(Client& parent, bool whole);
  [[nodiscard]] static std::vector<Move> moves_of(std::span<const uffd_msg> inbox);
  [[nodiscard]] bool arrival_order_fits(const Client& client, std::span<const uffd_msg> inbox,
                                        std::span<const Move> moves);
  [[nodiscard]] bool order_moves(Client& client, std::span<const uffd_msg> inbox,
                                 std::vector<Move>& moves);
  void apply_moves(Client& client, std::span<const Move> moves,
                   std::span<const std::uint64_t> unmapped);
  [[nodiscard]] std::vector<std::uint64_t> unmapped_by(const Client& client,
                                                       std::span<const uffd_msg> inbox,
                                                       std::span<const Move> moves);
  void clear_too_soon(uffd_msg& message);
  [[nodiscard]] bool clear_some(Client& client, std::uint64_t start, std::uint64_t end);
  [[nodiscard]] bool registered(const Client& client, std::uint64_t page);

  Os& os_;
  PageStore& store_;
  ForkHost& host_;
  ForkClone::ReadMore read_more_;
  bool mute_ = false;       // PROBE had no answer, since this was last cleared
  std::uint64_t left_ = 0;  // pages that may still be let go in this step
};

}  // namespace foldswap
