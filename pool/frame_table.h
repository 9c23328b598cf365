// FrameTable: the frames of one shard: which have how much room, where in them an object goes, and
// which objects lie in them (slots). Knows records only as far as compaction must: to read where an
// object lies and to write where it went.
//
// A new object takes the best fit: the list with the least free chunks that suffices. Inside the
// frame it goes into the known gap, else behind the tail, else the frame is compacted first
// (pool/compact.cc).
//
// Slots: a chain of blocks per frame, as long as the frame once needed; freed when the frame
// empties. Word 0 of a block is the number of the next one, the others hold object ids, 0 where
// free.
//
// Invariants: every frame that is not detached hangs on the list of its class, class_of(frame). An
//   empty frame has no slot blocks, tail 0 and no gap. The places of all listed frames are what the
//   budget was told (pool/budget.h).
// Thread safety: none; every call needs the lock of the shard. No call allocates or makes a system
// call.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "pool/arena.h"
#include "pool/budget.h"
#include "pool/layout.h"
#include "pool/record.h"

namespace foldswap {

class FrameTable {
 public:
  FrameTable(const PoolLayout& layout, std::uint32_t shard, Arena& records, Budget& budget);

  enum class Placed : std::uint8_t { done, no_frame, no_block };
  // Finds room for an object of `bytes` and enters it in a slot. no_frame: nothing has room for it;
  // no_block: the table of slot blocks needs a page first.
  [[nodiscard]] Placed place(ObjectId id, std::uint32_t bytes, Location& where);
  void remove(const Location& where, std::uint32_t bytes);
  [[nodiscard]] std::byte* data(const Location& where) const {
    return frames_ + std::size_t{where.frame} * geometry_.frame_bytes +
           std::size_t{where.chunk} * kChunkBytes;
  }

  // Whether an object of `bytes` can lie there at all.
  [[nodiscard]] bool within(const Location& where, std::uint32_t bytes) const {
    return where.tier == Tier::frame && bytes <= kObjectBytesMax && where.frame < frames_end_ &&
           where.chunk + chunks_for(bytes) <= geometry_.frame_chunks();
  }

  // A new frame's number (kNoFrame: the table needs a page first), detached; add() it when it has
  // memory.
  [[nodiscard]] std::uint32_t take_frame();
  void drop_frame(std::uint32_t frame);
  void add(std::uint32_t frame);
  // Takes an empty frame off the lists; kNoFrame: none that the budget lets go. drop_frame() it
  // when its memory is gone, or add() it again.
  [[nodiscard]] std::uint32_t detach_empty();

  [[nodiscard]] Arena& frames() { return frame_arena_; }
  [[nodiscard]] Arena& blocks() { return block_arena_; }
  [[nodiscard]] const Arena& frames() const { return frame_arena_; }
  [[nodiscard]] const Arena& blocks() const { return block_arena_; }

  // What is wrong, or nullptr. `places`: of all listed frames. Reads every object's record and
  // bytes.
  [[nodiscard]] const char* validate(std::uint64_t& places, std::uint64_t& objects);

 private:
  struct Sums {
    std::uint64_t frames = 0, free_chunks = 0, objects = 0;
    friend bool operator==(const Sums&, const Sums&) = default;
  };

  // Where an object lies in its frame, in chunks.
  struct Extent {
    std::uint32_t chunk, chunks, id;
    [[nodiscard]] std::uint32_t end() const { return chunk + chunks; }
  };
  struct Window {
    std::size_t first, last;
  };

  [[nodiscard]] FrameMeta& meta(std::uint32_t frame) const {
    return *reinterpret_cast<FrameMeta*>(frame_arena_.at(frame));
  }
  [[nodiscard]] std::uint32_t* block(std::uint32_t number) const {
    return reinterpret_cast<std::uint32_t*>(block_arena_.at(number));
  }
  [[nodiscard]] Record& record(ObjectId id) const {
    return *reinterpret_cast<Record*>(records_.at(static_cast<std::uint32_t>(id)));
  }
  [[nodiscard]] std::uint32_t class_of(const FrameMeta& m) const;
  [[nodiscard]] std::int64_t places_of(const FrameMeta& m) const;
  void link(std::uint32_t frame, std::uint32_t list);
  void unlink(std::uint32_t frame);
  void relist(std::uint32_t frame);

  [[nodiscard]] std::uint32_t best_fit(std::uint32_t chunks) const;
  [[nodiscard]] std::uint32_t* free_slot(FrameMeta& m, std::uint32_t& slot);
  [[nodiscard]] std::uint32_t* slot_word(const FrameMeta& m, std::uint32_t slot) const;
  [[nodiscard]] std::uint32_t carve(std::uint32_t frame, std::uint32_t chunks);
  void uncarve(FrameMeta& m, std::uint32_t chunk, std::uint32_t chunks) const;
  void free_blocks(FrameMeta& m);

  [[nodiscard]] std::size_t gather(std::uint32_t frame);
  [[nodiscard]] Window cheapest_window(std::size_t count, std::uint32_t need) const;
  void compact(std::uint32_t frame, std::uint32_t need);
  void move(Record& object, std::uint32_t to_chunk);

  [[nodiscard]] const char* validate_lists(Sums& sums, std::uint64_t& places) const;
  [[nodiscard]] const char* validate_frame(std::uint32_t frame);
  [[nodiscard]] const char* validate_object(ObjectId id, std::uint32_t frame,
                                            std::uint32_t slot) const;

  // Constant after construction.
  const PoolGeometry geometry_;
  const std::uint32_t block_slots_;
  const std::uint32_t scratch_frame_;
  const std::uint64_t frames_end_;  // no frame has this number or a higher one
  std::byte* const frames_;
  ShardState& state_;
  Budget& budget_;
  Arena& records_;
  // Under the shard's lock.
  Arena frame_arena_, block_arena_;
  std::vector<Extent> order_;  // for gather(); sized once
};

}  // namespace foldswap
