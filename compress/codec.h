// PageCodec: compresses one page at a time with the codec that the caller names, and back.
//
// For: the evictor (compress) and the fault threads (decompress).
// Thread safety: none; one PageCodec per thread. Nothing is shared between two of them.
// Memory: all contexts and buffers are made by make(). decompress() never allocates; compress() may
// let
//   zstd grow its tables the first time a higher level is asked for than ever before.
// Invariants: compress() never yields more bytes than it was given: what does not shrink is `raw`.
// Errors: decompress() of damaged input is an Error, never undefined behaviour, and never touches
//   anything outside the two spans.
// Format: lz4 is a bare LZ4 block. zstd is one zstd frame with no content size, checksum or
// dictionary
//   id, and without the four magic bytes that every frame starts with: they say nothing here and
//   would cost 0.7 % of a typical page (5 to 7 of some 600 bytes are saved in all). Only zstd's
//   stable interface is used for that: the magic is cut off after compressing and put back before
//   decompressing.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "base/result.h"
#include "compress/codec_id.h"

namespace foldswap {

inline constexpr std::size_t kCodecMaxInput = 4096;

// What to compress with. level: zstd 1..19; lz4: acceleration, 1 (densest) .. 65537; raw: 0.
struct CodecSpec {
  Codec codec = Codec::zstd;
  int level = 1;
  friend bool operator==(const CodecSpec&, const CodecSpec&) = default;
};

// "zstd", "zstd:N", "lz4", "lz4:N", "raw". Error: names the part that was wrong.
[[nodiscard]] Result<CodecSpec> parse_codec_spec(std::string_view text);
// Always with the level, where there is one; parse_codec_spec takes it back.
[[nodiscard]] std::string to_string(CodecSpec spec);

struct Compressed {
  Codec codec = Codec::raw;
  std::uint32_t length = 0;  // bytes written to `out`
};

class PageCodec {
 public:
  [[nodiscard]] static Result<std::unique_ptr<PageCodec>> make();
  ~PageCodec();
  PageCodec(const PageCodec&) = delete;
  PageCodec& operator=(const PageCodec&) = delete;

  // in: 0..4096 bytes; out: at least 4096 bytes, not overlapping `in`.
  [[nodiscard]] Compressed compress(CodecSpec spec, std::span<const std::byte> in,
                                    std::span<std::byte> out);
  // out.size(): exactly the number of bytes that were compressed.
  [[nodiscard]] Status decompress(Codec codec, std::span<const std::byte> in,
                                  std::span<std::byte> out);

 private:
  struct State;
  explicit PageCodec(std::unique_ptr<State> state);

  std::uint32_t compress_lz4(int acceleration, std::span<const std::byte> in,
                             std::span<std::byte> out);
  std::uint32_t compress_zstd(int level, std::span<const std::byte> in, std::span<std::byte> out);
  Status decompress_lz4(std::span<const std::byte> in, std::span<std::byte> out);
  Status decompress_zstd(std::span<const std::byte> in, std::span<std::byte> out);

  std::unique_ptr<State> state_;
};

}  // namespace foldswap
