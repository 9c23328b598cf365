#include "daemon/client/registry.h"

#include <sys/eventfd.h>
#include <algorithm>
#include <charconv>
#include <cstring>
#include <span>
#include <utility>

#include "base/mutation.h"
#include "daemon/host/log.h"

namespace foldswap {

Registry::Registry(Os& os, State& state) : os_(os), state_(state) {
  for (const NotedFd& note : state_.header().doomed) {
    if (note.get() >= 0) doomed_.emplace_back(note.get());
  }
  for (uffd_msg& message : state_.header().doomed_messages) {
    const int child = static_cast<int>(message.arg.fork.ufd);
    if (message.event == UFFD_EVENT_FORK &&
        std::ranges::find(doomed_, child, &UniqueFd::get) == doomed_.end())
      doom(ForkedUffd(message));
    message.event = 0;
  }
  // Faults that the one before us had read, and not answered, are raised again.
  constexpr std::uint64_t kStart = 1 << 20, kEnd = kAddressEnd - kPage;
  for (const UniqueFd& uffd : doomed_) (void)os_.uffd_wake(uffd.get(), kStart, kEnd - kStart);
}

void Registry::add(std::shared_ptr<Client> client) {
  client->record.life = Life::serving;
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
  log::debug("{}: gone", last->label());
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

std::shared_ptr<Client> Registry::forked_child(std::uint64_t parent_id, std::uint32_t fork_seq,
                                               const std::vector<std::uint64_t>& not_these) const {
  const RankedLock lock(mutex_);
  const auto it = std::ranges::find_if(clients_, [&](const auto& c) {
    return c->record.parent_id == parent_id && c->record.fork_seq == fork_seq && !c->gone() &&
           std::ranges::find(not_these, c->id) == not_these.end();
  });
  return it == clients_.end() ? nullptr : *it;
}

ClientRecord* Registry::claim_record() {
  const RankedLock lock(mutex_);
  return state_.claim_record();
}

std::shared_ptr<Client> Registry::make_client(ClientParts parts) {
  auto client = std::make_unique<Client>(std::move(parts), os_);
  return {client.release(), [this](Client* gone) {
            ClientRecord* record = &gone->record;
            record->life = Life::ending;  // before its descriptors' numbers are anybody's again
            std::unique_ptr<Client>(gone).reset();
            state_.wipe_record(record);
            const RankedLock lock(mutex_);
            state_.free_record(record);
          }};
}

std::shared_ptr<Client> Registry::adopt_child(Client& parent, ForkedUffd uffd,
                                              std::uint32_t fork_seq) {
  auto map = PageMap::create(os_);
  // One user's children cannot take the places of everybody's clients.
  const bool too_many = count_of_user(parent.uid) >= kMostOfOneUser;
  ClientRecord* record = map && !too_many ? claim_record() : nullptr;
  if (record == nullptr) {
    bool say = false;
    {
      std::uint64_t unsaid = 0;
      const RankedLock lock(mutex_);
      say = doom_limit_.allow(os_.now_us(), unsaid);
    }
    if (say) {
      log::error("{}: no room for its child, which will get SIGBUS: {}", parent.label(),
                 !map       ? map.error().text()
                 : too_many ? "this user has too many clients and children of clients"
                            : "the client table is full");
    }
    doom(std::move(uffd));
    return nullptr;
  }
  record->parent_id = parent.id;
  record->fork_seq = fork_seq;
  record->forked = 1;
  record->uid = parent.uid;
  std::memcpy(record->name, parent.record.name, sizeof(record->name));
  std::memcpy(record->group, parent.record.group, sizeof(record->group));
  record->resident_max_bytes = parent.record.resident_max_bytes.load();
  record->group_max_bytes = parent.record.group_max_bytes.load();
  ClientParts parts;
  parts.record = record;
  parts.map = std::move(*map);
  parts.uffd_stamp = uffd.stamp;
  const int number = uffd.fd.get();
  parts.uffd = std::move(uffd.fd);
  if (mutated(Mutation::h06_keep_child)) parts.uffd = UniqueFd(::eventfd(0, EFD_CLOEXEC));
  auto child = make_client(std::move(parts));
  child->may_share = true;
  if (descriptors_ != nullptr) {
    descriptors_->push(*record);
    descriptors_->settled(number, uffd.stamp);
  }
  return child;
}

void Registry::fork_read(uffd_msg& message) {
  if (descriptors_ != nullptr) descriptors_->fork_read(message);
}

void Registry::doom(ForkedUffd forked) {
  const int number = forked.fd.get();
  note_doomed(std::move(forked.fd), forked.stamp);
  if (descriptors_ != nullptr) descriptors_->settled(number, forked.stamp);
}

void Registry::note_doomed(UniqueFd uffd, std::uint64_t stamp) {
  const RankedLock lock(mutex_);
  const auto free = std::ranges::find_if(state_.header().doomed,
                                         [](const NotedFd& note) { return note.get() < 0; });
  if (free != std::ranges::end(state_.header().doomed)) {
    free->note(uffd.get(), stamp);
  } else {
    ++state_.header().unnoted;
  }
  doomed_.push_back(std::move(uffd));
}

std::size_t Registry::doomed_count() const {
  const RankedLock lock(mutex_);
  return doomed_.size();
}

void Registry::reap_doomed() {
  std::vector<UniqueFd> doomed;
  {
    const RankedLock lock(mutex_);
    doomed.swap(doomed_);
  }
  std::erase_if(doomed, [&](const UniqueFd& uffd) {
    if (os_.uffd_probe(uffd.get(), kPage) == Probe::gone) {
      for (NotedFd& note : state_.header().doomed) {
        if (note.get() == uffd.get()) note.note(-1);
      }
      return true;
    }
    // A FORK's descriptor is nowhere else, and the daemon may die before it is noted.
    const std::span<uffd_msg> messages(state_.header().doomed_messages);
    std::ranges::fill(messages, uffd_msg{});
    const int count = os_.uffd_read(uffd.get(), messages);
    for (int i = 0; i < count; ++i) {
      uffd_msg& message = messages[static_cast<std::size_t>(i)];
      if (message.event == UFFD_EVENT_FORK) {
        message.arg.reserved.reserved3 = 0;
        fork_read(message);
        doom(ForkedUffd(message));
        message.event = 0;
      }
      if (message.event != UFFD_EVENT_PAGEFAULT) continue;
      const std::uint64_t page = page_floor(message.arg.pagefault.address);
      if (os_.uffd_poison(uffd.get(), page) != 0)
        (void)os_.uffd_wake(uffd.get(), page, kPage);  // raised again in a moment
    }
    return false;
  });
  const RankedLock lock(mutex_);
  for (auto& uffd : doomed) doomed_.push_back(std::move(uffd));
}

void Registry::child_ready(std::shared_ptr<Client> child) {
  log::debug("client {}: forked from client {}, {} pages out", child->id, child->record.parent_id,
             child->map->out_total());
  add(std::move(child));
}

}  // namespace foldswap
