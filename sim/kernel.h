// Kernel: a model of what Linux does with the memory of processes and with userfaultfd, page by
// page, as far as programs, agent and daemon of a simulation can see it. What each call does, and
// what it answers, is what docs/KERNEL.md and docs/HAZARDS.md say was seen on Linux 6.18:
//
//   - a change of the address space (munmap, mremap, fork) happens, then its event is queued, then
//   its
//     thread waits until it has been read; madvise(DONTNEED) queues first and drops afterwards.
//     From the beginning until the thread has come back every COPY, ZEROPAGE, MOVE and PROBE is
//     EAGAIN;
//   - so events of several threads are queued in any order, and a discard has a window between the
//     end of its event and the end of its pages;
//   - a read(2) gives faults before events; FORK makes the child's descriptor while it is read;
//   - REGISTER passes over holes; MOVE takes pages of what is not registered, refuses what a fork
//     has shared, and now and then takes pages without saying so (preload/mover.cc, moved_untold).
//
// Descriptors are real ones, of empty memory files, told apart by inode: so they can be duplicated,
// closed and inherited. Thread safety: none. What may block says so, and is called on a fiber.
#pragma once

#include <linux/userfaultfd.h>
#include <sys/types.h>

#include <array>
#include <cstdint>
#include <deque>
#include <functional>
#include <list>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/os.h"
#include "base/uapi.h"
#include "base/unique_fd.h"
#include "base/wire.h"
#include "sim/world.h"

namespace foldswap::sim {

inline constexpr std::uint64_t kPage = wire::kPageBytes;
using PageBytes = std::array<std::byte, kPage>;

struct Frame {
  PageBytes bytes{};
  unsigned maps = 0;  // page tables that it is in
  bool zero = false;  // the zero page
};

struct Pte {
  enum class Kind : std::uint8_t { page, poison };
  Kind kind = Kind::page;
  std::shared_ptr<Frame> frame;
  bool exclusive = false;  // nobody has shared it since it was last written to
};

struct Vma {
  std::uint64_t end = 0;
  std::uint64_t id =
      0;  // of the mmap or mremap that made it: neighbours of one id become one again
  bool registered = false;
  bool dont_fork = false;
};

// An event that waits to be read, with the thread that waits for that.
struct QueuedEvent {
  uffd_msg message{};
  std::uint64_t child = 0;  // FORK: the space
  std::shared_ptr<bool> read;
};

struct FaultWait {
  std::uint64_t page = 0;
  bool write = false;
  pid_t tid = 0;
  bool read = false, woken = false;
};

struct Space {
  std::uint64_t id = 0;
  pid_t pid = 0;
  std::map<std::uint64_t, Vma> vmas;  // by start
  std::map<std::uint64_t, Pte> pages;
  bool has_uffd = false;        // a userfaultfd was made for it
  bool held_by_client = false;  // its agent has a duplicate
  int daemon_fd = -1;           // the number that the daemon was given
  std::uint64_t uffd_inode = 0;
  int changing = 0;
  std::uint64_t moved_page = 0;  // by the last MOVE; 0: none was
  std::deque<QueuedEvent> events;
  std::list<std::shared_ptr<FaultWait>> faults;
  bool gone = false;
};

// A process as /proc tells of it.
struct Task {
  pid_t tid = 0;
  std::uint64_t ticks = 0;
  long call = -1;  // the system call that it sleeps in; -1: it runs
  std::uint64_t robust_list = 0;
};

class Kernel {
 public:
  explicit Kernel(World& world) : world_(world) {}

  enum class Touch : std::uint8_t { done, segv, sigbus };
  using Effect = std::function<void(std::uint64_t start, std::uint64_t end)>;

  // -- processes
  Space& make_space(pid_t pid);
  [[nodiscard]] Space* space(std::uint64_t id);
  void exit(Space& space);                 // of all its threads
  std::map<pid_t, std::list<Task>> tasks;  // by pid
  [[nodiscard]] Task* task(pid_t pid, pid_t tid);

  // -- calls of programs; those that may block take the thread that does
  void map(Space& space, std::uint64_t start, std::uint64_t bytes, bool dont_fork = false);
  // The page is there for this access when it is done: nothing else happens until the caller gives
  // way. Blocks.
  Touch touch(Space& space, Task& task, std::uint64_t page, bool write, Frame*& frame);
  // `effect` when the pages have gone. Blocks.
  void unmap(Space& space, Task& task, std::uint64_t start, std::uint64_t bytes,
             const Effect& effect);
  // `effect` for each part when its pages have gone. Blocks.
  void discard(Space& space, Task& task, std::uint64_t start, std::uint64_t bytes,
               const Effect& effect);
  // Onto [to, to + new_bytes), whatever is there. False: EFAULT, part of it is registered and part
  // is not. Blocks.
  bool remap(Space& space, Task& task, std::uint64_t from, std::uint64_t old_bytes,
             std::uint64_t to, std::uint64_t new_bytes, const std::function<void()>& effect);
  // `effect` when the child's memory is there. Blocks.
  Space& fork(Space& space, Task& task, pid_t child_pid, const std::function<void(Space&)>& effect);

