// The state file's table and the latency histogram.
#include "daemon/state/state.h"

#include <gtest/gtest.h>
#include <rapidcheck.h>

#include <algorithm>
#include <cmath>
#include <vector>

namespace foldswap {
namespace {

TEST(State, RecordsComeBackClean) {
  const auto state = State::create(real_os()).value();
  ClientRecord* first = state->claim_record();
  ASSERT_NE(first, nullptr);
  first->pid = 77;
  first->inbox_count = 5;
  first->inbox[3].event = 9;
  first->quarantine[0].count = 2;
  const std::uint64_t id = first->id;
  state->wipe_record(first);
  state->free_record(first);
  ClientRecord* again = state->claim_record();
  EXPECT_EQ(again, first);
  EXPECT_NE(again->id, id);
  EXPECT_EQ(again->pid.load(), 0);
  EXPECT_EQ(again->inbox_count, 0U);
  EXPECT_EQ(again->inbox[3].event, 0);
  EXPECT_EQ(again->quarantine[0].count, 0U);
}

TEST(State, NobodyTakesOverWhatIsOfAnotherVersion) {
  const auto state = State::create(real_os()).value();
  StateHeader& header = state->header();
  const auto fits = [&] { return State::fits(real_os(), state->fd()).has_value(); };
  EXPECT_TRUE(fits());
  for (std::uint32_t* const version :
       {&header.version, &header.page_map_version, &header.pool_version, &header.disk_version,
        &header.protocol_version}) {
    ++*version;
    EXPECT_FALSE(fits());
    EXPECT_FALSE(State::take_over(real_os(), UniqueFd(::dup(state->fd()))));
    EXPECT_EQ(header.incarnation, 1U);
    --*version;
  }
  EXPECT_TRUE(fits());
  const auto next = State::take_over(real_os(), UniqueFd(::dup(state->fd())));
  ASSERT_TRUE(next);
  EXPECT_EQ((*next)->header().incarnation, 2U);
}

TEST(State, TheTableIsBounded) {
  const auto state = State::create(real_os()).value();
  for (std::uint32_t i = 0; i < kMostClients; ++i) ASSERT_NE(state->claim_record(), nullptr);
  EXPECT_EQ(state->claim_record(), nullptr);
}

TEST(Latency, QuantilesAreWithinABucketOfTheTruth) {
  EXPECT_TRUE(rc::check([] {
    const auto counters = std::make_unique<Counters>();
    std::vector<std::uint64_t> values;
    const int n = *rc::gen::inRange(1, 300);
    for (int i = 0; i < n; ++i) {
      values.push_back(static_cast<std::uint64_t>(*rc::gen::inRange(0, 2'000'000'000)));
      record_latency(*counters, values.back());
    }
    std::ranges::sort(values);
    for (const double share : {0.5, 0.9, 0.99, 1.0}) {
      const auto rank = static_cast<std::size_t>(std::max(1.0, std::ceil(share * n)));
      const auto truth = static_cast<double>(values[rank - 1]);
      const auto told = static_cast<double>(latency_quantile(*counters, share));
      RC_ASSERT(told >= truth * 0.999);
      RC_ASSERT(told <= truth * 1.13 + 1);
    }
    RC_ASSERT(latency_quantile(*counters, 1.0) == values.back());
  }));
}

TEST(State, WhatWasSetIsKeptOncePerKey) {
  const auto state = State::create(real_os()).value();
  EXPECT_TRUE(state->settings().empty());
  state->keep_setting("pool.limit", "48M");
  state->keep_setting("fault.readahead_max", "32K");
  state->keep_setting("pool.limit", "32M");
  const std::vector<std::string> kept{"fault.readahead_max=32K", "pool.limit=32M"};
  EXPECT_EQ(state->settings(), kept);
  state->keep_setting("log.level", std::string(5'000, 'x'));
  EXPECT_EQ(state->settings(), kept);
  state->forget_settings();
  EXPECT_TRUE(state->settings().empty());
}

}  // namespace
}  // namespace foldswap
