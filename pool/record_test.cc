#include "pool/record.h"

#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include "pool/geometry.h"

namespace foldswap {
namespace {

RC_GTEST_PROP(Record, LocationRoundTrip, ()) {
  const Location where{Tier::frame, *rc::gen::arbitrary<std::uint32_t>(),
                       *rc::gen::inRange(0U, kFrameBytesMax / kChunkBytes),
                       *rc::gen::inRange(0U, 4096U), *rc::gen::arbitrary<bool>()};
  RC_ASSERT(Location::unpack(where.pack()) == where);
}

RC_GTEST_PROP(Record, MetaRoundTrip, ()) {
  const ObjectMeta meta{*rc::gen::inRange(0U, kRefsMax + 1), *rc::gen::inRange(0U, 4097U),
                        static_cast<Codec>(*rc::gen::inRange(0, 8)),
                        *rc::gen::inRange(0U, 1U << 28)};
  RC_ASSERT(ObjectMeta::unpack(meta.pack()) == meta);
}

TEST(Record, FieldsAtTheirEdges) {
  const Location where{Tier::segment, ~0U, 32767, 4095, true};
  EXPECT_EQ(Location::unpack(where.pack()), where);
  const ObjectMeta meta{kRefsMax, 4096, Codec::pattern, (1U << 28) - 1};
  EXPECT_EQ(ObjectMeta::unpack(meta.pack()), meta);
  EXPECT_EQ(ObjectMeta{}.pack(), 0U);
}

TEST(Geometry, Limits) {
  for (const std::uint32_t bytes : {4096U, 8192U, 32768U, 262144U}) {
    EXPECT_TRUE((PoolGeometry{bytes, 1}.check().has_value()));
  }
  for (const std::uint32_t bytes : {0U, 2048U, 4097U, 12288U, 524288U}) {
    EXPECT_FALSE((PoolGeometry{bytes, 3}.check().has_value())) << bytes;
  }
  EXPECT_FALSE((PoolGeometry{4096, 0}.check().has_value()));
  EXPECT_TRUE((PoolGeometry{4096, 4095}.check().has_value()));
  EXPECT_FALSE((PoolGeometry{4096, 4096}.check().has_value()));
  EXPECT_EQ((PoolGeometry{4096, 3}.frame_room()), 1U);
  EXPECT_EQ((PoolGeometry{65536, 3}.frame_room()), 3U);
  EXPECT_EQ((PoolGeometry{65536, 128}.frame_room()), 15U);
}

}  // namespace
}  // namespace foldswap
