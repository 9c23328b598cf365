// Seal: what an object's bytes go through on their way to the backing file and back. Closing makes
// them unreadable for whoever gets hold of the disk, and opening tells whether they are what was
// written, for this object, at this place, at that time (HAZARDS 20): so a flipped bit, a write
// that went astray and a read of what lay there before are all refused.
//
// AES-256-GCM (libsodium; only where the processor has AES) or else XChaCha20-Poly1305; or, without
// encryption, XXH3 over bytes and place, which guards against faults, not against an attacker.
//
// Invariant: the nonce is made of Place::generation and Place::offset, and no pair of these is
// ever used for two closings under one key: generations are handed out once (backing_file.h). What
// is bound besides, as associated data, is the object's id; never owner or address, which fork and
// mremap change. Thread safety: const methods from any thread. Nothing allocates.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

#include "base/result.h"

namespace foldswap {

class Seal {
 public:
  static constexpr std::size_t kTagBytes = 16;
  static constexpr std::size_t kKeyBytes = 32;
  enum class Kind : std::uint8_t { checksum, aes256gcm, xchacha20poly1305 };

  struct Place {
    std::uint64_t object = 0;
    std::uint64_t generation = 0;  // of the write
    std::uint32_t offset = 0;      // within what was written with this generation
  };

  // The best encryption that this processor has.
  [[nodiscard]] static Kind best_encryption();
  // Error: libsodium cannot be used here, or this processor has no AES.
  [[nodiscard]] static Result<std::unique_ptr<Seal>> make(
      Kind kind, std::span<const std::byte, kKeyBytes> key);
  // A key from the kernel's random numbers.
  static void random_key(std::span<std::byte, kKeyBytes> key);
  ~Seal();  // wipes what was made of the key
  Seal(const Seal&) = delete;
  Seal& operator=(const Seal&) = delete;

  [[nodiscard]] Kind kind() const;
  [[nodiscard]] const char* name() const;  // "aes-256-gcm", "xchacha20-poly1305", "xxh3"
  // Writes plain.size() + kTagBytes bytes. The two do not overlap, here and below.
  void close(const Place& place, std::span<const std::byte> plain,
             std::span<std::byte> sealed) const;
  // Writes sealed.size() - kTagBytes bytes. False: it is not what was closed there; `plain` is then
  // not to be used.
  [[nodiscard]] bool open(const Place& place, std::span<const std::byte> sealed,
                          std::span<std::byte> plain) const;

 private:
  struct Impl;
  explicit Seal(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace foldswap
