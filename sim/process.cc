#include "sim/process.h"

#include <fcntl.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <span>
#include <utility>

#include <spdlog/fmt/fmt.h>

#include "preload/mover.h"
#include "preload/request.h"

namespace foldswap::preload {

constinit Library library{};

// The simulated programs are live, or have no library that could ask.
bool ask_agent(Control&, AgentOp) {
  return false;
}

}  // namespace foldswap::preload

namespace foldswap::sim {

using preload::Presence;

namespace {

void store_shared(std::uint32_t& word, std::uint32_t value) {
  __atomic_store_n(&word, value, __ATOMIC_SEQ_CST);
}

std::string text_of(const PageBytes& bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

}  // namespace

Process::Process(World& world, Kernel& kernel, Processes& all, Space& s)
    : space(s), world_(world), kernel_(kernel), all_(all) {}

void Process::start(unsigned threads) {
  for (unsigned i = 0; i < threads; ++i) {
    auto thread = std::make_unique<Thread>();
    thread->tid = pid() + static_cast<pid_t>(i);
    Task task;
    task.tid = thread->tid;
    task.robust_list = kThreadBlocks + kPage;
    thread->task = &kernel_.tasks[pid()].emplace_back(task);
    Thread& made = *threads_.emplace_back(std::move(thread));
    ++running_;
    world_.scheduler.spawn(pid(), fmt::format("thread {}", made.tid), [this, &made] {
      run_thread(made);
      --running_;
    });
  }
}

void Process::kill() {
  if (dead) return;
  happens_everywhere(Happens::exit);
  dead = true;
  for (Process* const child : std::exchange(forking_, {})) child->kill();  // no fork comes of it
  kernel_.exit(space);
  world_.scheduler.drop(pid());
}

void Process::for_each_absent(const std::function<void(std::uint64_t page)>& each) const {
  for (const auto& [page, truth] : truth_) {
    if (!truth.or_zeros && !space.pages.contains(page) && !in_use(page, page + kPage, nullptr))
      each(page);
  }
}

void Process::happens_everywhere(Happens event) const {
  for (const auto& [start, end] : ranges_) world_.happens(event, space, start, end);
}

bool Process::note_damage(std::uint64_t page) {
  const auto found = truth_.find(page);
  if (found == truth_.end() || found->second.or_zeros) return false;
  all_.damaged.insert(text_of(found->second.bytes));
  return true;
}

bool Process::damaged(std::uint64_t page) const {
  const auto found = truth_.find(page);
  return found != truth_.end() && all_.damaged.contains(text_of(found->second.bytes));
}

// -- being a client

Process::Areas Process::make_areas(std::uint64_t client_id, std::uint32_t incarnation) {
  Areas areas{real_os().memory_file("sim-mailbox", wire::kMailboxBytes).value(),
              real_os().memory_file("sim-transfer", wire::kTransferBytes).value()};
  mailbox_ = Mapping::shared(areas.mailbox.get(), wire::kMailboxBytes).value();
  transfer_ = Mapping::shared(areas.transfer.get(), wire::kTransferBytes).value();
  auto& box = *mailbox_.as<wire::Mailbox>();
  box.magic = wire::kMagic;
  box.version = wire::kProtocolVersion;
  box.client_id = client_id;
  box.incarnation = incarnation;
  return areas;
}

void Process::go_live(std::uint64_t client_id) {
  // What a child has inherited is registered.
  if (wish == Wish::child) store_shared(mailbox_.as<wire::Mailbox>()->registered, 1);
  wish = Wish::none;
  control_ = std::make_unique<preload::Control>();
  control_->mailbox = mailbox_.as<wire::Mailbox>();
  control_->staging = reinterpret_cast<std::byte*>(kStaging);
  control_->transfer = transfer_.data();
  control_->pid = pid();
  const pid_t tid = pid() + 50;
  control_->tid = static_cast<std::uint32_t>(tid);
  control_->cpu = ~0U;
  Task agent;
  agent.tid = tid;
  kernel_.tasks[pid()].push_back(agent);
  space.held_by_client = true;
  life_.presence = static_cast<std::uint32_t>(Presence::live);
  library.alive = &life_;
  library.control = control_.get();
  library.client_id = client_id;
  live_ = true;
  ++world_.counts.agents;
  world_.trace("live", client_id, static_cast<std::uint64_t>(pid()));
  world_.scheduler.spawn(pid(), fmt::format("agent {}", tid), [this] { run_agent(); });
}

// As preload/agent.cc, serve().
void Process::run_agent() {
  preload::Control& c = *control_;
  if (preload::arm_staging(c) != 0) return world_.fail("the agent cannot register staging");
  sys::store(c.mailbox->agent_tid, c.tid);
  for (;;) {
    const std::uint32_t seen = sys::load(c.mailbox->to_agent);
    for (std::uint32_t half = 0; half < wire::kHalves; ++half) {
      if (sys::load(c.mailbox->commands[half].state) ==
          static_cast<std::uint32_t>(wire::CommandState::posted)) {
        preload::execute_command(c, half);
      }
    }
    if (sys::load(c.mailbox->to_agent) != seen) continue;
    constexpr long kIdleMs = 2'000;
    (void)sys::futex_wait(c.mailbox->to_agent, seen, sys::Scope::shared, kIdleMs);
  }
}

// -- what a program does

void Process::run_thread(Thread& thread) {
  while (!all_.stopping) {
    act(thread);
    ++thread.task->ticks;
    if (world_.random.once_in(3)) {
      thread.task->call = SYS_clock_nanosleep;
      const std::uint64_t until = world_.clock_ns + world_.random.below(2'000'000);
      world_.scheduler.wait([] { return false; }, until);
      thread.task->call = -1;
    } else {
      world_.scheduler.yield();
    }
  }
  thread.task->call = SYS_pause;
}

void Process::act(Thread& thread) {
  if (ranges_.size() < 3) do_map(thread);
  const std::uint64_t what = world_.random.below(1000);
  if (what < 550) return do_access(thread);
  if (what < 840) return do_scan(thread);
  if (what < 890) return do_discard(thread);
  if (what < 925) return do_map(thread);
  if (what < 945) return do_unmap(thread);
  if (what < 980) return do_remap(thread);
  if (what < 988) return do_fork(thread);
  if (what < 992) return do_release(thread);
  // Those that nobody can evict make room sooner.
  if (what >= (live_ ? 999U : 995U) && all_.alive() > 2) {
    ++world_.counts.exits;
    kill();
  }
}

std::uint64_t Process::any_page(const Thread& thread) {
  if (ranges_.empty()) return 0;
  // Where somebody else waits already, now and then.
  const Thread& other_thread = *threads_[world_.random.below(threads_.size())];
  if (other_thread.page != 0 && world_.random.once_in(4)) return other_thread.page;
  // Or what is on its way out.
  const std::uint64_t moved = space.moved_page;
  if (moved != 0 && world_.random.once_in(3) && Kernel::mapped(space, moved) &&
      !claimed(moved, moved + kPage, &thread))
    return moved;
  auto it = ranges_.begin();
  std::advance(it, world_.random.below(ranges_.size()));
  const std::uint64_t pages = (it->second - it->first) / kPage;
  const std::uint64_t page = it->first + world_.random.below(pages) * kPage;
  for (const auto& other : threads_) {
    if (other.get() == &thread) continue;
    if ((page >= other->claim_start && page < other->claim_end) ||
        (page >= other->claim2_start && page < other->claim2_end))
      return 0;
  }
  return page;
}

bool Process::in_use(std::uint64_t start, std::uint64_t end, const Thread* but) const {
  return std::ranges::any_of(
             threads_,
             [&](const auto& t) { return t.get() != but && t->page >= start && t->page < end; }) ||
         claimed(start, end, but);
}

bool Process::claimed(std::uint64_t start, std::uint64_t end, const Thread* but) const {
  return std::ranges::any_of(threads_, [&](const auto& t) {
    return t.get() != but && ((t->claim_start < end && start < t->claim_end) ||
                              (t->claim2_start < end && start < t->claim2_end));
  });
}

std::uint64_t Process::waited_for(const Thread& thread) {
  if (!world_.random.once_in(2)) return 0;
  const Thread& other = *threads_[world_.random.below(threads_.size())];
  return &other == &thread ? 0 : other.page;
}

bool Process::claim(Thread& thread, bool whole, std::uint64_t at) {
  if (ranges_.empty()) return false;
  auto it = ranges_.begin();
  if (at != 0) {
    it = ranges_.upper_bound(at);
    if (it == ranges_.begin() || at >= std::prev(it)->second) return false;
    --it;
  } else {
    std::advance(it, world_.random.below(ranges_.size()));
  }
  const std::uint64_t pages = (it->second - it->first) / kPage;
  std::uint64_t first = 0, count = pages;
  if (!whole) {
    const std::uint64_t must = at == 0 ? 0 : (at - it->first) / kPage;
    first = world_.random.below(at == 0 ? pages : must + 1);
    count = world_.random.between(at == 0 ? 1 : must + 1 - first, pages - first);
  }
  const std::uint64_t start = it->first + first * kPage, end = start + count * kPage;
  if (at == 0 ? in_use(start, end, &thread) : claimed(start, end, &thread)) return false;
  thread.claim_start = start;
  thread.claim_end = end;
  return true;
}

void Process::release(Thread& thread) {
  thread.claim_start = thread.claim_end = 0;
  thread.claim2_start = thread.claim2_end = 0;
}

std::uint64_t Process::free_place(std::uint64_t bytes) {
  // Where something was a moment ago, now and then (HAZARDS 1, 3).
  if (last_unmapped_ != 0 && world_.random.once_in(2) &&
      Kernel::free_range(space, last_unmapped_, bytes) &&
      !in_use(last_unmapped_, last_unmapped_ + bytes, nullptr))
    return last_unmapped_;
  for (int tries = 0; tries < 20; ++tries) {
    const std::uint64_t start = kArena + world_.random.below(kPlaces) * kPlacePages * kPage +
                                world_.random.below(4) * (kPlacePages / 4) * kPage;
    if (Kernel::free_range(space, start, bytes) && !in_use(start, start + bytes, nullptr))
      return start;
  }
  return 0;
}

void Process::compare(const Frame& frame, std::uint64_t page) {
  static const PageBytes kZeros{};
  ++world_.counts.accesses;
  const auto found = truth_.find(page);
  const PageBytes& right = found == truth_.end() ? kZeros : found->second.bytes;
  const bool zeros = std::memcmp(frame.bytes.data(), kZeros.data(), kPage) == 0;
  if (found != truth_.end() && found->second.or_zeros) {
    found->second.or_zeros = claimed(page, page + kPage, nullptr);  // it is being discarded still
    if (zeros) {
      truth_.erase(found);
      return;
    }
  }
  if (std::memcmp(frame.bytes.data(), right.data(), kPage) == 0) return;
  world_.trace("WRONG BYTES", page);
  world_.fail(fmt::format("process {}: page {:#x} holds {} where {} should be", pid(), page,
                          zeros ? "zeros" : "other bytes",
                          found == truth_.end() ? "zeros" : "what was written"));
}

// A whole page of some kind, or a few bytes of it.
void Process::scribble(Frame& frame, std::uint64_t page) {
  PageBytes& bytes = truth_[page].bytes;  // zeros, if it was not there
  const std::uint64_t kind = world_.random.below(10);
  if (kind < 5) {
    const std::uint64_t word = world_.random.next();
    std::memcpy(&bytes[world_.random.below(kPage / 8) * 8], &word, sizeof(word));
  } else if (kind < 6) {
    const std::uint64_t word =
        world_.random.once_in(2) ? world_.random.below(256) : world_.random.next();
    for (std::size_t i = 0; i < kPage; i += 8) std::memcpy(&bytes[i], &word, sizeof(word));
  } else {
    constexpr std::size_t kNoise[] = {kPage, 2048, 700, 100};
    const std::size_t noise = kNoise[kind - 6];
    const std::uint64_t step = world_.random.next() | 1;
    std::uint64_t word = world_.random.next();
    for (std::size_t i = 0; i < kPage; i += 8, word = (word + step) * 0x2545f4914f6cdd1d) {
      const std::uint64_t put = i < noise ? word : step >> 56;
      std::memcpy(&bytes[i], &put, sizeof(put));
    }
  }
  frame.bytes = bytes;
}

void Process::access(Thread& thread, std::uint64_t page, bool write) {
  thread.page = page;
  Frame* frame = nullptr;
  world_.trace(write ? "write" : "read", page);
  world_.happens(write ? Happens::write : Happens::read, space, page, page + kPage);
  const Kernel::Touch touch = kernel_.touch(space, *thread.task, page, write, frame);
  if (touch == Kernel::Touch::done) {
    compare(*frame, page);
    if (write) scribble(*frame, page);
  } else if (touch == Kernel::Touch::segv && !Kernel::mapped(space, page)) {
    world_.trace("unmapped meanwhile",
                 page);  // another thread did: what looks after holes gives up
  } else if (touch == Kernel::Touch::sigbus && damaged(page)) {
    ++world_.counts.poisoned;  // the page is lost until it is discarded
  } else if (touch == Kernel::Touch::sigbus && all_.doomed(space)) {
    ++world_.counts.kills[kSigbusInChild];
    kill();
  } else {
    world_.trace(touch == Kernel::Touch::sigbus ? "SIGBUS" : "SIGSEGV", page);
    world_.fail(fmt::format("process {}: {} at {:#x}", pid(),
                            touch == Kernel::Touch::sigbus ? "SIGBUS" : "SIGSEGV", page));
  }
  thread.page = 0;
}

void Process::do_access(Thread& thread) {
  const std::uint64_t page = any_page(thread);
  if (page != 0) access(thread, page, world_.random.once_in(2));
}

void Process::do_scan(Thread& thread) {
  std::uint64_t page = any_page(thread);
  const bool write = world_.random.once_in(4);
  for (std::uint64_t left = world_.random.between(4, 128); page != 0 && left != 0; --left) {
    access(thread, page, write);
    page += kPage;
    const auto after = ranges_.upper_bound(page);
    const bool inside = after != ranges_.begin() && page < std::prev(after)->second;
    if (!inside || in_use(page, page + kPage, &thread)) return;
  }
}

void Process::do_discard(Thread& thread) {
  if (!claim(thread, world_.random.once_in(3), waited_for(thread))) return;
  ++world_.counts.discards;
  thread.discards = true;
  note_discarded(thread.claim_start, thread.claim_end);  // for who accesses it already
  for (Process* const child : forking_) child->note_discarded(thread.claim_start, thread.claim_end);
  world_.happens(Happens::discard, space, thread.claim_start, thread.claim_end);
  kernel_.discard(space, *thread.task, thread.claim_start, thread.claim_end - thread.claim_start,
                  [this](std::uint64_t start, std::uint64_t end) {
                    truth_.erase(truth_.lower_bound(start), truth_.lower_bound(end));
                  });
  thread.discards = false;
  release(thread);
}

void Process::do_map(Thread& thread) {
  if (ranges_.size() > 8) return;
  const std::uint64_t bytes = world_.random.between(1, kPlacePages) * kPage;
  const std::uint64_t start = free_place(bytes);
  if (start == 0) return;
  (void)thread;
  ++world_.counts.maps;
  kernel_.map(space, start, bytes);
  ranges_[start] = start + bytes;
  world_.trace("map", start, bytes / kPage);
}

// What is no longer mapped from here.
void Process::follow_map(std::uint64_t start, std::uint64_t end) {
  truth_.erase(truth_.lower_bound(start), truth_.lower_bound(end));
  std::map<std::uint64_t, std::uint64_t> left;
  for (const auto& [from, to] : ranges_) {
    if (from < start) left[from] = std::min(to, start);
    if (to > end) left[std::max(from, end)] = to;
  }
  ranges_ = std::move(left);
}

void Process::do_unmap(Thread& thread) {
  if (ranges_.size() < 2 || !claim(thread, world_.random.once_in(2), waited_for(thread))) return;
  ++world_.counts.unmaps;
  world_.happens(Happens::unmap, space, thread.claim_start, thread.claim_end);
  kernel_.unmap(space, *thread.task, thread.claim_start, thread.claim_end - thread.claim_start,
                [&](std::uint64_t start, std::uint64_t end) {
                  follow_map(start, end);
                  last_unmapped_ = start;
                  release(thread);  // whoever is quick maps something here
                });
}

void Process::do_remap(Thread& thread) {
  if (!claim(thread, true, waited_for(thread))) return;
  const std::uint64_t from = thread.claim_start, bytes = thread.claim_end - from;
  std::uint64_t new_bytes = bytes;
  if (world_.random.once_in(3)) new_bytes = world_.random.between(1, kPlacePages) * kPage;
  std::uint64_t to = free_place(new_bytes);
  if (world_.random.once_in(5) && ranges_.size() > 1) {  // onto something
    auto it = ranges_.begin();
    std::advance(it, world_.random.below(ranges_.size()));
    if (!in_use(it->first, it->first + new_bytes, nullptr) && it->first != from) to = it->first;
  } else if (const std::uint64_t page = waited_for(thread); page != 0) {
    const std::uint64_t there =
        page - std::min(new_bytes / kPage - 1, (page - kArena) / kPage) / 2 * kPage;
    if (!claimed(there, there + new_bytes, nullptr)) to = there;
    // Whatever else lies there goes, too.
  }
  if (to == 0 || (to < from + bytes && from < to + new_bytes)) return release(thread);
  thread.claim2_start = to;
  thread.claim2_end = to + new_bytes;
  const auto effect = [&] {
    const std::uint64_t kept = std::min(bytes, new_bytes);
    std::map<std::uint64_t, Truth> moved;
    for (auto it = truth_.lower_bound(from); it != truth_.end() && it->first < from + kept; ++it)
      moved[it->first - from + to] = it->second;
    follow_map(to, to + new_bytes);
    follow_map(from, from + bytes);
    ranges_[to] = to + new_bytes;
    truth_.merge(moved);
    thread.claim_start = thread.claim_end = 0;  // the old place is anybody's
  };
  const auto remap = [&] {
    ++world_.counts.remaps;
    world_.happens(Happens::remap_from, space, from, from + bytes);
    world_.happens(Happens::remap_to, space, to, to + new_bytes);
    return kernel_.remap(space, *thread.task, from, bytes, to, new_bytes, effect);
  };
  if (preload::Control* const control = preload::live()) {
    preload::LayoutSection section(*control);
    const bool prepared = section.prepare(wire::RequestOp::unify, from, bytes);
    if (prepared && !remap()) world_.fail(fmt::format("mremap of {:#x} is EFAULT", from));
  } else if (Kernel::uniform(space, from, bytes)) {
    (void)remap();
  }
  release(thread);
}

// As before advice that raises no event (HAZARDS 12): everything is brought back, and nothing of it
// is registered.
void Process::do_release(Thread& thread) {
  preload::Control* const control = preload::live();
  if (control == nullptr || !claim(thread, world_.random.once_in(2))) return;
  ++world_.counts.releases;
  {
    preload::LayoutSection section(*control);
    (void)section.prepare(wire::RequestOp::release, thread.claim_start,
                          thread.claim_end - thread.claim_start);
  }
  release(thread);
}

void Process::note_discarded(std::uint64_t start, std::uint64_t end) {
  for (auto it = truth_.lower_bound(start); it != truth_.end() && it->first < end; ++it)
    it->second.or_zeros = true;
}

void Process::do_fork(Thread& thread) {
  if (all_.alive() >= all_.most) return;
  ++world_.counts.forks;
  preload::Control* const control = preload::live();
  std::uint32_t seq = 0;
  if (control != nullptr) {
    (void)preload::RequestLock::acquire();
    preload::Announcement::begin(*control);
    seq = sys::add(control->mailbox->fork_seq, 1);
  }
  Process* child = nullptr;
  happens_everywhere(Happens::fork);
  Space& forked = kernel_.fork(space, *thread.task, all_.next_pid(), [&](Space& s) {
    child = &all_.adopt(s);
    child->truth_ = truth_;
    child->ranges_ = ranges_;
    for (const auto& t : threads_) {
      if (t->discards) child->note_discarded(t->claim_start, t->claim_end);
    }
    forking_.push_back(child);
    child->parent_id = library.client_id;
    child->fork_seq = seq;
  });
  if (control != nullptr) {
    sys::add(control->mailbox->fork_seq, 1);
    preload::Announcement::end(*control);
    preload::RequestLock::release();
  }
  std::erase(forking_, child);  // from here it is a process of its own
  if (forked.gone || child->dead) {
    child->dead = true;
    return;
  }
  if (control != nullptr && world_.random.below(4) != 0) {
    child->wish = child->space.has_uffd ? Wish::child : Wish::registration;
    child->wish_at_ns = world_.clock_ns + world_.random.below(20'000'000);
  }
  child->start(static_cast<unsigned>(world_.random.between(1, 2)));
  // Its parent may be gone at once: what the child has is all that is left (HAZARDS 4).
  if (world_.random.once_in(6) && all_.alive() > 2) {
    ++world_.counts.exits;
    kill();
  }
}

void Process::check_everything() {
  for (const auto& [start, end] : ranges_) {
    for (std::uint64_t page = start; page < end; page += kPage) {
      access(*threads_.front(), page, false);
      ++world_.counts.pages_checked;
    }
  }
  checked = true;
}

// -- all of them

Process& Processes::make(unsigned threads) {
  Space& space = kernel.make_space(next_pid());
  Process& process = adopt(space);
  kernel.map(space, kThreadBlocks, 4 * kPage);
  process.wish = Process::Wish::registration;
  process.wish_at_ns = world.clock_ns + world.random.below(5'000'000);
  process.start(threads);
  return process;
}

Process& Processes::adopt(Space& space) {
  kernel.map(space, kStaging, wire::kStagingBytes, true);
  return *all.emplace_back(std::make_unique<Process>(world, kernel, *this, space));
}

Process* Processes::find(pid_t pid) {
  const auto found = std::ranges::find_if(all, [&](const auto& p) { return p->pid() == pid; });
  return found == all.end() ? nullptr : found->get();
}

std::size_t Processes::alive() const {
  return static_cast<std::size_t>(
      std::ranges::count_if(all, [](const auto& p) { return !p->dead && !p->space.gone; }));
}

void Processes::on_switch(Owner owner) {
  if (running_ != nullptr) running_->library = preload::library;
  running_ = owner == kDaemon ? nullptr : find(owner);
  if (running_ != nullptr) preload::library = running_->library;
}

}  // namespace foldswap::sim
