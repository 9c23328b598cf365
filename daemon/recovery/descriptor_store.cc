#include "daemon/recovery/descriptor_store.h"

#include <fcntl.h>
#include <linux/kcmp.h>
#include <poll.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <memory>
#include <utility>

#include "daemon/host/log.h"
#include "daemon/host/notify.h"
#include "daemon/host/proc_reader.h"
#include "daemon/state/events.h"
#include "daemon/state/noted_fds.h"

namespace foldswap {
namespace {

constexpr std::string_view kStateName = "state";
constexpr std::string_view kDigits =
    "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz+-";
constexpr int kBarrierMs = 30'000;
constexpr int kBriefMs = 20;
constexpr std::uint64_t kNotAgainNs = 1'000'000'000;
constexpr std::uint64_t kSyncUs = 50'000;
constexpr std::size_t kMostAtOnce = 256;

// Base 64, so that all names of a full store fit: see kMostStored.
std::string digits_of(std::uint64_t value) {
  std::string text;
  do {
    text.insert(text.begin(), kDigits[value % kDigits.size()]);
    value /= kDigits.size();
  } while (value != 0);
  return text;
}

std::optional<std::uint64_t> value_of(std::string_view text) {
  constexpr std::size_t kMostDigits = 10;
  if (text.empty() || text.size() > kMostDigits) return std::nullopt;
  std::uint64_t value = 0;
  for (const char c : text) {
    const std::size_t digit = kDigits.find(c);
    if (digit == std::string_view::npos) return std::nullopt;
    value = value * kDigits.size() + digit;
  }
  return value;
}

// How many the manager keeps for us.
std::optional<std::size_t> room_told() {
  if (!manager_listens()) return std::nullopt;
  const auto most = number_in_environment("FDSTORE");
  return most ? most : number_in_environment("FOLDSWAP_FDSTORE");
}

// Without kcmp(2) the manager takes all userfaultfds for one, and keeps only that.
bool files_can_be_told_apart(int fd) {
  const pid_t pid = ::getpid();
  return ::syscall(SYS_kcmp, pid, pid, KCMP_FILE, fd, fd) == 0;
}

}  // namespace

std::string stored_name(int number, std::uint64_t stamp) {
  return digits_of(static_cast<std::uint64_t>(number)) + "." + digits_of(stamp);
}

std::optional<StoredName> parse_stored_name(std::string_view name) {
  if (name == kStateName) return StoredName{.state = true};
  const std::size_t dot = name.find('.');
  if (dot == std::string_view::npos) return std::nullopt;
  const auto number = value_of(name.substr(0, dot));
  const auto stamp = value_of(name.substr(dot + 1));
  if (!number || !stamp || *number < kFirstNoted || *number > 1U << 30) return std::nullopt;
  return StoredName{.number = static_cast<int>(*number), .stamp = *stamp};
}

Status can_store(const State& state) {
  if (!manager_listens()) return fail("there is no service manager");
  if (state.header().unnoted != 0)
    return fail("there are forked children that nobody can say which descriptors they need");
  const auto most = room_told();
  if (!most) return fail("the service manager has not told of a descriptor store");
  const std::size_t count = noted_fds(state).size();
  const std::size_t room = std::min<std::size_t>(*most, kMostStored);
  if (count > room) {
    return fail(std::to_string(count) +
                " descriptors do not fit into the service manager's store of " +
                std::to_string(room));
  }
  if (!files_can_be_told_apart(state.fd())) return fail_errno("this kernel has no kcmp(2)");
  return {};
}

std::unique_ptr<DescriptorStore> DescriptorStore::make(State& state) {
  const auto room = room_told();
  if (!room || *room == 0 || !files_can_be_told_apart(state.fd())) return nullptr;
  std::unique_ptr<DescriptorStore> store(
      new DescriptorStore(state, std::min<std::size_t>(*room, kMostStored) - 1));
  (void)store->send_state(Patience::brief);
  return store;
}

// What is not known to be kept is sent again: the manager keeps no file twice.
DescriptorStore::DescriptorStore(State& state, std::size_t room)
    : state_(state),
      manager_(manager_socket()),
      manager_in_brief_(manager_socket(kBriefMs)),
      room_(room) {
  const RankedLock lock(mutex_);
  for (std::uint32_t i = kMostStored; i-- > 0;) {
    StoredNote& note = state_.header().stored[i];
    const int number = note.plus_one.load() - 1;
    if (number < 0) {
      free_.push_back(i);
      continue;
    }
    const std::uint32_t flags = note.flags.fetch_and(~StoredNote::kForking);
    Slot slot{.index = i, .settled_round = 0};
    slot.sent = (flags & StoredNote::kKept) != 0;
    slots_.emplace(Key{number, note.stamp.load()}, slot);
  }
  take_up_inboxes();
}

// When no other thread is there.
void DescriptorStore::take_up_inboxes() {
  for (ClientRecord* const record : state_.records()) {
    if (is_nobodys(*record)) continue;
    for (uffd_msg& message : all_messages(*record)) {
      if (!holds_child(message)) continue;
      if (message.arg.reserved.reserved3 == 0)
        message.arg.reserved.reserved3 = NotedFd::new_stamp();
      (void)slot_of({static_cast<int>(message.arg.fork.ufd), message.arg.reserved.reserved3},
                    StoredNote::kForking);
    }
  }
}

// The number last: from there it counts. nullptr: there is no room.
DescriptorStore::Slot* DescriptorStore::slot_of(Key key, std::uint32_t flags) {
  const auto found = slots_.find(key);
  if (found != slots_.end()) {
    if (flags != 0) state_.header().stored[found->second.index].flags.fetch_or(flags);
    found->second.settled_round = round_;
    return &found->second;
  }
  if (free_.empty() || slots_.size() >= room_) {
    if (!std::exchange(full_said_, true)) {
      log::warn(
          "the service manager's store is full: some clients will not outlive daemon and keeper "
          "together");
    }
    return nullptr;
  }
  const std::uint32_t index = free_.back();
  free_.pop_back();
  StoredNote& note = state_.header().stored[index];
  note.stamp = key.stamp;
  note.flags = flags;
  note.plus_one = key.number + 1;
  return &slots_.emplace(key, Slot{.index = index, .settled_round = round_}).first->second;
}

bool DescriptorStore::tell(const std::string& message, Patience patience, int fd) {
  state_.header().told_ns = boot_ns();
  if (patience == Patience::full) return notify(manager_.get(), message, fd);
  if (notify_now(manager_.get(), message, fd)) return true;
  const std::uint64_t now = boot_ns();
  if (patience == Patience::none || now - in_vain_ns_ < kNotAgainNs) return false;
  if (notify(manager_in_brief_.get(), message, fd)) return true;
  in_vain_ns_ = now;
  return false;
}

// FDPOLL=0: the manager would close what hangs up, and a lifeline may. The number may be closed
// meanwhile, and be another file's: so a copy is sent, that was made while the number was ours.
DescriptorStore::Sent DescriptorStore::send(Key key, Patience patience, const Still& still_that) {
  const UniqueFd copy(::fcntl(key.number, F_DUPFD_CLOEXEC, kFirstNoted));
  if (!copy.valid() || !still_that()) return Sent::gone;
  const std::string name = stored_name(key.number, key.stamp);
  if (!tell("FDSTORE=1\nFDPOLL=0\nFDNAME=" + name, patience, copy.get())) return Sent::no_room;
  const RankedLock lock(mutex_);
  const auto found = slots_.find(key);
  if (found != slots_.end()) found->second.sent = true;
  unconfirmed_.push_back(key);
  return Sent::done;
}

// Whatever else is there, it is nothing without this.
bool DescriptorStore::send_state(Patience patience) {
  if (state_sent_) return true;
  const std::string message = "FDSTORE=1\nFDPOLL=0\nFDNAME=" + std::string(kStateName);
  if (tell(message, patience, state_.fd())) state_sent_ = true;
  return state_sent_;
}

void DescriptorStore::fork_read(uffd_msg& message) {
  message.arg.reserved.reserved3 = NotedFd::new_stamp();
  const Key key{static_cast<int>(message.arg.fork.ufd), message.arg.reserved.reserved3};
  {
    const RankedLock lock(mutex_);
    if (slot_of(key, StoredNote::kForking) == nullptr) return;
  }
  if (state_sent_) (void)send(key, Patience::brief, [] { return true; });
}

void DescriptorStore::settled(int number, std::uint64_t stamp) {
  const RankedLock lock(mutex_);
  const auto found = slots_.find({number, stamp});
  if (found == slots_.end()) return;
  found->second.settled_round = round_;
  state_.header().stored[found->second.index].flags.fetch_and(~StoredNote::kForking);
}

void DescriptorStore::push(const ClientRecord& record) {
  if (!state_sent_) return;
  bool room = true;
  for_noted(record, [&](const NotedFd& note) {
    const Key key{note.get(), note.stamp()};
    {
      const RankedLock lock(mutex_);
      const Slot* const slot = slot_of(key, 0);
      if (slot == nullptr || slot->sent) return;
    }
    room = room && send(key, Patience::brief, [] { return true; }) != Sent::no_room;
  });
}

bool DescriptorStore::sync(std::uint64_t now_us) {
  if (now_us - synced_us_ < kSyncUs) return !behind_;
  synced_us_ = now_us;
  const std::uint64_t changes = NotedFd::changes();
  if (behind_ || changes != seen_changes_) {
    seen_changes_ = changes;
    behind_ = !sync_round(kMostAtOnce, Patience::none);
  }
  look_at_barrier();
  behind_ = behind_ || barrier_.valid();
  return !behind_;
}

// Read while others note, and while a client ends, whose notes stay until its record is wiped.
bool DescriptorStore::is_still(Key key, const Wanted& wanted) {
  if (wanted.note == nullptr) {
    const RankedLock lock(mutex_);
    const auto found = slots_.find(key);
    return found != slots_.end() &&
           (state_.header().stored[found->second.index].flags & StoredNote::kForking) != 0;
  }
  return (wanted.record == nullptr || wanted.record->life != Life::ending) &&
         wanted.note->get() == key.number && wanted.note->stamp() == key.stamp;
}

// What is noted is found without the mutex, while readers note. What they settle meanwhile outlives
// the round, and whatever is noted meanwhile is found by the next.
bool DescriptorStore::sync_round(std::size_t most, Patience patience) {
  {
    const RankedLock lock(mutex_);
    ++round_;
  }
  std::unordered_map<Key, Wanted, Hash> wanted;
  std::vector<Key> in_order, gone, fresh;
  for_noted(state_, [&](const NotedFd& note, const ClientRecord* record) {
    const Key key{note.get(), note.stamp()};
    if (key.number >= 0 && key.number == note.get() &&
        wanted.emplace(key, Wanted{&note, record}).second)
      in_order.push_back(key);
  });
  bool all = true, room = true;
  {
    const RankedLock lock(mutex_);
    for (const auto& [key, slot] : slots_) {
      const std::uint32_t flags = state_.header().stored[slot.index].flags;
      if ((flags & StoredNote::kForking) != 0) {
        if (!slot.sent) fresh.push_back(key);
      } else if (!wanted.contains(key) && slot.settled_round < round_ && !slot.going) {
        gone.push_back(key);
      }
    }
    for (const Key& key : in_order) {
      const Slot* const slot = slot_of(key, 0);
      room = room && slot != nullptr;
      if (slot != nullptr && !slot->sent) fresh.push_back(key);
    }
  }
  if (!room && !remove_gone(gone, most, patience)) return false;
  if (!send_state(patience)) return false;
  for (const Key& key : fresh) {
    if (most == 0) return false;
    --most;
    const auto found = wanted.find(key);
    const Wanted it = found != wanted.end() ? found->second : Wanted{};
    const Sent sent = send(key, patience, [&] { return is_still(key, it); });
    if (sent == Sent::no_room) return false;
    all = all && sent == Sent::done;
  }
  if (room && !remove_gone(gone, most, patience)) return false;
  return patience != Patience::full || (all && room);
}

bool DescriptorStore::remove_gone(const std::vector<Key>& gone, std::size_t& most,
                                  Patience patience) {
  for (const Key& key : gone) {
    if (most == 0) return false;
    --most;
    if (!tell("FDSTOREREMOVE=1\nFDNAME=" + stored_name(key.number, key.stamp), patience))
      return false;
    const RankedLock lock(mutex_);
    const auto found = slots_.find(key);
    if (found != slots_.end()) found->second.going = true;
    unconfirmed_.push_back(key);
  }
  return true;
}

// The manager has read all that was said before, while we lived.
void DescriptorStore::confirm(const std::vector<Key>& keys) {
  const RankedLock lock(mutex_);
  for (const Key& key : keys) {
    const auto found = slots_.find(key);
    if (found == slots_.end()) continue;
    StoredNote& note = state_.header().stored[found->second.index];
    if (!found->second.going) {
      note.flags.fetch_or(StoredNote::kKept);
      continue;
    }
    note.plus_one = 0;
    free_.push_back(found->second.index);
    slots_.erase(found);
  }
}

// One barrier at a time is on its way.
void DescriptorStore::look_at_barrier() {
  if (barrier_.valid()) {
    pollfd closed{barrier_.get(), 0, 0};
    if (::poll(&closed, 1, 0) != 1 || (closed.revents & POLLHUP) == 0) return;
    barrier_.reset();
    confirm(std::exchange(behind_barrier_, {}));
  }
  {
    const RankedLock lock(mutex_);
    if (unconfirmed_.empty()) return;
    behind_barrier_.swap(unconfirmed_);
  }
  std::array<int, 2> ends{};
  const bool made = ::pipe2(ends.data(), O_CLOEXEC) == 0;
  barrier_.reset(made ? ends[0] : -1);
  const UniqueFd write_end(made ? ends[1] : -1);
  if (made && tell("BARRIER=1", Patience::none, write_end.get())) return;
  barrier_.reset();
  const RankedLock lock(mutex_);
  unconfirmed_.insert(unconfirmed_.end(), behind_barrier_.begin(), behind_barrier_.end());
  behind_barrier_.clear();
}

Status DescriptorStore::wait_for_manager() {
  std::vector<Key> keys = std::exchange(behind_barrier_, {});
  {
    const RankedLock lock(mutex_);
    keys.insert(keys.end(), unconfirmed_.begin(), unconfirmed_.end());
    unconfirmed_.clear();
  }
  barrier_.reset();
  if (!notify_barrier(manager_.get(), kBarrierMs))
    return fail("the service manager does not answer");
  confirm(keys);
  return {};
}

Status DescriptorStore::begin() {
  const bool all = sync_round(2UL * kMostStored, Patience::full);
  if (auto answered = wait_for_manager(); !answered) return answered;
  if (!all) return fail("the service manager does not take every descriptor");
  return {};
}

Status DescriptorStore::complete() {
  if (auto ok = can_store(state_); !ok) return ok;
  {
    const RankedLock lock(mutex_);
    take_up_inboxes();
  }
  return begin();
}

}  // namespace foldswap
