// FrameTable: the frames of one shard: which have how much room, where in them an object goes, and
// which objects lie in them. Knows records only as far as moving objects must: to read where an
// object lies and to write where it went.
//
// A new object goes where a piece of about its size was seen (pool/piece_hints.h), else it takes
// the best fit: the list with the least free chunks that suffices. Inside the frame it goes into
// the known gap, else behind the tail, else the frame is compacted first (pool/compact.cc).
// tidy_step() empties sparse frames (pool/tidy.cc).
//
// In a frame, from chunk 0 to the tail, without anything between: objects, each behind its id (4
// bytes), and holes, each marked in its first chunk {0, chunks}. So a frame can be walked, if the
// records of its objects say how long they are; nothing outside has to list them. (Taking over goes
// the other way round, from the records: pool/restore.cc. Of a frame that a process left half-way,
// the marks of holes and the FrameMeta may say anything. An object's own mark is right as long as
// its record names the place.)
//
// Invariants: every frame that is not detached hangs on the list of its class, class_of(frame). An
//   empty frame has tail 0 and no gap. The places of all listed frames are what the budget was told
//   (pool/budget.h). used_chunks is the sum over all frames of what is not free.
// Thread safety: none; every call needs the lock of the shard. No call allocates or makes a system
// call.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "pool/arena.h"
#include "pool/budget.h"
#include "pool/layout.h"
#include "pool/piece_hints.h"
#include "pool/record.h"

namespace foldswap {

class FrameTable {
 public:
  FrameTable(const PoolLayout& layout, std::uint32_t shard, Arena& records, Budget& budget);

  // Finds room for an object of `bytes` and writes its id there. False: nothing has room for it.
  [[nodiscard]] bool place(ObjectId id, std::uint32_t bytes, Location& where);
  void remove(const Location& where, std::uint32_t bytes);
  // An object's bytes.
  [[nodiscard]] std::byte* data(const Location& where, std::uint32_t bytes) const {
    return chunk_at(where.frame, where.chunk) + geometry_.header_bytes(bytes);
  }

  // Whether an object of `bytes` can lie there at all.
  [[nodiscard]] bool within(const Location& where, std::uint32_t bytes) const {
    return where.tier == Tier::frame && bytes <= kObjectBytesMax && where.frame < frames_end_ &&
           where.chunk + geometry_.chunks_for(bytes) <= geometry_.frame_chunks();
  }

