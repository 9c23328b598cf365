// What the preload tests share: a client under a fake daemon, and memory of it with a known
// pattern.
#pragma once

#include <gtest/gtest.h>

#include <memory>
#include <string>

#include "preload/testing/fake_daemon.h"
#include "preload/testing/probe_process.h"

namespace foldswap::preload_test {

class PreloadTest : public testing::Test {
 protected:
  void SetUp() override { ASSERT_EQ(missing_requirement(), ""); }

  // Starts the probe as a client.
  void start(std::vector<std::string> environment = {}) {
    probe = std::make_unique<Probe>(
        Probe::Options{.runtime_dir = daemon.directory(), .environment = std::move(environment)});
    client = daemon.accept();
    ASSERT_NE(client, nullptr);
    ASSERT_EQ(probe->number("errno"), 0);
  }
  // `pages` pages with the pattern of `seed`, each touched.
  unsigned long filled(std::uint64_t pages, unsigned seed = 1) {
    const unsigned long address = probe->address("map " + std::to_string(pages * wire::kPageBytes));
    EXPECT_EQ(probe->number(args("fill", address, pages * wire::kPageBytes, seed)), 0);
    return address;
  }
  long check(unsigned long address, std::uint64_t pages, unsigned seed = 1) {
    return probe->number(args("check", address, pages * wire::kPageBytes, seed));
  }
  template <typename... Numbers>
  static std::string args(std::string name, Numbers... numbers) {
    ((name += " " + std::to_string(numbers)), ...);
    return name;
  }
  static unsigned count(const wire::Command& command, wire::PageResult result) {
    unsigned found = 0;
    for (std::uint32_t i = 0; i < command.pages; ++i) {
      found += command.result[i] == static_cast<std::uint8_t>(result) ? 1 : 0;
    }
    return found;
  }

  static std::uint32_t word_of(const std::uint32_t& word) {
    return __atomic_load_n(&word, __ATOMIC_SEQ_CST);
  }

  FakeDaemon daemon;
  std::unique_ptr<Probe> probe;
  std::unique_ptr<FakeClient> client;
};

}  // namespace foldswap::preload_test
