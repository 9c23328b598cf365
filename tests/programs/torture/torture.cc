// The torture client: seeded threads make random calls over memory of their own, and fault on a
// board that all of them share; every byte that they are entitled to is verified, in forked
// children, too. A test reclaims, restores and changes budgets meanwhile. Wrong bytes, refused
// calls, hangs and crashes end it with a story and the command that replays it.
//
// --seed, --seconds, --threads, --fork=0|1, --mb (of all threads together, without the board),
// --hang: seconds without progress that are a hang. --until_eof=1: or until our input is closed.
//
// Time is cut into phases: all threads make the same number of calls, then stand still at a
// barrier. There the board moves, and a child is forked that can check every thread's memory. All
// choices come from generators seeded by --seed; only the number of phases and the timing differ
// between runs.
#include <malloc.h>
#include <unistd.h>

#include <algorithm>
#include <barrier>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "tests/programs/lib/common.h"
#include "tests/programs/torture/torture_worker.h"

using namespace testprog;
using namespace testprog::torture;

namespace {

constexpr int kCallsPerPhase = 150;
constexpr std::size_t kBoardPages = 512;

struct Run {
  Settings settings;
  double end;
  Board board;
  std::vector<std::unique_ptr<Worker>> workers;
  std::vector<Worker*> all;
  std::barrier<> barrier;
  bool over = false;  // written by the first thread while all others wait
  std::uint64_t phases = 0;

  Run(const Settings& given, double ending)
      : settings(given),
        end(ending),
        board(kBoardPages),
        barrier(static_cast<std::ptrdiff_t>(given.threads)) {
    for (std::size_t t = 0; t < given.threads; ++t) {
      workers.push_back(std::make_unique<Worker>(given, board, 1 + t));
      all.push_back(workers.back().get());
    }
  }

  void wait(Worker& worker) {
    worker.slot().note("barrier");
    barrier.arrive_and_wait();
  }

  // By the first thread; all others wait.
  void between_phases(Random& random) {
    Worker& first = *all.front();
    ++phases;
    board.rearrange(random, first.slot());
    if (random.below(3) == 0) first.fork_child(all);
    over = seconds_now() >= end || (settings.until_eof && stdin_closed());
  }

  void work(std::size_t index) {
    Worker& worker = *all[index];
    enter_slot(worker.slot());
    use_alternative_stack();
    Random random(settings.seed ^ 0x5eed);
    while (!over) {
      for (int n = 0; n < kCallsPerPhase; ++n) worker.step();
      wait(worker);
      if (index == 0) between_phases(random);
      wait(worker);
      worker.slot().note("stampede");
      board.stampede(Random(settings.seed + phases), worker.slot());
    }
    worker.finish();
    wait(worker);
  }
};

// Different programs tune malloc differently.
void tune_malloc(Random random) {
  mallopt(M_ARENA_MAX, random.below(2) == 0 ? 1 : 8);
  mallopt(M_MMAP_THRESHOLD, random.below(2) == 0 ? 64 * 1024 : 8 << 20);
  mallopt(M_TRIM_THRESHOLD, 64 * 1024);
}

void wait_for_strays() {
  while (strays().load() > 0) sleep_ms(20);
}

}  // namespace

int main(int argc, char** argv) {
  const Options options(argc, argv);
  Settings settings{};
  settings.seed = options.number("seed", 1);
  settings.threads = std::max<std::uint64_t>(options.number("threads", 4), 1);
  settings.fork = options.number("fork", 1) != 0;
  settings.until_eof = options.number("until_eof", 0) != 0;
  const std::uint64_t mb = options.number("mb", 32), seconds = options.number("seconds", 20);
  settings.pages = std::max<std::size_t>(mb * 256 / settings.threads, 192);
  const std::string replay =
      "torture --seed=" + std::to_string(settings.seed) + " --seconds=" + std::to_string(seconds) +
      " --threads=" + std::to_string(settings.threads) +
      " --fork=" + std::to_string(settings.fork ? 1 : 0) + " --mb=" + std::to_string(mb);
  open_journal(replay, static_cast<unsigned>(options.number("hang", 60)));
  tune_malloc(Random(settings.seed));
  catch_crashes();
  Run run(settings, seconds_now() + static_cast<double>(seconds));
  say("ready");
  start_watchdog();
  std::vector<std::thread> threads;
  for (std::size_t t = 0; t < settings.threads; ++t)
    threads.emplace_back([&run, t] { run.work(t); });
  for (auto& thread : threads) thread.join();
  std::uint64_t calls = 0;
  for (Worker* worker : run.all) calls += worker->slot().count.load();
  for (Worker* worker : run.all) release_slot(worker->slot());
  wait_for_strays();
  run.board.check_all(run.all.front()->slot());
  say("done " + std::to_string(calls) + " operations in " + std::to_string(run.phases) + " phases");
  return 0;
}
