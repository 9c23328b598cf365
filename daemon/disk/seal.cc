#include "daemon/disk/seal.h"

#include <sodium.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cassert>
#include <cerrno>
#include <cstring>
#include <utility>

#include "compress/checksum.h"

namespace foldswap {
namespace {

static_assert(std::endian::native == std::endian::little, "what is bound is little-endian");
static_assert(crypto_aead_aes256gcm_ABYTES == Seal::kTagBytes &&
              crypto_aead_xchacha20poly1305_ietf_ABYTES == Seal::kTagBytes &&
              sizeof(XXH128_canonical_t) == Seal::kTagBytes);
static_assert(crypto_aead_aes256gcm_KEYBYTES == Seal::kKeyBytes &&
              crypto_aead_xchacha20poly1305_ietf_KEYBYTES == Seal::kKeyBytes);

using Tag = std::array<std::byte, Seal::kTagBytes>;
// Long enough for both ciphers: AES-GCM takes the first 12 bytes, XChaCha20 all, the rest zeros.
using Nonce = std::array<unsigned char, crypto_aead_xchacha20poly1305_ietf_NPUBBYTES>;
using Bound = std::array<unsigned char, sizeof(std::uint64_t)>;

Nonce nonce_of(const Seal::Place& place) {
  Nonce nonce{};
  std::memcpy(nonce.data(), &place.generation, sizeof(place.generation));
  std::memcpy(nonce.data() + sizeof(place.generation), &place.offset, sizeof(place.offset));
  return nonce;
}

Bound bound_of(const Seal::Place& place) {
  Bound bound{};
  std::memcpy(bound.data(), &place.object, sizeof(place.object));
  return bound;
}

// The place is the seed, so that the right bytes in the wrong place do not verify either.
Tag checksum_tag(const Seal::Place& place, std::span<const std::byte> plain) {
  const std::uint64_t words[3] = {place.object, place.generation, place.offset};
  const std::uint64_t seed = XXH3_64bits(words, sizeof(words));
  XXH128_canonical_t canonical;
  ::XXH128_canonicalFromHash(&canonical, XXH3_128bits_withSeed(plain.data(), plain.size(), seed));
  return std::bit_cast<Tag>(canonical);
}

unsigned char* raw(std::span<std::byte> bytes) {
  return reinterpret_cast<unsigned char*>(bytes.data());
}
const unsigned char* raw(std::span<const std::byte> bytes) {
  return reinterpret_cast<const unsigned char*>(bytes.data());
}

// In memory of libsodium's: locked, left out of core dumps, wiped when it is given back. Such an
// allocation is aligned only as its size is.
struct Secret {
  crypto_aead_aes256gcm_state aes;
  std::array<unsigned char, Seal::kKeyBytes> key;
};
static_assert(sizeof(Secret) % alignof(Secret) == 0);
struct FreeSecret {
  void operator()(Secret* secret) const { ::sodium_free(secret); }
};

}  // namespace

struct Seal::Impl {
  Kind kind = Kind::checksum;
  std::unique_ptr<Secret, FreeSecret> secret;  // none for checksum
};

Seal::Seal(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Seal::~Seal() = default;

Seal::Kind Seal::best_encryption() {
  const bool aes = ::sodium_init() >= 0 && ::crypto_aead_aes256gcm_is_available() == 1;
  return aes ? Kind::aes256gcm : Kind::xchacha20poly1305;
}

Result<std::unique_ptr<Seal>> Seal::make(Kind kind, std::span<const std::byte, kKeyBytes> key) {
  auto impl = std::make_unique<Impl>();
  impl->kind = kind;
  if (kind == Kind::checksum) return std::unique_ptr<Seal>(new Seal(std::move(impl)));
  if (::sodium_init() < 0) return fail("libsodium cannot be used here");
  if (kind == Kind::aes256gcm && ::crypto_aead_aes256gcm_is_available() != 1) {
    return fail("this processor has no AES instructions for aes-256-gcm");
  }
  impl->secret.reset(static_cast<Secret*>(::sodium_malloc(sizeof(Secret))));
  if (impl->secret == nullptr) return fail_errno("no memory to keep a key in");
  std::memcpy(impl->secret->key.data(), key.data(), key.size());
  if (kind == Kind::aes256gcm) {
    ::crypto_aead_aes256gcm_beforenm(&impl->secret->aes, impl->secret->key.data());
  }
  return std::unique_ptr<Seal>(new Seal(std::move(impl)));
}

void Seal::random_key(std::span<std::byte, kKeyBytes> key) {
  ::randombytes_buf(key.data(), key.size());
}

Seal::Kind Seal::kind() const {
  return impl_->kind;
}

const char* Seal::name() const {
  switch (impl_->kind) {
    case Kind::aes256gcm:
      return "aes-256-gcm";
    case Kind::xchacha20poly1305:
      return "xchacha20-poly1305";
    case Kind::checksum:
      break;
  }
  return "xxh3";
}

void Seal::close(const Place& place, std::span<const std::byte> plain,
                 std::span<std::byte> sealed) const {
  assert(sealed.size() == plain.size() + kTagBytes);
  const Nonce nonce = nonce_of(place);
  const Bound bound = bound_of(place);
  const Secret* secret = impl_->secret.get();
  switch (impl_->kind) {
    case Kind::checksum: {
      const Tag tag = checksum_tag(place, plain);
      std::ranges::copy(plain, sealed.begin());
      std::memcpy(sealed.data() + plain.size(), tag.data(), tag.size());
      return;
    }
    case Kind::aes256gcm:
      ::crypto_aead_aes256gcm_encrypt_afternm(raw(sealed), nullptr, raw(plain), plain.size(),
                                              bound.data(), bound.size(), nullptr, nonce.data(),
                                              &secret->aes);
      return;
    case Kind::xchacha20poly1305:
      ::crypto_aead_xchacha20poly1305_ietf_encrypt(raw(sealed), nullptr, raw(plain), plain.size(),
                                                   bound.data(), bound.size(), nullptr,
                                                   nonce.data(), secret->key.data());
      return;
  }
}

// What came from the disk is not ours to trust, not even its length.
bool Seal::open(const Place& place, std::span<const std::byte> sealed,
                std::span<std::byte> plain) const {
  if (sealed.size() < kTagBytes || plain.size() != sealed.size() - kTagBytes) return false;
  const Nonce nonce = nonce_of(place);
  const Bound bound = bound_of(place);
  const Secret* secret = impl_->secret.get();
  switch (impl_->kind) {
    case Kind::checksum: {
      const auto body = sealed.first(plain.size());
      const Tag tag = checksum_tag(place, body);
      if (std::memcmp(tag.data(), sealed.data() + plain.size(), tag.size()) != 0) return false;
      std::ranges::copy(body, plain.begin());
      return true;
    }
    case Kind::aes256gcm:
      return ::crypto_aead_aes256gcm_decrypt_afternm(raw(plain), nullptr, nullptr, raw(sealed),
                                                     sealed.size(), bound.data(), bound.size(),
                                                     nonce.data(), &secret->aes) == 0;
    case Kind::xchacha20poly1305:
      return ::crypto_aead_xchacha20poly1305_ietf_decrypt(raw(plain), nullptr, nullptr, raw(sealed),
                                                          sealed.size(), bound.data(), bound.size(),
                                                          nonce.data(), secret->key.data()) == 0;
  }
  return false;
}

}  // namespace foldswap
