#include "daemon/recovery/hand_over.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <utility>

#include "daemon/host/notify.h"
#include "daemon/host/proc_reader.h"
#include "daemon/host/runtime_dir.h"
#include "daemon/recovery/take_over.h"
#include "daemon/state/event_journal.h"
#include "daemon/state/events.h"
#include "daemon/state/noted_fds.h"

namespace foldswap {
namespace {

constexpr int kFirstGiven = 3;  // SD_LISTEN_FDS_START
constexpr int kKilledMs = 5'000;

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
    if (!parsed && name.find_first_not_of("0123456789") == std::string_view::npos)
      return fail("what was kept for us is of another version: drain before changing versions");
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
  say_now("foldswapd: client " + std::to_string(record.id) + " (" +
          std::string(record.name, ::strnlen(record.name, sizeof(record.name))) + ", pid " +
          std::to_string(record.pid) + "): " + what);
}

// What the state notes, against what there is. Any step may be the last, and is made again then.
class Reconciler {
 public:
  Reconciler(Os& os, State& state, const std::map<Key, int>& there)
      : os_(os), state_(state), there_(there) {}
  void run() {
    StateHeader& header = state_.header();
    const auto lost = [&](const NotedFd& note) { return note.get() >= 0 && !kept(note); };
    const bool pool = std::ranges::none_of(header.files, lost);
    for (ClientRecord* const record : state_.records()) {
      if (!is_nobodys(*record)) client(*record, pool);
    }
    for (NotedFd& note : header.doomed) {
      if (lost(note)) lose_fork("a forked child that had no room");
      if (lost(note)) note.note(-1);
    }
    for (uffd_msg& message : header.doomed_messages) look_at_fork(message);
    for (NotedFd& note : header.files) {
      if (!pool) note.note(-1);
    }
    if (header.unnoted.exchange(0) != 0) lose_fork("forked children that had no room");
    stored();
  }

