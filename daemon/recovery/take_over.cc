#include "daemon/recovery/take_over.h"

#include <dirent.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <cstring>
#include <utility>

#include "daemon/disk/disk_format.h"
#include "daemon/host/log.h"
#include "daemon/state/event_journal.h"
#include "daemon/state/events.h"
#include "daemon/state/noted_fds.h"
#include "pool/take_over.h"

namespace foldswap {
namespace {

// Where WAKE may begin (vm.mmap_min_addr is never above it), and end.
constexpr std::uint64_t kWakeStart = 1 << 20, kWakeEnd = kAddressEnd - kPage;

// The client table is ours, and yet what it says decides whether programs live: a record that
// cannot be is not believed.
bool sound(const ClientRecord& record) {
  return record.inbox_count <= kInboxMessages && record.quarantine_now <= 1 &&
         record.quarantine[record.quarantine_now].count <= kQuarantines &&
         record.plan.count <= kInboxMessages && record.plan.messages <= kInboxMessages &&
         record.fds.uffd.get() >= 0 && record.fds.map.get() >= 0 && record.incomplete == 0 &&
         std::ranges::all_of(record.batch,
                             [](const BatchRecord& b) { return b.pages <= wire::kHalfPages; });
}

Result<AgentParts> agent_of(const ClientFds& fds) {
  AgentParts agent;
  agent.pidfd.reset(fds.pidfd.get());
  agent.pagemap.reset(fds.pagemap.get());
  agent.lifeline.reset(fds.lifeline.get());
  agent.mailbox_fd.reset(fds.mailbox.get());
  agent.transfer_fd.reset(fds.transfer.get());
  if (!agent.mailbox_fd.valid()) return agent;
  if (auto mapped = agent.map(agent.mailbox_fd.get(), agent.transfer_fd.get()); !mapped)
    return std::unexpected(mapped.error());
  return agent;
}

}  // namespace

void close_others(const std::set<int>& keep, int first) {
  DIR* const directory = ::opendir("/proc/self/fd");
  if (directory == nullptr) return;
  std::vector<int> others;
  while (const dirent* entry = ::readdir(directory)) {
    int fd = -1;
    const char* const end = entry->d_name + std::strlen(entry->d_name);
    if (std::from_chars(entry->d_name, end, fd).ptr != end) continue;
    if (fd >= first && fd != ::dirfd(directory) && !keep.contains(fd)) others.push_back(fd);
  }
  ::closedir(directory);
  for (const int fd : others) ::close(fd);
}

void note_files(State& state, const Pool& pool) {
  NotedFd* const files = state.header().files;
  files[kPoolFrames].note(pool.layout().frames_fd());
  files[kPoolRecords].note(pool.layout().records_fd());
  files[kPoolMeta].note(pool.layout().meta_fd());  // last: from here there is a pool
}

Status TakeOver::all(const MakeClient& make, const PoolConfig& config, Left& left) {
  left.clients = clients(make);
  NotedFd* const noted = state_.header().files;
  if (noted[kBackingFile].get() >= 0) {
    auto file = BackingFile::take_over(os_, state_);
    if (!file) return std::unexpected(file.error());
    left.file = std::move(*file);
  }
  // The last thing that can fail: whoever has the pool's files closes them.
  PoolFiles files{UniqueFd(noted[kPoolFrames].get()), UniqueFd(noted[kPoolRecords].get()),
                  UniqueFd(noted[kPoolMeta].get())};
  auto pool = PoolTakeOver::begin(os_, files, config);
  if (!pool) {
    for (UniqueFd* const fd : {&files.frames, &files.records, &files.meta}) (void)fd->release();
    return std::unexpected(pool.error());
  }
  references(left.clients, [&](ObjectId id) { return pool->reference(id); });
  left.pool = pool->finish([&](ObjectId, SegmentPlace place, std::uint32_t length) {
    return left.file != nullptr && left.file->adopt(place, disk_bytes(length));
  });
  if (left.file != nullptr) left.file->settle();
  return {};
}

std::vector<std::shared_ptr<Client>> TakeOver::clients(const MakeClient& make) {
  std::vector<std::shared_ptr<Client>> clients;
  for (ClientRecord* const record : state_.records()) {
    if (!is_nobodys(*record)) {
      clients.push_back(revive(*record, make));
      continue;
    }
    state_.wipe_record(record);
    state_.free_record(record);
  }
  for (const auto& client : clients) resume_forks(*client, clients);
  return clients;
}

// Whatever is wrong with it, its userfaultfd stays open until it is dead: it must not read zeros.
std::shared_ptr<Client> TakeOver::revive(ClientRecord& record, const MakeClient& make) {
  const char* wrong = nullptr;
  if (!sound(record)) {
    wrong = record.incomplete != 0 ? "a descriptor of it was not kept" : "its record is damaged";
    record.quarantine_now = 0;
    record.quarantine[0].count = 0;
  }
  record.inbox_count = std::min(record.inbox_count, kInboxMessages);
  ClientParts parts;
  parts.record = &record;
  auto map = PageMap::take_over(os_, UniqueFd(record.fds.map.get()));
  if (!map && wrong == nullptr) wrong = "its page map is damaged";
  if (!map) {
    record.fds.map.note(-1);  // another file may get the number
    map = PageMap::create(os_);
  }
  if (wrong == nullptr) {
    finish_closing_gaps(record);
    if (!finish_moves(record, **map)) wrong = "its page map is full, a moved page cannot be noted";
  }
  parts.map = std::move(map.value());
  parts.uffd.reset(record.fds.uffd.get());
  const auto state = static_cast<ClientState>(record.state.load());
  const bool doomed = record.doomed != 0;
  if (auto agent = agent_of(record.fds)) {
    parts.agent = std::move(*agent);
  } else {
    wrong = "its mailbox cannot be mapped";
  }
  // Before the map that was made for it is noted as its own: an empty one looks whole.
  if (wrong != nullptr) record.doomed = 1;
  const bool incomplete = record.incomplete.exchange(0) != 0;
  auto client = make(std::move(parts));
  client->may_share = true;
  client->transfer_in_use = client->mailbox != nullptr;
  client->set_state(state);
  if (!register_again(*client)) wrong = "what was being unregistered cannot be registered again";
  if (incomplete && os_.uffd_probe(client->uffd.get(), kPage) != Probe::gone)
    client->learn_pid(record.pid);
  if (wrong != nullptr) client->kill(wrong);
  if (doomed) client->kill("");
  {
    const RankedLock lock(client->mutex);
    client->quarantine.forget_witnesses();
  }
  take_events(*client);
  take_batches(*client);
  return client;
}

// HAZARDS 2. Nobody had looked whether a change was under way during it, whose pages came to lie
// there; its event is unread. What should be registered no more is asked for again.
bool TakeOver::register_again(Client& client) {
  const NotedRange& range = client.record.unregistering;
  const int fd = client.uffd.get();
  int error = range.bytes() == 0 ? 0 : os_.uffd_register(fd, range.start(), range.bytes());
  // Something else may be mapped there by now: then page by page. (A program may name any range.)
  constexpr std::uint64_t kMostBytes = 4ULL << 30;
  if (error == -EINVAL && range.bytes() > kMostBytes) return false;
  for (std::uint64_t done = 0; error == -EINVAL && done < range.bytes(); done += kPage) {
    const int one = os_.uffd_register(fd, range.start() + done, kPage);
    if (one != 0 && one != -EINVAL) return false;
  }
  if (error != 0 && error != -EINVAL && os_.uffd_probe(fd, kPage) != Probe::gone) return false;
  if (client.mailbox != nullptr) store_word(client.mailbox->layout_daemon, 0);
  client.record.unregistering.clear();
  return true;
}

// HAZARDS 19. What has been read is kept; faults are raised again. Whoever the agent is in the
// middle of something with, from here its epoch is old.
void TakeOver::take_events(Client& client) {
  ClientRecord& record = client.record;
  const std::span<uffd_msg> fresh = uncounted_messages(record);
  std::uint32_t last = 0;
  for (std::uint32_t i = 0; i < fresh.size(); ++i) {
    if (!is_address_event(fresh[i])) {
      fresh[i] = uffd_msg{};
      continue;
    }
    last = i + 1;
    if (fresh[i].event == UFFD_EVENT_FORK && fresh[i].arg.reserved.reserved2 == 0)
      fresh[i].arg.reserved.reserved2 = record.reading_fork_seq;
  }
  record.inbox_count += last;
  client.unapplied = record.inbox_count != 0;
  if (client.mailbox == nullptr) return;
  add_word(client.mailbox->epoch);
  client.mailbox->incarnation = state_.header().incarnation;
  free_layout_lock(client, state_.header().incarnation);
}

// HAZARDS 14: the word names side and incarnation; the daemon that it names is dead.
void TakeOver::free_layout_lock(Client& client, std::uint32_t incarnation) {
  std::uint32_t word = load_word(client.mailbox->layout);
  if (word != wire::kLayoutFree && (word & 3) == wire::kLayoutDaemon && word >> 2 != incarnation)
    store_word(client.mailbox->layout, wire::kLayoutFree);
}

// The child of a FORK in the inbox may have its record already, and some of the pages.
void TakeOver::resume_forks(Client& parent, const std::vector<std::shared_ptr<Client>>& clients) {
  for (uffd_msg& message : std::span(parent.record.inbox, parent.record.inbox_count)) {
    if (message.event != UFFD_EVENT_FORK) continue;
    const auto child = std::ranges::find_if(clients, [&](const auto& c) {
      return c->record.parent_id == parent.id && c->record.life == Life::forming &&
             c->mailbox == nullptr &&
             (message.arg.fork.ufd == kForkTaken ||
              static_cast<int>(message.arg.fork.ufd) == c->uffd.get());
    });
    if (child != clients.end()) {
      message.arg.fork.ufd = kForkTaken;
      parent.child = *child;
      parent.child_since_us = os_.now_us();
    } else if (message.arg.fork.ufd == kForkTaken || doomed(message.arg.fork.ufd)) {
      clear_message(message);  // it is served, has ended, or cannot be served
    }
  }
}

bool TakeOver::doomed(std::uint32_t uffd) const {
  return std::ranges::any_of(state_.header().doomed, [&](const NotedFd& note) {
    return note.get() == static_cast<int>(uffd);
  });
}

// A forked child that no FORK in an inbox means any more has all that it gets, or was killed
// (AddressSpace::end_taking_over).
bool TakeOver::complete(const Client& client, const std::vector<std::shared_ptr<Client>>& clients) {
  if (client.record.life != Life::forming) return true;
  return client.mailbox == nullptr && std::ranges::none_of(clients, [&](const auto& parent) {
           return parent->child.get() == &client;
         });
}

std::vector<std::shared_ptr<Client>> TakeOver::complete(
    const std::vector<std::shared_ptr<Client>>& clients) {
  std::vector<std::shared_ptr<Client>> whole;
  for (const auto& client : clients) {
    if (complete(*client, clients)) whole.push_back(client);
  }
  for (const auto& client : whole) client->record.life = Life::serving;
  return whole;
}

// The one that died may have read a FORK past a stopped agent (HAZARDS 38), which then still has
// the lock, and in staging the only copy of what it had moved.
bool TakeOver::forked_past_agent(const Client& client) {
  return (load_word(client.mailbox->layout) & 3) == wire::kLayoutAgent &&
         std::ranges::any_of(
             std::span(client.record.inbox, client.record.inbox_count),
             [](const uffd_msg& message) { return message.event == UFFD_EVENT_FORK; });
}

// A command that the agent has not finished is finished as if nothing had happened. What it has
// moved is in the transfer area, until the next command of the same half.
void TakeOver::take_batches(Client& client) {
  for (std::uint32_t h = 0; h < wire::kHalves; ++h) {
    const BatchRecord& noted = client.record.batch[h];
    client.batch_generation = std::max(client.batch_generation, noted.batch);
    Batch& batch = client.batch[h];
    batch.generation = noted.batch;
    batch.pages = std::min<std::uint32_t>(noted.pages, wire::kHalfPages);
    if (noted.pages == 0) continue;
    if (client.mailbox == nullptr) {
      client.kill("pages were on their way out of it, and it has no agent");
      continue;
    }
    wire::Command& command = client.mailbox->commands[h];
    const auto idle = static_cast<std::uint32_t>(wire::CommandState::idle);
    if (load_word(command.state) == idle) {
      // Not posted yet, and then its results are all zeros; or its results had been read.
      store_word(command.aborted, wire::kAbortNone);
      store_word(command.state, static_cast<std::uint32_t>(wire::CommandState::done));
    }
    batch.posted_at_us = os_.now_us();
    client.fork_over_batch = forked_past_agent(client);
    batch.phase = Batch::Phase::posted;
    client.batches.fetch_add(1);
  }
}

void TakeOver::references(const std::vector<std::shared_ptr<Client>>& clients,
                          const std::function<bool(ObjectId)>& name) {
  for (const auto& client : clients) {
    for (std::uint64_t p = client->map->next_out(0, kAddressEnd); p < kAddressEnd;
         p = client->map->next_out(p + kPage, kAddressEnd)) {
      const Entry entry = client->map->load(p);
      if (!entry.has_record() || name(ObjectId{entry.object_id()})) continue;
      log::error("{}: page {:#x} has no object any more: it is poisoned", client->label(), p);
      if (client->map->replace(p, entry, Entry::bad())) bump(state_.counters().lost_pages);
    }
  }
}

void TakeOver::settle(const std::vector<std::shared_ptr<Client>>& clients, PageStore& store) {
  for (const auto& client : clients) {
    count(*client);
    look_at_pages(*client, store);
  }
}

void TakeOver::count(Client& client) {
  std::uint64_t objects = 0, same = 0;
  for (std::uint64_t p = client.map->next_out(0, kAddressEnd); p < kAddressEnd;
       p = client.map->next_out(p + kPage, kAddressEnd)) {
    const Entry entry = client.map->load(p);
    objects += entry.state() == PageState::object ? 1 : 0;
    same += entry.evicted() && entry.state() != PageState::object ? 1 : 0;
  }
  client.record.pool_pages = objects;
  client.record.same_filled_pages = same;
}

void TakeOver::look_at_pages(Client& client, PageStore& store) {
  if (client.pagemap_fd() < 0) return;  // then a COPY finds out
  for (std::uint64_t p = client.map->next_out(0, kAddressEnd); p < kAddressEnd;
       p = client.map->next_out(extent_floor(p) + wire::kExtentBytes, kAddressEnd))
    look_at_extent(client, store, extent_floor(p));
}

// The page won (DESIGN §10): it was copied back, and the entry had not been cleared. Only if no
// change of the address space is unread or unapplied, or what is there may be another page, and the
// one that the entry means may have moved on; then the entry stays, and a COPY finds the page
// there. A page that is OUT is nobody's any more to wait for: who waited raises his fault again.
void TakeOver::look_at_extent(Client& client, PageStore& store, std::uint64_t start) {
  constexpr std::uint64_t kThere = 3ULL << 62;
  // Asked before the look: an agent that is still at it may move what is there a moment later.
  std::array<bool, wire::kHalves> agent_is_done{};
  for (std::uint32_t h = 0; h < wire::kHalves && client.mailbox != nullptr; ++h) {
    agent_is_done[h] = load_word(client.mailbox->commands[h].state) ==
                       static_cast<std::uint32_t>(wire::CommandState::done);
  }
  std::array<std::uint64_t, wire::kExtentPages> words{};
  const int bytes = os_.read_at(client.pagemap_fd(), words.data(), sizeof(words),
                                start / kPage * sizeof(words[0]));
  // Asked after the look: whatever had changed by then is known, or PROBE tells of it.
  const bool settled =
      client.record.inbox_count == 0 && os_.uffd_probe(client.uffd.get(), kPage) != Probe::changing;
  const std::size_t known =
      bytes <= 0 || !settled ? 0 : static_cast<std::size_t>(bytes) / sizeof(words[0]);
  for (std::size_t i = 0; i < wire::kExtentPages; ++i) {
    const std::uint64_t page = start + i * kPage;
    const Entry entry = client.map->load(page);
    const bool there =
        i < known && (words[i] & kThere) != 0 && (words[i] & uapi::kPagemapGuard) == 0;
    if (entry.evicted() && there) (void)store.clear(client, page, entry);
    if (entry.state() != PageState::out) continue;
    if (!in_a_batch(client, page, entry)) {
      client.kill("a page was on its way out, and nobody knows where");
      continue;
    }
    (void)client.map->replace(
        page, entry, there && agent_is_done[entry.half()] ? Entry::none() : entry.without_wanted());
  }
}

bool TakeOver::in_a_batch(const Client& client, std::uint64_t page, Entry entry) {
  const BatchRecord& noted = client.record.batch[entry.half()];
  return client.mailbox != nullptr && entry.slot() < noted.pages &&
         noted.page[entry.slot()] == page &&
         entry.without_wanted() == Entry::out(entry.half(), entry.slot(), noted.batch);
}

void TakeOver::wake(const std::vector<std::shared_ptr<Client>>& clients) {
  for (const auto& client : clients) {
    (void)os_.uffd_wake(client->uffd.get(), kWakeStart, kWakeEnd - kWakeStart);
    if (client->mailbox == nullptr) continue;
    add_word(client->mailbox->to_agent);
    os_.futex_wake(&client->mailbox->to_agent);
  }
}

}  // namespace foldswap
