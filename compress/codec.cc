#include "compress/codec.h"

#include <lz4.h>
#include <zstd.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cassert>
#include <charconv>
#include <cstring>
#include <vector>

namespace foldswap {
namespace {

constexpr int kZstdLevelMax = 19;  // above lie the "ultra" levels, whose windows no page fills
constexpr int kLz4AccelerationMax = 65537;  // lz4 clamps there
constexpr std::uint32_t kZstdMagic = ZSTD_MAGICNUMBER;
constexpr std::size_t kMagicBytes = sizeof(kZstdMagic);
static_assert(std::endian::native == std::endian::little, "zstd's magic is stored little-endian");

struct FreeCctx {
  void operator()(ZSTD_CCtx* c) const { ZSTD_freeCCtx(c); }
};
struct FreeDctx {
  void operator()(ZSTD_DCtx* d) const { ZSTD_freeDCtx(d); }
};

bool set(ZSTD_CCtx* cctx, ZSTD_cParameter parameter, int value) {
  return ZSTD_isError(ZSTD_CCtx_setParameter(cctx, parameter, value)) == 0;
}

// Two names for two kinds of wrong text, so that a bad config line says what to change.
Result<int> parse_level(std::string_view codec, std::string_view text, int most) {
  int level = 0;
  const char* end = text.data() + text.size();
  const auto [rest, ec] = std::from_chars(text.data(), end, level);
  if (text.empty() || ec != std::errc{} || rest != end || level < 1 || level > most) {
    return fail("'" + std::string(text) + "' is not a level of " + std::string(codec) + " (1 to " +
                std::to_string(most) + ")");
  }
  return level;
}

}  // namespace

Result<CodecSpec> parse_codec_spec(std::string_view text) {
  const std::size_t colon = text.find(':');
  const std::string_view name = text.substr(0, colon);
  const bool has_level = colon != std::string_view::npos;
  const std::string_view level = has_level ? text.substr(colon + 1) : std::string_view{};
  if (name == "raw") {
    if (has_level) return fail("codec raw takes no level");
    return CodecSpec{Codec::raw, 0};
  }
  if (name != "zstd" && name != "lz4") {
    return fail("'" + std::string(name) + "' is not a codec (zstd, zstd:N, lz4, lz4:N or raw)");
  }
  const Codec codec = name == "zstd" ? Codec::zstd : Codec::lz4;
  if (!has_level) return CodecSpec{codec, 1};
  const auto parsed =
      parse_level(name, level, codec == Codec::zstd ? kZstdLevelMax : kLz4AccelerationMax);
  if (!parsed) return std::unexpected(parsed.error());
  return CodecSpec{codec, *parsed};
}

std::string to_string(CodecSpec spec) {
  switch (spec.codec) {
    case Codec::lz4:
      return "lz4:" + std::to_string(spec.level);
    case Codec::zstd:
      return "zstd:" + std::to_string(spec.level);
    case Codec::pattern:
      return "pattern";
    case Codec::raw:
      break;
  }
  return "raw";
}

struct PageCodec::State {
  std::unique_ptr<ZSTD_CCtx, FreeCctx> cctx;
  std::unique_ptr<ZSTD_DCtx, FreeDctx> dctx;
  int cctx_level = 0;              // the level that cctx is set to
  std::vector<std::uint64_t> lz4;  // LZ4's external state; needs 8-byte alignment
  std::array<std::byte, kCodecMaxInput + kMagicBytes> frame;  // a zstd frame with its magic
};

PageCodec::PageCodec(std::unique_ptr<State> state) : state_(std::move(state)) {}
PageCodec::~PageCodec() = default;

Result<std::unique_ptr<PageCodec>> PageCodec::make() {
  auto state = std::make_unique<State>();
  state->cctx.reset(ZSTD_createCCtx());
  state->dctx.reset(ZSTD_createDCtx());
  if (!state->cctx || !state->dctx) return fail_errno("no memory for zstd contexts", ENOMEM);
  ZSTD_CCtx* cctx = state->cctx.get();
  if (!set(cctx, ZSTD_c_contentSizeFlag, 0) || !set(cctx, ZSTD_c_checksumFlag, 0) ||
      !set(cctx, ZSTD_c_dictIDFlag, 0)) {
    return fail("this libzstd refuses to leave out frame header fields");
  }
  const auto lz4_bytes = static_cast<std::size_t>(LZ4_sizeofState());
  state->lz4.resize((lz4_bytes + sizeof(std::uint64_t) - 1) / sizeof(std::uint64_t));
  std::unique_ptr<PageCodec> codec(new PageCodec(std::move(state)));
  // zstd sizes its tables at the first use: have that behind us.
  const std::array<std::byte, kCodecMaxInput> page{};
  std::array<std::byte, kCodecMaxInput> out{};
  const Compressed warm = codec->compress({Codec::zstd, 1}, page, out);
  if (warm.codec != Codec::zstd) return fail_errno("zstd cannot compress a page", ENOMEM);
  return codec;
}

Compressed PageCodec::compress(CodecSpec spec, std::span<const std::byte> in,
                               std::span<std::byte> out) {
  assert(in.size() <= kCodecMaxInput && out.size() >= kCodecMaxInput);
  std::uint32_t length = 0;
  if (spec.codec == Codec::lz4) length = compress_lz4(spec.level, in, out);
  if (spec.codec == Codec::zstd) length = compress_zstd(spec.level, in, out);
  if (length != 0 && length < in.size()) return {spec.codec, length};
  if (!in.empty()) std::memcpy(out.data(), in.data(), in.size());
  return {Codec::raw, static_cast<std::uint32_t>(in.size())};
}

// Both return 0 when the input would not shrink.
std::uint32_t PageCodec::compress_lz4(int acceleration, std::span<const std::byte> in,
                                      std::span<std::byte> out) {
  if (in.size() < 2) return 0;
  const int n =
      LZ4_compress_fast_extState(state_->lz4.data(), reinterpret_cast<const char*>(in.data()),
                                 reinterpret_cast<char*>(out.data()), static_cast<int>(in.size()),
                                 static_cast<int>(in.size()) - 1, acceleration);
  return static_cast<std::uint32_t>(std::max(n, 0));
}

std::uint32_t PageCodec::compress_zstd(int level, std::span<const std::byte> in,
                                       std::span<std::byte> out) {
  if (in.size() < 2) return 0;
  ZSTD_CCtx* cctx = state_->cctx.get();
  if (state_->cctx_level != level) {
    if (!set(cctx, ZSTD_c_compressionLevel, level)) return 0;
    state_->cctx_level = level;
  }
  const std::size_t room = in.size() - 1 + kMagicBytes;
  const std::size_t n = ZSTD_compress2(cctx, state_->frame.data(), room, in.data(), in.size());
  if (ZSTD_isError(n) != 0 || n <= kMagicBytes) return 0;  // "does not fit" is the usual one
  std::memcpy(out.data(), state_->frame.data() + kMagicBytes, n - kMagicBytes);
  return static_cast<std::uint32_t>(n - kMagicBytes);
}

Status PageCodec::decompress(Codec codec, std::span<const std::byte> in, std::span<std::byte> out) {
  if (in.size() > kCodecMaxInput || out.size() > kCodecMaxInput) {
    return fail("compressed page of " + std::to_string(in.size()) + " bytes for " +
                std::to_string(out.size()) + " is too long");
  }
  switch (codec) {
    case Codec::lz4:
      return decompress_lz4(in, out);
    case Codec::zstd:
      return decompress_zstd(in, out);
    case Codec::raw:
      if (in.size() != out.size()) return fail("raw page has the wrong length");
      if (!in.empty()) std::memcpy(out.data(), in.data(), in.size());
      return {};
    case Codec::pattern:
      break;
  }
  return fail("codec number " + std::to_string(static_cast<unsigned>(codec)) +
              " has nothing to decompress");
}

Status PageCodec::decompress_lz4(std::span<const std::byte> in, std::span<std::byte> out) {
  const int n = LZ4_decompress_safe(reinterpret_cast<const char*>(in.data()),
                                    reinterpret_cast<char*>(out.data()),
                                    static_cast<int>(in.size()), static_cast<int>(out.size()));
  if (n < 0 || static_cast<std::size_t>(n) != out.size()) return fail("lz4 page is damaged");
  return {};
}

Status PageCodec::decompress_zstd(std::span<const std::byte> in, std::span<std::byte> out) {
  std::memcpy(state_->frame.data(), &kZstdMagic, kMagicBytes);
  if (!in.empty()) std::memcpy(state_->frame.data() + kMagicBytes, in.data(), in.size());
  const std::size_t n = ZSTD_decompressDCtx(state_->dctx.get(), out.data(), out.size(),
                                            state_->frame.data(), in.size() + kMagicBytes);
  if (ZSTD_isError(n) != 0)
    return fail(std::string("zstd page is damaged: ") + ZSTD_getErrorName(n));
  if (n != out.size()) return fail("zstd page is damaged: wrong length");
  return {};
}

}  // namespace foldswap
