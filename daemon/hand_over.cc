#include "daemon/hand_over.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <csignal>
#include <cstdlib>
#include <iostream>
#include <map>
#include <string>
#include <string_view>
#include <utility>

#include "daemon/address_space.h"
#include "daemon/event_journal.h"
#include "daemon/take_over.h"

namespace foldswap {
namespace {

constexpr int kFirstGiven = 3;  // SD_LISTEN_FDS_START

std::optional<int> number_in_environment(const char* name) {
  const char* const text = std::getenv(name);
  if (text == nullptr) return std::nullopt;
  const std::string_view view(text);
  int number = -1;
  const auto [end, code] = std::from_chars(view.data(), view.data() + view.size(), number);
  if (code != std::errc{} || end != view.data() + view.size() || number < 0) return std::nullopt;
  return number;
}

// LISTEN_FDNAMES.
Result<Given> given_descriptors(int count) {
  const char* const text = std::getenv("LISTEN_FDNAMES");
  std::string_view names = text != nullptr ? text : "";
  Given given;
  int top = std::max(kFirstNoted, kFirstGiven + count);
  for (int fd = kFirstGiven; fd < kFirstGiven + count; ++fd) {
    const std::string_view name = names.substr(0, names.find(':'));
    names.remove_prefix(std::min(names.size(), name.size() + 1));
    const auto parsed = parse_stored_name(name);
    if (!parsed) return fail("a descriptor named '" + std::string(name) + "' was given to us");
    top = std::max(top, parsed->number + 1);
    if (parsed->state && given.state_fd >= 0) return fail("two state files were given to us");
    if (parsed->state) given.state_fd = fd;
    given.others.push_back({*parsed, fd});
  }
  if (given.state_fd < 0)
    return fail(std::to_string(count) + " descriptors were kept for us, and no state");
  for (Given::One& one : given.others) {
    const int high = ::fcntl(one.fd, F_DUPFD_CLOEXEC, top);
    if (high < 0) return fail_errno("no room for the descriptors that were kept for us");
    ::close(one.fd);
    one.fd = high;
  }
  const auto state = std::ranges::find_if(given.others, [](const auto& o) { return o.name.state; });
  given.state_fd = ::fcntl(state->fd, F_DUPFD_CLOEXEC, kFirstGiven);
  ::close(state->fd);
  given.others.erase(state);
  if (given.state_fd < 0 || given.state_fd >= kFirstNoted)
    return fail("no descriptor for the state file");
  return given;
}

using Key = std::pair<int, std::uint64_t>;

Key key_of(const uffd_msg& fork) {
  const std::uint64_t stamp = fork.arg.reserved.reserved3;  // a packed field: no reference to it
  return {static_cast<int>(fork.arg.fork.ufd), stamp};
}

void say(const ClientRecord& record, const std::string& what) {
  std::cerr << "foldswapd: client " << record.id << " ("
            << std::string(record.name, ::strnlen(record.name, sizeof(record.name))) << ", pid "
            << record.pid << "): " << what << "\n";
}

// What the state notes, against what there is.
class Reconciler {
 public:
  Reconciler(Os& os, State& state, const std::map<Key, int>& there)
      : os_(os), state_(state), there_(there) {}
  void run() {
    for (ClientRecord* const record : state_.records()) {
      if (!is_nobodys(*record)) client(*record);
    }
    lose(state_.header().doomed);
    for (uffd_msg& message : state_.header().doomed_messages) {
      if (message.event == UFFD_EVENT_FORK) forget_fork(message);
    }
    lose(state_.header().files);  // the next daemon says which it cannot do without
    if (forks_lost_) state_.header().forks_lost_before = state_.header().next_client_id.load();
    stored();
  }

