#include "pool/layout.h"

#include <sys/mman.h>
#include <sys/stat.h>

#include <new>
#include <string>

#include "base/uapi.h"

namespace foldswap {
namespace {

constexpr std::uint64_t round_up(std::uint64_t value, std::uint64_t unit) {
  return (value + unit - 1) / unit * unit;
}

constexpr std::uint32_t kItemBytes[2] = {sizeof(Record), sizeof(FrameMeta)};

std::uint64_t items_of_page(std::uint32_t item_bytes) {
  return kTablePageBytes / item_bytes - header_items(item_bytes);
}

// Of one shard: see Arena::Table.
std::uint64_t bitmap_bytes(std::uint32_t pages) {
  return std::uint64_t{2} * Arena::bitmap_words(pages) * sizeof(std::uint64_t);
}

// Takes the page faults here, where no lock is held: in one call (MADV_POPULATE_WRITE), which
// costs a fifth of as many faults, or one by one where that is refused.
void touch(std::byte* base, std::uint64_t bytes) {
  if (::madvise(base, bytes, uapi::kMadvPopulateWrite) == 0) return;
  for (std::uint64_t at = 0; at < bytes; at += kPageBytes) {
    *static_cast<volatile std::byte*>(base + at) = std::byte{0};
  }
}

std::uint64_t file_bytes(int fd) {
  struct stat st{};
  return ::fstat(fd, &st) == 0 ? static_cast<std::uint64_t>(st.st_size) : 0;
}

}  // namespace

// A shard may own twice its share of every table: stores are spread evenly, but lives differ.
Status PoolLayout::plan() {
  const PoolGeometry& g = config_.geometry;
  if (const Status ok = g.check(); !ok) return ok;
  if (config_.shards < 1 || config_.shards > kShardsMax) return fail("pool shards not in 1 to 64");
  if (config_.limit_bytes > config_.frame_bytes_max) {
    return fail("pool limit of " + std::to_string(config_.limit_bytes) + " bytes is over the " +
                std::to_string(config_.frame_bytes_max) + " that the pool was laid out for");
  }
  const std::uint64_t items[2] = {config_.objects_max, config_.frame_bytes_max / g.frame_bytes};
  for (int t = 0; t < 2; ++t) {
    const std::uint32_t item_bytes = kItemBytes[t];
    const std::uint64_t pages = 1 + 2 * items[t] / items_of_page(item_bytes) / config_.shards;
    // Numbers of items are 32 bits wide; a page holds at most 256.
    if (pages * config_.shards >= (1ULL << 32) / (kTablePageBytes / item_bytes)) {
      return fail("pool is laid out for more objects or frames than 32-bit numbers can name");
    }
    pages_[t] = static_cast<std::uint32_t>(pages);
  }
  std::uint64_t at = kTablePageBytes + config_.shards * kShardStateBytes;
  for (int t = 0; t < 2; ++t) {
    bitmap_offset_[t] = at;
    at = round_up(at + bitmap_bytes(pages_[t]) * config_.shards, 64);
  }
  frame_table_offset_ = round_up(at, kTablePageBytes);
  meta_bytes_ = frame_table_offset_ + std::uint64_t{pages_[1]} * config_.shards * kTablePageBytes;
  records_bytes_ = (1 + std::uint64_t{pages_[0]} * config_.shards) * kTablePageBytes;
  frames_bytes_ = std::uint64_t{pages_[1]} * config_.shards *
                  (kTablePageBytes / sizeof(FrameMeta)) * g.frame_bytes;
  return {};
}

Status PoolLayout::make_files(Os& os) {
  struct File {
    const char* name;
    std::uint64_t bytes;
    std::uint64_t backed;  // from the start
    UniqueFd& fd;
    Mapping& mapping;
  };
  File files[] = {{"foldswap-frames", frames_bytes_, 0, files_.frames, frames_},
                  {"foldswap-records", records_bytes_, kTablePageBytes, files_.records, records_},
                  {"foldswap-meta", meta_bytes_, frame_table_offset_, files_.meta, meta_}};
  for (File& file : files) {
    auto fd = os.memory_file(file.name, file.bytes);
    if (!fd) return std::unexpected(fd.error());
    file.fd = std::move(*fd);
    auto mapping = Mapping::shared(file.fd.get(), file.bytes);
    if (!mapping) return std::unexpected(mapping.error());
    file.mapping = std::move(*mapping);
    if (file.backed == 0) continue;
    const int error = os.allocate(file.fd.get(), 0, file.backed);
    if (error != 0) return fail_errno(std::string("no memory for ") + file.name, -error);
    touch(file.mapping.data(), file.backed);
  }
  for (std::uint32_t s = 0; s < config_.shards; ++s) {
    const std::uint64_t offset = std::uint64_t{scratch_frame(s)} * config_.geometry.frame_bytes;
    const int error = os.allocate(files_.frames.get(), offset, scratch_bytes());
    if (error != 0) return fail_errno("no memory for a scratch frame", -error);
    touch(frames_.data() + offset, scratch_bytes());
  }
  return {};
}

PoolHeader PoolLayout::header_of(std::uint64_t magic) const {
  PoolHeader header{};
  header.magic = magic;
  header.version = PoolHeader::kVersion;
  header.frame_bytes = config_.geometry.frame_bytes;
  header.buddies = config_.geometry.buddies;
  header.chunk_bytes = kChunkBytes;
  header.shards = config_.shards;
  header.header_bytes = kHeaderBytes;
  header.file_bytes = magic == PoolHeader::kMagicMeta ? meta_bytes_ : records_bytes_;
  header.frames_file_bytes = frames_bytes_;
  header.record_pages = pages_[0];
  header.frame_pages = pages_[1];
  return header;
}

void PoolLayout::write_headers() const {
  *records_.as<PoolHeader>() = header_of(PoolHeader::kMagicRecords);
  *meta_.as<PoolHeader>() = header_of(PoolHeader::kMagicMeta);
  for (std::uint32_t s = 0; s < config_.shards; ++s) {
    ::new (static_cast<void*>(&shard_state(s))) ShardState{};
  }
}

// What is compared first is what tells most.
Status PoolLayout::check_header(int fd, const char* file, std::uint64_t magic) const {
  const std::string name = std::string("the pool's ") + file + " file ";
  if (file_bytes(fd) < kTablePageBytes) return fail(name + "is too short to be one");
  const auto page = Mapping::shared(fd, kTablePageBytes);
  if (!page) return std::unexpected(page.error());
  const PoolHeader found = *page->as<PoolHeader>(), want = header_of(magic);
  if (found.magic != want.magic) return fail(name + "does not begin like one");
  struct {
    const char* what;
    std::uint64_t found, want;
  } const fields[] = {{"version", found.version, want.version},
                      {"pool.frame", found.frame_bytes, want.frame_bytes},
                      {"pool.buddies", found.buddies, want.buddies},
                      {"chunk", found.chunk_bytes, want.chunk_bytes},
                      {"object header", found.header_bytes, want.header_bytes},
                      {"number of shards", found.shards, want.shards},
                      {"most pages of records", found.record_pages, want.record_pages},
                      {"most pages of frames", found.frame_pages, want.frame_pages}};
  for (const auto& field : fields) {
    if (field.found == field.want) continue;
    return fail(name + "was made with " + field.what + " " + std::to_string(field.found) +
                ", not " + std::to_string(field.want) +
                ", which cannot change while pages are out: drain first");
  }
  if (found != want || file_bytes(fd) != want.file_bytes) {
    return fail(name + "is not as long as it must be");
  }
  return {};
}

Status PoolLayout::map(const PoolFiles& files) {
  struct {
    int fd;
    std::uint64_t bytes;
    Mapping& mapping;
  } const all[] = {{files.frames.get(), frames_bytes_, frames_},
                   {files.records.get(), records_bytes_, records_},
                   {files.meta.get(), meta_bytes_, meta_}};
  for (const auto& file : all) {
    auto mapping = Mapping::shared(file.fd, file.bytes);
    if (!mapping) return std::unexpected(mapping.error());
    file.mapping = std::move(*mapping);
  }
  return {};
}

Result<PoolLayout> PoolLayout::open(const PoolFiles& files, const PoolConfig& config) {
  PoolLayout layout;
  layout.config_ = config;
  Status ok = layout.plan();
  if (ok) ok = layout.check_header(files.meta.get(), "meta", PoolHeader::kMagicMeta);
  if (ok) ok = layout.check_header(files.records.get(), "records", PoolHeader::kMagicRecords);
  if (ok && file_bytes(files.frames.get()) != layout.frames_bytes_) {
    ok = fail("the pool's frames file is not as long as it must be");
  }
  if (ok) ok = layout.map(files);
  if (!ok) return std::unexpected(ok.error());
  return layout;
}

Result<PoolLayout> PoolLayout::create(Os& os, const PoolConfig& config) {
  PoolLayout layout;
  layout.config_ = config;
  if (const Status ok = layout.plan(); !ok) return std::unexpected(ok.error());
  if (const Status ok = layout.make_files(os); !ok) return std::unexpected(ok.error());
  layout.write_headers();
  return layout;
}

void ShardState::count(const ObjectMeta& meta, const Location& where, std::uint64_t by) {
  if (meta.codec == Codec::pattern) {
    patterns += by;
    return;
  }
  if (where.tier == Tier::segment) {
    outside += by;
    outside_bytes += by * meta.length;
    return;
  }
  if (where.tier != Tier::frame) {
    lost += by;
    return;
  }
  objects += by;
  compressed_bytes += by * meta.length;
  age_count[where.age] += static_cast<std::uint32_t>(by);
  if (!where.settled) unsettled_count[where.age] += static_cast<std::uint32_t>(by);
  if (meta.codec == Codec::raw && meta.length == kObjectBytesMax) incompressible += by;
}

PoolLayout::Where PoolLayout::where(Table table) const {
  if (table == Table::records) {
    return {files_.records.get(), records_.data() + kTablePageBytes, kTablePageBytes};
  }
  return {files_.meta.get(), meta_.data() + frame_table_offset_, frame_table_offset_};
}

Arena PoolLayout::arena(Table table, std::uint32_t shard) const {
  const auto t = static_cast<std::size_t>(table);
  ShardState& state = shard_state(shard);
  ArenaState* states[2] = {&state.records, &state.frames};
  return Arena(
      {.base = where(table).base,
       .item_bytes = kItemBytes[t],
       .shards = config_.shards,
       .shard = shard,
       .pages = pages_[t],
       .state = states[t],
       .bitmaps = meta_.as<std::uint64_t>(bitmap_offset_[t] + shard * bitmap_bytes(pages_[t]))});
}

int PoolLayout::back_page(Os& os, Table table, std::uint32_t page) const {
  const Where w = where(table);
  const std::uint64_t at = std::uint64_t{page} * kTablePageBytes;
  const int error = os.allocate(w.fd, w.offset + at, kTablePageBytes);
  if (error == 0) touch(w.base + at, kTablePageBytes);
  return error;
}

int PoolLayout::punch_page(Os& os, Table table, std::uint32_t page) const {
  const Where w = where(table);
  return os.punch(w.fd, w.offset + std::uint64_t{page} * kTablePageBytes, kTablePageBytes);
}

int PoolLayout::back_frame(Os& os, std::uint32_t frame) const {
  const std::uint64_t bytes = config_.geometry.frame_bytes, at = frame * bytes;
  const int error = os.allocate(files_.frames.get(), at, bytes);
  if (error == 0) touch(frames_.data() + at, bytes);
  return error;
}

int PoolLayout::punch_frames(Os& os, std::uint32_t first, std::uint32_t count) const {
  const std::uint64_t bytes = config_.geometry.frame_bytes;
  return os.punch(files_.frames.get(), first * bytes, count * bytes);
}

std::uint64_t PoolLayout::fixed_bytes() const {
  return frame_table_offset_ + kTablePageBytes + config_.shards * scratch_bytes();
}

}  // namespace foldswap
