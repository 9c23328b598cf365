// The interposed calls against a real userfaultfd: memory, credentials, threads, fork.
#include <gtest/gtest.h>
#include <sched.h>
#include <sys/mman.h>

#include <algorithm>

#include "base/uapi.h"
#include "preload/testing/preload_test.h"

namespace foldswap::preload_test {
namespace {

using wire::PageResult;
using InterposeTest = PreloadTest;
constexpr std::uint64_t kPage = wire::kPageBytes;

// Evicts the middle third, so that the range lies in three VMAs of which one is registered.
#define EVICT_MIDDLE(address, pages)                                                            \
  ASSERT_EQ(                                                                                    \
      count(client->evict(0, (address) + (pages) / 3 * kPage, (pages) / 3), PageResult::moved), \
      (pages) / 3)

TEST_F(InterposeTest, Hazard13MremapOverSlices) {
  start();
  unsigned long address = filled(96);
  EVICT_MIDDLE(address, 96U);
  address = probe->address(args("mremap", address, 96 * kPage, 4000 * kPage));
  ASSERT_EQ(address % kPage, 0U);
  EXPECT_EQ(check(address, 96), 0);
  ASSERT_EQ(client->requests().size(), 1U);
  EXPECT_EQ(client->requests()[0].op, wire::RequestOp::unify);
  EXPECT_EQ(client->requests()[0].bytes, 96 * kPage);
  EXPECT_EQ(client->box().layout_busy, 0U);
}

TEST_F(InterposeTest, MremapOfAnUnregisteredProgramAsksNobody) {
  start();
  const unsigned long address = filled(16);
  const unsigned long moved = probe->address(args("mremap", address, 16 * kPage, 5000 * kPage));
  EXPECT_EQ(check(moved, 16), 0);
  EXPECT_TRUE(client->requests().empty());
}

TEST_F(InterposeTest, MremapShrinks) {
  start();
  const unsigned long address = filled(96);
  EVICT_MIDDLE(address, 96U);
  EXPECT_EQ(probe->address(args("mremap", address, 96 * kPage, 40 * kPage)), address);
  EXPECT_EQ(check(address, 40), 0);
}

TEST_F(InterposeTest, ReallocOfAMappedChunk) {
  start();
  constexpr std::uint64_t kBytes = 400 * kPage;
  unsigned long pointer = probe->address(args("malloc", kBytes));
  EXPECT_EQ(probe->number(args("fill", pointer, kBytes, 5)), 0);
  const unsigned long middle = (pointer & ~(kPage - 1)) + 100 * kPage;
  ASSERT_EQ(count(client->evict(0, middle, 64), PageResult::moved), 64U);
  pointer = probe->address(args("realloc", pointer, 20 * kBytes));
  EXPECT_EQ(probe->number(args("check", pointer, kBytes, 5)), 0);
  ASSERT_EQ(client->requests().size(), 1U);
  EXPECT_EQ(client->requests()[0].op, wire::RequestOp::unify);
  EXPECT_LT(client->requests()[0].start, middle);
}

TEST_F(InterposeTest, ReallocOfASmallChunkAsksNobody) {
  start();
  const unsigned long address = filled(16);
  EVICT_MIDDLE(address, 15U);
  const unsigned long pointer = probe->address("malloc 100");
  EXPECT_NE(probe->address(args("realloc", pointer, 3000)), 0U);
  EXPECT_TRUE(client->requests().empty());
}

TEST_F(InterposeTest, AgentlessFallbackCopies) {
  start();
  unsigned long address = filled(96);
  EVICT_MIDDLE(address, 96U);
  constexpr std::uint64_t kBytes = 400 * kPage;
  unsigned long pointer = probe->address(args("malloc", kBytes));
  EXPECT_EQ(probe->number(args("fill", pointer, kBytes, 5)), 0);
  const unsigned long middle = (pointer & ~(kPage - 1)) + 100 * kPage;
  ASSERT_EQ(count(client->evict(0, middle, 64), PageResult::moved), 64U);

  client->set_mode(wire::ClientMode::agentless);
  address = probe->address(args("mremap", address, 96 * kPage, 6000 * kPage));
  EXPECT_EQ(check(address, 96), 0);
  pointer = probe->address(args("realloc", pointer, 30 * kBytes));
  EXPECT_EQ(probe->number(args("check", pointer, kBytes, 5)), 0);
  EXPECT_TRUE(client->requests().empty());
}

TEST_F(InterposeTest, RefusedUnifyCopies) {
  start();
  client->refuse_requests = true;
  unsigned long address = filled(96);
  EVICT_MIDDLE(address, 96U);
  address = probe->address(args("mremap", address, 96 * kPage, 6000 * kPage));
  EXPECT_EQ(check(address, 96), 0);
}

TEST_F(InterposeTest, Hazard12SilentAdviceBringsBackFirst) {
  start();
  const unsigned long address = filled(96);
  EVICT_MIDDLE(address, 96U);
  EXPECT_EQ(probe->number(args("madvise", address, 96 * kPage, uapi::kMadvGuardInstall)), 0);
  ASSERT_EQ(client->requests().size(), 1U);
  EXPECT_EQ(client->requests()[0].op, wire::RequestOp::release);
  EXPECT_EQ(client->stored(), 0U);
  EXPECT_EQ(probe->number(args("madvise", address, 96 * kPage, uapi::kMadvGuardRemove)), 0);
  EXPECT_EQ(client->requests().size(), 2U);
  EXPECT_EQ(probe->number(args("madvise", address, 96 * kPage, MADV_DONTFORK)), 0);
  EXPECT_EQ(probe->number(args("madvise", address, 96 * kPage, MADV_DOFORK)), 0);
  EXPECT_EQ(client->requests().size(), 3U);
}

// Moved, such memory may come to where something ordinary was seen; what was never hidden moves
// without more ado.
TEST_F(InterposeTest, Hazard12MovesOfHiddenMemoryAreTold) {
  start();
  const unsigned long ordinary = filled(96), hidden = filled(96);
  EXPECT_EQ(probe->number(args("madvise", hidden, 96 * kPage, MADV_WIPEONFORK)), 0);
  std::uint32_t advised = client->box().advised;
  const std::uint32_t threads = client->box().threads_created;
  EXPECT_EQ(advised, 1U);
  (void)probe->address(args("mremap", ordinary, 96 * kPage, 6000 * kPage));
  EXPECT_EQ(client->box().advised, advised);
  const unsigned long moved = probe->address(args("mremap", hidden, 96 * kPage, 6000 * kPage));
  ASSERT_NE(moved, hidden);
  EXPECT_EQ(client->box().advised, ++advised);
  EXPECT_GT(client->box().threads_created, threads);
  // Wherever it has gone since.
  (void)probe->address(args("mremap", moved, 6000 * kPage, 9000 * kPage));
  EXPECT_EQ(client->box().advised, ++advised);
}

TEST_F(InterposeTest, Hazard9RobustMutexesAreExcluded) {
  start();
  const unsigned long mutex = probe->address("robust");
  ASSERT_GE(client->box().exclusion_count, 1U);
  EXPECT_EQ(client->box().exclusions[0], mutex & ~(kPage - 1));
  EXPECT_GE(client->box().threads_created, 1U);
  for (int i = 0; i < 20; ++i) (void)probe->address("robust");
  EXPECT_LE(client->box().exclusion_count, 3U);  // same pages
}

TEST_F(InterposeTest, Hazard11AgentFollowsCredentials) {
  start();
  EXPECT_EQ(probe->number("setgroups 3"), 0);
  EXPECT_EQ(probe->agent_status("Groups"), "\t5000 5001 5002 ");
  EXPECT_EQ(probe->number("setgroups 150"), 0);
  EXPECT_EQ(std::ranges::count(probe->agent_status("Groups"), ' '), 150);
  EXPECT_EQ(probe->number("setgid 1234"), 0);
  EXPECT_EQ(probe->agent_status("Gid"), "\t1234\t1234\t1234\t1234");
  EXPECT_EQ(probe->number("seteuid 4321"), 0);
  EXPECT_EQ(probe->agent_status("Uid"), "\t0\t4321\t0\t4321");
  EXPECT_EQ(probe->number("seteuid 0"), 0);
  EXPECT_EQ(probe->agent_status("Uid"), "\t0\t0\t0\t0");
  EXPECT_EQ(probe->number("vforksetuid 777"), 0);
  EXPECT_EQ(probe->agent_status("Uid"), "\t0\t0\t0\t0");  // the child's, not ours
  EXPECT_EQ(probe->number("setuid 4321"), 0);
  EXPECT_EQ(probe->agent_status("Uid"), "\t4321\t4321\t4321\t4321");
  const unsigned long address = filled(16);
  EXPECT_EQ(count(client->evict(0, address, 16), PageResult::moved), 16U);
  EXPECT_EQ(check(address, 16), 0);
}

TEST_F(InterposeTest, Hazard11RetireBeforeANewUserNamespace) {
  start();
  const unsigned long address = filled(64);
  EXPECT_EQ(count(client->evict(0, address, 64), PageResult::moved), 64U);
  EXPECT_EQ(probe->number(args("unshare", CLONE_NEWUSER)), 0);
  ASSERT_EQ(client->requests().size(), 1U);
  EXPECT_EQ(client->requests()[0].op, wire::RequestOp::retire);
  EXPECT_TRUE(client->agent_gone(5000));
  EXPECT_EQ(probe->agent_tid(), 0);
  EXPECT_EQ(check(address, 64), 0);
  EXPECT_NE(probe->address(args("mremap", address, 64 * kPage, 4000 * kPage)), 0U);
  EXPECT_EQ(probe->number("thread"), 0);
  EXPECT_EQ(probe->finish(), 0);
}

TEST_F(InterposeTest, NoRetireForWhatTheKernelRefusesAnyway) {
  start();
  EXPECT_EQ(probe->number("threadhold"), 0);
  EXPECT_EQ(probe->number(args("unshare", CLONE_NEWUSER)), -EINVAL);
  EXPECT_TRUE(client->requests().empty());
}

// An agent in the old namespace would still reach what the program does not.
TEST_F(InterposeTest, NoAgentIsLeftBehindInAnotherNamespace) {
  start();
  EXPECT_EQ(probe->number(args("unshare", CLONE_NEWNS)), 0);
  ASSERT_EQ(client->requests().size(), 1U);
  EXPECT_EQ(client->requests()[0].op, wire::RequestOp::retire);
  EXPECT_TRUE(client->agent_gone(5000));
  EXPECT_EQ(probe->agent_tid(), 0);
  EXPECT_EQ(probe->number("setnsmount"), 0);
  EXPECT_EQ(probe->finish(), 0);
}

TEST_F(InterposeTest, ForkChildIsServedBeforeItHasAnAgent) {
  start();
  const unsigned long address = filled(96, 9);
  EVICT_MIDDLE(address, 96U);
  EXPECT_EQ(probe->number(args("fork", address, 96 * kPage, 5000 * kPage, 9)), 0);
  EXPECT_EQ(check(address, 96, 9), 0);
  EXPECT_EQ(client->box().fork_seq, 2U) << "odd while it is under way, even after";
}

TEST_F(InterposeTest, ForkChildGetsAnAgentAndItsUserfaultfd) {
  start();
  const unsigned long address = filled(96, 9);
  EVICT_MIDDLE(address, 96U);
  const long pid = probe->number("forkhold");
  ASSERT_GT(pid, 0);
  const ChildHello child = daemon.accept_child(*client);
  ASSERT_TRUE(child.came);
  EXPECT_EQ(child.hello.kind, static_cast<std::uint32_t>(wire::HelloKind::child));
  EXPECT_EQ(child.hello.fork_seq, 1U);
  EXPECT_EQ(child.hello.parent_id, 4242U);
  EXPECT_EQ(child.hello.staging % wire::kExtentBytes, 0U);
  for (int i = 0; i < 5'000 && word_of(child.box().registered) == 0; ++i)
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  EXPECT_EQ(word_of(child.box().registered), 1U) << "what it inherited is registered";
  EXPECT_GT(word_of(child.box().agent_tid), static_cast<std::uint32_t>(pid));
  EXPECT_EQ(probe->number(args("forkend", pid)), 1000 + SIGKILL);
}

TEST_F(InterposeTest, ForkChildOfAnUnregisteredProgramRegistersAfresh) {
  start();
  filled(32);
  const long pid = probe->number("forkhold");
  ASSERT_GT(pid, 0);
  const auto child = daemon.accept();
  ASSERT_NE(child, nullptr);
  EXPECT_EQ(child->hello().kind, static_cast<std::uint32_t>(wire::HelloKind::register_client));
  EXPECT_EQ(child->hello().parent_id, 4242U);
  EXPECT_EQ(client->events(UFFD_EVENT_FORK), 0U);
  EXPECT_EQ(probe->number(args("forkend", pid)), 1000 + SIGKILL);
  EXPECT_TRUE(child->agent_gone(5'000));
}

TEST_F(InterposeTest, AChildThatForksAtOnceAttachesFirst) {
  start();
  const unsigned long address = filled(96, 9);
  EVICT_MIDDLE(address, 96U);
  probe->send("forktwice");  // the grandchild holds, the child waits for it
  const ChildHello child = daemon.accept_child(*client);
  ASSERT_TRUE(child.came);
  EXPECT_GT(std::stol(probe->answer()), 0);
  EXPECT_EQ(word_of(child.box().fork_seq), 2U) << "the child was a client when it forked";
}

TEST_F(InterposeTest, RawForkChildIsInert) {
  start();
  const unsigned long address = filled(96, 4);
  EVICT_MIDDLE(address, 96U);
  EXPECT_EQ(probe->number(args("rawfork", address, 96 * kPage, 5000 * kPage, 4)), 0);
  EXPECT_EQ(check(address, 96, 4), 0);
}

TEST_F(InterposeTest, ProcessEndsWithItsLastThread) {
  start();
  probe->send("rawexit 7");
  EXPECT_EQ(probe->finish(), 7);
  client.reset();
  start();
  probe->send("pthreadexit");
  EXPECT_EQ(probe->finish(), 0);
}

}  // namespace
}  // namespace foldswap::preload_test
