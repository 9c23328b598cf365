#include "sim/kernel.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include <spdlog/fmt/fmt.h>

namespace foldswap::sim {
namespace {

std::uint64_t inode_of(int fd) {
  struct stat st{};
  return ::fstat(fd, &st) == 0 ? st.st_ino : 0;
}

uffd_msg range_event(std::uint8_t event, std::uint64_t start, std::uint64_t end) {
  uffd_msg m{};
  m.event = event;
  m.arg.remove.start = start;
  m.arg.remove.end = end;
  return m;
}

}  // namespace

// -- descriptors

UniqueFd Kernel::make_handle(char kind, Space& space) {
  UniqueFd fd(::memfd_create("sim-handle", MFD_CLOEXEC));
  if (!fd.valid()) return fd;
  kept_.emplace_back(::fcntl(fd.get(), F_DUPFD_CLOEXEC, kOwnFds));
  handles_[inode_of(fd.get())] = {kind, space.id};
  return fd;
}

UniqueFd Kernel::open_uffd(Space& space) {
  UniqueFd fd = make_handle('u', space);
  space.has_uffd = true;
  space.daemon_fd = fd.get();
  space.uffd_inode = inode_of(fd.get());
  return fd;
}

UniqueFd Kernel::open_maps(Space& space) {
  return make_handle('m', space);
}

UniqueFd Kernel::open_memory(Space& space) {
  return make_handle('r', space);
}

UniqueFd Kernel::open_pagemap(Space& space) {
  return make_handle('p', space);
}

UniqueFd Kernel::open_pidfd(Space& space) {
  return make_handle('d', space);
}

Space* Kernel::of_fd(int fd, char kind) {
  const auto found = handles_.find(inode_of(fd));
  if (found == handles_.end() || found->second.kind != kind) return nullptr;
  return space(found->second.space);
}

// The last descriptor closed, and nothing of it is registered any more.
bool Kernel::uffd_alive(const Space& space) const {
  if (!space.has_uffd) return false;
  return space.held_by_client || space.daemon_fd < 0 ||
         inode_of(space.daemon_fd) == space.uffd_inode;
}

// -- processes

Space& Kernel::make_space(pid_t pid) {
  auto space = std::make_unique<Space>();
  space->id = next_id_++;
  space->pid = pid;
  Space& made = *space;
  spaces_[made.id] = std::move(space);
  return made;
}

Space* Kernel::space(std::uint64_t id) {
  const auto found = spaces_.find(id);
  return found == spaces_.end() ? nullptr : found->second.get();
}

Task* Kernel::task(pid_t pid, pid_t tid) {
  const auto found = tasks.find(pid);
  if (found == tasks.end()) return nullptr;
  const auto task = std::ranges::find(found->second, tid, &Task::tid);
  return task == found->second.end() ? nullptr : &*task;
}

void Kernel::exit(Space& space) {
  if (space.gone) return;
  world_.trace("exit", static_cast<std::uint64_t>(space.pid));
  space.gone = true;
  space.changing = 0;
  // A fork that was not told of has no child.
  for (const QueuedEvent& event : space.events) {
    Space* const child = event.child != 0 ? this->space(event.child) : nullptr;
    if (child != nullptr) exit(*child);
  }
  space.events.clear();
  space.faults.clear();
  drop_pages(space, 0, ~std::uint64_t{0});
  space.vmas.clear();
  tasks.erase(space.pid);
}

// -- mappings

const Vma* Kernel::find(const Space& space, std::uint64_t page) {
  auto after = space.vmas.upper_bound(page);
  if (after == space.vmas.begin()) return nullptr;
  --after;
  return page < after->second.end ? &after->second : nullptr;
}

bool Kernel::mapped(const Space& space, std::uint64_t page) {
  return find(space, page) != nullptr;
}

bool Kernel::uniform(const Space& space, std::uint64_t start, std::uint64_t bytes) {
  const Vma* const vma = find(space, start);
  return vma != nullptr && vma->end >= start + bytes;
}

bool Kernel::free_range(const Space& space, std::uint64_t start, std::uint64_t bytes) {
  const auto after = space.vmas.lower_bound(start);
  if (after != space.vmas.end() && after->first < start + bytes) return false;
  return find(space, start) == nullptr;
}

bool Kernel::any_registered(const Space& space, std::uint64_t start, std::uint64_t end) {
  return std::ranges::any_of(space.vmas, [&](const auto& v) {
    return v.second.registered && v.first < end && v.second.end > start;
  });
}

void Kernel::split(Space& space, std::uint64_t at) {
  auto after = space.vmas.upper_bound(at);
  if (after == space.vmas.begin()) return;
  --after;
  if (after->first == at || after->second.end <= at) return;
  Vma rest = after->second;
  after->second.end = at;
  space.vmas[at] = rest;
}

// Neighbours that are pieces of one mapping and in one state become one.
void Kernel::join(Space& space) {
  for (auto it = space.vmas.begin(); it != space.vmas.end();) {
    const auto next = std::next(it);
    if (next == space.vmas.end()) return;
    Vma& a = it->second;
    const Vma& b = next->second;
    if (a.end == next->first && a.id == b.id && a.registered == b.registered &&
        a.dont_fork == b.dont_fork) {
      a.end = b.end;
      space.vmas.erase(next);
    } else {
      it = next;
    }
  }
}

void Kernel::set_page(Space& space, std::uint64_t page, std::shared_ptr<Frame> frame,
                      bool exclusive) {
  drop_pages(space, page, page + kPage);
  ++frame->maps;
  space.pages[page] = {Pte::Kind::page, std::move(frame), exclusive};
}

void Kernel::drop_pages(Space& space, std::uint64_t start, std::uint64_t end) {
  auto it = space.pages.lower_bound(start);
  while (it != space.pages.end() && it->first < end) {
    if (it->second.frame != nullptr) --it->second.frame->maps;
    it = space.pages.erase(it);
  }
}

void Kernel::drop_mappings(Space& space, std::uint64_t start, std::uint64_t end) {
  drop_pages(space, start, end);
  split(space, start);
  split(space, end);
  auto it = space.vmas.lower_bound(start);
  while (it != space.vmas.end() && it->first < end) it = space.vmas.erase(it);
}

bool Kernel::present(const Space& space, std::uint64_t page) {
  const auto found = space.pages.find(page);
  return found != space.pages.end() && found->second.kind == Pte::Kind::page;
}

// -- calls of programs

void Kernel::pause() {
  while (world_.scheduler.on_fiber() && world_.random.once_in(2)) world_.scheduler.yield();
}

void Kernel::map(Space& space, std::uint64_t start, std::uint64_t bytes, bool dont_fork) {
  space.vmas[start] = {start + bytes, next_id_++, false, dont_fork};
}

Kernel::Touch Kernel::touch(Space& space, Task& task, std::uint64_t page, bool write,
                            Frame*& frame) {
  for (;;) {
    const Vma* const vma = find(space, page);
    if (vma == nullptr) return Touch::segv;
    const auto found = space.pages.find(page);
    if (found != space.pages.end()) {
      Pte& pte = found->second;
      if (pte.kind == Pte::Kind::poison) return Touch::sigbus;
      if (write && (pte.frame->zero || (!pte.exclusive && pte.frame->maps > 1))) {
        auto copy = std::make_shared<Frame>();
        copy->bytes = pte.frame->bytes;
        set_page(space, page, std::move(copy), true);
      }
      Pte& now = space.pages.at(page);
      if (write) now.exclusive = true;
      frame = now.frame.get();
      return Touch::done;
    }
    if (!vma->registered || !uffd_alive(space)) {
      auto fresh = std::make_shared<Frame>();
      fresh->zero = !write;
      set_page(space, page, std::move(fresh), write);
      continue;
    }
    auto wait = std::make_shared<FaultWait>();
    wait->page = page;
    wait->write = write;
    wait->tid = task.tid;
    ++world_.counts.faults;
    world_.trace("fault", page, write ? 1 : 0);
    space.faults.push_back(wait);
    task.call = SYS_pause;  // any that discards nothing
    world_.scheduler.wait([wait] { return wait->woken; });
    task.call = -1;
    space.faults.remove(wait);
  }
}

// Queues the event and waits until it has been read, and until this thread has come back.
void Kernel::tell(Space& space, Task& task, long call, uffd_msg message, std::uint64_t child) {
  auto read = std::make_shared<bool>(false);
  space.events.push_back({message, child, read});
  world_.trace("event", message.event, message.arg.remap.from, message.arg.remap.to);
  task.call = call;
  world_.scheduler.wait([read] { return *read; });
  task.call = -1;
  pause();
  --space.changing;
}

void Kernel::unmap(Space& space, Task& task, std::uint64_t start, std::uint64_t bytes,
                   const Effect& effect) {
  const bool tells = any_registered(space, start, start + bytes);
  if (tells) ++space.changing;
  drop_mappings(space, start, start + bytes);
  world_.trace("unmap", start, bytes / kPage, tells ? 1 : 0);
  if (effect) effect(start, start + bytes);
  if (!tells) return;
  pause();
  tell(space, task, SYS_munmap, range_event(UFFD_EVENT_UNMAP, start, start + bytes));
}

void Kernel::discard(Space& space, Task& task, std::uint64_t start, std::uint64_t bytes,
                     const Effect& effect) {
  const std::uint64_t end = start + bytes;
  for (std::uint64_t at = start; at < end;) {
    const Vma* const vma = find(space, at);
    if (vma == nullptr) return;
    const std::uint64_t part = std::min(end, vma->end);
    if (vma->registered) {
      ++space.changing;
      pause();
      tell(space, task, SYS_madvise, range_event(UFFD_EVENT_REMOVE, at, part));
      pause();
      // It may be preempted here, with its event read and its pages still there (HAZARDS 16).
      if (world_.scheduler.on_fiber() && world_.random.once_in(4)) {
        const std::uint64_t until = world_.clock_ns + world_.random.below(10'000'000);
        world_.scheduler.wait([] { return false; }, until);
      }
    }
    drop_pages(space, at, part);
    world_.trace("dropped", at, (part - at) / kPage);
    if (effect) effect(at, part);
    at = part;
  }
}

bool Kernel::remap(Space& space, Task& task, std::uint64_t from, std::uint64_t old_bytes,
                   std::uint64_t to, std::uint64_t new_bytes, const std::function<void()>& effect) {
  if (!uniform(space, from, old_bytes)) return false;
  const Vma source = *find(space, from);
  const bool onto = any_registered(space, to, to + new_bytes);
  const std::uint64_t kept = std::min(old_bytes, new_bytes);
  const bool tells = source.registered;
  if (onto) ++space.changing;
  if (tells) space.changing += 2;
  // mremap cuts off first what does not come along.
  const bool cut = tells && old_bytes > new_bytes;
  if (cut) ++space.changing;
  drop_mappings(space, to, to + new_bytes);
  std::map<std::uint64_t, Pte> moved;
  for (auto it = space.pages.lower_bound(from);
       it != space.pages.end() && it->first < from + kept;) {
    moved.insert(space.pages.extract(it++));
  }
  drop_mappings(space, from, from + old_bytes);
  Vma target = source;
  target.end = to + new_bytes;
  target.id = next_id_++;
  space.vmas[to] = target;
  for (auto& [page, pte] : moved) space.pages[page - from + to] = std::move(pte);
  world_.trace("remap", from, to, old_bytes / kPage);
  effect();
  pause();
  if (onto) tell(space, task, SYS_mremap, range_event(UFFD_EVENT_UNMAP, to, to + new_bytes));
  if (!tells) return true;
  uffd_msg remapped{};
  remapped.event = UFFD_EVENT_REMAP;
  remapped.arg.remap.from = from;
  remapped.arg.remap.to = to;
  remapped.arg.remap.len = kept;
  tell(space, task, SYS_mremap, remapped);
  pause();
  if (cut) {
    tell(space, task, SYS_mremap,
         range_event(UFFD_EVENT_UNMAP, from + new_bytes, from + old_bytes));
  }
  tell(space, task, SYS_mremap, range_event(UFFD_EVENT_UNMAP, from, from + kept));
  return true;
}

Space& Kernel::fork(Space& space, Task& task, pid_t child_pid,
                    const std::function<void(Space&)>& effect) {
  Space& child = make_space(child_pid);
  bool tells = false;
  for (const auto& [start, vma] : space.vmas) {
    if (vma.dont_fork) continue;
    child.vmas[start] = vma;
    child.vmas[start].registered = vma.registered && uffd_alive(space);
    tells = tells || child.vmas[start].registered;
  }
  for (auto& [page, pte] : space.pages) {
    if (!mapped(child, page)) continue;
    pte.exclusive = false;
    child.pages[page] = pte;
    if (pte.frame != nullptr) ++pte.frame->maps;
  }
  world_.trace("fork", static_cast<std::uint64_t>(child_pid), tells ? 1 : 0);
  effect(child);
  if (!tells) return child;
  child.has_uffd = true;
  ++space.changing;
  pause();
  uffd_msg forked{};
  forked.event = UFFD_EVENT_FORK;
  tell(space, task, SYS_clone, forked, child.id);
  return child;
}

// -- userfaultfd

bool Kernel::set_registered(Space& space, std::uint64_t start, std::uint64_t bytes,
                            bool registered) {
  split(space, start);
  split(space, start + bytes);
  bool any = false;
  for (auto& [at, vma] : space.vmas) {
    if (at < start || at >= start + bytes) continue;
    vma.registered = registered;
    any = true;
  }
  join(space);
  return any;
}

int Kernel::register_range(Space& space, std::uint64_t start, std::uint64_t bytes) {
  if (space.gone) return -ESRCH;
  return set_registered(space, start, bytes, true) ? 0 : -EINVAL;
}

int Kernel::unregister_range(Space& space, std::uint64_t start, std::uint64_t bytes) {
  if (space.gone) return -ESRCH;
  if (!set_registered(space, start, bytes, false)) return -EINVAL;
  wake(space, start, bytes);
  return 0;
}

int Kernel::check_target(const Space& space, std::uint64_t start, std::uint64_t bytes) const {
  if (space.changing > 0) return EAGAIN;
  if (space.gone) return ESRCH;
  const Vma* const vma = find(space, start);
  return vma != nullptr && vma->registered && vma->end >= start + bytes ? 0 : ENOENT;
}

// `from`: nothing, for ZEROPAGE.
UffdProgress Kernel::fill(Space& space, std::uint64_t to, const std::byte* from,
                          std::uint64_t bytes) {
  if (const int error = check_target(space, to, bytes); error != 0) return {0, error};
  for (std::uint64_t at = 0; at < bytes; at += kPage) {
    const auto found = space.pages.find(to + at);
    // COPY replaces a marker; ZEROPAGE does not.
    const bool there =
        found != space.pages.end() && (found->second.kind == Pte::Kind::page || from == nullptr);
    if (there) {
      wake(space, to, at);
      return {at, at == 0 ? EEXIST : EAGAIN};
    }
    auto frame = std::make_shared<Frame>();
    frame->zero = from == nullptr;
    if (from != nullptr) std::memcpy(frame->bytes.data(), from + at, kPage);
    set_page(space, to + at, std::move(frame), from != nullptr);
  }
  wake(space, to, bytes);
  return {bytes, 0};
}

int Kernel::poison(Space& space, std::uint64_t page) {
  if (const int error = check_target(space, page, kPage); error != 0) return -error;
  if (space.pages.contains(page)) return -EEXIST;
  space.pages[page] = {Pte::Kind::poison, nullptr, false};
  wake(space, page, kPage);
  return 0;
}

void Kernel::wake(Space& space, std::uint64_t start, std::uint64_t bytes) {
  for (const auto& fault : space.faults) {
    if (fault->page - start < bytes) fault->woken = true;
  }
}

int Kernel::probe(Space& space, std::uint64_t start, std::uint64_t bytes) {
  const int error = check_target(space, start, bytes);
  return error == 0 ? -EINVAL : -error;
}

bool Kernel::readable(const Space& space) {
  return !space.events.empty() ||
         std::ranges::any_of(space.faults, [](const auto& f) { return !f->read && !f->woken; });
}

int Kernel::read(Space& space, std::span<uffd_msg> messages) {
  std::size_t count = 0;
  for (const auto& fault : space.faults) {
    if (count == messages.size()) return static_cast<int>(count);
    if (fault->read || fault->woken) continue;
    fault->read = true;
    uffd_msg& m = messages[count++];
    m = uffd_msg{};
    m.event = UFFD_EVENT_PAGEFAULT;
    m.arg.pagefault.address = fault->page;
    m.arg.pagefault.flags = fault->write ? UFFD_PAGEFAULT_FLAG_WRITE : 0;
    m.arg.pagefault.feat.ptid = static_cast<std::uint32_t>(fault->tid);
  }
  while (!space.events.empty() && count < messages.size()) {
    QueuedEvent& event = space.events.front();
    uffd_msg& m = messages[count++];
    m = event.message;
    if (event.child != 0) {
      Space& child = *this->space(event.child);
      m.arg.fork.ufd = static_cast<std::uint32_t>(open_uffd(child).release());
    }
    world_.trace("read event", m.event, m.arg.remap.from, static_cast<std::uint64_t>(space.pid));
    *event.read = true;
    space.events.pop_front();
  }
  return static_cast<int>(count);
}

int Kernel::movable(const Space& space, std::uint64_t to, std::uint64_t from) {
  if (space.pages.contains(to)) return EEXIST;
  const auto source = space.pages.find(from);
  if (source == space.pages.end()) return ENOENT;
  if (source->second.kind != Pte::Kind::page) return EFAULT;
  const Frame& frame = *source->second.frame;
  return !frame.zero && (!source->second.exclusive || frame.maps > 1) ? EBUSY : 0;
}

int Kernel::move(Space& space, std::uint64_t to, std::uint64_t from, std::uint64_t bytes,
                 std::int64_t& moved) {
  moved = 0;
  std::uint64_t taken = 0;
  const auto answer = [&](int error) {
    world_.trace("move", from, taken, static_cast<std::uint64_t>(error));
    if (moved == 0) moved = -error;
    return moved > 0 && error != 0 ? -EAGAIN : -error;
  };
  if (const int error = check_target(space, to, bytes); error != 0)
    return answer(error == ENOENT ? EINVAL : error);
  if (find(space, from) == nullptr) return answer(ENOENT);
  if (!uniform(space, from, bytes)) return answer(EINVAL);
  // Now and then it forgets what it has moved, tries that again, and finds it there.
  const bool forgets = bytes > kPage && world_.random.once_in(24);
  const std::uint64_t stop = forgets ? world_.random.between(1, bytes / kPage) * kPage : bytes;
  for (std::uint64_t at = 0; at < stop; at += kPage) {
    const int error = movable(space, to + at, from + at);
    if (error != 0) return answer(error);
    space.pages[to + at] = space.pages.extract(from + at).mapped();
    space.moved_page = from + at;
    ++world_.counts.moved;
    ++taken;
    moved += static_cast<std::int64_t>(kPage);
  }
  if (!forgets) return answer(0);
  moved = 0;
  return answer(EEXIST);
}

// -- what can be seen from outside

std::uint64_t Kernel::pagemap_word(const Space& space, std::uint64_t page) {
  constexpr std::uint64_t kPresent = 1ULL << 63, kSwapped = 1ULL << 62, kMappedOnce = 1ULL << 56;
  const auto found = space.pages.find(page);
  if (found == space.pages.end()) return 0;
  if (found->second.kind != Pte::Kind::page) return kSwapped;
  const Frame& frame = *found->second.frame;
  return kPresent | (!frame.zero && frame.maps == 1 ? kMappedOnce : 0);
}

int Kernel::pagemap_scan(const Space& space, uapi::PmScanArg& arg) {
  auto* const regions = reinterpret_cast<uapi::PageRegion*>(arg.vec);
  std::uint64_t count = 0;
  arg.walk_end = arg.end;
  for (auto it = space.pages.lower_bound(arg.start); it != space.pages.end() && it->first < arg.end;
       ++it) {
    if (it->second.kind != Pte::Kind::page) continue;
    const std::uint64_t categories =
        uapi::kPageIsPresent | (it->second.frame->zero ? uapi::kPageIsPfnZero : 0);
    if (((categories ^ arg.category_inverted) & arg.category_mask) != arg.category_mask) continue;
    if (count != 0 && regions[count - 1].end == it->first) {
      regions[count - 1].end += kPage;
      continue;
    }
    if (count == arg.vec_len) {
      arg.walk_end = it->first;
      break;
    }
    regions[count++] = {it->first, it->first + kPage, categories & arg.return_mask};
  }
  return static_cast<int>(count);
}

std::string Kernel::smaps(const Space& space) {
  std::string text;
  for (const auto& [start, vma] : space.vmas) {
    std::uint64_t pages = 0;
    for (auto it = space.pages.lower_bound(start); it != space.pages.end() && it->first < vma.end;
         ++it) {
      pages += it->second.kind == Pte::Kind::page && !it->second.frame->zero ? 1 : 0;
    }
    text += fmt::format(
        "{:x}-{:x} rw-p 00000000 00:00 0 \nAnonymous: {} kB\nVmFlags: rd wr mr mw me ac{}{}\n",
        start, vma.end, pages * 4, vma.dont_fork ? " dc" : "", vma.registered ? " um" : "");
  }
  return text;
}

int Kernel::query_mapping(const Space& space, uapi::ProcmapQuery& query) {
  for (const auto& [start, vma] : space.vmas) {
    if (vma.end <= query.query_addr) continue;
    query.vma_start = start;
    query.vma_end = vma.end;
    query.vma_flags = uapi::kVmaReadable | uapi::kVmaWritable;
    query.vma_page_size = kPage;
    query.inode = 0;
    return 0;
  }
  return -ENOENT;
}

int Kernel::read_page(const Space& space, std::uint64_t page, std::byte* to) {
  const Vma* const vma = find(space, page);
  if (vma == nullptr) return -EIO;
  const auto found = space.pages.find(page);
  if (found != space.pages.end()) {
    if (found->second.kind != Pte::Kind::page) return -EIO;
    std::memcpy(to, found->second.frame->bytes.data(), kPage);
    return static_cast<int>(kPage);
  }
  if (vma->registered) return -EIO;
  std::memset(to, 0, kPage);
  return static_cast<int>(kPage);
}

std::string Kernel::statm(const Space& space) {
  std::uint64_t size = 1;
  for (const auto& [start, vma] : space.vmas) size += (vma.end - start) / kPage;
  std::uint64_t resident = 0;
  for (const auto& [page, pte] : space.pages) {
    resident += pte.kind == Pte::Kind::page && !pte.frame->zero ? 1 : 0;
  }
  return fmt::format("{} {} 0 1 0 1 0\n", size, resident);
}

}  // namespace foldswap::sim
