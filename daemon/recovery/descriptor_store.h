// DescriptorStore: the service manager's store (FDSTORE=1, sd_notify(3)) follows what the state
// notes, so that keeper and daemon may end in one moment and still nothing is lost (DESIGN §10). A
// descriptor is stored under a name that says its number and its stamp (NotedFd in state.h); the
// state file as "state". Whoever is given the store takes what the state notes under the same
// number *and* stamp: what the manager had not yet let go of is nobody's. See hand_over.h.
//
// The manager answers nothing but barriers, and drops what comes from a process that has died
// meanwhile. So what was sent counts as kept when a barrier behind it is answered
// (StateHeader::stored says so), and as let go of likewise; all else is said again by the next
// daemon.
//
// Thread safety: fork_read(), settled() and push() any thread; the rest the control thread's. While
// the manager's queue is full fork_read() and push() wait some milliseconds, and not again soon
// when that was in vain; sync() never; complete() long.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "base/mutex.h"
#include "base/result.h"
#include "base/unique_fd.h"
#include "daemon/client/fork_host.h"
#include "daemon/state/state.h"

namespace foldswap {

// Numbers below are the keeper's own: what is noted lies above, in every version.
inline constexpr int kFirstNoted = 16;

struct StoredName {
  bool state = false;
  int number = -1;
  std::uint64_t stamp = 0;
};
// Nothing: it is none of ours.
[[nodiscard]] std::optional<StoredName> parse_stored_name(std::string_view name);
[[nodiscard]] std::string stored_name(int number, std::uint64_t stamp);

// Whether the manager has a store, and all of the state's would fit. Somebody must have told us:
// systemd from 254 on ($FDSTORE), or the unit ($FOLDSWAP_FDSTORE). Error: why not.
[[nodiscard]] Status can_store(const State& state);

class DescriptorStore final : public DescriptorCopies {
 public:
  // nullptr: there is no such manager.
  [[nodiscard]] static std::unique_ptr<DescriptorStore> make(State& state);

  // Before anybody is served: the pool's files above all. Error: they may not be there.
  [[nodiscard]] Status begin();
  // A FORK event that was just read: its descriptor is nowhere else. Stamped, and offered at once.
  void fork_read(uffd_msg& message) override;
  // A note of the state has that descriptor now, or whatever came of it.
  void settled(int number, std::uint64_t stamp) override;
  // All of a client's, by whoever makes it, before it is told that it is one. What cannot be sent
  // now is left to sync().
  void push(const ClientRecord& record) override;
  // Some of what has changed since. False: there is more.
  bool sync(std::uint64_t now_us);
  // Everything, when nobody works on the state any more. Error: not all of it is there for sure.
  [[nodiscard]] Status complete();

 private:
  struct Key {
    int number = -1;
    std::uint64_t stamp = 0;
    bool operator==(const Key&) const = default;
  };
  struct Hash {
    std::size_t operator()(const Key& key) const {
      return std::hash<std::uint64_t>()(key.stamp ^ static_cast<std::uint64_t>(key.number) << 40);
    }
  };
  struct Slot {
    std::uint32_t index;          // in StateHeader::stored
    std::uint64_t settled_round;  // must outlive the round of sync() that began before it was noted
    bool sent = false, going = false;
  };
  enum class Patience : std::uint8_t { none, brief, full };
  enum class Sent : std::uint8_t { done, no_room, gone };
  struct Wanted {
    const NotedFd* note = nullptr;  // nullptr: of a FORK
    const ClientRecord* record = nullptr;
  };
  using Still = std::function<bool()>;

  DescriptorStore(State& state, std::size_t room);
  void take_up_inboxes() FS_REQUIRES(mutex_);
  Slot* slot_of(Key key, std::uint32_t flags) FS_REQUIRES(mutex_);
  bool tell(const std::string& message, Patience patience, int fd = -1);
  Sent send(Key key, Patience patience, const Still& still_that);
  bool send_state(Patience patience);
  [[nodiscard]] bool is_still(Key key, const Wanted& wanted);
  bool sync_round(std::size_t most, Patience patience);
  bool remove_gone(const std::vector<Key>& gone, std::size_t& most, Patience patience);
  void look_at_barrier();
  void confirm(const std::vector<Key>& keys);
  [[nodiscard]] Status wait_for_manager();

  State& state_;
  UniqueFd manager_, manager_in_brief_;
  std::atomic<std::uint64_t> in_vain_ns_{0};  // when a brief wait was that, last
  std::size_t room_;
  std::atomic<bool> state_sent_{false};
  bool behind_ = true;
  std::uint64_t seen_changes_ = 0, synced_us_ = 0;
  UniqueFd barrier_;                 // closes when the manager has read
  std::vector<Key> behind_barrier_;  // these
  RankedMutex<LockRank::leaf> mutex_;
  bool full_said_ FS_GUARDED_BY(mutex_) = false;
  std::uint64_t round_ FS_GUARDED_BY(mutex_) = 1;
  std::unordered_map<Key, Slot, Hash> slots_ FS_GUARDED_BY(mutex_);
  std::vector<std::uint32_t> free_ FS_GUARDED_BY(mutex_);
  std::vector<Key> unconfirmed_ FS_GUARDED_BY(mutex_);
};

}  // namespace foldswap
