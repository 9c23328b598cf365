// What is done for the pool in the background: contents stay, room comes back.
#include "daemon/writeback/pool_care.h"

#include <gtest/gtest.h>

#include <array>
#include <cstring>
#include <utility>
#include <vector>

#include "base/os.h"

namespace foldswap {
namespace {

using PageBytes = std::array<std::byte, kCodecMaxInput>;

struct PoolCareTest : ::testing::Test {
  Tunables tunables;
  std::unique_ptr<Pool> pool = Pool::create(real_os(), PoolConfig{}).value();
  std::unique_ptr<PageCodec> codec = PageCodec::make().value();
  PageStore store_of_pages{*pool};
  PoolCare care{store_of_pages, tunables, PageCodec::make().value(),
                PoolCare::Clock::duration::zero()};

  static PageBytes page_of(std::uint64_t seed) {
    PageBytes page{};
    std::uint64_t x = seed * 0x9e3779b97f4a7c15ULL + 1;
    for (std::size_t i = 0; i < page.size(); i += 8) {
      x ^= x << 13, x ^= x >> 7, x ^= x << 17;
      const std::uint64_t word = i % 64 == 0 ? x : seed + i / 512;
      std::memcpy(&page[i], &word, sizeof(word));
    }
    return page;
  }
  ObjectId store(std::uint64_t seed, CodecSpec spec) {
    PageBytes packed;
    const Compressed made = codec->compress(spec, page_of(seed), packed);
    return pool->store(std::span(packed).first(made.length), made.codec).value();
  }
  void expect_page(ObjectId id, std::uint64_t seed) {
    PageBytes packed, page;
    const auto loaded = pool->load(id, packed);
    ASSERT_TRUE(loaded.has_value());
    ASSERT_TRUE(codec->decompress(loaded->codec, std::span(packed).first(loaded->length), page)
                    .has_value());
    ASSERT_TRUE(page == page_of(seed)) << seed;
  }
};

TEST_F(PoolCareTest, ColdPagesArePackedAgainOnce) {
  std::vector<ObjectId> ids;
  for (std::uint64_t i = 0; i < 300; ++i) ids.push_back(store(i, {Codec::lz4, 1}));
  const std::uint64_t before = pool->stats().compressed_bytes;
  EXPECT_FALSE(care.step()) << "nothing is sparse, and nobody asked for a cold codec";
  EXPECT_EQ(pool->stats().compressed_bytes, before);
  tunables.cold_codec = static_cast<std::uint32_t>(Codec::zstd);
  tunables.cold_level = 3;
  int steps = 0;
  while (care.step()) ASSERT_LT(++steps, 1000) << "it never ends";
  EXPECT_LT(pool->stats().compressed_bytes, before * 9 / 10);
  EXPECT_LT(pool->stats().unused_bytes, 4 * 64 * kKiB);
  EXPECT_LE(pool->stats().empty_frame_bytes, 64 * kKiB) << "what was emptied went back";
  for (std::uint64_t i = 0; i < ids.size(); ++i) {
    expect_page(ids[i], i);
    EXPECT_TRUE(pool->info(ids[i]).settled);
    EXPECT_EQ(pool->info(ids[i]).codec, Codec::zstd);
    EXPECT_EQ(pool->refs(ids[i]), 1U);
  }
  EXPECT_TRUE(pool->oldest(1, {.unsettled = true, .least_age = 0}).empty());
  EXPECT_TRUE(pool->validate().has_value());
}

TEST_F(PoolCareTest, WhatWasJustStoredIsNotCold) {
  PoolCare patient(store_of_pages, tunables, PageCodec::make().value());
  tunables.cold_codec = static_cast<std::uint32_t>(Codec::zstd);
  tunables.cold_level = 3;
  std::vector<ObjectId> ids;
  for (std::uint64_t i = 0; i < 100; ++i) ids.push_back(store(i, {Codec::lz4, 1}));
  (void)patient.step();
  for (const ObjectId id : ids) EXPECT_FALSE(pool->info(id).settled);
  // A pool that turns over: what stays meanwhile has become cold.
  for (std::uint64_t i = 0; i < 6'000; ++i) pool->unref(store(1'000 + i, {Codec::lz4, 1}));
  for (int i = 0; i < 50; ++i) (void)patient.step();
  for (const ObjectId id : ids) EXPECT_TRUE(pool->info(id).settled);
}

TEST_F(PoolCareTest, WhatDoesNotShrinkIsTriedOnce) {
  PageBytes noise;
  std::uint64_t x = 88172645463325252ULL;
  for (auto& b : noise) {
    x ^= x << 13, x ^= x >> 7, x ^= x << 17;
    b = static_cast<std::byte>(x);
  }
  const ObjectId id = pool->store(noise, Codec::raw).value();
  const ObjectId pattern = pool->store_pattern(77).value();
  tunables.cold_codec = static_cast<std::uint32_t>(Codec::zstd);
  tunables.cold_level = 3;
  (void)care.step();
  EXPECT_TRUE(pool->info(id).settled);
  EXPECT_EQ(pool->info(id).codec, Codec::raw);
  PageBytes out;
  EXPECT_EQ(pool->load(id, out)->length, noise.size());
  EXPECT_TRUE(out == noise);
  EXPECT_EQ(pool->load(pattern, out)->pattern, 77U);
}

TEST_F(PoolCareTest, SparseFramesAreEmptied) {
  std::vector<std::pair<ObjectId, std::uint64_t>> kept;
  std::vector<ObjectId> freed;
  for (std::uint64_t i = 0; i < 4'000; ++i) {
    const ObjectId id = store(i, {Codec::zstd, 1});
    if (i % 4 == 0) {
      kept.emplace_back(id, i);
    } else {
      freed.push_back(id);
    }
  }
  const std::uint64_t before = pool->stats().frame_bytes;
  for (const ObjectId id : freed) pool->unref(id);
  int steps = 0;
  while (care.step()) ASSERT_LT(++steps, 1000) << "it never ends";
  EXPECT_LT(pool->stats().frame_bytes, before / 2);
  for (const auto& [id, seed] : kept) expect_page(id, seed);
  EXPECT_TRUE(pool->validate().has_value());
}

}  // namespace
}  // namespace foldswap
