// Pool: the fold pool. Keeps compressed pages, by object id, in as little memory as it can.
//
// z3fold's idea without its limit: many objects share a frame; a new one takes the frame that it
// fits best; a frame whose room is in pieces is compacted in place; emptied frames go back to the
// system in batches. Metadata lives outside the
// frames, but for an object's id before its bytes. The pool knows no processes, no
// userfaultfd, no disk and no policy, and it never calls out: what is cold, and what to do about
// it, others decide.
//
// The files:
//   geometry     frame, buddy, chunk          record   the 16 bytes about an object
//   layout       what lies where in the memory files
//   arena        numbered items in pages      budget   the limit, and reservations against it
//   frame_table  frames and their objects     compact  room within a frame becomes one piece
//   tidy         objects leave sparse frames  shard    one lock and its share of all that
//   pool         this: the system calls between the locks
//   take_over    a pool made again of the files of a dead process; restore: of its frames
//
// Thread safety: every method may be called from any thread. Objects are spread over shards, each
// with a
//   lock of rank pool_shard; no two are ever held at once, and nothing is allocated, called or
//   waited for under one. Any lock of a lower rank may be held by the caller, but store, unref,
//   trim and reserve may make system calls, so DESIGN's rule keeps callers from holding one.
// Invariants: frames held <= the limit, always (but see set_limit). A stored object never moves to
// another
//   id, and its record's meta word changes by the reference count, and when it is given other
//   bytes.
// Errors: ENOSPC the limit is reached or the tables are full; ENOMEM the system has no memory;
//   EINVAL the object has a size or codec that cannot be; ENOENT no object has this id; EIO the
//   checksum does not hold. The pool is whole after any of them.
// Units: bytes.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "base/os.h"
#include "base/result.h"
#include "base/size.h"
#include "pool/budget.h"
#include "pool/layout.h"
#include "pool/record.h"
#include "pool/shard.h"

namespace foldswap {

struct Loaded {
  Codec codec = Codec::raw;
  std::uint32_t length = 0;    // bytes copied out; 0 for a pattern, and for what lies elsewhere
  std::uint64_t pattern = 0;   // Codec::pattern only
  std::uint32_t checksum = 0;  // of the bytes
  // The object has left the frames: nothing was copied out.
  struct Elsewhere {
    SegmentPlace place;
    std::uint32_t length = 0;
  };
  std::optional<Elsewhere> elsewhere = std::nullopt;
};

class Pool {
 public:
  // Empty frames beyond this (and beyond a 128th of all) go back to the system by themselves.
  static constexpr std::uint64_t kKeepEmptyBytes = 512 * kKiB;

  // `os` outlives the pool.
  [[nodiscard]] static Result<std::unique_ptr<Pool>> create(Os& os, const PoolConfig& config);
  ~Pool() = default;
  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;

  // Keeps codec output of 1..4096 bytes; the new object has one reference. Within the caller's
  // reservation this never fails for the limit.
  [[nodiscard]] Result<ObjectId> store(std::span<const std::byte> data, Codec codec);
  // An object that is one 8-byte word again and again: a record, no frame space, no reservation.
  [[nodiscard]] Result<ObjectId> store_pattern(std::uint64_t pattern);
  // Copies the codec's output into `out` and verifies it; what lies elsewhere is for the caller to
  // fetch, and to verify with verify().
  [[nodiscard]] Result<Loaded> load(ObjectId id, std::span<std::byte, 4096> out);

  // One more reference. False when the count is full (2^20 - 1) or the id names no object.
  [[nodiscard]] bool ref(ObjectId id);
  // One less; the last one frees the object, and may give surplus memory back to the system. When
  // the object lay elsewhere, whoever keeps account of that place must be told.
  std::optional<Vacated> unref(ObjectId id);
  // 0 when the id names no object.
  [[nodiscard]] std::uint32_t refs(ObjectId id);
  [[nodiscard]] ObjectInfo info(ObjectId id);
  // As info(), for an id that may have been freed since.
  [[nodiscard]] std::optional<ObjectInfo> peek(ObjectId id);

  // Sets room aside for pages that are about to be taken out of a client: 4096 bytes for each,
  // however well it will compress. True: as many stores as that cannot fail for the limit, whatever
  // other threads do under their own reservations. Both round up to whole pages. Release it when
  // the batch is stored, all at once or page by page; the sum must match.
  [[nodiscard]] bool reserve(std::uint64_t bytes_worst_case);
  void release_reservation(std::uint64_t bytes_worst_case);
  // Whether reserve() would do it now; another thread may be faster.
  [[nodiscard]] bool can_reserve(std::uint64_t bytes_worst_case) const;

  // What reserve() could grant in all.
  [[nodiscard]] std::uint64_t spare_bytes() const;

