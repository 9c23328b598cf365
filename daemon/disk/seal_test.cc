// What is closed opens again, and nothing else does.
#include "daemon/disk/seal.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <random>
#include <string>
#include <vector>

namespace foldswap {
namespace {

using Bytes = std::vector<std::byte>;
using Kind = Seal::Kind;
constexpr Seal::Place kPlace{.object = 0x1122334455667788, .generation = 77, .offset = 4096};

Bytes random_bytes(std::mt19937_64& random, std::size_t count) {
  Bytes out(count);
  for (std::byte& b : out) b = static_cast<std::byte>(random() & 0xff);
  return out;
}

class SealTest : public ::testing::TestWithParam<Kind> {
 protected:
  static constexpr std::array<std::byte, Seal::kKeyBytes> kKey = {std::byte{1}, std::byte{2}};

  void SetUp() override {
    if (GetParam() == Kind::aes256gcm && Seal::best_encryption() != Kind::aes256gcm) {
      EXPECT_FALSE(Seal::make(GetParam(), kKey).has_value());
      GTEST_SKIP() << "this processor has no AES";
    }
    seal = Seal::make(GetParam(), kKey).value();
  }
  [[nodiscard]] Bytes closed(const Bytes& plain, const Seal::Place& place = kPlace) const {
    Bytes sealed(plain.size() + Seal::kTagBytes);
    seal->close(place, plain, sealed);
    return sealed;
  }
  [[nodiscard]] bool opens(const Bytes& sealed, const Seal::Place& place = kPlace) const {
    Bytes plain(sealed.size() - Seal::kTagBytes);
    return seal->open(place, sealed, plain);
  }

