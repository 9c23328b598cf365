#include "sim/machine.h"

#include <dirent.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <cstring>
#include <utility>

#include "daemon/disk/disk_format.h"
#include "daemon/host/log.h"
#include "daemon/host/proof.h"
#include "daemon/state/noted_fds.h"
#include "pool/take_over.h"

namespace foldswap::sim {
namespace {

constexpr std::uint64_t kIdleUs = 1'000'000;

std::set<int> open_fds() {
  std::set<int> fds;
  DIR* const directory = ::opendir("/proc/self/fd");
  if (directory == nullptr) return fds;
  while (const dirent* entry = ::readdir(directory)) {
    int fd = -1;
    const char* const end = entry->d_name + std::strlen(entry->d_name);
    if (std::from_chars(entry->d_name, end, fd).ptr == end && fd != ::dirfd(directory))
      fds.insert(fd);
  }
  ::closedir(directory);
  return fds;
}

}  // namespace

Settings::Settings(Random& random) {
  disk = random.once_in(2);
  keep_copies = random.once_in(2);
  constexpr std::uint64_t kPools[] = {512 * kKiB, kMiB, 4 * kMiB};
  pool_bytes = disk ? kPools[random.below(3)] : kPools[random.between(1, 2)] * 4;
  resident_bytes = random.once_in(4) ? wire::kNoLimit : random.between(80, 400) * kPage;
  constexpr std::uint32_t kAhead[] = {1, 8, 64};
  readahead = kAhead[random.below(3)];
  constexpr std::uint64_t kQuarantines[] = {1'000, 20'000, 500'000};
  quarantine_us = kQuarantines[random.below(3)];
  codec = static_cast<unsigned>(random.between(1, 2));
  cold_codec = random.once_in(2) ? 2 : 0;
  processes = static_cast<unsigned>(random.between(1, 3));
  threads = static_cast<unsigned>(random.between(1, 4));
  constexpr std::uint64_t kPace[] = {3'000, 15'000, 60'000};
  turn_ns = kPace[random.below(3)];
  constexpr std::uint64_t kPreempt[] = {2, 8, 64};
  preempt = kPreempt[random.below(3)];
  constexpr std::uint64_t kCrash[] = {0, 5'000, 1'000, 30'000};
  crash = kCrash[random.below(4)];
  refuse = random.once_in(3) ? 60 : 0;
  disk_errors = random.once_in(2) ? 20 : 0;
}

Machine::Machine(World& world)
    : world_(world),
      damage_(~world.seed),
      settings_(world.random),
      kernel_(world),
      processes_(world, kernel_),
      os_(world, kernel_, processes_, settings_),
      baseline_(open_fds()) {
  settings_.damage = settings_.disk && damage_.once_in(2) ? 25 : 0;
  pool_config_.limit_bytes = settings_.pool_bytes;
  pool_config_.shards = static_cast<std::uint32_t>(world.random.between(1, 4));
  serve_processes(&processes_);
  world.scheduler.on_switch([this](Owner owner) { processes_.on_switch(owner); });
  os_.on_death = [this] { die(); };
  processes_.doomed = [this](const Space& space) { return doomed(space); };
  state_fd_ = real_os().memory_file("foldswap-state", State::file_bytes()).value().release();
  for (unsigned i = 0; i < settings_.processes; ++i) processes_.make(settings_.threads);
  start_daemon();
}

std::string Machine::describe() const {
  return fmt::format(
      "{} processes, {} threads each; pool {} KiB in {} shards, disk {}, codec {}/{}, budget {} "
      "pages, "
      "read ahead {}, quarantine {} us; turn {} ns, preempt 1/{}, crash 1/{}, no memory 1/{}, "
      "disk errors 1/{}",
      settings_.processes, settings_.threads, settings_.pool_bytes / kKiB, pool_config_.shards,
      settings_.disk ? "yes" : "no", settings_.codec, settings_.cold_codec,
      settings_.resident_bytes == wire::kNoLimit ? 0 : settings_.resident_bytes / kPage,
      settings_.readahead, settings_.quarantine_us, settings_.turn_ns, settings_.preempt,
      settings_.crash, settings_.refuse, settings_.disk_errors);
}

// -- the daemon's life

void Machine::start_daemon() {
  daemon_ = new Daemon;  // never deleted: see machine.h
  const std::uint64_t at = world_.clock_ns + world_.random.below(2'000'000);
  world_.scheduler.spawn(kDaemon, "boot", [this, at] {
    world_.scheduler.wait([] { return false; }, at);
    boot(*daemon_);
  });
}

void Machine::die() {
  for (const auto& process : processes_.all) {
    if (!process->dead) process->happens_everywhere(Happens::death);
  }
  ++world_.counts.crashes;
  if (!daemon_->up) ++world_.counts.crashes_in_recovery;
  world_.trace("the daemon dies", daemon_->up ? 1 : 0);
  dead_ = true;
  world_.scheduler.drop(kDaemon);  // on a fiber of its own this does not come back
}

// The keeper starts the next one.
void Machine::bury() {
  dead_ = false;
  os_.die_in = 0;
  os_.die_at_event = false;
  os_.disk.abandon_rings();
  close_unnoted();
  start_daemon();
  if (!world_.calm && world_.random.once_in(4)) os_.die_in = world_.random.between(1, 80);
}

// As TakeOver's close_others, for a table that is the simulator's, too.
void Machine::close_unnoted() {
  std::set<int> keep = baseline_;
  keep.insert(state_fd_);
  if (state_ != nullptr) keep.merge(noted_fds(*state_));
  for (const int fd : open_fds()) {
    if (fd < kOwnFds && !keep.contains(fd)) ::close(fd);
  }
}

bool Machine::doomed(const Space& space) {
  if (state_ == nullptr) return false;
  const auto of = [&](int fd) { return fd >= 0 && kernel_.of_fd(fd, 'u') == &space; };
  return std::ranges::any_of(state_->header().doomed,
                             [&](const NotedFd& note) { return of(note.get()); }) ||
         std::ranges::any_of(state_->records(), [&](const ClientRecord* record) {
           return record->doomed != 0 && of(record->fds.uffd.get());
         });
}

void Machine::boot(Daemon& d) {
  Left left;
  Status done;
  {
    const bool begun = State::begun(os_, state_fd_);
    auto state = begun ? State::take_over(os_, UniqueFd(state_fd_))
                       : State::create(os_, UniqueFd(state_fd_));
    if (!state) return world_.fail("the state cannot be had: " + state.error().text());
    d.state = std::move(*state);
    state_ = d.state.get();
  }
  Tunables& t = d.tunables;
  t.incarnation = d.state->header().incarnation;
  t.readahead_max = settings_.readahead;
  t.quarantine_us = settings_.quarantine_us;
  t.codec = settings_.codec;
  t.cold_codec = settings_.cold_codec;
  t.cold_level = 3;
  t.writeback_max = 64 * kMiB;
  d.registry = std::make_unique<Registry>(os_, *d.state);
  done = d.state->header().files[kPoolMeta].get() >= 0 ? take_over_store(d, left) : make_store(d);
  if (done) {
    d.registry->set_placer(
        [&d](std::shared_ptr<Client> client) {
          d.new_for_evictor.push_back(client);
          d.new_for_reader.push_back(std::move(client));
          ++d.evictor_kick;
        },
        [&d](Client& client) {
          client.kicked = true;
          ++d.evictor_kick;
        });
    if (settings_.disk) done = make_disk(d);
  }
  if (done) done = make_threads(d);
  if (!done) {
    world_.trace("cannot start");
    die();  // the keeper tries again
    return;
  }
  for (const auto& client : TakeOver::complete(left.clients)) d.registry->add(client);
  TakeOver(os_, *d.state).wake(left.clients);
  left.clients.clear();
  d.up = true;
  world_.trace("the daemon is up", t.incarnation);
  auto& s = world_.scheduler;
  s.spawn(kDaemon, "reader", [this, &d] { run_reader(d); });
  s.spawn(kDaemon, "evictor", [this, &d] { run_evictor(d); });
  if (d.writeback) s.spawn(kDaemon, "writer", [this, &d] { run_writer(d); });
  s.spawn(kDaemon, "carer", [this, &d] { run_carer(d); });
  s.spawn(kDaemon, "control", [this, &d] { run_control(d); });
}

Status Machine::make_store(Daemon& d) {
  auto pool = Pool::create(os_, pool_config_);
  if (!pool) return std::unexpected(pool.error());
  d.pool = std::move(*pool);
  d.store = std::make_unique<PageStore>(*d.pool);
  note_files(*d.state, *d.pool);
  return {};
}

Status Machine::take_over_store(Daemon& d, Left& left) {
  TakeOver take_over(os_, *d.state);
  const auto make = [&](ClientParts parts) { return d.registry->make_client(std::move(parts)); };
  if (auto s = take_over.all(make, pool_config_, left); !s) return s;
  d.pool = std::move(left.pool);
  d.file = std::move(left.file);
  d.store = std::make_unique<PageStore>(*d.pool);
  d.store->set_backing(d.file.get(), settings_.keep_copies);
  take_over.settle(left.clients, *d.store);
  return {};
}

Status Machine::make_disk(Daemon& d) {
  const BackingFile::Limits limits{d.tunables.writeback_max, 0};
  if (d.file == nullptr) {
    auto file = BackingFile::create(os_, *d.state, "/disk", limits);
    if (!file) return std::unexpected(file.error());
    d.file = std::move(*file);
  }
  d.file->set_limits(limits);
  WritebackState& kept = d.state->header().writeback;
  for (std::size_t i = 0; i < sizeof(kept.key); ++i) kept.key[i] = static_cast<std::byte>(i * 7);
  kept.has_key = 1;
  auto seal = Seal::make(Seal::best_encryption(), kept.key);
  if (!seal) return std::unexpected(seal.error());
  d.seal = std::move(*seal);
  d.traffic.want_room = [&d] { d.room_wanted = true; };
  auto writeback =
      Writeback::create(os_, *d.state, *d.store, *d.file, *d.seal, d.traffic, d.tunables);
  if (!writeback) return std::unexpected(writeback.error());
  d.writeback = std::move(*writeback);
  d.store->set_backing(d.file.get(), settings_.keep_copies);
  return {};
}

Status Machine::make_threads(Daemon& d) {
  d.budgets = std::make_unique<BudgetBook>(os_);
  const auto kick = [](Client& client) { client.kicked = true; };
  d.evictor = std::make_unique<Evictor>(os_, *d.state, *d.store, *d.budgets, d.tunables,
                                        PageCodec::make().value(), kick);
  d.faults = std::make_unique<FaultService>(os_, *d.state, *d.store, *d.registry, d.tunables,
                                            PageCodec::make().value());
  if (d.writeback != nullptr) {
    d.evictor->wait_for_room(d.traffic);
    auto reader =
        DiskReader::create(os_, *d.store, *d.file, *d.seal, d.traffic, d.state->counters());
    if (!reader) return std::unexpected(reader.error());
    d.faults->read_from(std::move(*reader));
  }
  // Everything is cold at once: how long it has been is real time, which does not count here.
  d.care = std::make_unique<PoolCare>(*d.store, d.tunables, PageCodec::make().value(),
                                      PoolCare::Clock::duration::zero());
  return {};
}

// As FaultThread::run().
void Machine::run_reader(Daemon& d) {
  for (;;) {
    for (auto& client : std::exchange(d.new_for_reader, {}))
      d.served.push_back({std::move(client)});
    const std::uint64_t ended = os_.io_ended;
    if (DiskReader* const reader = d.faults->reader()) (void)reader->reap();
    const std::uint64_t now_us = os_.now_us();
    for (std::size_t i = 0; i < d.served.size(); ++i) {
      Served& served = d.served[i];
      Client& client = *served.client;
      if (!served.ready && !client.kicked && (served.due_us == 0 || served.due_us > now_us))
        continue;
      const StepResult result = d.faults->step(client);
      served.ready = result.again;
      served.due_us = result.retry_us == 0 ? 0 : os_.now_us() + result.retry_us;
      if (!client.reader_done) continue;
      const auto keep = served.client;
      d.served.erase(d.served.begin() + static_cast<std::ptrdiff_t>(i--));
      d.registry->remove(*keep);
    }
    std::uint64_t due_us = world_.clock_ns / 1'000 + kIdleUs;
    for (const Served& served : d.served) {
      if (served.due_us != 0) due_us = std::min(due_us, served.due_us);
    }
    world_.scheduler.wait(
        [this, &d, ended] {
          if (!d.new_for_reader.empty() || os_.io_ended != ended) return true;
          return std::ranges::any_of(d.served, [&](Served& served) {
            Space* const space = kernel_.of_fd(served.client->uffd.get(), 'u');
            served.ready = served.ready || (space != nullptr && Kernel::readable(*space));
            return served.ready || served.client->kicked;
          });
        },
        due_us * 1'000);
  }
}

// As EvictThread::run().
void Machine::run_evictor(Daemon& d) {
  std::vector<FutexWait> waits;
  for (;;) {
    waits.clear();
    waits.push_back({&d.evictor_kick, d.evictor_kick});
    for (auto& client : std::exchange(d.new_for_evictor, {}))
      d.watched.push_back(std::move(client));
    std::uint64_t delay = kIdleUs;
    for (std::size_t i = 0; i < d.watched.size(); ++i) {
      const auto client = d.watched[i];
      if (client->mailbox != nullptr)
        waits.push_back({&client->mailbox->to_daemon, load_word(client->mailbox->to_daemon)});
      delay = std::min(delay, d.evictor->step(*client));
    }
    const auto gone = std::erase_if(d.watched, [&](const auto& client) {
      if (!client->reader_done) return false;
      d.evictor->forget(*client);
      d.budgets->forget(*client);
      return true;
    });
    if (delay != 0 && gone == 0) {  // what is gone has no words to wait for
      os_.futex_wait_any(waits, delay);
    } else {
      world_.scheduler.yield();
    }
  }
}

// As DiskTier::run().
void Machine::run_writer(Daemon& d) {
  for (;;) {
    const std::uint64_t ended = os_.io_ended;
    const std::uint64_t us = d.writeback->step();
    if (us == 0) {
      world_.scheduler.yield();
      continue;
    }
    world_.scheduler.wait([this, &d, ended] { return d.room_wanted || os_.io_ended != ended; },
                          world_.clock_ns + us * 1'000);
    d.room_wanted = false;
  }
}

void Machine::run_carer(Daemon& d) {
  for (;;) {
    const bool more = d.care->step();
    const std::uint64_t us = more ? 500 : 20'000;
    world_.scheduler.wait([] { return false; }, world_.clock_ns + us * 1'000);
  }
}

void Machine::run_control(Daemon& d) {
  for (;;) {
    for (std::size_t i = 0; i < processes_.all.size(); ++i) {
      Process& process = *processes_.all[i];
      if (!process.dead && process.wish != Process::Wish::none &&
          process.wish_at_ns <= world_.clock_ns)
        serve_wish(d, process);
    }
    if (!world_.calm) order_something(d);
    d.registry->reap_doomed();
    if (world_.random.once_in(20)) (void)d.pool->trim(0);
    world_.scheduler.wait([] { return false; },
                          world_.clock_ns + world_.random.between(200, 5'000) * 1'000);
  }
}

// -- what the handshake does

bool Machine::agent_parts(Process& process, std::uint64_t client_id, AgentParts& parts) {
  parts.pidfd = kernel_.open_pidfd(process.space);
  parts.pagemap = kernel_.open_pagemap(process.space);
  parts.memory = kernel_.open_memory(process.space);
  Process::Areas areas = process.make_areas(client_id, state_->header().incarnation);
  if (const auto mapped = parts.map(areas.mailbox.get(), areas.transfer.get()); !mapped)
    return false;
  parts.mailbox_fd = std::move(areas.mailbox);
  parts.transfer_fd = std::move(areas.transfer);
  return true;
}

void Machine::serve_wish(Daemon& d, Process& process) {
  if (process.wish == Process::Wish::registration) {
    register_process(d, process);
  } else {
    attach_child(d, process);
  }
}

// As Handshake::finish().
void Machine::register_process(Daemon& d, Process& process) {
  auto uffd = kernel_.open_uffd(process.space);
  auto map = PageMap::create(os_);
  if (!map || process.dead) return;
  ClientRecord* const record = d.registry->claim_record();
  if (record == nullptr) return;
  record->pid = process.pid();
  record->staging = kStaging;
  record->resident_max_bytes = settings_.resident_bytes;
  ClientParts parts;
  if (!agent_parts(process, record->id, parts.agent)) return;
  if (prove_address_space(os_, uffd.get(), parts.agent.pagemap.get(), kStaging) != Proof::proved) {
    if (!process.dead) world_.fail("a process cannot prove its address space");
    return;
  }
  parts.record = record;
  parts.map = std::move(*map);
  parts.uffd = std::move(uffd);
  const auto client = d.registry->make_client(std::move(parts));
  client->may_share = true;
  d.registry->add(client);
  if (!process.dead) process.go_live(client->id);
}

// As Handshake::settle_child().
void Machine::attach_child(Daemon& d, Process& process) {
  const auto client =
      d.registry->forked_child(process.parent_id, process.fork_seq, process.not_these);
  if (client == nullptr) return;  // its parent's reader is at it, or it is doomed
  switch (client->offer_state.load()) {
    case AgentOffer::State::taken:
      process.go_live(client->id);
      return;
    case AgentOffer::State::refused:
      ++world_.counts.refused_agents;
      client->offer.parts = {};
      client->offer_state = AgentOffer::State::none;
      process.not_these.push_back(client->id);
      return;
    case AgentOffer::State::made:
      return;
    case AgentOffer::State::none:
      break;
  }
  if (client->mailbox != nullptr) {
    // The daemon died before it could say so: nobody holds the other end of its lifeline.
    client->set_state(ClientState::agentless);
    process.wish = Process::Wish::none;
    return;
  }
  AgentOffer& offer = client->offer;
  if (!agent_parts(process, client->id, offer.parts)) return;
  offer.pid = process.pid();
  offer.staging = kStaging;
  client->offer_state = AgentOffer::State::made;
  client->kicked = true;
}

// -- what administrators do

void Machine::order_something(Daemon& d) {
  const auto clients = d.registry->all();
  for (const auto& client : clients) {
    if (client->reclaim_claimed && !client->reclaim_running) client->reclaim_claimed = false;
  }
  if (clients.empty() || !world_.random.once_in(4)) return;
  Client& client = *clients[world_.random.below(clients.size())];
  const std::uint64_t what = world_.random.below(10);
  if (what < 6) {
    if (!client.has_agent() || client.reclaim_claimed.exchange(true)) return;
    ++world_.counts.reclaims;
    client.hold_until_us = 0;
    client.reclaim_stuck = false;
    client.reclaim_stalled = false;
    client.reclaimed_pages = 0;
    client.reclaim_pages = world_.random.between(1, 400);
    client.reclaim_fresh = true;
    client.reclaim_running = true;
    ++d.evictor_kick;
  } else if (what < 8) {
    client.hold_until_us = world_.clock_ns / 1'000 + world_.random.below(50'000);
    client.restore_wanted = true;
    client.kicked = true;
  } else {
    client.record.resident_max_bytes = world_.random.between(70, 500) * kPage;
  }
}

// -- a run

void Machine::turn() {
  if (!world_.scheduler.turn()) world_.fail("nothing can go on any more");
  ++world_.counts.turns;
  if (world_.watched_page != 0) watch();
  world_.clock_ns += world_.random.below(2 * settings_.turn_ns);
  if (os_.disk.under_way() != 0 && world_.random.once_in(8))
    os_.disk.complete_at(world_.random.below(os_.disk.under_way()));
  if (dead_) bury();
  if ((world_.counts.turns & 0xfff) == 0) look_for_hangs();
  if ((world_.counts.turns & 0x7f) == 0) look_for_lost_pages();
  if (world_.calm) return;
  if (damage_.once_in(settings_.damage)) damage_something();
  if ((world_.counts.turns & 0xfff) == 0 && processes_.alive() < processes_.most)
    processes_.make(settings_.threads);
  if (world_.random.once_in(settings_.crash)) {
    if (world_.random.once_in(2)) {
      die();
    } else {
      os_.die_in = world_.random.between(1, 200);  // of its calls from here
    }
  }
  if (dead_) bury();
}

// A page that is at rest, and on disk.
void Machine::damage_something() {
  constexpr unsigned kMostLooks = 64;
  if (!daemon_->up || daemon_->file == nullptr) return;
  const auto clients = daemon_->registry->all();
  if (clients.empty()) return;
  const Client& client = *clients[damage_.below(clients.size())];
  const Space* const space = kernel_.of_fd(client.uffd.get(), 'u');
  Process* const process = space == nullptr ? nullptr : processes_.find(space->pid);
  if (process == nullptr || process->dead || space->changing != 0 || !space->events.empty() ||
      client.record.inbox_count != 0 || client.unapplied)
    return;
  std::uint64_t page = kArena + damage_.below(kPlaces * kPlacePages) * kPage;
  for (unsigned i = 0; i < kMostLooks; ++i, page += kPage) {
    page = client.map->next_out(page, kAddressEnd);
    if (page >= kAddressEnd) return;
    const auto object = daemon_->store->on_disk(client.map->load(page));
    if (!object || space->pages.contains(page)) continue;
    if (!process->note_damage(page)) return;
    const std::uint64_t start = object->place.segment * BackingFile::kSegmentBytes +
                                object->place.unit * BackingFile::kUnit + sizeof(DiskHeader);
    os_.damage(start + damage_.below(object->length));
    ++world_.counts.damaged;
    world_.trace("damage", page, start);
    return;
  }
}

// -- the table

void Machine::count_events() {
  world_.on_event = [this](Happens event, const Space& space, std::uint64_t start,
                           std::uint64_t end) { count_event(event, space, start, end); };
}

std::shared_ptr<Client> Machine::client_of(const Space& space) {
  if (!daemon_->up || space.gone || !space.has_uffd) return nullptr;
  for (auto& client : daemon_->registry->all()) {
    if (client->uffd.get() == space.daemon_fd && kernel_.of_fd(space.daemon_fd, 'u') == &space)
      return client;
  }
  return nullptr;
}

PageIs Machine::state_of(const Client& client, const Space& space, std::uint64_t page) const {
  const Entry entry = client.map->load(page);
  switch (entry.state()) {
    case PageState::none:
      break;
    case PageState::same:
    case PageState::same_record:
      return PageIs::same;
    case PageState::object:
      return daemon_->store->on_disk(entry) ? PageIs::on_disk : PageIs::pooled;
    case PageState::out:
      return entry.wanted() ? PageIs::wanted : PageIs::out;
    case PageState::bad:
      return PageIs::bad;
  }
  return Kernel::present(space, page) ? PageIs::present : PageIs::absent;
}

void Machine::count_event(Happens event, const Space& space, std::uint64_t start,
                          std::uint64_t end) {
  const auto client = client_of(space);
  if (client == nullptr) return;
  for (std::uint64_t page = start; page < end; page += kPage) {
    if (page - kStaging < wire::kStagingBytes) continue;
    PageIs state = state_of(*client, space, page);
    // Marked, and the agent waits for the lock that the daemon holds meanwhile: it has not left.
    const bool on_its_way = state == PageIs::out || state == PageIs::wanted;
    if (event == Happens::unregister && on_its_way && Kernel::present(space, page))
      state = PageIs::present;
    // Another page is there by now, and the event of that change is unread.
    if (event == Happens::marked && state == PageIs::bad && Kernel::present(space, page))
      state = PageIs::present;
    ++world_.counts.table[static_cast<std::size_t>(state)][static_cast<std::size_t>(event)];
  }
}

void Machine::look_for_hangs() {
  constexpr std::uint64_t kMostTurns = 400'000;
  const auto waiting = world_.scheduler.longest_wait(kDaemon);
  if (waiting.turns > kMostTurns)
    world_.fail(fmt::format("{} has been waiting for {} turns, {} ms", waiting.name, waiting.turns,
                            waiting.since_ns / 1'000'000));
}

// A page that holds something must be in its process, or known to the daemon, whether anybody looks
// for it or not. (Not while a change is under way, or has not been applied.)
void Machine::look_for_lost_pages() {
  if (!daemon_->up) return;
  for (const auto& client : daemon_->registry->all()) {
    Space* const space = kernel_.of_fd(client->uffd.get(), 'u');
    const Process* const process = space == nullptr ? nullptr : processes_.find(space->pid);
    if (process == nullptr || process->dead || space->changing != 0 || !space->events.empty() ||
        client->record.inbox_count != 0 || client->unapplied || client->doomed())
      continue;
    process->for_each_absent([&](std::uint64_t page) {
      if (client->map->load(page).state() == PageState::none)
        world_.fail(fmt::format("process {}: page {:#x} is nowhere", process->pid(), page));
    });
  }
}

// Every change of the page map's entries for the page that is watched.
void Machine::watch() {
  if (daemon_->registry == nullptr) return;
  for (const auto& client : daemon_->registry->all()) {
    const std::uint64_t entry = client->map->load(world_.watched_page).raw();
    if (std::exchange(watched_[client->id], entry) == entry) continue;
    world_.note("ENTRY", static_cast<std::uint64_t>(client->pid()), entry & 7, entry);
  }
}

bool Machine::rest(const char* what, std::uint64_t most_turns, const std::function<bool()>& done) {
  for (std::uint64_t i = 0; i < most_turns && world_.failure.empty(); ++i) {
    if (done()) return true;
    turn();
  }
  world_.fail(fmt::format("{}: not after {} turns", what, most_turns));
  return false;
}

// Until a program is served by the daemon, so that no turn of a short run is idle.
void Machine::warm_up() {
  constexpr std::uint64_t kMostTurns = 200'000;
  rest("a program is served", kMostTurns, [&] {
    return std::ranges::any_of(processes_.all, [](const auto& p) { return p->live(); });
  });
}

// For a run that has seen no death so far: now, at one of the next calls, or when an event is read.
void Machine::force_death(std::uint64_t at, std::uint64_t now, std::uint64_t last) {
  if (now == last) return die();
  if (now == at) {
    switch (world_.random.below(3)) {
      case 0:
        return die();
      case 1:
        os_.die_in = world_.random.between(1, 200);
        return;
      default:
        os_.die_at_event = true;
        return;
    }
  }
}

void Machine::run(std::uint64_t turns, bool brisk) {
  if (brisk) warm_up();
  const std::uint64_t first_crash = world_.counts.crashes;
  const std::uint64_t death = brisk ? world_.random.below(std::max<std::uint64_t>(turns, 1)) : 0;
  for (std::uint64_t i = 0; i < turns && world_.failure.empty(); ++i) {
    turn();
    if (brisk && world_.counts.crashes == first_crash) force_death(death, i, turns - 1);
    if (dead_) bury();
  }
  world_.calm = true;
  os_.die_in = 0;
  os_.die_at_event = false;
  processes_.stopping = true;
  constexpr std::uint64_t kMostTurns = 2'000'000;
  const auto each = [&](auto&& good) {
    return std::ranges::all_of(processes_.all, [&](const auto& p) { return p->dead || good(*p); });
  };
  if (!rest("the programs come to rest", kMostTurns,
            [&] { return daemon_->up && each([](const Process& p) { return p.quiet(); }); }))
    return;
  for (const auto& process : processes_.all) {
    if (process->dead) continue;
    world_.scheduler.spawn(process->pid(), "check", [p = process.get()] { p->check_everything(); });
  }
  if (!rest("every page is read", kMostTurns,
            [&] { return each([](const Process& p) { return p.checked; }); }))
    return;
  for (const auto& process : processes_.all) process->kill();
  if (!rest("the daemon lets go of everything", kMostTurns, [&] {
        return daemon_->registry->size() == 0 && daemon_->served.empty() &&
               daemon_->watched.empty() && daemon_->new_for_reader.empty() &&
               daemon_->new_for_evictor.empty();
      }))
    return;
  check_leftovers();
  sum_up();
}

// Nothing is left of anybody.
void Machine::check_leftovers() {
  Daemon& d = *daemon_;
  // What is being written is held until the write has ended; and a fiber of the daemon may stand in
  // the middle of a change of the account.
  const auto settle = [&](const std::function<bool()>& done) {
    constexpr std::uint64_t kMostTurns = 50'000;
    for (std::uint64_t i = 0; i < kMostTurns && !done() && world_.failure.empty(); ++i) turn();
  };
  settle([&] { return d.pool->stats().objects == 0; });
  const PoolStats stats = d.pool->stats();
  if (stats.objects != 0 || stats.pattern_objects != 0 || stats.misuses != 0)
    world_.fail(fmt::format("left in the pool: {} objects, {} patterns, {} on disk; {} misuses",
                            stats.objects, stats.pattern_objects, stats.outside, stats.misuses));
  if (const Status valid = d.pool->validate(); !valid)
    world_.fail("the pool is not whole: " + valid.error().text());
  if (d.file == nullptr) return;
  if (!rest("the disk comes to rest", 200'000, [&] { return os_.disk.under_way() == 0; })) return;
  settle([&] { return d.file->live_objects() == 0 && d.file->validate() == nullptr; });
  if (d.file->live_objects() != 0)
    world_.fail(fmt::format("left on disk: {} objects", d.file->live_objects()));
  if (const char* const wrong = d.file->validate())
    world_.fail(std::string("the file's account is not right: ") + wrong);
}

void Machine::sum_up() {
  const Counters& c = state_->counters();
  Counts& sum = world_.counts;
  sum.evicted += c.evict_pages;
  sum.aborted += c.evict_aborted;
  sum.faults_zero += c.faults_zero;
  sum.faults_same += c.faults_same_filled;
  sum.faults_pool += c.faults_pool;
  sum.faults_disk += c.faults_disk;
  sum.faults_rescued += c.faults_rescued;
}

}  // namespace foldswap::sim
