// Eviction commands: what moves arrives byte for byte, what must not move stays, and every reason
// to stop works.
#include <gtest/gtest.h>
#include <sys/mman.h>

#include <atomic>
#include <chrono>
#include <cstdio>
#include <fstream>
#include <string>
#include <thread>

#include "preload/testing/preload_test.h"

namespace foldswap::preload_test {
namespace {

using wire::PageResult;
using MoverTest = PreloadTest;
constexpr std::uint64_t kPage = wire::kPageBytes;

std::uint32_t shared(std::uint32_t& word) {
  return std::atomic_ref<std::uint32_t>(word).load();
}
void set(std::uint32_t& word, std::uint32_t value) {
  std::atomic_ref<std::uint32_t>(word).store(value);
}

// The flags of the mapping at `address`, as smaps has them: "VmFlags: rd wr ... um".
std::string vm_flags(pid_t pid, unsigned long address) {
  std::ifstream smaps("/proc/" + std::to_string(pid) + "/smaps");
  bool inside = false;
  for (std::string line; std::getline(smaps, line);) {
    unsigned long start = 0, end = 0;
    if (std::sscanf(line.c_str(), "%lx-%lx ", &start, &end) == 2)
      inside = address >= start && address < end;
    if (inside && line.starts_with("VmFlags:")) return line + " ";
  }
  return {};
}

TEST_F(MoverTest, MovesPagesByteForByte) {
  start();
  const unsigned long address = filled(512);
  EXPECT_EQ(shared(client->box().registered), 0U);
  const wire::Command done = client->evict(0, address, 512);
  EXPECT_EQ(done.aborted, wire::kAbortNone);
  EXPECT_EQ(count(done, PageResult::moved), 512U);
  EXPECT_EQ(client->stored(), 512U);
  EXPECT_EQ(shared(client->box().registered), 1U);
  EXPECT_EQ(shared(client->box().layout), 0U);
  EXPECT_EQ(shared(client->box().layout_agent), 0U);
  EXPECT_EQ(check(address, 512), 0);
  EXPECT_EQ(client->stored(), 0U);
}

TEST_F(MoverTest, BothHalvesAgainAndAgain) {
  start();
  const unsigned long address = filled(600);
  for (std::uint32_t round = 0; round < 12; ++round) {
    const wire::Command done = client->evict(round % 2, address + round * kPage, 400);
    EXPECT_EQ(done.aborted, wire::kAbortNone);
    EXPECT_EQ(count(done, PageResult::moved), 400U);
    EXPECT_EQ(check(address, 600), 0);
  }
}

TEST_F(MoverTest, SmallLockHoldsWhileFaultsWait) {
  start();
  const unsigned long address = filled(512);
  set(client->box().faults_wait, 1);
  EXPECT_EQ(count(client->evict(1, address, 512), PageResult::moved), 512U);
  EXPECT_EQ(check(address, 512), 0);
}

TEST_F(MoverTest, RunsOfSeveralRanges) {
  start();
  const unsigned long a = filled(64, 1), b = filled(64, 2);
  const std::vector<wire::Run> runs{{a, 10, 0}, {b + 8 * kPage, 20, 1}, {a + 30 * kPage, 5, 0}};
  const std::vector<wire::Range> regs{{a, 64 * kPage}, {b, 64 * kPage}};
  EXPECT_EQ(count(client->evict(0, runs, regs, 0, 0), PageResult::moved), 35U);
  EXPECT_EQ(check(a, 64, 1), 0);
  EXPECT_EQ(check(b, 64, 2), 0);
}

// HAZARDS 30: what is out in a range could be another mapping's by now.
TEST_F(MoverTest, RegistersNothingInAClosedRange) {
  start();
  const unsigned long a = filled(16, 1), b = filled(16, 2);
  const std::vector<wire::Run> runs{{a, 16, 0}, {b, 16, 1}};
  const std::vector<wire::Range> regs{{a, 16 * kPage}, {b, 16 * kPage}};
  client->box().commands[0].regs[wire::kClosedRegs] = {0b01, 0};
  const wire::Command done = client->evict(0, runs, regs, shared(client->box().epoch),
                                           shared(client->box().threads_created));
  EXPECT_EQ(done.aborted, wire::kAbortNone);
  EXPECT_EQ(count(done, PageResult::refused), 16U);
  EXPECT_EQ(count(done, PageResult::moved), 16U);
  EXPECT_EQ(done.result[0], static_cast<std::uint8_t>(PageResult::refused));
  EXPECT_EQ(check(a, 16, 1), 0);
  EXPECT_EQ(check(b, 16, 2), 0);
  // What is registered already moves, closed or not.
  EXPECT_EQ(count(client->evict(0, b, 16), PageResult::moved), 16U);
  client->box().commands[1].regs[wire::kClosedRegs] = {0b11, 0};
  EXPECT_EQ(check(b, 16, 2), 0);
  const wire::Command again =
      client->evict(1, {{b, 16, 0}}, {{b, 16 * kPage}}, shared(client->box().epoch),
                    shared(client->box().threads_created));
  EXPECT_EQ(count(again, PageResult::moved), 16U);
  EXPECT_EQ(check(b, 16, 2), 0);
}

// HAZARDS 31: a part of what was ordinary memory when it was looked at is shared by now.
TEST_F(MoverTest, RegistersNothingThatIsShared) {
  start();
  const unsigned long address = filled(64);
  ASSERT_EQ(probe->address(args("mapshared", address + 16 * kPage, 16 * kPage)),
            address + 16 * kPage);
  const auto prefix = std::vector<wire::Run>{{address, 16, 0}, {address + 32 * kPage, 32, 0}};
  const wire::Command done =
      client->evict(0, prefix, {{address, 64 * kPage}}, shared(client->box().epoch),
                    shared(client->box().threads_created));
  EXPECT_EQ(count(done, PageResult::moved), 48U);
  const std::string flags = vm_flags(probe->pid(), address + 16 * kPage);
  EXPECT_NE(flags.find(" sh "), std::string::npos) << flags;
  EXPECT_EQ(flags.find(" um "), std::string::npos) << flags;
  EXPECT_NE(vm_flags(probe->pid(), address).find(" um "), std::string::npos);
  EXPECT_EQ(check(address, 16), 0);
}

TEST_F(MoverTest, HolesAreToldApart) {
  start();
  const unsigned long address = filled(16);
  EXPECT_EQ(probe->number(args("madvise", address + 3 * kPage, 2 * kPage, MADV_DONTNEED)), 0);
  const wire::Command done = client->evict(0, address, 16);
  EXPECT_EQ(done.aborted, wire::kAbortNone);
  EXPECT_EQ(count(done, PageResult::moved), 14U);
  EXPECT_EQ(count(done, PageResult::hole), 2U);
  EXPECT_EQ(done.result[3], static_cast<std::uint8_t>(PageResult::hole));
}

TEST_F(MoverTest, PagesSharedByForkStay) {
  start();
  const unsigned long address = filled(16);
  const long child = probe->number("forkhold");
  ASSERT_GT(child, 0);
  EXPECT_EQ(count(client->evict(0, address, 16), PageResult::shared), 16U);
  EXPECT_EQ(probe->number(args("forkend", child)), 1000 + SIGKILL);
  EXPECT_EQ(check(address, 16), 0);
}

TEST_F(MoverTest, PagesThatWereSharedAreRenewed) {
  start();
  const unsigned long address = filled(160, 6);
  const long child = probe->number("forkhold");
  ASSERT_GT(child, 0);
  EXPECT_EQ(count(client->evict(0, address, 160), PageResult::shared), 160U);
  EXPECT_EQ(probe->number(args("forkend", child)), 1000 + SIGKILL);
  // Still EBUSY for MOVE, although nobody else maps them: written to, and moved in a second try.
  EXPECT_EQ(count(client->evict(0, address, 160), PageResult::moved), 160U);
  EXPECT_EQ(check(address, 160, 6), 0);
}

TEST_F(MoverTest, ARenewalDoesNotDisturbWhatMovedBefore) {
  start();
  const unsigned long address = filled(96);
  const auto fill_page = [&](unsigned long page, unsigned long seed) {
    EXPECT_EQ(probe->number(args("fill", address + page * kPage, kPage, seed)), 0);
  };
  for (unsigned long page = 0; page < 96; ++page) fill_page(page, 100 + page);
  const long child = probe->number("forkhold");
  ASSERT_GT(child, 0);
  // Every third page is this process's own again; the others are renewed in the second try.
  for (unsigned long page = 0; page < 96; page += 3) fill_page(page, 900 + page);
  EXPECT_EQ(probe->number(args("forkend", child)), 1000 + SIGKILL);
  EXPECT_EQ(count(client->evict(0, address, 96), PageResult::moved), 96U);
  for (unsigned page = 0; page < 96; ++page) {
    EXPECT_EQ(check(address + page * kPage, 1, page % 3 == 0 ? 900 + page : 100 + page), 0) << page;
  }
}

// REGISTER passes over it, and nothing would tell of what is mapped there a moment later.
TEST_F(MoverTest, WhatIsNotRegisteredIsNotMoved) {
  start();
  const unsigned long address = filled(16);
  EXPECT_EQ(probe->number(args("munmap", address + 3 * kPage, 2 * kPage)), 0);
  const wire::Command done = client->evict(0, address, 16);
  EXPECT_EQ(done.aborted, wire::kAbortNone);
  EXPECT_EQ(count(done, PageResult::moved), 14U);
  EXPECT_EQ(count(done, PageResult::refused), 2U);
  EXPECT_EQ(done.result[3], static_cast<std::uint8_t>(PageResult::refused));
  EXPECT_EQ(check(address, 3), 0);
}

TEST_F(MoverTest, NonsenseIsRefused) {
  start();
  const unsigned long address = filled(4);
  const std::uint64_t staging = client->hello().staging;
  const std::vector<wire::Run> runs{
      {address + 1, 1, 0}, {address, 1, 9}, {staging, 4, 0}, {client->hello().own[1].start, 2, 0}};
  const wire::Command done = client->evict(0, runs, {{address, 4 * kPage}}, 0, 0);
  EXPECT_EQ(done.aborted, wire::kAbortNone);
  EXPECT_EQ(count(done, PageResult::refused), 8U);
  const std::vector<wire::Run> unmapped{{0x10000, 4, 0}};
  EXPECT_EQ(client->evict(0, unmapped, {{0x10000, 4 * kPage}}, 0, 0).aborted, wire::kAbortRegister);
  EXPECT_EQ(check(address, 4), 0);
}

TEST_F(MoverTest, AbortsWhenThePlanIsOld) {
  start();
  const unsigned long address = filled(8);
  const std::vector<wire::Run> runs{{address, 8, 0}};
  const std::vector<wire::Range> regs{{address, 8 * kPage}};
  wire::Command done = client->evict(0, runs, regs, 77, 0);
  EXPECT_EQ(done.aborted, wire::kAbortEpoch);
  EXPECT_EQ(count(done, PageResult::not_tried), 8U);

  set(client->box().layout_busy, 1);
  EXPECT_EQ(client->evict(0, address, 8).aborted, wire::kAbortBusy);
  set(client->box().layout_busy, 0);

  const std::uint32_t threads = shared(client->box().threads_created);
  EXPECT_EQ(shared(client->box().layout_busy), 0U);
  EXPECT_EQ(probe->number("thread"), 0);  // HAZARDS 9
  done = client->evict(0, runs, regs, shared(client->box().epoch), threads);
  EXPECT_EQ(done.aborted, wire::kAbortThreads);

  client->set_mode(wire::ClientMode::released);
  EXPECT_EQ(client->evict(0, address, 8).aborted, wire::kAbortOther);
  client->set_mode(wire::ClientMode::active);
  EXPECT_EQ(count(client->evict(0, address, 8), PageResult::moved), 8U);
  EXPECT_EQ(check(address, 8), 0);
}

TEST_F(MoverTest, Hazard21MlockallKeepsEverything) {
  start();
  const unsigned long address = filled(32);
  EXPECT_EQ(count(client->evict(0, address, 32), PageResult::moved), 32U);
  EXPECT_EQ(probe->number("mlockall"), 0);  // brings all back, and populates staging
  EXPECT_EQ(client->stored(), 0U);
  const wire::Command done = client->evict(0, address, 32);
  EXPECT_EQ(done.aborted, wire::kAbortLocked);
  EXPECT_EQ(count(done, PageResult::not_tried), 32U);
  EXPECT_EQ(probe->number("munlockall"), 0);
  // Staging is still populated: it must be emptied on the way.
  EXPECT_EQ(count(client->evict(0, address, 32), PageResult::moved), 32U);
  EXPECT_EQ(count(client->evict(1, address, 32), PageResult::hole), 32U);
  EXPECT_EQ(check(address, 32), 0);
}

// What MOVE of Linux 6.18 has taken and does not own up to (mover.cc, moved_untold).
TEST_F(MoverTest, WhatMoveKeepsToItselfIsNotLost) {
  start();
  const unsigned long address = filled(512, 24);
  ASSERT_EQ(probe->number(args("touch", address, 512 * kPage)), 0);
  std::uint32_t moved = 0;
  for (std::uint32_t round = 0; round < 300; ++round) {
    moved += count(client->evict(round % 2, address, 512), PageResult::moved);
    ASSERT_EQ(check(address, 512, 24), 0) << "round " << round;
  }
  EXPECT_GT(moved, 300U);
}

TEST_F(MoverTest, Hazard4ForksDuringEvictionLoseNothing) {
  constexpr std::uint32_t kPages = 256;
  start();
  const unsigned long address = filled(kPages, 3);
  set(client->box().faults_wait, 1);  // many small lock holds, forks in between
  std::atomic<bool> stop{false};
  std::atomic<std::uint32_t> moved{0};
  std::thread evictor([&] {
    for (std::uint32_t round = 0; !stop; ++round) {
      moved += count(client->evict(round % 2, address, kPages), PageResult::moved);
    }
  });
  while (moved == 0) std::this_thread::yield();  // registered: every child says hello
  for (int i = 0; i < 6; ++i) {  // each waits two seconds for a daemon that takes no children
    probe->send(args("fork", address, kPages * kPage, 0, 3));
    EXPECT_EQ(probe->answer(), "0");
    EXPECT_EQ(probe->number(args("fill", address, kPages * kPage, 3)), 0);
  }
  stop = true;
  evictor.join();
  EXPECT_EQ(check(address, kPages, 3), 0);
}

TEST_F(MoverTest, IdleAgentUsesNoCpu) {
  start();
  const unsigned long address = filled(64);
  EXPECT_EQ(count(client->evict(0, address, 64), PageResult::moved), 64U);
  const auto switches = [&] { return std::stol(probe->agent_status("voluntary_ctxt_switches")); };
  const long before = switches();
  std::this_thread::sleep_for(std::chrono::seconds(3));
  EXPECT_LE(switches() - before, 2);  // a look every two seconds
}

}  // namespace
}  // namespace foldswap::preload_test