  std::unique_ptr<Seal> seal;
  std::mt19937_64 random{1};
};

TEST_P(SealTest, EverySizeComesBack) {
  for (std::size_t size = 0; size <= 4096; ++size) {
    const Bytes plain = random_bytes(random, size);
    const Bytes sealed = closed(plain);
    Bytes again(size);
    ASSERT_TRUE(seal->open(kPlace, sealed, again)) << size;
    ASSERT_EQ(again, plain) << size;
  }
}

TEST_P(SealTest, EveryFlippedBitIsRefused) {
  for (const std::size_t size : {0U, 1U, 15U, 16U, 17U, 100U}) {
    Bytes sealed = closed(random_bytes(random, size));
    for (std::size_t bit = 0; bit < sealed.size() * 8; ++bit) {
      sealed[bit / 8] ^= std::byte{1} << (bit % 8);
      ASSERT_FALSE(opens(sealed)) << size << " bytes, bit " << bit;
      sealed[bit / 8] ^= std::byte{1} << (bit % 8);
    }
    EXPECT_TRUE(opens(sealed));
  }
}

TEST_P(SealTest, FlippedBitsOfBigOnesAreRefused) {
  for (int i = 0; i < 1000; ++i) {
    Bytes sealed = closed(random_bytes(random, 200 + random() % 3897));
    const std::size_t bit = random() % (sealed.size() * 8);
    sealed[bit / 8] ^= std::byte{1} << (bit % 8);
    ASSERT_FALSE(opens(sealed)) << sealed.size() << " bytes, bit " << bit;
  }
}

TEST_P(SealTest, OtherLengthsAreRefused) {
  const Bytes sealed = closed(random_bytes(random, 300));
  Bytes shorter(sealed.begin(), sealed.end() - 1);
  EXPECT_FALSE(opens(shorter));
  Bytes longer = sealed;
  longer.push_back(std::byte{0});
  EXPECT_FALSE(opens(longer));
  Bytes room(300);
  const Seal& s = *seal;
  EXPECT_FALSE(s.open(kPlace, std::span(sealed).first(Seal::kTagBytes - 1), {}));
  EXPECT_FALSE(s.open(kPlace, sealed, std::span(room).first(299)));
  EXPECT_TRUE(s.open(kPlace, sealed, room));
}

// Every bit of a place counts, whether the object is empty, small or large.
TEST_P(SealTest, OtherPlacesAreRefused) {
  for (const std::size_t size : {0U, 1U, 16U, 200U, 300U, 4096U}) {
    const Bytes sealed = closed(random_bytes(random, size));
    for (unsigned bit = 0; bit < 64; ++bit) {
      Seal::Place other = kPlace;
      other.object ^= 1ULL << bit;
      ASSERT_FALSE(opens(sealed, other)) << size << ", object, bit " << bit;
      other = kPlace;
      other.generation ^= 1ULL << bit;
      ASSERT_FALSE(opens(sealed, other)) << size << ", generation, bit " << bit;
      other = kPlace;
      other.offset ^= static_cast<std::uint32_t>(1ULL << bit);
      if (bit >= 32) continue;
      ASSERT_FALSE(opens(sealed, other)) << size << ", offset, bit " << bit;
    }
    Seal::Place swapped = kPlace;
    std::swap(swapped.object, swapped.generation);
    ASSERT_FALSE(opens(sealed, swapped));
    ASSERT_TRUE(opens(sealed));
  }
}

TEST_P(SealTest, NothingIsClosedTheSameTwice) {
  const Bytes plain = random_bytes(random, 200);
  Seal::Place later = kPlace, further = kPlace;
  ++later.generation;
  ++further.offset;
  EXPECT_EQ(closed(plain), closed(plain));
  EXPECT_NE(closed(plain), closed(plain, later));
  EXPECT_NE(closed(plain), closed(plain, further));
  if (GetParam() == Kind::checksum) return;
  // Not the tag alone: all of the bytes.
  const Bytes now = closed(plain), then = closed(plain, later);
  std::size_t same = 0;
  for (std::size_t i = 0; i < plain.size(); ++i) same += now[i] == then[i] ? 1 : 0;
  EXPECT_LT(same, 20U);
}

TEST_P(SealTest, OnlyTheChecksumLeavesThePlainTextThere) {
  const Bytes plain = random_bytes(random, 256);
  const Bytes sealed = closed(plain);
  for (std::size_t at = 0; at + 8 <= plain.size(); ++at) {
    const auto piece = std::span(plain).subspan(at, 8);
    const bool there = !std::ranges::search(sealed, piece).empty();
    ASSERT_EQ(there, GetParam() == Kind::checksum) << "byte " << at;
  }
}

TEST_P(SealTest, AnotherKeyDoesNotOpen) {
  std::array<std::byte, Seal::kKeyBytes> key = kKey;
  key.back() ^= std::byte{0x80};
  const auto other = Seal::make(GetParam(), key).value();
  const Bytes sealed = closed(random_bytes(random, 100));
  Bytes plain(100);
  EXPECT_EQ(other->open(kPlace, sealed, plain), GetParam() == Kind::checksum);
}

std::string hex(const Bytes& bytes) {
  std::string out;
  for (const std::byte b : bytes) {
    for (const unsigned digit :
         {std::to_integer<unsigned>(b) >> 4, std::to_integer<unsigned>(b) & 15}) {
      out += "0123456789abcdef"[digit];
    }
  }
  return out;
}

// What a daemon has written, the next one reads: none of this may ever change.
TEST_P(SealTest, KnownAnswers) {
  const char* generation_77[] = {"666f6c64f93e7ba83a0270d13793597fbe58ab56",
                                 "17533c965851b5f2715b5a866b76c4c647f46f2b",
                                 "62d864e7d770199a9e5f9f85f46f73ef7741924c"};
  const char* generation_78[] = {"666f6c640c335c74a3cb2c022c1fb3e76d1872fe",
                                 "d0f5f12dfda3f85cc665eef38a994ad76e5e3754",
                                 "a8852621f38313aee3fbed1e88f162791956fc55"};
  const Bytes plain = {std::byte{'f'}, std::byte{'o'}, std::byte{'l'}, std::byte{'d'}};
  Seal::Place later = kPlace;
  ++later.generation;
  const auto kind = static_cast<std::size_t>(GetParam());
  EXPECT_EQ(hex(closed(plain)), generation_77[kind]);
  EXPECT_EQ(hex(closed(plain, later)), generation_78[kind]);
}

std::string kind_name(const ::testing::TestParamInfo<Kind>& param) {
  const char* kinds[] = {"checksum", "aes256gcm", "xchacha20poly1305"};
  return kinds[static_cast<std::size_t>(param.param)];
}
INSTANTIATE_TEST_SUITE_P(Kinds, SealTest,
                         ::testing::Values(Kind::checksum, Kind::aes256gcm,
                                           Kind::xchacha20poly1305),
                         kind_name);

TEST(Seal, KeysAreRandom) {
  std::array<std::byte, Seal::kKeyBytes> one{}, two{};
  Seal::random_key(one);
  Seal::random_key(two);
  EXPECT_NE(one, two);
  EXPECT_NE(std::ranges::count(one, std::byte{0}), std::ssize(one));
}

TEST(Seal, BestEncryptionCanBeMade) {
  const auto seal = Seal::make(Seal::best_encryption(), std::array<std::byte, Seal::kKeyBytes>{});
  ASSERT_TRUE(seal.has_value()) << seal.error().text();
  EXPECT_EQ((*seal)->kind(), Seal::best_encryption());
  EXPECT_NE(std::string((*seal)->name()), "xxh3");
}

}  // namespace
}  // namespace foldswap