 private:
  [[nodiscard]] bool kept(const NotedFd& note) const {
    return there_.contains({note.get(), note.stamp()});
  }
  void lose(auto& notes) {
    for (NotedFd& note : notes) {
      if (note.get() >= 0 && !kept(note)) note.note(-1);
    }
  }
  void forget_fork(uffd_msg& message) {
    if (there_.contains(key_of(message))) return;
    forks_lost_ = true;
    clear_message(message);
  }
  void client(ClientRecord& record) {
    ClientFds& f = record.fds;
    for (uffd_msg& message :
         std::span(record.inbox, std::min(record.inbox_count + kInboxReserve, kInboxMessages))) {
      if (message.event == UFFD_EVENT_FORK && message.arg.fork.ufd != kForkTaken)
        forget_fork(message);
    }
    const bool space = kept(f.uffd) && kept(f.map);
    // A lifeline that is noted no more was let go of: the client has ended.
    const bool agent = kept(f.mailbox) && kept(f.transfer) && kept(f.pidfd) && kept(f.pagemap) &&
                       (kept(f.lifeline) || f.lifeline.get() < 0);
    if (record.attached == 0 && record.parent_id == 0 && !(space && agent)) {
      record.life = Life::ending;  // nothing of it has left it: it goes on without us
      return;
    }
    if (!kept(f.uffd)) lose_client(record);
    if (!space || (record.attached != 0 && !agent)) {
      record.incomplete = 1;
      say(record, "not kept: " + missing(f));
    }
    if (record.attached == 0 && !agent) {  // its agent is told nothing any more, and ends
      for (NotedFd* const note : {&f.mailbox, &f.transfer, &f.lifeline}) note->note(-1);
      if (!kept(f.pidfd)) record.pid = 0;  // it is learned again
    }
    for (NotedFd* const note :
         {&f.map, &f.pidfd, &f.pagemap, &f.lifeline, &f.mailbox, &f.transfer, &f.uffd}) {
      if (!kept(*note)) note->note(-1);
    }
  }
  [[nodiscard]] std::string missing(const ClientFds& f) const {
    std::string names;
    for (const auto& [note, name] : std::initializer_list<std::pair<const NotedFd*, const char*>>{
             {&f.uffd, "userfaultfd"},
             {&f.map, "page map"},
             {&f.pidfd, "pidfd"},
             {&f.pagemap, "pagemap"},
             {&f.lifeline, "lifeline"},
             {&f.mailbox, "mailbox"},
             {&f.transfer, "transfer area"}}) {
      if (!kept(*note)) names += (names.empty() ? "" : ", ") + std::string(name);
    }
    return names;
  }
  // Its agent holds the userfaultfd still, so whoever misses a page waits, until he is killed.
  void lose_client(const ClientRecord& record) {
    forks_lost_ = forks_lost_ || record.parent_id != 0;
    const bool known = kept(record.fds.pidfd);
    if (known) (void)os_.pidfd_signal(record.fds.pidfd.get(), SIGKILL);
    say(record, std::string(known ? "killed" : "lost") + ": its userfaultfd was not kept");
  }
  // What the manager has and what it has been told to have, in the table of descriptor_store.h.
  void stored() {
    std::map<Key, int> rest = there_;
    std::vector<StoredNote*> free;
    for (StoredNote& note : state_.header().stored) {
      const int number = note.plus_one - 1;
      if (number >= 0 && rest.erase({number, note.stamp}) != 0) {
        note.flags = StoredNote::kSent;
      } else {
        note.plus_one = 0;
        free.push_back(&note);
      }
    }
    for (const auto& [key, fd] : rest) {
      if (free.empty()) return;
      StoredNote& note = *free.back();
      free.pop_back();
      note.stamp = key.second;
      note.flags = StoredNote::kSent;
      note.plus_one = key.first + 1;
    }
  }

  Os& os_;
  State& state_;
  const std::map<Key, int>& there_;
  bool forks_lost_ = false;
};

// Everything that the state wants: number and stamp.
std::vector<Key> wanted(State& state) {
  std::vector<Key> keys;
  for_noted(state, [&](const NotedFd& note) { keys.emplace_back(note.get(), note.stamp()); });
  const auto fork = [&](const uffd_msg& message) {
    if (message.event == UFFD_EVENT_FORK && message.arg.fork.ufd != kForkTaken)
      keys.push_back(key_of(message));
  };
  for (const uffd_msg& message : state.header().doomed_messages) fork(message);
  for (const ClientRecord* const record : state.records()) {
    if (is_nobodys(*record)) continue;
    for (const uffd_msg& message :
         std::span(record->inbox, std::min(record->inbox_count + kInboxReserve, kInboxMessages)))
      fork(message);
  }
  return keys;
}

}  // namespace

Result<Given> take_from_store() {
  const int count = number_in_environment("LISTEN_FDS").value_or(0);
  const bool ours = number_in_environment("LISTEN_PID") == ::getpid();
  Result<Given> given = Given{};
  if (ours && count > 0) given = given_descriptors(count);
  for (const char* name : {"LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"}) ::unsetenv(name);
  return given;
}

Status place_given(Os& os, const Given& given) {
  if (State::begun(os, given.state_fd)) {
    int top = kFirstNoted;  // nothing belongs there
    for (const Given::One& one : given.others)
      top = std::max({top, one.fd + 1, one.name.number + 1});
    UniqueFd fd(::fcntl(given.state_fd, F_DUPFD_CLOEXEC, top));
    if (!fd.valid()) return fail_errno("no descriptor for the state file");
    auto state = State::open(os, std::move(fd));
    if (!state) return std::unexpected(state.error());
    std::map<Key, int> there;
    for (const Given::One& one : given.others) there[{one.name.number, one.name.stamp}] = one.fd;
    for (const Key& key : wanted(**state)) {
      const auto found = there.find(key);
      if (found != there.end() && ::dup3(found->second, key.first, O_CLOEXEC) != key.first)
        return fail_errno("a descriptor cannot be put under its number");
    }
    Reconciler(os, **state, there).run();
  }
  for (const Given::One& one : given.others) ::close(one.fd);
  return {};
}

}  // namespace foldswap
