// Handing over through a service manager's store. The manager is a thread here; what it is told is
// looked at, and a child process gets back what it has kept.
#include "daemon/hand_over.h"

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
#include <filesystem>
#include <map>
#include <string>
#include <thread>
#include <vector>

#include "base/fd_message.h"
#include "daemon/notify.h"

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
  [[nodiscard]] std::string last() {
    (void)kept();
    return last_;
  }

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
      last_ = message;
      const std::size_t at = message.find("FDNAME=");
      const std::string name = at == std::string::npos ? "" : message.substr(at + 7);
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
  std::string last_;
  std::thread thread_;
};

// Eventfds that stand for what a daemon has, under numbers that are far apart.
std::map<int, std::uint64_t> note_some(State& state) {
  std::map<int, std::uint64_t> values;
  NotedFd* const files = state.header().files;
  std::uint64_t value = 100;
  for (const int number : {300, 17, 40, 16}) {
    const UniqueFd fd(::eventfd(static_cast<unsigned>(value), EFD_CLOEXEC | EFD_NONBLOCK));
    EXPECT_EQ(::dup3(fd.get(), number, O_CLOEXEC), number);
    files[values.size()].note(number);
    values[number] = value++;
  }
  return values;
}

void close_all(const std::map<int, std::uint64_t>& values) {
  for (const auto& [number, value] : values) ::close(number);
}

