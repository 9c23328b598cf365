// Becoming a client, or staying inert; and what the program may notice of it: nothing.
#include <gtest/gtest.h>

#include <algorithm>
#include <thread>

#include "preload/testing/preload_test.h"

namespace foldswap::preload_test {
namespace {

using EntryTest = PreloadTest;

TEST_F(EntryTest, RegistersWithNameAndBudgets) {
  start({"FOLDSWAP_NAME=worker", "FOLDSWAP_RESIDENT_MAX=512M", "FOLDSWAP_GROUP_MAX=2G"});
  const wire::Hello& hello = client->hello();
  EXPECT_STREQ(hello.name, "worker");
  EXPECT_EQ(hello.resident_max_bytes, 512ULL << 20);
  EXPECT_EQ(hello.group_max_bytes, 2ULL << 30);
  EXPECT_TRUE(std::string(hello.group).starts_with(std::to_string(probe->pid()) + "."));
  EXPECT_NE(probe->ask("environment").find(std::string("FOLDSWAP_GROUP=") + hello.group),
            std::string::npos);
  EXPECT_EQ(hello.staging % wire::kExtentBytes, 0U);
  for (const wire::Range& own : hello.own) {
    EXPECT_NE(own.start, 0U);
    EXPECT_NE(own.bytes, 0U);
  }
  EXPECT_EQ(static_cast<pid_t>(client->box().agent_tid), probe->agent_tid());
  EXPECT_EQ(probe->finish(), 0);
  EXPECT_EQ(probe->complaints(), "");
}

TEST_F(EntryTest, DefaultsAreTheProgramsNameAndNoLimit) {
  start();
  EXPECT_STREQ(client->hello().name, "preload_probe");
  EXPECT_STREQ(client->hello().group, "");
  EXPECT_EQ(client->hello().resident_max_bytes, wire::kNoLimit);
  EXPECT_EQ(client->hello().group_max_bytes, wire::kNoLimit);
}

TEST_F(EntryTest, ProgramSeesNothingOfUs) {
  std::string fds, mask, environment;
  {
    Probe alone(Probe::Options{.runtime_dir = daemon.directory(), .preload = false});
    fds = alone.ask("fds");
    mask = alone.ask("mask");
    environment = alone.ask("environment");
  }
  start();
  EXPECT_EQ(probe->ask("fds"), fds);
  EXPECT_EQ(probe->ask("mask"), mask);
  std::string with_us = probe->ask("environment");
  with_us.erase(with_us.find(";LD_PRELOAD"),
                with_us.find(';', with_us.find(";LD_PRELOAD") + 1) - with_us.find(";LD_PRELOAD"));
  EXPECT_EQ(with_us, environment);
}

TEST_F(EntryTest, AgentHasItsOwnDescriptorsAndBlocksAllSignals) {
  start();
  EXPECT_EQ(probe->number("closeall"), 0);
  EXPECT_FALSE(client->agent_gone(50));
  EXPECT_EQ(probe->agent_status("SigBlk"), "\tfffffffffffbfeff" + std::string());
  const unsigned long address = filled(8);
  EXPECT_EQ(count(client->evict(0, address, 8), wire::PageResult::moved), 8U);
  EXPECT_EQ(check(address, 8), 0);
}

TEST_F(EntryTest, EndOfTheProgramHangsUp) {
  start();
  EXPECT_EQ(probe->finish(), 0);
  EXPECT_TRUE(client->agent_gone(5000));
}

TEST_F(EntryTest, WhoseAgentComesLateIsLeftAlone) {
  Probe program(Probe::Options{.runtime_dir = "/nonexistent/foldswap", .late = true});
  EXPECT_EQ(program.number("thread"), 0);
  EXPECT_EQ(program.ask("fds"), "");
  EXPECT_EQ(program.finish(), 0);
  EXPECT_EQ(program.complaints(), "");
}

TEST_F(EntryTest, QuietSaysNothing) {
  Probe program(Probe::Options{.runtime_dir = daemon.directory(),
                               .environment = {"FOLDSWAP_QUIET=1", "FOLDSWAP_RESIDENT_MAX=much"},
                               .late = true});
  EXPECT_EQ(program.finish(), 0);
  EXPECT_EQ(program.complaints(), "");
}

TEST_F(EntryTest, WhatIsWrongIsOneLine) {
  Probe program(Probe::Options{.runtime_dir = daemon.directory(),
                               .environment = {"FOLDSWAP_RESIDENT_MAX=much"},
                               .late = true});
  EXPECT_EQ(program.finish(), 0);
  const std::string line = program.complaints();
  EXPECT_NE(line.find("foldswap: not managing this program: FOLDSWAP_RESIDENT_MAX=much"),
            std::string::npos)
      << line;
  EXPECT_EQ(std::count(line.begin(), line.end(), '\n'), 1);
}

TEST_F(EntryTest, DisabledSaysNothing) {
  Probe program(Probe::Options{
      .runtime_dir = daemon.directory(), .environment = {"FOLDSWAP_DISABLE=1"}, .late = true});
  EXPECT_EQ(program.finish(), 0);
  EXPECT_EQ(program.complaints(), "");
}

TEST_F(EntryTest, RequireExits125) {
  Probe program(Probe::Options{.runtime_dir = "/nonexistent/foldswap"});
  EXPECT_EQ(program.finish(), 125);
  EXPECT_NE(program.complaints().find("no foldswapd at"), std::string::npos);
}

TEST_F(EntryTest, RefusalIsPrinted) {
  Probe program(Probe::Options{.runtime_dir = daemon.directory()});
  daemon.refuse("draining, try later");
  EXPECT_EQ(program.finish(), 125);
  EXPECT_NE(program.complaints().find("foldswapd refused: draining, try later"), std::string::npos);
}

// The keeper of a daemon that died has its descriptors.
TEST_F(EntryTest, DaemonThatDiesOverAHelloIsGivenUp) {
  Probe program(Probe::Options{.runtime_dir = daemon.directory()});
  const UniqueFd uffd = daemon.die_over_hello();
  ASSERT_TRUE(uffd.valid());
  EXPECT_EQ(program.finish(), 125);
  EXPECT_NE(program.complaints().find("foldswapd closed the connection"), std::string::npos);
}

TEST_F(EntryTest, OtherProtocolVersionIsRefused) {
  Probe program(Probe::Options{.runtime_dir = daemon.directory()});
  daemon.speak_version(99);
  EXPECT_EQ(program.finish(), 125);
  EXPECT_NE(program.complaints().find("protocol version 99"), std::string::npos);
}

TEST_F(EntryTest, SilentDaemonIsGivenUp) {
  Probe program(Probe::Options{.runtime_dir = daemon.directory()});
  EXPECT_EQ(program.finish(), 125);
  EXPECT_NE(program.complaints().find("foldswapd does not answer"), std::string::npos);
}

TEST_F(EntryTest, SeccompIsRefused) {
  Probe program(Probe::Options{.runtime_dir = daemon.directory(), .seccomp = true});
  EXPECT_EQ(program.finish(), 125);
  EXPECT_NE(program.complaints().find("a seccomp filter is in force"), std::string::npos);
}

TEST_F(EntryTest, BadSizesAreNamed) {
  for (const char* value : {"12X", "M", "-1", "99999999999999999999", "9999999999G", "1 G"}) {
    Probe program(Probe::Options{.runtime_dir = daemon.directory(),
                                 .environment = {std::string("FOLDSWAP_RESIDENT_MAX=") + value}});
    EXPECT_EQ(program.finish(), 125) << value;
    EXPECT_NE(program.complaints().find(std::string("FOLDSWAP_RESIDENT_MAX=") + value),
              std::string::npos);
  }
}

}  // namespace
}  // namespace foldswap::preload_test
