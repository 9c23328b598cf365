// The service manager's store, and what the next keeper makes of it. The manager is a thread here;
// what it is told is looked at, and a child process gets back what it has kept.
#include "daemon/recovery/hand_over.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <linux/kcmp.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <filesystem>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "base/fd_message.h"
#include "daemon/host/notify.h"
#include "daemon/host/proc_reader.h"
#include "daemon/host/runtime_dir.h"

namespace foldswap {
namespace {

bool same_file(int a, int b) {
  return ::syscall(SYS_kcmp, ::getpid(), ::getpid(), KCMP_FILE, a, b) == 0;
}

// Keeps what it is told to keep, as systemd does: not twice the same file.
class Manager {
 public:
  Manager() {
    socket_.reset(::socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0));
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    const std::string name = "@foldswap-hand-over-test-" + std::to_string(::getpid());
    std::ranges::copy(name, address.sun_path);
    address.sun_path[0] = 0;
    const auto bytes = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + name.size());
    EXPECT_EQ(::bind(socket_.get(), reinterpret_cast<const sockaddr*>(&address), bytes), 0);
    ::setenv("NOTIFY_SOCKET", name.c_str(), 1);
    ::setenv("FOLDSWAP_FDSTORE", "100", 1);
    thread_ = std::thread([this] { run(); });
  }
  ~Manager() {
    const UniqueFd socket = manager_socket();
    (void)notify(socket.get(), "END");
    thread_.join();
    ::unsetenv("NOTIFY_SOCKET");
    ::unsetenv("FOLDSWAP_FDSTORE");
  }
  // When everything that was sent has been read.
  [[nodiscard]] std::vector<std::pair<std::string, int>> kept() {
    EXPECT_TRUE(notify_barrier(manager_socket().get(), 10'000));
    std::vector<std::pair<std::string, int>> kept;
    for (const auto& [name, fd] : kept_) kept.emplace_back(name, fd.get());
    return kept;
  }

  std::atomic<bool> deaf{false};  // to all but barriers, as systemd to the dead

 private:
  void run() {
    for (;;) {
      std::array<char, 512> text{};
      FdList fds;
      const ssize_t n = receive_with_fds(socket_.get(), text.data(), text.size(), 0, fds, nullptr);
      std::string message(text.data(), static_cast<std::size_t>(std::max<ssize_t>(n, 0)));
      UniqueFd fd(fds.count == 1 ? fds.fd[0] : -1);
      if (message == "END") return;
      if (message == "BARRIER=1") continue;
      const std::size_t at = message.find("FDNAME=");
      const std::string name = at == std::string::npos ? "" : message.substr(at + 7);
      if (deaf) continue;
      if (message.starts_with("FDSTOREREMOVE=1\n"))
        std::erase_if(kept_, [&](const auto& one) { return one.first == name; });
      if (!message.starts_with("FDSTORE=1\n")) continue;
      EXPECT_NE(message.find("\nFDPOLL=0\n"), std::string::npos) << message;
      const bool have = std::ranges::any_of(
          kept_, [&](const auto& one) { return same_file(one.second.get(), fd.get()); });
      if (!have) kept_.emplace_back(name, std::move(fd));
    }
  }
  UniqueFd socket_;
  std::vector<std::pair<std::string, UniqueFd>> kept_;
  std::thread thread_;
};

constexpr std::uint64_t kLater = 1'000'000'000'000;  // for sync(): long after anything

// An eventfd that stands for what a daemon has, under that number, with that number as its value.
void open_at(int number) {
  const UniqueFd fd(::eventfd(static_cast<unsigned>(number), EFD_CLOEXEC | EFD_NONBLOCK));
  ASSERT_EQ(::dup3(fd.get(), number, O_CLOEXEC), number);
}

class HandOverTest : public testing::Test {
 protected:
  Manager manager;
  std::unique_ptr<State> state = State::create(real_os()).value();
  std::unique_ptr<DescriptorStore> store = DescriptorStore::make(*state);
  std::vector<int> open;
  NotedFd* const files = state->header().files;
  std::uint64_t now_us = kLater;
  const std::string directory =
      std::filesystem::temp_directory_path() / ("foldswap-hand-over-" + std::to_string(::getpid()));

  ~HandOverTest() override {
    for (const int number : open) ::close(number);
    std::filesystem::remove_all(directory);
  }
  void note(NotedFd& where, int number) {
    open_at(number);
    open.push_back(number);
    where.note(number);
  }
  ClientRecord& make_client(int first, bool with_agent) {
    ClientRecord& record = *state->claim_record();
    ClientFds& f = record.fds;
    if (with_agent) {
      for (NotedFd* const fd : {&f.pidfd, &f.pagemap, &f.lifeline, &f.transfer, &f.mailbox})
        note(*fd, first++);
      record.attached = 1;
    }
    record.pid = 4711;
    note(f.map, first++);
    note(f.uffd, first++);
    return record;
  }
  // Until the manager has all.
  void sync() {
    for (int i = 0; i < 1'000; ++i) {
      now_us += 1'000'000;
      if (store->sync(now_us)) return;
      (void)manager.kept();  // barriers are answered
    }
    FAIL() << "sync() does not come to an end";
  }
  [[nodiscard]] std::set<std::string> names() {
    std::set<std::string> names;
    for (const auto& [name, fd] : manager.kept()) names.insert(name);
    return names;
  }
  static std::string name_of(const NotedFd& note) { return stored_name(note.get(), note.stamp()); }

  using Kept = std::vector<std::pair<std::string, int>>;
  // What the next keeper makes of what was kept, in a process of its own. Numbers that are in
  // `expected` have what they had; no other is open. 0: as it should be.
  int taken(const Kept& kept, const std::set<int>& expected) {
    const pid_t pid = ::fork();
    if (pid == 0) {
      std::string names;
      std::vector<int> high;
      for (const auto& [name, fd] : kept) {
        names += (names.empty() ? "" : ":") + name;
        high.push_back(::fcntl(fd, F_DUPFD_CLOEXEC, 700));
      }
      const int state_copy = ::fcntl(state->fd(), F_DUPFD_CLOEXEC, 900);
      for (int fd = 3; fd < 700; ++fd) ::close(fd);
      for (std::size_t i = 0; i < high.size(); ++i) {
        ::dup2(high[i], static_cast<int>(i) + 3);
        ::close(high[i]);
      }
      ::setenv("LISTEN_PID", std::to_string(::getpid()).c_str(), 1);
      ::setenv("LISTEN_FDS", std::to_string(kept.size()).c_str(), 1);
      ::setenv("LISTEN_FDNAMES", names.c_str(), 1);
      const auto given = take_from_store();
      if (!given) ::_exit(1);
      const int got = given->state_fd;
      if (got < 3 || got >= kFirstNoted || !same_file(got, state_copy)) ::_exit(2);
      if (std::getenv("LISTEN_FDS") != nullptr) ::_exit(3);
      if (!place_given(real_os(), *given, directory)) ::_exit(4);
      ::close(state_copy);
      for (const int number : expected) {
        std::uint64_t value = 0;
        if (::read(number, &value, sizeof(value)) != sizeof(value) ||
            value != static_cast<std::uint64_t>(number))
          ::_exit(5);
        if (::write(number, &value, sizeof(value)) != sizeof(value)) ::_exit(6);
        if (::fcntl(number, F_GETFD) != FD_CLOEXEC) ::_exit(7);
      }
      for (int fd = 3; fd < 2'000; ++fd) {
        if (::fcntl(fd, F_GETFD) >= 0 && fd != got && !expected.contains(fd)) ::_exit(8);
      }
      ::_exit(0);
    }
    int status = 0;
    ::waitpid(pid, &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  }
  [[nodiscard]] static Kept without(Kept kept, const std::string& name) {
    EXPECT_EQ(std::erase_if(kept, [&](const auto& one) { return one.first == name; }), 1U) << name;
    return kept;
  }
};

TEST(StoredName, IsNumberAndStampOrTheStates) {
  for (const int number : {16, 17, 63, 64, 524'287}) {
    for (const std::uint64_t stamp : {1ULL, 63ULL, 64ULL, 1ULL << 59}) {
      const std::string name = stored_name(number, stamp);
      EXPECT_LE(name.size(), 15U);
      const auto parsed = parse_stored_name(name);
      ASSERT_TRUE(parsed) << name;
      EXPECT_FALSE(parsed->state);
      EXPECT_EQ(parsed->number, number);
      EXPECT_EQ(parsed->stamp, stamp);
    }
  }
  EXPECT_TRUE(parse_stored_name("state")->state);
  for (const char* name : {"", ".", "16", "G.", ".G", "F.1", "G.1.", "G.!", "State", "stored",
                           "99999999999.1", "G.99999999999"})
    EXPECT_FALSE(parse_stored_name(name)) << name;
}

TEST(NotedFdTest, AStampGoesWithANumberAsLongAsItIsNoted) {
  NotedFd note{};
  EXPECT_EQ(note.get(), -1);
  note.note(20);
  const std::uint64_t first = note.stamp();
  note.note(20);
  EXPECT_EQ(note.stamp(), first);
  note.note(-1);
  EXPECT_EQ(note.get(), -1);
  note.note(20);
  EXPECT_GT(note.stamp(), first);
  NotedFd other{};
  other.note(20, note.stamp());
  EXPECT_EQ(other.stamp(), note.stamp());
}

TEST_F(HandOverTest, EverythingComesBackUnderItsNumber) {
  note(files[0], 300);
  note(files[1], 17);
  note(files[2], 40);
  note(files[3], 16);
  make_client(50, true);
  ASSERT_TRUE(store->complete());
  auto kept = manager.kept();
  ASSERT_EQ(kept.size(), 12U);
  EXPECT_EQ(kept.front().first, "state");  // first: without it the others are nothing
  EXPECT_TRUE(same_file(kept.front().second, state->fd()));
  const std::set<int> all{300, 17, 40, 16, 50, 51, 52, 53, 54, 55, 56};
  EXPECT_EQ(taken(kept, all), 0);
  // The manager's order is its own.
  std::ranges::reverse(kept);
  EXPECT_EQ(taken(kept, all), 0);
  std::swap(kept[0], kept[2]);
  EXPECT_EQ(taken(kept, all), 0);
  EXPECT_EQ(state->header().forks_lost_ns, 0U);
}

// A number that was another file's, and one that is no more: the store had not followed yet.
TEST_F(HandOverTest, WhatIsNotNotedAnyMoreIsNotTaken) {
  note(files[0], 40);
  note(files[1], 41);
  sync();
  const auto old = manager.kept();
  files[0].note(-1);
  files[1].note(-1);
  note(files[0], 40);
  std::uint64_t value = 0;
  ASSERT_EQ(::read(40, &value, sizeof(value)), 8);  // the new one is told from the old one
  EXPECT_EQ(taken(old, {}), 0);
  EXPECT_EQ(files[0].get(), -1) << "another file was taken for it";
}

TEST_F(HandOverTest, TheStoreFollows) {
  sync();
  EXPECT_EQ(names(), std::set<std::string>{"state"});
  note(files[0], 40);
  ClientRecord& record = make_client(50, true);
  sync();
  EXPECT_EQ(names().size(), 9U);
  EXPECT_TRUE(names().contains(name_of(files[0])));
  EXPECT_TRUE(names().contains(name_of(record.fds.uffd)));
  const std::string before = name_of(files[0]);
  files[0].note(-1);
  ::close(40);
  note(files[0], 40);
  record.life = Life::ending;
  state->wipe_record(&record);
  state->free_record(&record);
  sync();
  EXPECT_EQ(names(), (std::set<std::string>{"state", name_of(files[0])}));
  EXPECT_NE(before, name_of(files[0]));
}

// What a daemon had been told to keep is known to the next one.
TEST_F(HandOverTest, TheStoreFollowsTheNextDaemon) {
  note(files[0], 40);
  note(files[1], 41);
  sync();
  files[1].note(-1);
  store = DescriptorStore::make(*state);
  note(files[2], 42);
  sync();
  EXPECT_EQ(names(), (std::set<std::string>{"state", name_of(files[0]), name_of(files[2])}));
}

// What was given and is in no table is let go of.
TEST_F(HandOverTest, WhatTheManagerHasIsKnownAfterwards) {
  note(files[0], 40);
  note(files[1], 41);
  sync();
  const auto kept = manager.kept();
  for (StoredNote& one : state->header().stored) one.plus_one = 0;
  files[1].note(-1);
  EXPECT_EQ(taken(kept, {40}), 0);
  store = DescriptorStore::make(*state);
  sync();
  EXPECT_EQ(names(), (std::set<std::string>{"state", name_of(files[0])}));
}

// A FORK's descriptor is offered when it is read, before any note has it, and keeps its name.
TEST_F(HandOverTest, AForkIsStoredWhenItIsRead) {
  ClientRecord& parent = make_client(50, true);
  sync();
  const auto before = names();
  open_at(70);
  open.push_back(70);
  parent.inbox[0].event = UFFD_EVENT_FORK;
  parent.inbox[0].arg.fork.ufd = 70;
  store->fork_read(parent.inbox[0]);
  const std::uint64_t stamp = parent.inbox[0].arg.reserved.reserved3;
  const std::string name = stored_name(70, stamp);
  EXPECT_TRUE(names().contains(name));
  note(files[0], 40);
  sync();
  EXPECT_TRUE(names().contains(name)) << "it is noted nowhere, and yet needed";
  auto kept = manager.kept();
  const std::set<int> all{40, 50, 51, 52, 53, 54, 55, 56, 70};
  EXPECT_EQ(taken(kept, all), 0);  // it is among what may just have been read
  parent.inbox_count = 1;
  EXPECT_EQ(taken(kept, all), 0);
  // The next daemon knows it, too.
  store = DescriptorStore::make(*state);
  sync();
  EXPECT_TRUE(names().contains(name));
  state->header().doomed[3].note(70, stamp);
  parent.inbox[0] = uffd_msg{};
  store->settled(70, stamp);
  sync();
  EXPECT_TRUE(names().contains(name));
  state->header().doomed[3].note(-1);
  sync();
  EXPECT_FALSE(names().contains(name));
}

TEST_F(HandOverTest, AForkThatWasLostIsKnownToBe) {
  ClientRecord& parent = make_client(50, true);
  open_at(70);
  open.push_back(70);
  parent.inbox[0].event = UFFD_EVENT_FORK;
  parent.inbox[0].arg.fork.ufd = 70;
  parent.inbox_count = 1;
  store->fork_read(parent.inbox[0]);
  sync();
  const auto kept =
      without(manager.kept(), stored_name(70, parent.inbox[0].arg.reserved.reserved3));
  EXPECT_EQ(taken(kept, {50, 51, 52, 53, 54, 55, 56}), 0);
  EXPECT_EQ(parent.inbox[0].event, 0);
  EXPECT_NE(state->header().forks_lost_ns, 0U);
  EXPECT_EQ(parent.incomplete, 0U);
}

// Whoever has been told that he is a client is one with all that belongs to him, or is killed.
TEST_F(HandOverTest, AClientThatIsNotWholeIsKnownToBe) {
  ClientRecord& record = make_client(50, true);
  sync();
  const auto kept = manager.kept();
  const std::set<int> all{50, 51, 52, 53, 54, 55, 56};
  ClientFds& f = record.fds;
  for (NotedFd* const fd : {&f.pidfd, &f.pagemap, &f.lifeline, &f.transfer, &f.mailbox, &f.map}) {
    const int number = fd->get();
    const std::uint64_t stamp = fd->stamp();
    auto rest = all;
    rest.erase(number);
    EXPECT_EQ(taken(without(kept, name_of(*fd)), rest), 0);
    EXPECT_EQ(record.incomplete, 1U);
    EXPECT_EQ(fd->get(), -1);
    EXPECT_EQ(record.pid, 4711);
    record.incomplete = 0;
    fd->note(number, stamp);
  }
  f.lifeline.note(-1);  // let go of, when it ended
  auto rest = all;
  rest.erase(52);
  EXPECT_EQ(taken(kept, rest), 0);
  EXPECT_EQ(record.incomplete, 0U);
  // Without its userfaultfd it is nobody's: killed there and then.
  EXPECT_EQ(taken(without(kept, name_of(f.uffd)), {50, 51, 53, 54, 55}), 0);
  EXPECT_EQ(record.life, Life::ending);
}

TEST_F(HandOverTest, WhoWasNotToldYetGoesOnWithoutUs) {
  ClientRecord& fresh = make_client(50, true);
  fresh.attached = 0;
  sync();
  const auto kept = without(manager.kept(), name_of(fresh.fds.lifeline));
  EXPECT_EQ(taken(kept, {50, 51, 53, 54, 55, 56}), 0);
  EXPECT_EQ(fresh.life, Life::ending);
  EXPECT_EQ(fresh.incomplete, 0U);
}

TEST_F(HandOverTest, AForkedChildWhoseAgentWasNotToldYetHasNone) {
  ClientRecord& child = make_client(50, true);
  child.attached = 0;
  child.forked = 1;
  sync();
  const auto kept = manager.kept();
  EXPECT_EQ(taken(without(kept, name_of(child.fds.pidfd)), {51, 52, 53, 54, 55, 56}), 0);
  EXPECT_EQ(child.incomplete, 0U);
  EXPECT_EQ(child.fds.mailbox.get(), -1);
  EXPECT_EQ(child.pid, 0);
  EXPECT_EQ(child.fds.uffd.get(), 56);
  EXPECT_EQ(taken(without(kept, name_of(child.fds.uffd)), {51, 55}), 0);
  EXPECT_NE(state->header().forks_lost_ns, 0U);
}

// systemd drops what comes from a process that has died before it read it.
TEST_F(HandOverTest, WhatADeadDaemonSaidIsSaidAgain) {
  note(files[0], 40);
  sync();
  manager.deaf = true;
  ClientRecord& record = make_client(50, true);
  store->push(record);
  EXPECT_EQ(names().size(), 2U);
  manager.deaf = false;
  store = DescriptorStore::make(*state);
  sync();
  EXPECT_EQ(names().size(), 9U);
  // And what it let go of.
  manager.deaf = true;
  files[0].note(-1);
  now_us += 1'000'000;
  (void)store->sync(now_us);
  EXPECT_EQ(names().size(), 9U);
  manager.deaf = false;
  store = DescriptorStore::make(*state);
  sync();
  EXPECT_EQ(names().size(), 8U);
  ASSERT_TRUE(store->complete());
  EXPECT_EQ(taken(manager.kept(), {50, 51, 52, 53, 54, 55, 56}), 0);
}

// A child's descriptor gets the number that another's just had, while that is being sent.
TEST_F(HandOverTest, ReadersAndTheControlThreadGoOnTogether) {
  constexpr int kTurns = 60'000, kEach = 30;
  ::setenv("FOLDSWAP_FDSTORE", "4000", 1);
  store = DescriptorStore::make(*state);
  std::atomic<bool> end{false};
  NotedFd* const doomed = state->header().doomed;
  std::thread reader([&] {
    for (int i = 0; i < kTurns; ++i) {
      const int brief = ::eventfd(0, EFD_CLOEXEC);
      doomed[9000].note(brief);
      for (volatile int k = 0; k < i % 50 * 100;) k = k + 1;
      doomed[9000].note(-1);
      ::close(brief);
      if (i % kEach != 0) continue;
      const int child = ::eventfd(0, EFD_CLOEXEC);
      uffd_msg message{};
      message.event = UFFD_EVENT_FORK;
      message.arg.fork.ufd = static_cast<std::uint32_t>(child);
      store->fork_read(message);
      doomed[i / kEach].note(child, message.arg.reserved.reserved3);
      store->settled(child, message.arg.reserved.reserved3);
    }
    end = true;
  });
  while (!end) {
    now_us += 100'000;
    (void)store->sync(now_us);
  }
  reader.join();
  NotedFd::changed();
  sync();
  EXPECT_TRUE(store->complete());
  std::map<std::string, int> there;
  for (const auto& [name, fd] : manager.kept()) there[name] = fd;
  EXPECT_EQ(there.size(), 1U + kTurns / kEach);
  for (int i = 0; i < kTurns / kEach; ++i) {
    const auto found = there.find(name_of(doomed[i]));
    ASSERT_NE(found, there.end()) << i;
    EXPECT_TRUE(same_file(found->second, doomed[i].get())) << i;
    ::close(doomed[i].get());
  }
}

// The keeper alone was killed, and its daemon has not gone yet.
TEST_F(HandOverTest, NobodyWorksOnTheStateOfADaemonThatLives) {
  note(files[0], 40);
  sync();
  const auto kept = without(manager.kept(), name_of(files[0]));
  {
    const auto lock = lock_runtime_dir(directory);
    ASSERT_TRUE(lock);
    EXPECT_EQ(taken(kept, {}), 4);
  }
  EXPECT_EQ(files[0].get(), 40);
  // It has gone, and had told of something since we were given what there was.
  const std::uint64_t told = state->header().told_ns;
  state->header().told_ns = boot_ns() + 60'000'000'000;
  EXPECT_EQ(taken(kept, {}), 4);
  EXPECT_EQ(files[0].get(), 40);
  state->header().told_ns = told;
  EXPECT_EQ(taken(kept, {}), 0);
  EXPECT_EQ(files[0].get(), -1);
}

TEST_F(HandOverTest, WithoutItsPoolNobodyIsServed) {
  note(files[0], 40);
  note(files[1], 41);
  ClientRecord& record = make_client(50, true);
  ClientRecord& child = make_client(60, false);
  child.forked = 1;
  sync();
  EXPECT_EQ(
      taken(without(manager.kept(), name_of(files[1])), {40, 50, 51, 52, 53, 54, 55, 56, 60, 61}),
      0);
  EXPECT_EQ(record.life, Life::ending);
  EXPECT_EQ(child.life, Life::ending);
  EXPECT_NE(state->header().forks_lost_ns, 0U);
  EXPECT_EQ(files[0].get(), -1);
}

TEST_F(HandOverTest, LostDoomedChildrenAreKnownToBe) {
  note(state->header().doomed[7], 40);
  sync();
  EXPECT_EQ(taken(without(manager.kept(), name_of(state->header().doomed[7])), {}), 0);
  EXPECT_EQ(state->header().doomed[7].get(), -1);
  EXPECT_NE(state->header().forks_lost_ns, 0U);
}

TEST_F(HandOverTest, WhatIsNoneOfOursIsNotTaken) {
  note(files[0], 40);
  sync();
  auto kept = manager.kept();
  EXPECT_EQ(taken(without(kept, "state"), {}), 1);
  kept.back().first = "connection";
  EXPECT_EQ(taken(kept, {}), 1);
}

TEST_F(HandOverTest, AStateOfAnotherVersionIsLeftAlone) {
  note(files[0], 40);
  sync();
  ++state->header().version;
  EXPECT_EQ(taken(without(manager.kept(), name_of(files[0])), {}), 4);
  EXPECT_EQ(files[0].get(), 40);
}

TEST_F(HandOverTest, WhatDoesNotFitIsNotStored) {
  for (int i = 0; i < 4; ++i) note(files[i], 40 + i);
  ::setenv("FDSTORE", "4", 1);
  EXPECT_FALSE(can_store(*state));
  store = DescriptorStore::make(*state);
  EXPECT_FALSE(store->complete());
  sync();  // as much as there is room for
  EXPECT_EQ(names().size(), 4U);
  files[3].note(-1);
  sync();
  EXPECT_EQ(names().size(), 4U);
  ::setenv("FDSTORE", "5", 1);
  EXPECT_TRUE(can_store(*state));
  ::unsetenv("FDSTORE");
}

// One that listens, and closes what it is given.
TEST_F(HandOverTest, WithoutAStoreNothingIsStored) {
  ::unsetenv("FOLDSWAP_FDSTORE");
  EXPECT_FALSE(can_store(*state));
  EXPECT_EQ(DescriptorStore::make(*state), nullptr);
  EXPECT_EQ(names(), std::set<std::string>{"state"});  // of the store that there was before
}

TEST(HandOver, WithoutAManagerNothingIsStored) {
  ::unsetenv("NOTIFY_SOCKET");
  const auto state = State::create(real_os()).value();
  EXPECT_FALSE(can_store(*state));
  EXPECT_EQ(DescriptorStore::make(*state), nullptr);
  EXPECT_EQ(take_from_store()->state_fd, -1);
}

}  // namespace
}  // namespace foldswap
