// PoolLayout: where everything of a pool lies in its three memory files, and the mappings of them.
//
//   frames   frame f at f * frame_bytes: objects behind their ids, and holes (pool/frame_table.h).
//   records  header page, then the table of Records: object id i at 4096 + i * 16.
//   meta     header page; state pages of each shard; bitmaps of the two tables; table of FrameMeta.
// The tables are cut into pages that belong to shards in turn (pool/arena.h), so a shard's lock
// protects whole pages and a page that nothing lives in can be given back. Frame numbers whose
// table index is a page header's (0 and 1 of every 128) are no frames; number 128 * s is the
// scratch of shard s.
//
// Sizes are for the most that the pool may ever hold; the files are sparse, mapped without
// reservation, and touched only where memory was allocated first (so a system without memory
// answers with an Error, not with SIGBUS). Do not mlockall() them without MCL_ONFAULT. Numbers and
// offsets only, no pointers: another process can map the same files and go on. Thread safety:
// constant after create(), or open() and
// hold().
#pragma once

#include <cstdint>
#include <utility>

#include "base/mapping.h"
#include "base/os.h"
#include "base/result.h"
#include "base/unique_fd.h"
#include "pool/arena.h"
#include "pool/geometry.h"
#include "pool/record.h"

namespace foldswap {

inline constexpr std::uint32_t kShardsMax = 64;

struct PoolConfig {
  PoolGeometry geometry;
  std::uint32_t shards = 4;                     // 1..64
  std::uint64_t limit_bytes = 1ULL << 30;       // hard limit for all frames together
  std::uint64_t frame_bytes_max = 64ULL << 30;  // the most that set_limit() may ever ask for
  std::uint64_t objects_max = 1ULL << 27;       // address space only, until used
  std::uint32_t waste_percent = 3;              // of the frames in use that tidy() leaves unused
};

// A pool's three memory files. They outlive the process when somebody else has them open too.
struct PoolFiles {
  UniqueFd frames, records, meta;
};

// Opens every file that has a header page.
struct PoolHeader {
  static constexpr std::uint64_t kMagicRecords = 0x0053445243455246;  // "FRECRDS"
  static constexpr std::uint64_t kMagicMeta = 0x004154454d4c4f50;     // "POLMETA"
  static constexpr std::uint32_t kVersion = 4;
  std::uint64_t magic;
  std::uint32_t version;
  std::uint32_t frame_bytes, buddies, chunk_bytes, header_bytes, shards;
  std::uint64_t file_bytes;
  std::uint64_t frames_file_bytes;
  std::uint32_t record_pages, frame_pages;  // of one shard
  friend bool operator==(const PoolHeader&, const PoolHeader&) = default;
};

// One frame. Identity: frame chunks == free_chunks + sum of its objects' chunks.
struct FrameMeta {
  std::uint32_t next, prev;  // on the list of its class
  std::uint32_t sole;        // the object that lies here alone, without a header; kNoItem: none
  std::uint16_t objects;
  std::uint16_t free_chunks;  // all of the room, wherever it lies
  std::uint16_t tail;         // from here to the end nothing lies
  std::uint16_t gap,
      gap_chunks;      // the largest known hole below the tail; gap_chunks == 0: none known
  std::uint16_t list;  // class, or kDetached
  std::uint16_t
      damaged;  // 1: its marks are not what its records say; nothing goes in until it is empty
  std::uint16_t reserved[3];
};
static_assert(sizeof(FrameMeta) == 32);
inline constexpr std::uint32_t kNoFrame = 0;
inline constexpr std::uint16_t kDetached = 0xffff;  // growing, or on its way back to the system

inline constexpr std::uint32_t kClassWords = (kClasses + 63) / 64;
inline constexpr std::uint32_t kAges = 4096;

// An object whose bytes are being replaced: written before its two words change, in case nobody
// lives to change the second.
struct Replacing {
  std::uint64_t id;  // 0: none
  std::uint64_t location, meta;
};

// All that a shard knows beside its tables. Whole pages.
struct ShardState {
  ArenaState records, frames;
  std::uint64_t list_bits[kClassWords];  // bit c: list c is not empty
  std::uint32_t list_head[kClasses];
  std::uint32_t empty_frames, used_frames;  // on the lists, without and with objects
  std::uint64_t used_chunks;
  std::uint64_t objects, patterns, incompressible;  // objects with bytes in frames
  std::uint64_t compressed_bytes;
  std::uint64_t outside, outside_bytes;  // objects elsewhere (Tier::segment), and their bytes
  std::uint64_t lost;                    // records without an object (Tier::none)
  std::uint64_t compactions, compacted_bytes, moved_bytes;
  std::uint64_t misuses, damages;
  std::uint64_t ticks;  // that have passed: the clock of age, which records know modulo kAges
  std::uint32_t stores_in_tick;
  std::uint32_t age_cursor;  // where oldest() goes on looking: a page of the record table, of ours
  Replacing replacing;
  std::uint32_t age_count[kAges];        // objects with bytes, by age
  std::uint32_t unsettled_count[kAges];  // of these, those that are not settled

