// Shard: one lock of the pool with all that it protects: a share of the records and a share of the
// frames. An object and its frame always belong to the same shard, so no operation needs two shard
// locks.
//
// Thread safety: every method takes the lock and may be called from any thread. Under the lock
// there is
//   no allocation, no system call, no callback; what needs one is split in two (claim / attach,
//   detach / drop), and pool.cc makes the system call in between.
// Invariants: see pool/frame_table.h and pool/arena.h; validate() walks them all.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "base/mutex.h"
#include "pool/frame_table.h"
#include "pool/layout.h"
#include "pool/record.h"

namespace foldswap {

// What the pool is made of now. Bytes where the name says so, else counts.
struct PoolStats {
  std::uint64_t objects = 0;           // with bytes in frames
  std::uint64_t pattern_objects = 0;   // without
  std::uint64_t incompressible = 0;    // of objects: raw, 4096 bytes
  std::uint64_t compressed_bytes = 0;  // of objects, exact codec output
  std::uint64_t frame_bytes = 0;       // all frames held, empty ones too
  std::uint64_t empty_frame_bytes = 0;
  std::uint64_t metadata_bytes = 0;  // all other memory of the pool
  std::uint64_t limit_bytes = 0;
  std::uint64_t limit_in_force_bytes = 0;  // more: what was reserved before it was lowered
  std::uint64_t reserved_bytes = 0;
  std::uint64_t compactions = 0, compacted_bytes = 0;  // within frames, since create()
  std::uint64_t moved_bytes = 0;                       // between frames, since create()
  std::uint64_t unused_bytes = 0;                      // of frames with objects: free room
  std::uint64_t damages = 0;  // frames whose contents were not what they should be, since create()
  std::uint64_t outside = 0;  // objects whose bytes lie elsewhere (Tier::segment)
  std::uint64_t outside_bytes = 0;  // their codec output, exact
  std::uint64_t lost = 0;           // objects that a death or damage left nothing of
  std::uint64_t misuses = 0;  // calls with an id that names no object; 0 unless a caller is wrong
};

struct ObjectInfo {
  Codec codec = Codec::raw;
  Tier tier = Tier::none;  // none: a pattern, or lost
  std::uint32_t length = 0;
  std::uint32_t refs = 0;
  bool settled = false;
  SegmentPlace place;  // Tier::segment only
};

// An object to be, with its checksum already computed outside the lock.
struct NewObject {
  std::span<const std::byte> data;
  Codec codec = Codec::raw;
  std::uint32_t checksum = 0;
};

// An object's bytes as they were copied out; the checksum is still to be compared, outside the
// lock.
struct RawLoad {
  ObjectMeta meta;
  std::uint64_t pattern = 0;
  Location where;  // not a frame: nothing was copied
};

// What a shard holds more of than it needs, to be given back without the lock.
struct Surplus {
  bool frames = false;
  bool pages = false;
};

// gone: no object with bytes in a frame has this id. no_room: it stayed as it was.
enum class Replaced : std::uint8_t { done, gone, no_room };

class Shard {
 public:
  using Table = PoolLayout::Table;
  using FrameBatch = std::array<std::uint32_t, 64>;

  Shard(const PoolLayout& layout, std::uint32_t shard, Budget& budget);

