#include "daemon/registry.h"

#include <spdlog/spdlog.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <csignal>
#include <cstring>
#include <utility>

namespace foldswap {

void Registry::add(std::shared_ptr<Client> client) {
  {
    const RankedLock lock(mutex_);
    clients_.push_back(client);
  }
  placer_(std::move(client));
}

void Registry::remove(const Client& client) {
  std::shared_ptr<Client> last;  // freed after the mutex is let go
  {
    const RankedLock lock(mutex_);
    const auto it =
        std::ranges::find_if(clients_, [&](const auto& c) { return c.get() == &client; });
    if (it == clients_.end()) return;
    last = std::move(*it);
    clients_.erase(it);
  }
  spdlog::debug("{}: gone", last->label());
}

std::vector<std::shared_ptr<Client>> Registry::all() const {
  const RankedLock lock(mutex_);
  return clients_;
}

std::vector<std::shared_ptr<Client>> Registry::find(const std::string& pid_or_name) const {
  pid_t pid = 0;
  const char* end = pid_or_name.data() + pid_or_name.size();
  const auto [rest, ec] = std::from_chars(pid_or_name.data(), end, pid);
  const bool numeric = ec == std::errc{} && rest == end;
  std::vector<std::shared_ptr<Client>> found;
  for (auto& client : all()) {
    if (client->gone()) continue;
    if ((numeric && client->pid() == pid) || client->name() == pid_or_name) found.push_back(client);
  }
  return found;
}

std::shared_ptr<Client> Registry::by_id(std::uint64_t id) const {
  const RankedLock lock(mutex_);
  const auto it = std::ranges::find_if(clients_, [&](const auto& c) { return c->id == id; });
  return it == clients_.end() ? nullptr : *it;
}

std::size_t Registry::size() const {
  const RankedLock lock(mutex_);
  return clients_.size();
}

std::size_t Registry::count_of_user(std::uint32_t uid) const {
  const RankedLock lock(mutex_);
  return static_cast<std::size_t>(
      std::ranges::count_if(clients_, [&](const auto& c) { return c->uid == uid; }));
}

void Registry::child_hello(std::uint64_t parent_id, std::uint32_t fork_seq, std::uint32_t uid,
                           pid_t pid) {
  constexpr std::size_t kMostEarlyHellos = 256;
  std::shared_ptr<Client> child;
  {
    const RankedLock lock(mutex_);
    const auto it = std::ranges::find_if(clients_, [&](const auto& c) {
      return c->record.parent_id == parent_id && c->record.fork_seq == fork_seq && c->uid == uid &&
             c->pid() == 0;
    });
    if (it == clients_.end()) {
      early_hellos_.push_back({parent_id, fork_seq, uid, pid});
      if (early_hellos_.size() > kMostEarlyHellos) early_hellos_.pop_front();
      return;
    }
    child = *it;
  }
  child->learn_pid(pid);
}

ClientRecord* Registry::claim_record() {
  const RankedLock lock(mutex_);
  return state_.claim_record();
}

std::shared_ptr<Client> Registry::make_client(ClientParts parts) {
  auto client = std::make_unique<Client>(std::move(parts), os_);
  return {client.release(), [this](Client* gone) {
            ClientRecord* record = &gone->record;
            std::unique_ptr<Client>(gone).reset();
            state_.wipe_record(record);
            const RankedLock lock(mutex_);
            state_.free_record(record);
          }};
}

std::shared_ptr<Client> Registry::adopt_child(Client& parent, UniqueFd uffd,
                                              std::uint32_t fork_seq) {
  auto map = PageMap::create(os_);
  ClientRecord* record = map ? claim_record() : nullptr;
  if (record == nullptr) {
    spdlog::error("{}: no room for its child: {}", parent.label(),
                  map ? "the client table is full" : map.error().text());
    // Closing its userfaultfd would let it read zeros. Held, it waits, until reap_doomed() ends it.
    const RankedLock lock(mutex_);
    doomed_.push_back(std::move(uffd));
    return nullptr;
  }
  record->parent_id = parent.id;
  record->fork_seq = fork_seq;
  record->uid = parent.uid;
  std::memcpy(record->name, parent.record.name, sizeof(record->name));
  std::memcpy(record->group, parent.record.group, sizeof(record->group));
  record->resident_max_bytes = parent.record.resident_max_bytes.load();
  record->group_max_bytes = parent.record.group_max_bytes.load();
  ClientParts parts;
  parts.record = record;
  parts.map = std::move(*map);
  parts.uffd = std::move(uffd);
  return make_client(std::move(parts));
}

void Registry::reap_doomed() {
  std::vector<UniqueFd> doomed;
  {
    const RankedLock lock(mutex_);
    doomed.swap(doomed_);
  }
  std::erase_if(doomed, [&](const UniqueFd& uffd) {
    if (os_.uffd_probe(uffd.get(), kPage) == Probe::gone) return true;
    std::array<uffd_msg, 16> messages{};
    const int count = os_.uffd_read(uffd.get(), messages);
    for (int i = 0; i < count; ++i) {
      const auto& message = messages[static_cast<std::size_t>(i)];
      if (message.event != UFFD_EVENT_PAGEFAULT) continue;
      const pid_t pid = read_tgid(os_, static_cast<pid_t>(message.arg.pagefault.feat.ptid));
      const UniqueFd pidfd(pid > 0 ? static_cast<int>(::syscall(SYS_pidfd_open, pid, 0)) : -1);
      if (!pidfd.valid()) continue;
      spdlog::error("pid {}: killed: a forked child that could not be taken over", pid);
      (void)os_.pidfd_signal(pidfd.get(), SIGKILL);
      break;
    }
    return false;
  });
  const RankedLock lock(mutex_);
  for (auto& uffd : doomed) doomed_.push_back(std::move(uffd));
}

void Registry::child_ready(std::shared_ptr<Client> child) {
  spdlog::debug("client {}: forked from client {}, {} pages out", child->id,
                child->record.parent_id, child->map->out_total());
  pid_t pid = 0;
  {
    const RankedLock lock(mutex_);
    const auto it = std::ranges::find_if(early_hellos_, [&](const Hello& h) {
      return h.parent_id == child->record.parent_id && h.fork_seq == child->record.fork_seq &&
             h.uid == child->uid;
    });
    if (it != early_hellos_.end()) {
      pid = it->pid;
      early_hellos_.erase(it);
    }
  }
  child->learn_pid(pid);
  add(std::move(child));
}

}  // namespace foldswap
