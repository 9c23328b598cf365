#include "bench/density_pages.h"

#include <array>
#include <filesystem>
#include <fstream>

#include "compress/same_filled.h"

namespace foldswap::bench {

static_assert(kPageBytes == foldswap::kPageBytes);

Result<PageSet> read_pages(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) return fail_errno("cannot open " + path);
  PageSet set{.name = std::filesystem::path(path).stem().string(), .bytes = {}};
  std::array<std::byte, kPageBytes> page{};
  while (file.read(reinterpret_cast<char*>(page.data()), kPageBytes)) {
    if (same_filled(page)) {
      ++set.same_filled;
    } else {
      set.bytes.insert(set.bytes.end(), page.begin(), page.end());
    }
  }
  if (file.gcount() != 0) return fail(path + " is not made of whole pages");
  if (set.pages() < 2) return fail(path + " has no pages to compress");
  return set;
}

Result<Outputs> compress_all(const PageSet& set, CodecSpec spec) {
  auto codec = PageCodec::make();
  if (!codec) return std::unexpected(codec.error());
  Outputs outputs;
  std::array<std::byte, kPageBytes> out{};
  for (std::size_t i = 0; i < set.pages(); ++i) {
    const Compressed made = (*codec)->compress(spec, set.page(i), out);
    outputs.pages.push_back({made.codec, made.length, outputs.bytes.size()});
    outputs.bytes.insert(outputs.bytes.end(), out.begin(), out.begin() + made.length);
    outputs.total_bytes += made.length;
    if (made.codec == Codec::raw) ++outputs.incompressible;
  }
  return outputs;
}

}  // namespace foldswap::bench
