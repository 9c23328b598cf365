// FaultService: answers the faults of the clients of one fault thread (DESIGN §6), and does
// everything else that only a client's reader may do: read its events, COPY pages back, bring
// ranges back on request, unregister what is quiet.
//
// Shape (DESIGN §10): step() is a function of the client's state, its messages and the clock; every
// system call goes through the Os seam, nothing blocks, and the caller decides when to call again.
// Thread safety: one instance per fault thread, used by it alone. The fault path allocates nothing
// and holds no lock across a system call but the layout lock's own read. The order inside a step is
// the contract: read -> apply events -> answer faults -> requests -> restore -> unregister.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "base/os.h"
#include "daemon/client/client.h"
#include "daemon/client/map_limit.h"
#include "daemon/client/page_store.h"
#include "daemon/config/tunables.h"
#include "daemon/fault/address_space.h"
#include "daemon/fault/disk_reader.h"

namespace foldswap {

struct StepResult {
  bool worked = false;  // something was answered, applied or brought back
  bool again = false;   // call again at once: there is more to do
  std::uint64_t retry_us =
      0;  // call again after this long; 0: when the client's descriptor is readable or it is kicked
};

class FaultService {
 public:
  // Has the client's threads stopped while Client::stop_wanted is up (HAZARDS 5).
  using StopThreads = std::function<void(Client&)>;

  FaultService(Os& os, State& state, PageStore& store, ForkHost& host, const Tunables& tunables,
               std::unique_ptr<PageCodec> codec, StopThreads stop_threads = {});

  // From here pages can be on disk. Before the first step.
  void read_from(std::unique_ptr<DiskReader> reader) { reader_ = std::move(reader); }
  // What its reads wait for; nullptr: it has none.
  [[nodiscard]] DiskReader* reader() const { return reader_.get(); }

  StepResult step(Client& client);

 private:
  enum class Outcome : std::uint8_t {
    done,      // answered
    later,     // waits for the evictor or for memory; PendingFault::retry_at_us says when to look
               // again
    changing,  // EAGAIN: events first
    gone,      // the address space is gone
  };
  enum class ReadResult : std::uint8_t { nothing, some, busy };

  [[nodiscard]] StepResult step_doomed(Client& client);
  void keep_reserve();
  void try_agent(Client& client, StepResult& result);
  void note_starved(Client& client);
  void note_fed(Client& client);
  [[nodiscard]] bool hold_back(const Client& client) const;
  void forget_unmapped(Client& client, std::uint64_t page);
  void note_busy(Client& client);
  void revoke(Client& client);
  void end_revocation(Client& client);

  // -- a starved client whose threads cannot be stopped (fault_service_starved.cc)
  void make_quiet(Client& client, std::uint64_t now_us);
  void hold_callers(Client& client, std::uint64_t now_us);
  void let_callers_go(Client& client);
  [[nodiscard]] static wire::Range widened(const Client& client, const wire::Range& range);
  [[nodiscard]] int give_up_range(Client& client, const wire::Range& range);
  [[nodiscard]] int give_up_locked(Client& client, const wire::Range& range);
  void check_move(Client& client, const uffd_msg& message);
  void note_quiet(Client& client);
  void say_starved(Client& client, std::uint64_t now_us);

  [[nodiscard]] ReadResult read_messages(Client& client);
  [[nodiscard]] bool take_message(Client& client, uffd_msg& message, std::uint32_t fork_seq,
                                  std::uint64_t now_ns);
  static void note_events(Client& client, std::span<const uffd_msg> messages, bool past_agent);
  void take_fault(Client& client, const uffd_msg& message, std::uint64_t now_ns);
  [[nodiscard]] bool answer_faults(Client& client, StepResult& result);

  [[nodiscard]] Outcome answer(Client& client, PendingFault& fault);
  [[nodiscard]] Outcome answer_and_learn_pid(Client& client, PendingFault& fault);
  [[nodiscard]] Outcome answer_none(Client& client, PendingFault& fault);
  [[nodiscard]] Outcome answer_evicted(Client& client, PendingFault& fault, Entry entry);
  [[nodiscard]] Outcome answer_out(Client& client, PendingFault& fault, Entry entry);
  // From the transfer area; the entry is OUT, wanted, and its page has left the client.
  [[nodiscard]] Outcome rescue(Client& client, std::uint64_t page, Entry claimed);
  [[nodiscard]] Outcome answer_bad(Client& client, const PendingFault& fault);
  [[nodiscard]] bool must_hold(Client& client, PendingFault& fault) const;