 private:
  [[nodiscard]] bool kept(const NotedFd& note) const {
    return there_.contains({note.get(), note.stamp()});
  }
  void look_at_fork(uffd_msg& message) {
    if (!holds_child(message) || there_.contains(key_of(message))) return;
    lose_fork("a child that was being forked");
    clear_message(message);
  }
  // Noted first: whoever it is says so at his handshake, if he lives so long.
  void lose_fork(const char* whose) {
    state_.header().forks_lost_ns = boot_ns();
    say_now(std::string("foldswapd: the userfaultfd of ") + whose + " was not kept");
  }
  void client(ClientRecord& record, bool pool) {
    ClientFds& f = record.fds;
    for (uffd_msg& message : all_messages(record)) look_at_fork(message);
    const auto kept_or_none = [&](const NotedFd& note) { return kept(note) || note.get() < 0; };
    const bool space = kept(f.uffd) && kept(f.map);
    // A lifeline that is noted no more was let go of, when the client ended.
    const bool agent = kept(f.mailbox) && kept(f.transfer) && kept(f.pidfd) &&
                       kept_or_none(f.pagemap) && kept_or_none(f.lifeline);
    if (record.attached == 0 && record.forked == 0 && !(space && agent && pool)) {
      record.life = Life::ending;  // nothing of it has left it: it goes on without us
      return;
    }
    if (!pool || !kept(f.uffd)) return lose_client(record, pool);
    if (!space || (record.attached != 0 && !agent)) {
      record.incomplete = 1;
      say(record, "not kept: " + missing(f));
    }
    if (record.attached == 0 && !agent) {  // its agent is told nothing any more, and ends
      for (NotedFd* const note : {&f.mailbox, &f.transfer, &f.lifeline}) note->note(-1);
      if (!kept(f.pidfd)) record.pid = 0;  // it is learned again
    }
    for (NotedFd* const note :
         {&f.map, &f.pidfd, &f.pagemap, &f.lifeline, &f.mailbox, &f.transfer}) {
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
      if (note->get() >= 0 && !kept(*note))
        names += (names.empty() ? "" : ", ") + std::string(name);
    }
    return names;
  }
  // Its agent holds the userfaultfd still, so whoever misses a page waits, until he is killed.
  void lose_client(ClientRecord& record, bool pool) {
    if (record.forked != 0) lose_fork("a forked child");
    const UniqueFd found = kept(record.fds.pidfd)
                               ? UniqueFd(::fcntl(record.fds.pidfd.get(), F_DUPFD_CLOEXEC, 0))
                               : pidfd_of_client(record.pid);
    const bool killed = found.valid() && os_.pidfd_signal(found.get(), SIGKILL) == 0;
    say(record, std::string(killed ? "killed" : "lost") + ": " +
                    (pool ? "its userfaultfd was" : "the pool's files were") + " not kept");
    pollfd ended{found.get(), POLLIN, 0};
    if (killed) (void)::poll(&ended, 1, kKilledMs);  // before anything that it waits for is closed
    record.life = Life::ending;
  }
  // Its number may be another's by now; hardly that of another client.
  [[nodiscard]] UniqueFd pidfd_of_client(pid_t pid) const {
    UniqueFd pidfd(pid > 0 ? static_cast<int>(::syscall(SYS_pidfd_open, pid, 0)) : -1);
    const auto maps = os_.read_file("/proc/" + std::to_string(pid) + "/maps");
    const bool client = maps && maps->find("foldswap-mailbox") != std::string::npos;
    return client ? std::move(pidfd) : UniqueFd();
  }
  // What the manager has, in the table of descriptor_store.h.
  void stored() {
    std::map<Key, int> rest = there_;
    std::vector<StoredNote*> free;
    for (StoredNote& note : state_.header().stored) {
      const int number = note.plus_one - 1;
      if (number >= 0 && rest.erase({number, note.stamp}) != 0) {
        note.flags = StoredNote::kKept;
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
      note.flags = StoredNote::kKept;
      note.plus_one = key.first + 1;
    }
  }

  Os& os_;
  State& state_;
  const std::map<Key, int>& there_;
};

// Everything that the state wants: number and stamp.
std::vector<Key> wanted(State& state) {
  std::vector<Key> keys;
  for_noted(state, [&](const NotedFd& note, const ClientRecord*) {
    keys.emplace_back(note.get(), note.stamp());
  });
  const auto fork = [&](const uffd_msg& message) {
    if (holds_child(message)) keys.push_back(key_of(message));
  };
  for (const uffd_msg& message : state.header().doomed_messages) fork(message);
  for (ClientRecord* const record : state.records()) {
    if (!is_nobodys(*record)) std::ranges::for_each(all_messages(*record), fork);
  }
  return keys;
}

}  // namespace

Result<Given> take_from_store() {
  const std::uint64_t taken_ns = boot_ns();
  const int count = static_cast<int>(number_in_environment("LISTEN_FDS").value_or(0));
  const bool ours = number_in_environment("LISTEN_PID") == static_cast<unsigned>(::getpid());
  Result<Given> given = Given{};
  if (ours && count > 0) given = given_descriptors(count);
  for (const char* name : {"LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"}) ::unsetenv(name);
  if (given) given->taken_ns = taken_ns;
  return given;
}

Status place_given(Os& os, const Given& given, const std::string& runtime_dir) {
  if (State::begun(os, given.state_fd)) {
    int top = kFirstNoted;  // nothing belongs there
    for (const Given::One& one : given.others)
      top = std::max({top, one.fd + 1, one.name.number + 1});
    const auto lock = lock_runtime_dir(runtime_dir, top);
    if (!lock) return std::unexpected(lock.error());
    UniqueFd fd(::fcntl(given.state_fd, F_DUPFD_CLOEXEC, top));
    if (!fd.valid()) return fail_errno("no descriptor for the state file");
    auto state = State::open(os, std::move(fd));
    if (!state) return std::unexpected(state.error());
    if ((*state)->header().told_ns >= given.taken_ns)
      return fail("the service manager gave us what it had while it was told of more");
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