  // Rounds down to whole frames. A limit below what is held stops growth and reservations; nothing
  // is dropped. Error: more than PoolConfig::frame_bytes_max.
  [[nodiscard]] Status set_limit(std::uint64_t bytes);
  // As ref(), for an id that may have been freed since (oldest()).
  [[nodiscard]] bool try_ref(ObjectId id);
  // Gives an object that the caller holds a reference to other bytes for the same page (packed by
  // another codec), and settles it.
  [[nodiscard]] Replaced replace(ObjectId id, std::span<const std::byte> data, Codec codec);
  // It was tried, and is not worth another try.
  void settle(ObjectId id);
  // -- the tier below: bytes that somebody keeps elsewhere. The caller holds a reference.
  // Lets go of the bytes in the frame, which are at `place` by now. False: they are not what was
  // loaded (`as_loaded`) any more, or not in a frame.
  [[nodiscard]] bool move_out(ObjectId id, const Loaded& as_loaded, SegmentPlace place);
  // From one place elsewhere to another. False: it is not at `from`.
  [[nodiscard]] bool move_elsewhere(ObjectId id, SegmentPlace from, SegmentPlace to);
  // Whether these are the bytes that the object was stored with.
  [[nodiscard]] bool verify(ObjectId id, std::span<const std::byte> data);

  // Up to `most` objects with bytes in frames that are among the oldest, oldest first. By the time
  // of the answer they may have been freed. Age is coarse, and counted by stores (shard.cc), not by
  // loads: what is loaded is freed. A call looks at a bounded part of the pool; an empty answer
  // does not mean that there are none.
  struct AgeQuery {
    bool unsettled = false;       // those only that are not settled
    std::uint32_t least_age = 0;  // ticks
    std::size_t among = 0;        // how many count as the oldest; at least `most`
  };
  [[nodiscard]] std::vector<ObjectId> oldest(std::size_t most, const AgeQuery& query);
  [[nodiscard]] std::vector<ObjectId> oldest(std::size_t most) { return oldest(most, AgeQuery{}); }
  // Ticks of the clock of age that have passed, of all shards together.
  [[nodiscard]] std::uint64_t ticks();
  // Moves objects out of sparse frames, about `most_bytes` of them, while more than the wanted part
  // of the frames in use is unused, and gives emptied frames back. Returns the bytes moved; 0:
  // there is nothing worth moving, or no room to move it to.
  std::uint64_t tidy(std::uint64_t most_bytes);
  // 0..100: what tidy() is content with.
  void set_waste(std::uint32_t percent) { waste_percent_ = percent; }
  // Gives empty frames back until at most `keep_bytes` of them are left (or reservations count on
  // the rest), and table pages that nothing lives in. Returns the bytes given back, of both.
  std::uint64_t trim(std::uint64_t keep_bytes);

  [[nodiscard]] PoolStats stats();
  // Walks everything and names the first thing that is wrong. Each shard is locked in turn, for
  // long. The budget is compared only when `quiet`: no other thread uses the pool meanwhile.
  [[nodiscard]] Status validate(bool quiet = true);

  [[nodiscard]] const PoolLayout& layout() const { return layout_; }

 private:
  enum class Outcome : std::uint8_t { done, no_room, no_memory, table_full };

  friend class PoolTakeOver;
  explicit Pool(Os& os, PoolLayout layout);
  [[nodiscard]] Shard& shard_of(ObjectId id);
  [[nodiscard]] std::uint32_t next_shard();
  [[nodiscard]] Outcome search(std::uint32_t turn, const NewObject& object, ObjectId& id);
  [[nodiscard]] Outcome store_in(Shard& shard, const NewObject& object, ObjectId& id);
  [[nodiscard]] Outcome grow(Shard& shard);
  [[nodiscard]] Outcome grow_reserved(Shard& shard);
  [[nodiscard]] Outcome add_page(Shard& shard, Shard::Table table);
  [[nodiscard]] std::uint64_t keep_frames() const {
    return budget_.empty_to_keep(kKeepEmptyBytes / layout_.geometry().frame_bytes);
  }
  void give_back(Shard& shard, Surplus surplus);
  std::uint64_t release_frames(Shard& shard, std::uint64_t keep_frames);
  std::uint64_t release_pages(Shard& shard, std::uint32_t keep_pages);
  [[nodiscard]] bool punch_run(Shard& shard, std::span<const std::uint32_t> run);

  // Constant after construction.
  Os& os_;
  const PoolLayout layout_;
  // Thread-safe by themselves.
  Budget budget_;
  std::vector<std::unique_ptr<Shard>> shards_;
  std::atomic<std::uint64_t> ticket_{0};
  std::atomic<std::uint32_t> waste_percent_;
  std::atomic<std::uint32_t> oldest_turn_{0};
};

}  // namespace foldswap
