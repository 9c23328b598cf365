#include "daemon/hand_over.h"

#include <fcntl.h>
#include <linux/kcmp.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <cstdlib>
#include <string>
#include <vector>

#include "daemon/notify.h"
#include "daemon/take_over.h"

namespace foldswap {
namespace {

constexpr std::string_view kStatePrefix = "state-";
constexpr int kBarrierMs = 60'000;
constexpr int kFirstGiven = 3;  // SD_LISTEN_FDS_START

std::optional<int> parse_number(std::string_view text) {
  int number = -1;
  const auto [end, code] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (code != std::errc{} || end != text.data() + text.size() || number < 0) return std::nullopt;
  return number;
}

std::optional<int> number_in_environment(const char* name) {
  const char* const text = std::getenv(name);
  return text != nullptr ? parse_number(text) : std::nullopt;
}

// FDPOLL=0: the manager would close what hangs up, and a lifeline may.
bool store(int socket, std::string_view name, int fd) {
  return notify(socket, "FDSTORE=1\nFDPOLL=0\nFDNAME=" + std::string(name), fd);
}

bool remove(int socket, std::string_view name) {
  return notify(socket, "FDSTOREREMOVE=1\nFDNAME=" + std::string(name));
}

// Every one but the state file's, in the order of their numbers.
std::vector<int> to_store(const State& state) {
  std::vector<int> numbers;
  for (const int fd : noted_fds(state)) {
    if (fd != state.fd() && ::fcntl(fd, F_GETFD) >= 0) numbers.push_back(fd);
  }
  return numbers;
}

// Without kcmp(2) the manager takes all userfaultfds for one, and keeps only that.
bool files_can_be_told_apart(int fd) {
  const pid_t pid = ::getpid();
  return ::syscall(SYS_kcmp, pid, pid, KCMP_FILE, fd, fd) == 0;
}

struct Given {
  StoredName name;
  int fd = -1;
};

// LISTEN_FDNAMES, and out of the way of where they belong.
Result<std::vector<Given>> given_descriptors(int count) {
  const char* const text = std::getenv("LISTEN_FDNAMES");
  std::string_view names = text != nullptr ? text : "";
  std::vector<Given> given;
  int top = std::max(kFirstNoted, kFirstGiven + count);
  for (int fd = kFirstGiven; fd < kFirstGiven + count; ++fd) {
    const std::string_view name = names.substr(0, names.find(':'));
    names.remove_prefix(std::min(names.size(), name.size() + 1));
    const auto parsed = parse_stored_name(name);
    if (!parsed) return fail("a descriptor named '" + std::string(name) + "' was given to us");
    if (!parsed->state) top = std::max(top, parsed->number + 1);
    given.push_back({*parsed, fd});
  }
  for (Given& one : given) {
    const int high = ::fcntl(one.fd, F_DUPFD_CLOEXEC, top);
    if (high < 0) return fail_errno("no room for the descriptors that were kept for us");
    ::close(one.fd);
    one.fd = high;
  }
  return given;
}

}  // namespace

std::optional<StoredName> parse_stored_name(std::string_view name) {
  StoredName parsed;
  parsed.state = name.starts_with(kStatePrefix);
  if (parsed.state) name.remove_prefix(kStatePrefix.size());
  const auto number = parse_number(name);
  if (!number || (!parsed.state && *number < kFirstNoted)) return std::nullopt;
  parsed.number = *number;
  return parsed;
}

Status can_store(const State& state) {
  if (!manager_listens()) return fail("there is no service manager");
  if (state.header().unnoted != 0)
    return fail("there are forked children that nobody can say which descriptors they need");
  const std::size_t count = to_store(state).size() + 1;
  auto most = number_in_environment("FDSTORE");
  if (!most) most = number_in_environment("FOLDSWAP_FDSTORE");
  if (!most) return fail("the service manager has not told of a descriptor store");
  const auto room = static_cast<std::size_t>(*most);
  if (count > room) {
    return fail(std::to_string(count) +
                " descriptors do not fit into the service manager's store of " +
                std::to_string(room));
  }
  if (!files_can_be_told_apart(state.fd())) return fail_errno("this kernel has no kcmp(2)");
  return {};
}

Status store_descriptors(State& state) {
  if (auto ok = can_store(state); !ok) return ok;
  empty_store(state);  // an earlier attempt's
  const UniqueFd manager = manager_socket();
  StateHeader& header = state.header();
  const std::vector<int> numbers = to_store(state);
  header.stored_count = static_cast<std::uint32_t>(numbers.size());
  header.stored_end = numbers.empty() ? 1U : static_cast<std::uint32_t>(numbers.back()) + 1;
  for (const int fd : numbers) {
    if (!store(manager.get(), std::to_string(fd), fd))
      return fail_errno("a descriptor cannot be stored");
  }
  header.stored = 1;  // last, and before the state file is there
  const std::string name = std::string(kStatePrefix) + std::to_string(numbers.size());
  if (!store(manager.get(), name, state.fd())) return fail_errno("the state file cannot be stored");
  if (!notify_barrier(manager.get(), kBarrierMs))
    return fail("the service manager does not answer");
  return {};
}

void stop_trusting_store(State& state) {
  state.header().stored = 0;
}

void empty_store(State& state) {
  StateHeader& header = state.header();
  header.stored = 0;
  if (header.stored_end == 0) return;
  const UniqueFd manager = manager_socket();
  // A number more than was stored does no harm.
  for (std::uint32_t fd = kFirstNoted; fd < header.stored_end; ++fd) {
    if (!remove(manager.get(), std::to_string(fd))) return;
  }
  if (remove(manager.get(), std::string(kStatePrefix) + std::to_string(header.stored_count)))
    header.stored_end = 0;
}

Result<int> take_from_store() {
  const int count = number_in_environment("LISTEN_FDS").value_or(0);
  const bool ours = number_in_environment("LISTEN_PID") == ::getpid();
  std::vector<Given> given;
  if (ours && count > 0) {
    auto found = given_descriptors(count);
    if (!found) return std::unexpected(found.error());
    given = std::move(*found);
  }
  for (const char* name : {"LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"}) ::unsetenv(name);
  if (given.empty()) return -1;
  const auto state = std::ranges::find_if(given, [](const Given& one) { return one.name.state; });
  if (state == given.end() || static_cast<std::size_t>(state->name.number) != given.size() - 1)
    return fail("only " + std::to_string(given.size()) + " descriptors were kept for us");
  for (const Given& one : given) {
    const int target = one.name.number;
    const bool put = one.name.state || ::dup3(one.fd, target, O_CLOEXEC) == target;
    if (!put) return fail_errno("a descriptor cannot be put under its number");
  }
  const int state_fd = ::fcntl(state->fd, F_DUPFD_CLOEXEC, kFirstGiven);
  if (state_fd < 0) return fail_errno("no descriptor for the state file");
  for (const Given& one : given) ::close(one.fd);
  return state_fd;
}

}  // namespace foldswap