  // Adds one object's share of the counters, or takes it away: `by` is 1 or -1 (as an unsigned
  // number).
  void count(const ObjectMeta& meta, const Location& where, std::uint64_t by);
};
inline constexpr std::uint64_t kShardStateBytes =
    (sizeof(ShardState) + kTablePageBytes - 1) / kTablePageBytes * kTablePageBytes;

class PoolLayout {
 public:
  // Error: the configuration is out of range, or the system has no memory for headers and bitmaps.
  [[nodiscard]] static Result<PoolLayout> create(Os& os, const PoolConfig& config);
  // Maps the files of another process's pool; hold() them. Error: they are not laid out as `config`
  // says (but for the limit), or damaged.
  [[nodiscard]] static Result<PoolLayout> open(const PoolFiles& files, const PoolConfig& config);
  void hold(PoolFiles files) { files_ = std::move(files); }

  enum class Table : std::uint8_t { records, frames };
  [[nodiscard]] Arena arena(Table table, std::uint32_t shard) const;
  [[nodiscard]] ShardState& shard_state(std::uint32_t shard) const {
    return *meta_.as<ShardState>(kTablePageBytes + shard * kShardStateBytes);
  }
  [[nodiscard]] std::byte* frames() const { return frames_.data(); }
  // One past the highest frame number that the file has room for.
  [[nodiscard]] std::uint64_t frames_end() const {
    return frames_bytes_ / config_.geometry.frame_bytes;
  }
  [[nodiscard]] static constexpr std::uint32_t scratch_frame(std::uint32_t shard) {
    return shard * static_cast<std::uint32_t>(kTablePageBytes / sizeof(FrameMeta));
  }

  // Memory for one page of a table, or one frame: allocated and touched, so that nobody faults
  // later.
  [[nodiscard]] int back_page(Os& os, Table table, std::uint32_t page) const;
  [[nodiscard]] int punch_page(Os& os, Table table, std::uint32_t page) const;
  [[nodiscard]] int back_frame(Os& os, std::uint32_t frame) const;
  [[nodiscard]] int punch_frames(Os& os, std::uint32_t first, std::uint32_t count) const;

  [[nodiscard]] const PoolGeometry& geometry() const { return config_.geometry; }
  [[nodiscard]] const PoolConfig& config() const { return config_; }
  // Memory that the pool holds from the start: headers, state, bitmaps, scratch.
  [[nodiscard]] std::uint64_t fixed_bytes() const;
  // What of a scratch frame has memory: room for the largest object that ever moves within a frame.
  [[nodiscard]] std::uint64_t scratch_bytes() const {
    return geometry().frame_bytes > kObjectBytesMax ? 2 * std::uint64_t{kObjectBytesMax}
                                                    : kObjectBytesMax;
  }
  [[nodiscard]] int frames_fd() const { return files_.frames.get(); }
  [[nodiscard]] int records_fd() const { return files_.records.get(); }
  [[nodiscard]] int meta_fd() const { return files_.meta.get(); }

 private:
  struct Where {
    int fd;
    std::byte* base;
    std::uint64_t offset;  // of the table in its file
  };
  [[nodiscard]] Where where(Table table) const;
  [[nodiscard]] Status plan();
  [[nodiscard]] Status make_files(Os& os);
  [[nodiscard]] PoolHeader header_of(std::uint64_t magic) const;
  [[nodiscard]] Status check_header(int fd, const char* file, std::uint64_t magic) const;
  [[nodiscard]] Status map(const PoolFiles& files);
  void write_headers() const;

  PoolConfig config_;
  std::uint32_t pages_[2] = {};          // of one shard, by Table
  std::uint64_t bitmap_offset_[2] = {};  // in meta, shard after shard
  std::uint64_t frame_table_offset_ = 0;
  std::uint64_t frames_bytes_ = 0, records_bytes_ = 0, meta_bytes_ = 0;
  PoolFiles files_;
  Mapping frames_, records_, meta_;
};

}  // namespace foldswap
