// TakeOver: what a daemon does first that finds a dead one's state (DESIGN §10, HAZARDS 14, 16, 18,
// 19). The keeper has restarted it into the same descriptor table, so every number that the state
// notes is still what it was.
//
// Steps, each of which may be interrupted and begun anew:
//   close_others   descriptors that nobody noted are closed: those of handshakes under way, of
//                  threads that are no more. A handshake's userfaultfd has nothing out yet. A
//                  FORK's is in the inbox until the child has a record.
//   clients        each record that was in use becomes a Client again. Its page map is the truth:
//                  of what it says is out and the kernel says is there, the page won. Pages on
//                  their way out are in a batch: the agent goes on by itself, and what it has moved
//                  lies in the transfer area. Events that were read are in the inbox; the epoch
//                  moves on, and only then is the layout lock of the dead daemon taken away.
//   wake           faults that were read and not answered are raised again.
// A client that cannot be proved whole is killed with a log line: nothing is guessed.
//
// Thread safety: none; before any thread is started.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "daemon/client/client.h"
#include "daemon/client/page_store.h"

namespace foldswap {

// Closes all but these, and those below `first`.
void close_others(const std::set<int>& keep, int first);

// A new pool's files are noted, so that they can be taken over.
void note_files(State& state, const Pool& pool);

// What a daemon has left, and the next one goes on with. Destroying it closes what clients need.
struct Left {
  std::vector<std::shared_ptr<Client>> clients;  // not yet served, not yet woken
  std::unique_ptr<BackingFile> file;             // nullptr: there was none
  std::unique_ptr<Pool> pool;
};

class TakeOver {
 public:
  using MakeClient = std::function<std::shared_ptr<Client>(ClientParts)>;
  TakeOver(Os& os, State& state) : os_(os), state_(state) {}

  // Everything, in the one order in which it can be had. Error: `left` has what was taken so far,
  // and no descriptor has been closed that whoever tries again needs.
  [[nodiscard]] Status all(const MakeClient& make, const PoolConfig& config, Left& left);
  // The clients of all records; records of none are given back. Not yet served, not yet woken.
  [[nodiscard]] std::vector<std::shared_ptr<Client>> clients(const MakeClient& make);
  // Whether it can be served: it is no forked child that its parent's reader still fills, and no
  // handshake that had not come to its end.
  [[nodiscard]] static bool complete(const Client& client,
                                     const std::vector<std::shared_ptr<Client>>& clients);
  // Those that are complete. Asked before any is served: from then on a parent's reader may finish
  // a child, and serves it itself. They count as served from here, so that none is taken for the
  // child of a later fork.
  [[nodiscard]] static std::vector<std::shared_ptr<Client>> complete(
      const std::vector<std::shared_ptr<Client>>& clients);
  // After the pool is there, and before anybody serves: what was in flight, and what is counted.
  void settle(const std::vector<std::shared_ptr<Client>>& clients, PageStore& store);
  // When they are served.
  void wake(const std::vector<std::shared_ptr<Client>>& clients);

 private:
  // Every object that a page map names, once for each time. False: there can be no such object, and
  // the page is poisoned.
  void references(const std::vector<std::shared_ptr<Client>>& clients,
                  const std::function<bool(ObjectId)>& name);
  [[nodiscard]] std::shared_ptr<Client> revive(ClientRecord& record, const MakeClient& make);
  [[nodiscard]] bool register_again(Client& client);
  void take_events(Client& client);
  void resume_forks(Client& parent, const std::vector<std::shared_ptr<Client>>& clients);
  [[nodiscard]] bool doomed(std::uint32_t uffd) const;
  [[nodiscard]] static bool forked_past_agent(const Client& client);
  void take_batches(Client& client);
  void look_at_pages(Client& client, PageStore& store);
  void look_at_extent(Client& client, PageStore& store, std::uint64_t start);
  [[nodiscard]] static bool in_a_batch(const Client& client, std::uint64_t page, Entry entry);
  static void count(Client& client);
  static void free_layout_lock(Client& client, std::uint32_t incarnation);

  Os& os_;
  State& state_;
};

}  // namespace foldswap