  // Copies `pages` pages from the buffer to `start` and clears their entries. Bytes done are in
  // `done_pages`.
  [[nodiscard]] Outcome copy_in(Client& client, std::uint64_t start, std::uint32_t pages,
                                bool demanded, std::uint32_t& done_pages);
  [[nodiscard]] Outcome settle_error(Client& client, std::uint64_t page, int error);
  [[nodiscard]] Outcome wake(Client& client, std::uint64_t page);
  // Decompresses the run of evicted pages that begins at `start`, at most `most` of them, into the
  // buffer.
  // 0: `first` does not verify, or is on disk (window_on_disk_).
  [[nodiscard]] std::uint32_t fill_window(Client& client, std::uint64_t start, Entry first,
                                          std::uint32_t most);
  // The first page from `page` on that is out, or `page` itself when many are not.
  [[nodiscard]] static std::uint64_t skip_resident(const Client& client, std::uint64_t page);
  // How many pages of a window have nothing in their place; 0: there is a guard where it begins.
  [[nodiscard]] std::uint32_t clear_way(Client& client, std::uint64_t start, std::uint32_t pages);
  void finish_fault(Client& client, const PendingFault& fault, Counter& kind);

  // -- what is on disk (fault_service_disk.cc)
  [[nodiscard]] Outcome order_read(Client& client, PendingFault& fault, std::uint32_t want);
  std::uint64_t read_ahead(Client& client, std::uint64_t page, std::uint32_t left);
  // Puts to use what has been read. False: the descriptor has events to read first.
  [[nodiscard]] bool deliver(Client& client, StepResult& result);
  [[nodiscard]] bool deliver_order(Client& client, DiskReader::Order& order, StepResult& result);
  [[nodiscard]] std::uint32_t unpack_order(Client& client, const DiskReader::Order& order);
  [[nodiscard]] bool give_up_order(Client& client, DiskReader::Order& order);
  void end_order(Client& client, DiskReader::Order& order);
  void finish_delivered(Client& client, const DiskReader::Order& order, std::uint32_t pages);
  // Orders what bring_back() meets on disk. False: not now.
  [[nodiscard]] bool order_back(Client& client, std::uint64_t& cursor, StepResult& result);

  void serve_request(Client& client, StepResult& result);
  // -- what is mapped where, and whose it is (fault_service_mappings.cc)
  [[nodiscard]] Result<std::vector<ProcessMapping>> mapping_of(const Client& client,
                                                               std::uint64_t start,
                                                               std::uint64_t end) const;
  [[nodiscard]] bool unify(Client& client, std::uint64_t start, std::uint64_t bytes);
  // A page that is registered, and cannot be filled: its mapping is none of ours.
  [[nodiscard]] Outcome let_go_of_mapping(Client& client, std::uint64_t page);
  // False: call again.
  [[nodiscard]] bool forget_stale(Client& client, std::uint64_t start, std::uint64_t end);
  void run_forget_stale(Client& client, StepResult& result);
  // True when nothing of [start, end) is out any more. Does a bounded amount of work per call.
  [[nodiscard]] bool bring_back(Client& client, std::uint64_t start, std::uint64_t end,
                                std::uint64_t& cursor, StepResult& result);
  // Nothing but poisoned pages.
  [[nodiscard]] static bool nothing_out(const Client& client, std::uint64_t start,
                                        std::uint64_t end);
  static bool for_bad_pages(const Client& client, std::uint64_t start, std::uint64_t end,
                            const std::function<bool(std::uint64_t page, Entry bad)>& each);
  [[nodiscard]] bool unregister(Client& client, std::uint64_t start, std::uint64_t bytes,
                                bool for_request);
  void run_give_back(Client& client);
  void run_trim(Client& client);
  void run_restore(Client& client, StepResult& result);
  void run_unregister(Client& client, StepResult& result);
  void let_go(Client& client, StepResult& result);

  Os& os_;
  State& state_;
  Counters& counters_;
  PageStore& store_;
  ForkHost& host_;
  AddressSpace address_space_;
  const Tunables& tunables_;
  std::unique_ptr<PageCodec> codec_;
  StopThreads stop_threads_;
  MapLimit limit_;
  std::vector<UniqueFd>
      reserve_;  // descriptors kept for a FORK that finds the table full (HAZARDS 6)
  std::uint64_t read_error_said_us_ = 0;
  Mapping buffer_;                 // kMostWindow pages
  std::vector<Entry> window_;      // the entries whose pages are in the buffer
  std::uint64_t window_kept_ = 0;  // a bit for each page in the buffer: its object stays on disk
  bool window_on_disk_ = false;    // the entry that ended the window is on disk
  std::unique_ptr<DiskReader> reader_;
  static constexpr std::uint32_t kMostWindow = 64;
};

}  // namespace foldswap