  // -- userfaultfd, of whoever has the descriptor
  int register_range(Space& space, std::uint64_t start, std::uint64_t bytes);
  int unregister_range(Space& space, std::uint64_t start, std::uint64_t bytes);
  UffdProgress fill(Space& space, std::uint64_t to, const std::byte* from, std::uint64_t bytes);
  int poison(Space& space, std::uint64_t page);
  void wake(Space& space, std::uint64_t start, std::uint64_t bytes);
  int probe(Space& space, std::uint64_t start, std::uint64_t bytes);  // 0 or -errno, as CONTINUE
  int read(Space& space, std::span<uffd_msg> messages);
  [[nodiscard]] static bool readable(const Space& space);
  // Only from inside. Bytes moved, or -errno; -EAGAIN with `moved`.
  int move(Space& space, std::uint64_t to, std::uint64_t from, std::uint64_t bytes,
           std::int64_t& moved);

  // -- what can be seen from outside
  [[nodiscard]] static std::uint64_t pagemap_word(const Space& space, std::uint64_t page);
  static int pagemap_scan(const Space& space, uapi::PmScanArg& arg);
  [[nodiscard]] static std::string smaps(const Space& space);
  static int query_mapping(const Space& space, uapi::ProcmapQuery& query);
  // One page, as /proc/PID/mem shows it: what is not there, and registered, is an error.
  static int read_page(const Space& space, std::uint64_t page, std::byte* to);
  [[nodiscard]] static std::string statm(const Space& space);
  [[nodiscard]] static bool present(const Space& space, std::uint64_t page);
  // The range is one mapping, in one state.
  [[nodiscard]] static bool uniform(const Space& space, std::uint64_t start, std::uint64_t bytes);
  [[nodiscard]] static bool mapped(const Space& space, std::uint64_t page);
  [[nodiscard]] static bool free_range(const Space& space, std::uint64_t start,
                                       std::uint64_t bytes);

  // -- descriptors
  // A new one of this space's userfaultfd, pagemap, maps, memory or pidfd, in the daemon's table.
  UniqueFd open_uffd(Space& space);
  UniqueFd open_pagemap(Space& space);
  UniqueFd open_maps(Space& space);
  UniqueFd open_memory(Space& space);
  UniqueFd open_pidfd(Space& space);
  [[nodiscard]] Space* of_fd(int fd, char kind);  // 'u', 'p', 'm', 'r' or 'd'

 private:
  struct Handle {
    char kind;
    std::uint64_t space;
  };
  UniqueFd make_handle(char kind, Space& space);
  [[nodiscard]] bool uffd_alive(const Space& space) const;
  void split(Space& space, std::uint64_t at);
  void join(Space& space);
  [[nodiscard]] static const Vma* find(const Space& space, std::uint64_t page);
  [[nodiscard]] static bool any_registered(const Space& space, std::uint64_t start,
                                           std::uint64_t end);
  static void set_page(Space& space, std::uint64_t page, std::shared_ptr<Frame> frame,
                       bool exclusive);
  static void drop_pages(Space& space, std::uint64_t start, std::uint64_t end);
  void drop_mappings(Space& space, std::uint64_t start, std::uint64_t end);
  [[nodiscard]] static int movable(const Space& space, std::uint64_t to, std::uint64_t from);
  // False: nothing is mapped there.
  bool set_registered(Space& space, std::uint64_t start, std::uint64_t bytes, bool registered);
  [[nodiscard]] int check_target(const Space& space, std::uint64_t start,
                                 std::uint64_t bytes) const;
  void tell(Space& space, Task& task, long call, uffd_msg message, std::uint64_t child = 0);
  void pause();

  World& world_;
  std::map<std::uint64_t, std::unique_ptr<Space>> spaces_;
  std::map<std::uint64_t, Handle> handles_;  // by inode
  std::vector<UniqueFd> kept_;               // so that no inode's number is given out again
  std::uint64_t next_id_ = 1;
};

// Descriptors from here on are the simulation's own, not the daemon's.
inline constexpr int kOwnFds = 2'000;

}  // namespace foldswap::sim