// What take_from_store() makes of these, in a process of its own. 0: as it should be.
int taken_in_child(const std::vector<std::pair<std::string, int>>& given,
                   const std::map<int, std::uint64_t>& values, int state_fd) {
  const pid_t pid = ::fork();
  if (pid == 0) {
    std::string names;
    std::vector<int> high;
    for (const auto& [name, fd] : given) {
      names += (names.empty() ? "" : ":") + name;
      high.push_back(::fcntl(fd, F_DUPFD_CLOEXEC, 700));
    }
    const int state_copy = ::fcntl(state_fd, F_DUPFD_CLOEXEC, 900);
    for (int fd = 3; fd < 700; ++fd) ::close(fd);
    for (std::size_t i = 0; i < high.size(); ++i) ::dup2(high[i], static_cast<int>(i) + 3);
    ::setenv("LISTEN_PID", std::to_string(::getpid()).c_str(), 1);
    ::setenv("LISTEN_FDS", std::to_string(given.size()).c_str(), 1);
    ::setenv("LISTEN_FDNAMES", names.c_str(), 1);
    const auto taken = take_from_store();
    if (!taken) ::_exit(1);
    if (*taken < 3 || *taken >= kFirstNoted || !same_file(*taken, state_copy)) ::_exit(2);
    for (const auto& [number, value] : values) {
      std::uint64_t read = 0;
      if (::read(number, &read, sizeof(read)) != sizeof(read) || read != value) ::_exit(3);
      if (::fcntl(number, F_GETFD) != FD_CLOEXEC) ::_exit(4);
    }
    for (int fd = 3; fd < 700; ++fd) {
      if (::fcntl(fd, F_GETFD) >= 0 && fd != *taken && !values.contains(fd)) ::_exit(5);
    }
    ::_exit(std::getenv("LISTEN_FDS") == nullptr ? 0 : 6);
  }
  int status = 0;
  ::waitpid(pid, &status, 0);
  return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

TEST(StoredName, IsANumberOrTheStates) {
  EXPECT_EQ(parse_stored_name("16")->number, 16);
  EXPECT_FALSE(parse_stored_name("16")->state);
  EXPECT_EQ(parse_stored_name("state-0")->number, 0);
  EXPECT_TRUE(parse_stored_name("state-12")->state);
  for (const char* name : {"", "15", "-1", "16x", "state-", "state--1", "stored", "99999999999"})
    EXPECT_FALSE(parse_stored_name(name)) << name;
}

TEST(HandOver, EverythingComesBackUnderItsNumber) {
  Manager manager;
  const auto state = State::create(real_os()).value();
  const auto values = note_some(*state);
  ASSERT_TRUE(store_descriptors(*state));
  EXPECT_EQ(state->header().stored, 1U);
  auto kept = manager.kept();
  ASSERT_EQ(kept.size(), 5U);
  EXPECT_EQ(kept.back().first, "state-4");  // last: it says that the others are there
  EXPECT_TRUE(same_file(kept.back().second, state->fd()));
  EXPECT_EQ(taken_in_child(kept, values, state->fd()), 0);
  // The manager's order is its own. The eventfds were read: they are filled again.
  const auto refill = [&] {
    for (const auto& [number, value] : values) ASSERT_EQ(::write(number, &value, sizeof(value)), 8);
  };
  refill();
  std::ranges::reverse(kept);
  EXPECT_EQ(taken_in_child(kept, values, state->fd()), 0);
  refill();
  std::swap(kept[0], kept[2]);
  EXPECT_EQ(taken_in_child(kept, values, state->fd()), 0);
  close_all(values);
}

TEST(HandOver, WhatIsNotAllThereIsNotTaken) {
  Manager manager;
  const auto state = State::create(real_os()).value();
  const auto values = note_some(*state);
  ASSERT_TRUE(store_descriptors(*state));
  const auto kept = manager.kept();
  for (std::size_t i = 0; i < kept.size(); ++i) {
    auto fewer = kept;
    fewer.erase(fewer.begin() + static_cast<std::ptrdiff_t>(i));
    EXPECT_EQ(taken_in_child(fewer, values, state->fd()), 1) << kept[i].first;
  }
  auto foreign = kept;
  foreign[0].first = "connection";
  EXPECT_EQ(taken_in_child(foreign, values, state->fd()), 1);
  close_all(values);
}

TEST(HandOver, AnEarlierAttemptIsOutOfTheWay) {
  Manager manager;
  const auto state = State::create(real_os()).value();
  auto values = note_some(*state);
  ASSERT_TRUE(store_descriptors(*state));
  // Another file under the same number, and one that is no more.
  const UniqueFd other(::eventfd(7, EFD_CLOEXEC | EFD_NONBLOCK));
  ASSERT_EQ(::dup3(other.get(), 40, O_CLOEXEC), 40);
  values[40] = 7;
  state->header().files[0].note(-1);  // 300
  ::close(300);
  values.erase(300);
  stop_trusting_store(*state);
  EXPECT_EQ(state->header().stored, 0U);
  ASSERT_TRUE(store_descriptors(*state));
  const auto kept = manager.kept();
  ASSERT_EQ(kept.size(), 4U);
  EXPECT_EQ(taken_in_child(kept, values, state->fd()), 0);
  empty_store(*state);
  EXPECT_TRUE(manager.kept().empty());
  EXPECT_EQ(manager.last(), "FDSTOREREMOVE=1\nFDNAME=state-3");
  close_all(values);
}

TEST(HandOver, WithoutAManagerNothingIsStored) {
  ::unsetenv("NOTIFY_SOCKET");
  const auto state = State::create(real_os()).value();
  EXPECT_FALSE(can_store(*state));
  EXPECT_FALSE(store_descriptors(*state));
  EXPECT_EQ(state->header().stored, 0U);
  EXPECT_EQ(take_from_store().value(), -1);
}

// One that listens, and closes what it is given.
TEST(HandOver, WithoutAStoreNothingIsStored) {
  Manager manager;
  const auto state = State::create(real_os()).value();
  const auto values = note_some(*state);
  ::unsetenv("FOLDSWAP_FDSTORE");
  EXPECT_FALSE(can_store(*state));
  EXPECT_FALSE(store_descriptors(*state));
  EXPECT_TRUE(manager.kept().empty());
  close_all(values);
}

TEST(HandOver, WhatDoesNotFitIsNotStored) {
  Manager manager;
  const auto state = State::create(real_os()).value();
  const auto values = note_some(*state);
  ::setenv("FDSTORE", "4", 1);
  EXPECT_FALSE(can_store(*state));
  EXPECT_FALSE(store_descriptors(*state));
  EXPECT_TRUE(manager.kept().empty());
  ::setenv("FDSTORE", "5", 1);
  EXPECT_TRUE(can_store(*state));
  ::unsetenv("FDSTORE");
  close_all(values);
}

}  // namespace
}  // namespace foldswap
