// Damaged input is an Error or, where the format cannot tell, other bytes of the right length;
// never undefined behaviour (run under ASan and UBSan).
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <random>
#include <vector>

#include "compress/codec.h"
#include "compress/testing/test_pages.h"

namespace foldswap {
namespace {

using test::Kind;
using Bytes = std::vector<std::byte>;

struct CorruptionTest : ::testing::TestWithParam<CodecSpec> {
  std::unique_ptr<PageCodec> codec = PageCodec::make().value();

  Bytes compressed(Kind kind, Codec& used) {
    Bytes out(kCodecMaxInput);
    const auto result = codec->compress(GetParam(), test::make_bytes(kind, 4096), out);
    used = result.codec;
    out.resize(result.length);  // exact, so that ASan sees a read past the end
    out.shrink_to_fit();
    return out;
  }
  bool decodes(Codec used, const Bytes& in, std::size_t bytes = 4096) {
    Bytes page(bytes);
    return codec->decompress(used, in, page).has_value();
  }
};

TEST_P(CorruptionTest, BitFlips) {
  for (const Kind kind : {Kind::zeros, Kind::text, Kind::heap}) {
    Codec used{};
    Bytes bytes = compressed(kind, used);
    const std::size_t step = std::max<std::size_t>(1, bytes.size() * 8 / 2000);
    for (std::size_t bit = 0; bit < bytes.size() * 8; bit += step) {
      const std::byte mask{static_cast<unsigned char>(1U << (bit % 8))};
      bytes[bit / 8] ^= mask;
      (void)decodes(used, bytes);
      bytes[bit / 8] ^= mask;
    }
    EXPECT_TRUE(decodes(used, bytes)) << "the codec must be usable after damaged input";
  }
}

TEST_P(CorruptionTest, Truncations) {
  for (const Kind kind : {Kind::text, Kind::heap}) {
    Codec used{};
    const Bytes bytes = compressed(kind, used);
    for (std::size_t length = 0; length < bytes.size(); ++length) {
      const Bytes cut(bytes.begin(), bytes.begin() + static_cast<std::ptrdiff_t>(length));
      EXPECT_FALSE(decodes(used, cut)) << length;
    }
    EXPECT_TRUE(decodes(used, bytes));
  }
}

TEST_P(CorruptionTest, WrongLengths) {
  Codec used{};
  Bytes bytes = compressed(Kind::heap, used);
  for (const std::size_t length : std::initializer_list<std::size_t>{0, 1, 4095})
    EXPECT_FALSE(decodes(used, bytes, length));
  EXPECT_FALSE(decodes(used, bytes, 4097));
  bytes.push_back(std::byte{0});
  EXPECT_FALSE(decodes(used, bytes)) << "bytes after the end";
  EXPECT_FALSE(decodes(used, Bytes(4097)));
}

TEST_P(CorruptionTest, Garbage) {
  std::mt19937 rng(7);
  for (int i = 0; i < 3000; ++i) {
    const auto bytes = test::make_bytes(Kind::random, rng() % 4096, static_cast<std::uint32_t>(i));
    (void)decodes(GetParam().codec, bytes);
  }
}

INSTANTIATE_TEST_SUITE_P(Codecs, CorruptionTest,
                         ::testing::Values(CodecSpec{Codec::lz4, 1}, CodecSpec{Codec::zstd, 1},
                                           CodecSpec{Codec::zstd, 19}),
                         [](const auto& param) {
                           return param.param.codec == Codec::lz4
                                      ? std::string("lz4")
                                      : "zstd" + std::to_string(param.param.level);
                         });

}  // namespace
}  // namespace foldswap