  enum class Tidied : std::uint8_t {
    moved,      // there may be more to do
    blocked,    // every place left is reserved
    exhausted,  // no sparse frame can be emptied into others
  };
  // Moves objects out of a sparse frame until it is empty, or as much work is done as moving
  // `most_cost` bytes is. Adds the bytes moved to `moved`.
  [[nodiscard]] Tidied tidy_step(std::uint64_t most_cost, std::uint64_t& moved);
  // Chunks that frames in use do not use, of so many.
  [[nodiscard]] std::uint64_t wasted_chunks() const {
    return std::uint64_t{state_.used_frames} * geometry_.frame_chunks() - state_.used_chunks;
  }
  [[nodiscard]] std::uint64_t chunks_in_use() const {
    return std::uint64_t{state_.used_frames} * geometry_.frame_chunks();
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
  [[nodiscard]] const Arena& frames() const { return frame_arena_; }

  // Where an object lies in its frame, in chunks.
  struct Extent {
    std::uint32_t chunk, chunks, id;
    [[nodiscard]] std::uint32_t end() const { return chunk + chunks; }
  };
  // -- taking over, from records that are known (pool/restore.cc). First of all:
  void forget_lists();
  // Where an object lies that a process died moving within a frame.
  [[nodiscard]] bool in_scratch(const Location& where, std::uint32_t bytes) const;
  // Whether the bytes there are this object's; reads them all.
  [[nodiscard]] bool sound(const Extent& object) const;
  // Makes and lists a frame that has these objects and no other: one or more, by position, none
  // over another.
  void restore(std::uint32_t frame, std::span<const Extent> objects);
  // Whether a restored frame has room for one more, without anything having to be moved.
  [[nodiscard]] bool has_piece(std::uint32_t frame, std::uint32_t chunks) const;
  // Puts the object there.
  void bring_home(ObjectId id, std::uint32_t frame);
  // Keeps it out of everything: its memory could not be given back.
  void set_aside(std::uint32_t frame) { meta(frame).list = kDetached; }

  // What is wrong, or nullptr. `places`: of all listed frames. Reads every object's record and
  // bytes.
  [[nodiscard]] const char* validate(std::uint64_t& places, std::uint64_t& objects);

 private:
  struct Sums {
    std::uint64_t frames = 0, used_frames = 0, free_chunks = 0, used_chunks = 0, objects = 0;
    friend bool operator==(const Sums&, const Sums&) = default;
  };

  struct Window {
    std::size_t first, last;
  };

  [[nodiscard]] FrameMeta& meta(std::uint32_t frame) const {
    return *reinterpret_cast<FrameMeta*>(frame_arena_.at(frame));
  }
  [[nodiscard]] std::byte* chunk_at(std::uint32_t frame, std::uint32_t chunk) const {
    return frames_ + std::size_t{frame} * geometry_.frame_bytes + std::size_t{chunk} * kChunkBytes;
  }
  // What a chunk begins with: an object's id, or 0 and the length of the hole.
  struct Mark {
    std::uint32_t id, hole;
  };
  [[nodiscard]] Mark& mark(std::uint32_t frame, std::uint32_t chunk) const {
    return *reinterpret_cast<Mark*>(chunk_at(frame, chunk));
  }
  [[nodiscard]] Record& record(ObjectId id) const {
    return *reinterpret_cast<Record*>(records_.at(static_cast<std::uint32_t>(id)));
  }
  [[nodiscard]] std::uint32_t class_of(const FrameMeta& m) const;
  [[nodiscard]] std::int64_t places_of(const FrameMeta& m) const;
  void link(std::uint32_t frame, std::uint32_t list);
  void unlink(std::uint32_t frame);
  void relist(std::uint32_t frame);
  void note_piece(std::uint32_t frame);
  [[nodiscard]] bool takes(std::uint32_t frame, std::uint32_t chunks) const;

  [[nodiscard]] std::uint32_t best_fit(std::uint32_t chunks) const;
  [[nodiscard]] std::uint32_t easy_fit(std::uint32_t chunks);
  [[nodiscard]] std::uint32_t sparsest() const;
  [[nodiscard]] Location enter(std::uint32_t frame, ObjectId id, std::uint32_t bytes);
  [[nodiscard]] std::uint32_t carve(std::uint32_t frame, std::uint32_t chunks);
  void uncarve(std::uint32_t frame, std::uint32_t chunk, std::uint32_t chunks);
  void mark_hole(std::uint32_t frame, std::uint32_t chunk, std::uint32_t chunks) const;

  // Fills order_ with the frame's objects by position. False: the frame's marks and the records do
  // not say the same (a stray write, a flipped bit): it must not be moved in, and is marked
  // damaged.
  [[nodiscard]] bool gather(std::uint32_t frame, std::size_t& count);
  // Makes the frame, which has that much room, have it in one piece. False: it is damaged.
  [[nodiscard]] bool make_room(std::uint32_t frame, std::uint32_t chunks);
  [[nodiscard]] bool in_one_piece(const FrameMeta& m, std::uint32_t chunks) const {
    return m.gap_chunks >= chunks || geometry_.frame_chunks() - m.tail >= chunks;
  }
  void set_damaged(std::uint32_t frame);
  [[nodiscard]] std::uint32_t source_for(std::uint32_t target) const;
  [[nodiscard]] Tidied empty_into(std::uint32_t source, std::uint32_t only_target,
                                  std::uint64_t most_cost, std::uint64_t& moved);
  [[nodiscard]] bool relocate(const Extent& object, std::uint32_t from, std::uint32_t to);
  [[nodiscard]] Window cheapest_window(std::size_t count, std::uint32_t need) const;
  [[nodiscard]] bool compact(std::uint32_t frame, std::uint32_t need);
  void move(Record& object, std::uint32_t to_chunk);

  [[nodiscard]] const char* validate_lists(Sums& sums, std::uint64_t& places) const;
  [[nodiscard]] const char* validate_frame(std::uint32_t frame);
  [[nodiscard]] const char* validate_object(ObjectId id, std::uint32_t frame,
                                            std::uint32_t chunk) const;
  [[nodiscard]] const char* validate_marks(std::uint32_t frame, std::uint32_t& objects) const;

  // Constant after construction.
  const PoolGeometry geometry_;
  const std::uint32_t scratch_frame_;
  const std::uint64_t frames_end_;  // no frame has this number or a higher one
  std::byte* const frames_;
  ShardState& state_;
  Budget& budget_;
  Arena& records_;
  // Under the shard's lock.
  Arena frame_arena_;
  std::vector<Extent> order_, leaving_;  // for gather() and tidy_step(); sized once
  PieceHints hints_;
};

}  // namespace foldswap
