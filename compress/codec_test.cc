#include "compress/codec.h"

#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <array>
#include <vector>

#include "compress/checksum.h"
#include "compress/testing/test_pages.h"

namespace foldswap {
namespace {

using test::Kind;

const std::vector<CodecSpec> kSpecs{{Codec::raw, 0},  {Codec::lz4, 1},  {Codec::lz4, 8},
                                    {Codec::zstd, 1}, {Codec::zstd, 3}, {Codec::zstd, 19}};

struct CodecTest : ::testing::Test {
  std::unique_ptr<PageCodec> codec = PageCodec::make().value();
  std::array<std::byte, kCodecMaxInput> out{};

  Compressed round_trip(CodecSpec spec, const std::vector<std::byte>& in) {
    const Compressed result = codec->compress(spec, in, out);
    EXPECT_LE(result.length, in.size());
    EXPECT_TRUE(result.codec == spec.codec || result.codec == Codec::raw);
    std::vector<std::byte> back(in.size());
    const Status status =
        codec->decompress(result.codec, std::span(out).first(result.length), back);
    EXPECT_TRUE(status.has_value()) << (status ? "" : status.error().text());
    EXPECT_EQ(back, in) << to_string(spec) << " at " << in.size();
    return result;
  }
};

TEST_F(CodecTest, RoundTripAtTheEdges) {
  for (const CodecSpec spec : kSpecs) {
    for (const std::size_t bytes :
         std::initializer_list<std::size_t>{0, 1, 2, 15, 255, 256, 4095, 4096}) {
      for (const Kind kind : test::kKinds) round_trip(spec, test::make_bytes(kind, bytes));
    }
  }
}

TEST_F(CodecTest, IncompressibleIsRaw) {
  for (const CodecSpec spec : kSpecs) {
    const Compressed result = round_trip(spec, test::make_bytes(Kind::random, 4096));
    EXPECT_EQ(result.codec, Codec::raw);
    EXPECT_EQ(result.length, 4096U);
  }
}

TEST_F(CodecTest, CompressibleShrinks) {
  for (const CodecSpec spec : kSpecs) {
    if (spec.codec == Codec::raw) continue;
    for (const Kind kind : {Kind::zeros, Kind::text, Kind::heap}) {
      const Compressed result = round_trip(spec, test::make_bytes(kind, 4096));
      EXPECT_EQ(result.codec, spec.codec);
      EXPECT_LT(result.length, 3500U);
    }
  }
}

TEST_F(CodecTest, ZstdHeaderIsTwoBytes) {  // descriptor and window; no magic, no content size
  const Compressed result = round_trip({Codec::zstd, 1}, test::make_bytes(Kind::zeros, 4096));
  EXPECT_LE(result.length, 14U);
  EXPECT_EQ(out[0] & std::byte{0x27},
            std::byte{0});  // single segment, checksum, dictionary id: off
}

TEST_F(CodecTest, SpecMayChangePerCall) {
  for (std::uint32_t i = 0; i < 60; ++i) {
    round_trip(kSpecs[i % kSpecs.size()], test::make_bytes(test::kKinds[i % 4], 4096, i));
  }
}

TEST_F(CodecTest, PatternIsNothingToDecompress) {
  std::array<std::byte, 8> bytes{};
  EXPECT_FALSE(codec->decompress(Codec::pattern, bytes, bytes).has_value());
  EXPECT_FALSE(codec->decompress(static_cast<Codec>(7), bytes, bytes).has_value());
}

RC_GTEST_FIXTURE_PROP(CodecTest, AnyBytesRoundTrip, ()) {
  const auto spec = *rc::gen::elementOf(kSpecs);
  const auto unit = *rc::gen::resize(600, rc::gen::arbitrary<std::vector<std::uint8_t>>());
  const auto repeats = *rc::gen::inRange<std::size_t>(1, 20);
  std::vector<std::byte> in;
  for (std::size_t r = 0; r < repeats; ++r) {
    for (const auto b : unit) in.push_back(std::byte(b));
  }
  in.resize(std::min(in.size(), kCodecMaxInput));
  const Compressed result = codec->compress(spec, in, out);
  RC_ASSERT(result.length <= in.size());
  std::vector<std::byte> back(in.size());
  RC_ASSERT(codec->decompress(result.codec, std::span(out).first(result.length), back).has_value());
  RC_ASSERT(back == in);
}

TEST(CodecSpecText, GoodOnes) {
  EXPECT_EQ(parse_codec_spec("zstd").value(), (CodecSpec{Codec::zstd, 1}));
  EXPECT_EQ(parse_codec_spec("zstd:19").value(), (CodecSpec{Codec::zstd, 19}));
  EXPECT_EQ(parse_codec_spec("lz4").value(), (CodecSpec{Codec::lz4, 1}));
  EXPECT_EQ(parse_codec_spec("lz4:12").value(), (CodecSpec{Codec::lz4, 12}));
  EXPECT_EQ(parse_codec_spec("raw").value(), (CodecSpec{Codec::raw, 0}));
  for (const CodecSpec spec : kSpecs) EXPECT_EQ(parse_codec_spec(to_string(spec)).value(), spec);
}

TEST(CodecSpecText, BadOnesNameWhatIsWrong) {
  for (const char* text : {"zstd:0", "zstd:20", "zstd:", "zstd:x", "zstd:3x", "lz4:0", "lz4:-1",
                           "lz4:99999999999", "zstd: 3"}) {
    const auto result = parse_codec_spec(text);
    ASSERT_FALSE(result.has_value()) << text;
    EXPECT_NE(result.error().message.find("is not a level"), std::string::npos) << text;
  }
  for (const char* text : {"", "lzo", "ZSTD", "pattern", " raw"}) {
    const auto result = parse_codec_spec(text);
    ASSERT_FALSE(result.has_value()) << text;
    EXPECT_NE(result.error().message.find("is not a codec"), std::string::npos) << text;
  }
  EXPECT_FALSE(parse_codec_spec("raw:1").has_value());
}

TEST(Checksum, StableAndSensitive) {
  auto bytes = test::make_bytes(Kind::heap, 700);
  const std::uint32_t sum = checksum28(bytes);
  EXPECT_LT(sum, 1U << kChecksumBits);
  for (std::size_t bit = 0; bit < bytes.size() * 8; bit += 13) {
    bytes[bit / 8] ^= std::byte(1U << (bit % 8));
    EXPECT_NE(checksum28(bytes), sum);
    bytes[bit / 8] ^= std::byte(1U << (bit % 8));
  }
  EXPECT_EQ(checksum28(bytes), sum);
  // XXH3 of nothing, by its specification: the value must not change between versions.
  EXPECT_EQ(checksum28({}), 0x2D06800538D394C2ULL & 0xfffffffU);
}

}  // namespace
}  // namespace foldswap
