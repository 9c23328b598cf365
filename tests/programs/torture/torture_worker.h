// A thread of the torture client, or a forked child: its areas, its heap, its generator, and the
// random calls that it makes. All choices come from the generator, so that a seed replays the same
// calls. Each call checks what it may, then changes the memory, then the shadow.
#pragma once

#include <sys/types.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <vector>

#include "tests/programs/lib/common.h"
#include "tests/programs/torture/torture_area.h"
#include "tests/programs/torture/torture_board.h"
#include "tests/programs/torture/torture_heap.h"
#include "tests/programs/torture/torture_journal.h"

namespace testprog::torture {

struct Settings {
  std::uint64_t seed;
  std::size_t threads;
  std::size_t pages;  // of each thread
  bool fork;
  bool until_eof;  // or until the test closes our input
};

class Worker {
 public:
  Worker(const Settings& settings, Board& board, std::uint64_t owner);

  [[nodiscard]] Slot& slot() { return *slot_; }
  void step();       // one random call, or a few checks
  void check_all();  // all that it is entitled to
  void finish();     // waits for its children, too

  // Forks; the child checks everything it inherited (of `others` as well, who must stand still),
  // does something random and ends. The parent waits, or goes on and waits later.
  void fork_child(const std::vector<Worker*>& others = {});

 private:
  using Call = void (Worker::*)();
  struct Chance {
    unsigned weight;
    Call call;
  };
  static const std::vector<Chance>& chances();

  // -- torture_worker.cc
  void add_area();
  void drop_area(std::size_t index);
  void forget_empty();
  Area& some_area();
  [[nodiscard]] std::size_t mapped_pages() const;
  void expect(long result, const char* call);  // -1: ends the process
  // After an mremap that failed. A fork keeps neighbouring mappings apart that would have become
  // one, in parent and child, and mremap of two is refused: then nothing may have moved. Any other
  // failure ends the process.
  void expect_untouched(Area& area, Span span, const char* call);
  void rewrite();
  void look();
  void look_at_board();
  void change_board();
  void churn_heap();
  void make_thread();

  // -- torture_calls.cc: mmap, munmap, mprotect, mlock, madvise
  void discard();
  void free_lazily();
  void unmap();
  void replace();
  void fill_holes();
  void protect();
  void lock();
  void normalize();
  void advise_harmlessly();
  void advise_huge();
  void populate();
  void advise_fork();
  void install_guards();
  void remove_guards();
  void check_refused();
  void rebuild();

  // -- torture_moves.cc: mremap
  struct Target {
    std::byte* address;
    Area* area;  // nullptr: a fresh one
    std::size_t first;
  };
  void move_away();
  void move_over();
  void grow();
  void shrink();
  void dont_unmap();
  void became_area(std::byte* base, const std::vector<PageShadow>& pages);

  // -- torture_io.cc: the kernel reads and writes the memory
  void through_pipe();
  void through_process_vm();

  // -- torture_fork.cc
  enum class Ending { exit, exec, killed, linger, orphan };
  struct Child {
    pid_t pid;
    Slot* slot;
    bool killed;
  };
  void fork_alone() { fork_child(); }
  void spawn();
  [[noreturn]] void be_child(Slot& slot, Author author, std::uint64_t seed, Ending ending,
                             const std::vector<Worker*>& others);
  void become(Slot& slot, Author author, std::uint64_t seed);
  void diverge();
  void leave_orphan();
  void wait_for(const Child& child);
  void wait_for_some();

  Settings settings_;
  Board* board_;
  Author author_;
  Random random_;
  Slot* slot_;
  std::vector<Area> areas_;
  Heap heap_;
  std::vector<Child> children_;
  unsigned depth_ = 0;  // how many forks away from the first process
};

// Page-aligned private memory; address nullptr: anywhere.
[[nodiscard]] std::byte* map_at(void* address, std::size_t pages, int more_flags);

}  // namespace testprog::torture
