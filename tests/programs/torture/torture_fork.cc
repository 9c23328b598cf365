// Forks. A child inherits its thread's areas, heap and board with their shadow, checks all of it,
// makes its pages differ from its parent's, and ends in one of several ways. Status 0: all was
// right.
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <mutex>

#include "tests/programs/torture/torture_worker.h"

namespace testprog::torture {
namespace {

constexpr unsigned kMostDepth = 3;
constexpr std::size_t kMostChildren = 3;

}  // namespace

void Worker::become(Slot& slot, Author author, std::uint64_t seed) {
  slot_ = &slot;
  enter_slot(slot);
  use_alternative_stack();
  set_child_alarm();
  author_ = author;
  random_ = Random(seed);
  children_.clear();
  board_->become_child();
  ++depth_;
}

// Own pages, here and there; then everything again, so that neither side sees the other's.
void Worker::diverge() {
  slot_->note("diverge");
  for (Area& area : areas_) {
    for (std::size_t n = 0; n < 1 + area.size() / 16; ++n) {
      const Span span = area.pick(random_, 4, &PageShadow::writable);
      for (std::size_t i = span.first; i < span.end(); ++i) area.write(i, author_);
    }
  }
  board_->diverge(random_);
}

void Worker::be_child(Slot& slot, Author author, std::uint64_t seed, Ending ending,
                      const std::vector<Worker*>& others) {
  become(slot, author, seed);
  slot.note("child", std::uint64_t{0}, depth_, static_cast<unsigned>(ending));
  for (Area& area : areas_) area.inherit(author_);
  forget_empty();
  const bool all = random_.below(2) == 0;
  if (all) {
    check_all();
    slot.note("check the board");
    board_->check_all(slot);
  }
  for (Worker* other : others) {
    if (other == this) continue;
    slot.note("check another thread's");
    for (Area& area : other->areas_) {
      area.inherit(author_);
      area.check_all(slot);
    }
    other->heap_.check_all(slot);
  }
  diverge();
  if (ending == Ending::exec) {
    execl("/bin/true", "true", nullptr);
    fail_call(slot, "exec", errno);
  }
  const bool killed = ending == Ending::killed;
  const std::uint64_t steps = killed ? ~0ULL : random_.below(ending == Ending::linger ? 120 : 30);
  for (std::uint64_t n = 0; n < steps; ++n) step();
  while (!children_.empty()) {
    wait_for(children_.back());
    children_.pop_back();
  }
  check_all();
  board_->check_all(slot);
  if (ending == Ending::orphan) {
    release_slot(slot);
    strays().fetch_sub(1);
  }
  _exit(0);
}

void Worker::fork_child(const std::vector<Worker*>& others) {
  if (!settings_.fork || depth_ >= kMostDepth) return;
  if (children_.size() >= kMostChildren) return wait_for_some();
  const std::uint64_t draw = random_.below(8);
  Ending ending = draw == 0   ? Ending::exec
                  : draw == 1 ? Ending::killed
                  : draw == 2 ? Ending::orphan
                  : draw < 6  ? Ending::linger
                              : Ending::exit;
  // Whoever may be killed has no children that nobody would wait for.
  if (depth_ > 0 && (ending == Ending::killed || ending == Ending::orphan)) ending = Ending::exit;
  if (ending == Ending::orphan) return leave_orphan();
  const std::uint64_t seed = random_.next();
  const Author author = author_.child();
  Slot& slot = claim_slot(author.owner(), seed);
  slot_->note("fork", std::uint64_t{0}, others.size(), static_cast<unsigned>(ending));
  std::unique_lock<std::shared_mutex> gate(board_->gate(), std::defer_lock);
  if (depth_ == 0) gate.lock();
  const pid_t pid = fork();
  if (pid == 0) {
    if (ending == Ending::killed) depth_ = kMostDepth;
    be_child(slot, author, seed, ending, others);
  }
  if (gate.owns_lock()) gate.unlock();
  expect(pid, "fork");
  slot.pid = pid;
  const Child child{pid, &slot, ending == Ending::killed};
  if (ending == Ending::killed) {
    rewrite();
    sleep_ms(static_cast<unsigned>(random_.below(60)));
    kill(pid, SIGKILL);
  }
  if (ending == Ending::linger) {
    children_.push_back(child);
    return rewrite();
  }
  rewrite();
  look();
  wait_for(child);
}

// The child's own child outlives it and does the checking.
void Worker::leave_orphan() {
  const std::uint64_t seed = random_.next();
  const Author author = author_.child();
  Slot& slot = claim_slot(author.owner(), seed);
  slot_->note("fork an orphan");
  strays().fetch_add(1);
  std::unique_lock<std::shared_mutex> gate(board_->gate());
  const pid_t pid = fork();
  if (pid == 0) {
    const pid_t grandchild = fork();
    if (grandchild != 0) _exit(grandchild > 0 ? 0 : kExitBroken);
    be_child(slot, author, seed, Ending::orphan, {});
  }
  gate.unlock();
  expect(pid, "fork");
  rewrite();
  int status = 0;
  expect(waitpid(pid, &status, 0), "waitpid");
  if (status != 0) fail(*slot_, "the parent of an orphan ended with " + std::to_string(status));
}

void Worker::spawn() {
  if (!settings_.fork || depth_ > 0) return;
  slot_->note("posix_spawn");
  std::array<char*, 2> arguments{const_cast<char*>("true"), nullptr};
  pid_t pid = 0;
  const int error = posix_spawn(&pid, "/bin/true", nullptr, nullptr, arguments.data(), environ);
  if (error != 0) fail_call(*slot_, "posix_spawn", error);
  rewrite();
  wait_for({pid, nullptr, false});
}

void Worker::wait_for(const Child& child) {
  slot_->note("waitpid", std::uint64_t{0}, 0, static_cast<std::uint64_t>(child.pid));
  int status = 0;
  while (waitpid(child.pid, &status, 0) < 0) {
    if (errno != EINTR) expect(-1, "waitpid");
  }
  if (child.slot != nullptr) release_slot(*child.slot);
  if (child.killed && WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL) return;
  if (status == 0 && !child.killed) return;
  fail(*slot_,
       "child " + std::to_string(child.pid) + " ended with wait status " + std::to_string(status));
}

void Worker::wait_for_some() {
  while (!children_.empty()) {
    const Child child = children_.back();
    children_.pop_back();
    wait_for(child);
    if (random_.below(2) == 0) return;
  }
}

}  // namespace testprog::torture