  enum class Stored : std::uint8_t { done, no_frame, no_record_page };
  [[nodiscard]] Stored store(const NewObject& object, ObjectId& id);
  [[nodiscard]] Stored store_pattern(std::uint64_t pattern, ObjectId& id);
  // Empty when the id names no object.
  [[nodiscard]] std::optional<RawLoad> load(ObjectId id, std::span<std::byte, 4096> out);
  // quiet: an id that names no object (any more) is no misuse.
  [[nodiscard]] bool ref(ObjectId id, bool quiet);
  Surplus unref(ObjectId id, std::optional<Vacated>& vacated);
  [[nodiscard]] Surplus surplus();
  [[nodiscard]] std::optional<ObjectInfo> info(ObjectId id, bool quiet);
  // Other bytes for an object that somebody holds a reference to.
  [[nodiscard]] Replaced replace(ObjectId id, const NewObject& object);
  void settle(ObjectId id);
  // See Pool. `expected`: but for the references.
  [[nodiscard]] bool move_out(ObjectId id, const ObjectMeta& expected, SegmentPlace place);
  [[nodiscard]] bool move_elsewhere(ObjectId id, SegmentPlace from, SegmentPlace to);
  [[nodiscard]] std::optional<std::uint32_t> checksum_of(ObjectId id);
  // One round over the table of records, in several calls, from where the last round was left.
  struct Sweep {
    bool begun = false, wrapped = false, done = false;
    std::uint32_t start = 0, at = 0;
  };
  struct Aged {
    ObjectId id;
    std::uint32_t ticks;  // old
  };
  // Appends objects with bytes in frames that are among the `among` oldest of this shard, and at
  // least so many ticks old, from the next `pages` pages of the table; no more than `wanted`, and
  // never beyond out.capacity().
  struct Search {
    std::size_t wanted, among;
    std::uint32_t least_age;
    bool unsettled;  // those only that are not settled
  };
  void oldest(Search search, std::uint32_t pages, Sweep& sweep, std::vector<Aged>& out);
  [[nodiscard]] std::uint64_t ticks();  // that have passed
  // False: no more than `waste_percent` of the frames in use is unused, or nothing can be done
  // about it now.
  [[nodiscard]] bool tidy(std::uint32_t waste_percent, std::uint64_t most_bytes,
                          std::uint64_t& moved);

  // Growing: see FrameTable.
  [[nodiscard]] std::uint32_t take_frame();
  void drop_frame(std::uint32_t frame);
  void add_frame(std::uint32_t frame);
  // Takes empty frames off the lists while the whole pool holds more than `keep`; returns how many.
  [[nodiscard]] std::size_t detach_empty(FrameBatch& batch, std::uint64_t keep);
  [[nodiscard]] std::uint32_t claim_page(Table table);
  void attach_page(Table table, std::uint32_t page);
  void forget_page(Table table, std::uint32_t page);
  // An empty page, while there are more than `keep` of them; else kNoPage.
  [[nodiscard]] std::uint32_t detach_page(Table table, std::uint32_t keep);

  // Adds this shard's share.
  void add_stats(PoolStats& stats);
  // What is wrong, or nullptr. Holds the lock for long: a diagnostic.
  [[nodiscard]] const char* validate(std::uint64_t& places);

  // Empty pages a table keeps without being trimmed.
  static constexpr std::uint32_t kKeepPages = 16;

 private:
  using Lock = RankedLock<LockRank::pool_shard>;
  [[nodiscard]] Arena& arena(Table table) FS_REQUIRES(mutex_);
  [[nodiscard]] Record& record(ObjectId id) FS_REQUIRES(mutex_) {
    return *reinterpret_cast<Record*>(records_.at(static_cast<std::uint32_t>(id)));
  }
  // Null (and counted as misuse, unless quiet) when the id names no object.
  [[nodiscard]] Record* find(ObjectId id, bool quiet = false) FS_REQUIRES(mutex_);
  [[nodiscard]] Surplus surplus_locked() FS_REQUIRES(mutex_);
  [[nodiscard]] std::uint32_t next_age() FS_REQUIRES(mutex_);
  [[nodiscard]] std::uint32_t oldest_age(std::size_t wanted, bool unsettled) const
      FS_REQUIRES(mutex_);
  [[nodiscard]] const char* validate_counts(std::uint64_t in_frames) FS_REQUIRES(mutex_);

  RankedMutex<LockRank::pool_shard> mutex_;
  ShardState& state_ FS_GUARDED_BY(mutex_);
  Arena records_ FS_GUARDED_BY(mutex_);
  FrameTable frames_ FS_GUARDED_BY(mutex_);
  Budget& budget_;
  const std::uint64_t keep_frames_;
};

}  // namespace foldswap
