// Process: a simulated program, with the library's own code in it. Its threads read, write,
// discard, map, move and fork as chance has it, and know at every moment what each page must hold:
// a read that finds anything else fails the run.
//
// preload/mover.cc (the agent's work) and preload/request.cc (announced calls, requests) are built
// into the simulator as they are, over sim/shadow/preload/machine.h: every system call of theirs
// comes to client_call(), and any other fiber may run between two looks at shared memory.
// Thread safety: none. What may block says so, and is called on a fiber of the process.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "base/mapping.h"
#include "base/wire.h"
#include "preload/state.h"
#include "sim/kernel.h"
#include "sim/world.h"

namespace foldswap::sim {

inline constexpr std::uint64_t kStaging = 0x7e0000000000;
inline constexpr std::uint64_t kThreadBlocks = 0x7d0000000000;  // never evicted
inline constexpr std::uint64_t kArena = 0x7f0000000000;
inline constexpr std::uint64_t kPlacePages = 128, kPlaces = 20;

class Processes;

struct Thread {
  pid_t tid = 0;
  Task* task = nullptr;
  std::uint64_t page = 0;                        // that it accesses now; 0: none
  bool discards = false;                         // what it claims
  std::uint64_t claim_start = 0, claim_end = 0;  // nobody else touches these
  std::uint64_t claim2_start = 0, claim2_end = 0;
};

class Process {
 public:
  Process(World& world, Kernel& kernel, Processes& all, Space& space);
  Process(const Process&) = delete;
  Process& operator=(const Process&) = delete;
  ~Process() = default;

  [[nodiscard]] pid_t pid() const { return space.pid; }
  void start(unsigned threads);
  // From outside, or by the daemon; nothing of it runs on.
  void kill();

  // -- being a client: what the handshake would bring (daemon side: sim/machine.h)
  enum class Wish : std::uint8_t { none, registration, child };  // that it has, and waits for
  Wish wish = Wish::none;
  std::uint64_t wish_at_ns = 0;
  std::uint64_t parent_id = 0;  // child: of the parent as a client, and which fork it was
  std::uint32_t fork_seq = 0;
  std::vector<std::uint64_t> not_these;  // clients that it is not
  struct Areas {
    UniqueFd mailbox, transfer;  // for the daemon
  };
  [[nodiscard]] Areas make_areas(std::uint64_t client_id, std::uint32_t incarnation);
  void go_live(std::uint64_t client_id);
  [[nodiscard]] bool live() const { return live_; }
  [[nodiscard]] std::uint64_t client_id() const { return library.client_id; }

  // Pages that hold something, are not there, and are in nobody's hands.
  void for_each_absent(const std::function<void(std::uint64_t page)>& each) const;
  // To all of its pages.
  void happens_everywhere(Happens event) const;
  // The object of this page, which is out, does not verify from now on. It, and what holds the same
  // bytes and so may share the object, may be poisoned: any other SIGBUS is a failure. False: it is
  // not known what the page holds.
  [[nodiscard]] bool note_damage(std::uint64_t page);

  // -- the end of a run
  // Every page, read and compared. Blocks; on a fiber of its own.
  void check_everything();
  [[nodiscard]] bool quiet() const { return running_ == 0; }

  Space& space;
  preload::Library library{};  // while none of its fibers runs
  bool dead = false;
  bool checked = false;

 private:
  friend long client_call(long, long, long, long, long, long, long);
  struct Truth {
    PageBytes bytes{};
    bool or_zeros = false;  // it was forked while another thread discarded it: either is right
  };
  void run_thread(Thread& thread);
  void run_agent();
  void act(Thread& thread);
  void access(Thread& thread, std::uint64_t page, bool write);
  void do_access(Thread& thread);
  void do_scan(Thread& thread);
  void do_discard(Thread& thread);
  void do_map(Thread& thread);
  void do_unmap(Thread& thread);
  void do_remap(Thread& thread);
  void do_release(Thread& thread);
  void do_fork(Thread& thread);
  void compare(const Frame& frame, std::uint64_t page);
  [[nodiscard]] bool damaged(std::uint64_t page) const;
  void scribble(Frame& frame, std::uint64_t page);
  [[nodiscard]] std::uint64_t any_page(const Thread& thread);
  // A range of one mapping that nobody uses; claimed. False: none found. `at` a page: around it,
  // though somebody accesses it.
  [[nodiscard]] bool claim(Thread& thread, bool whole, std::uint64_t at = 0);
  // That another thread waits for, now and then; else 0.
  [[nodiscard]] std::uint64_t waited_for(const Thread& thread);
  [[nodiscard]] std::uint64_t free_place(std::uint64_t bytes);
  [[nodiscard]] bool in_use(std::uint64_t start, std::uint64_t end, const Thread* but) const;
  [[nodiscard]] bool claimed(std::uint64_t start, std::uint64_t end, const Thread* but) const;
  static void release(Thread& thread);
  void note_discarded(std::uint64_t start, std::uint64_t end);
  void follow_map(std::uint64_t start, std::uint64_t end);

  World& world_;
  Kernel& kernel_;
  Processes& all_;
  std::vector<std::unique_ptr<Thread>> threads_;
  std::map<std::uint64_t, Truth> truth_;           // pages that are not all zeros
  std::map<std::uint64_t, std::uint64_t> ranges_;  // start -> end, as it has mapped them
  std::uint64_t last_unmapped_ = 0;
  std::vector<Process*> forking_;  // its children whose fork has not returned
  std::unique_ptr<preload::Control> control_;
  preload::Life life_{};
  Mapping mailbox_, transfer_;
  bool live_ = false;
  unsigned running_ = 0;
};

class Processes {
 public:
  Processes(World& w, Kernel& k) : world(w), kernel(k) {}
  // A process that owns some memory; it starts to run.
  Process& make(unsigned threads);
  // The child has its own memory by now.
  Process& adopt(Space& space);
  [[nodiscard]] pid_t next_pid() { return next_pid_ += 100; }
  [[nodiscard]] Process* find(pid_t pid);
  [[nodiscard]] std::size_t alive() const;
  // The library's globals are those of the process whose fiber runs.
  void on_switch(Owner owner);

  // Whether the daemon has given it up, and said so.
  std::function<bool(const Space& space)> doomed;

  World& world;
  Kernel& kernel;
  std::vector<std::unique_ptr<Process>> all;
  bool stopping = false;  // threads come to rest
  std::size_t most = 6;
  std::set<std::string> damaged;  // bytes of pages: what objects on disk held

 private:
  pid_t next_pid_ = 10'000'000;  // no real process has such a number
  Process* running_ = nullptr;
};

// Whose fibers client_call() serves.
void serve_processes(Processes* processes);

}  // namespace foldswap::sim
