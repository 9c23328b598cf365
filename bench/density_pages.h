// A file of pages, as the daemon would see and compress them: for the density benchmark.
//
// For one thread. Same-filled pages are counted and left out: they cost no object. Units: bytes
// where the name says so.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "base/result.h"
#include "compress/codec.h"

namespace foldswap::bench {

constexpr std::size_t kPageBytes = kCodecMaxInput;

// What a codec made of one page.
struct Output {
  Codec codec = Codec::raw;
  std::uint32_t length = 0;
  std::size_t offset = 0;
};

// The outputs of one codec for all pages of a PageSet.
struct Outputs {
  std::vector<Output> pages;
  std::vector<std::byte> bytes;
  std::uint64_t total_bytes = 0, incompressible = 0;

  [[nodiscard]] std::span<const std::byte> of(std::size_t page) const {
    return std::span(bytes).subspan(pages[page].offset, pages[page].length);
  }
  // Original bytes to outputs; a page that does not shrink counts as it is.
  [[nodiscard]] double ratio() const {
    return static_cast<double>(pages.size() * kPageBytes) / static_cast<double>(total_bytes);
  }
};

struct PageSet {
  std::string name;              // of the file, without directory and extension
  std::vector<std::byte> bytes;  // of the pages that are not same-filled
  std::size_t same_filled = 0;

  [[nodiscard]] std::size_t pages() const { return bytes.size() / kPageBytes; }
  [[nodiscard]] std::span<const std::byte, kPageBytes> page(std::size_t number) const {
    return std::span(bytes).subspan(number * kPageBytes).first<kPageBytes>();
  }
};

// Error: the file cannot be read, or has no two different pages.
[[nodiscard]] Result<PageSet> read_pages(const std::string& path);
[[nodiscard]] Result<Outputs> compress_all(const PageSet& set, CodecSpec spec);

}  // namespace foldswap::bench
