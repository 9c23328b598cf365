// PoolTakeOver: makes a pool again of the files of one whose process has died, at any instruction
// (HAZARDS 19). Every object that a page map names is there afterwards, with the bytes that it had.
//
// What is believed, because the order in which things are written makes it true after every
// instruction (record.h, arena.h): which table pages are attached, which frames are in use, and the
// two words of each record; and the counters that only tell what has been. What is made anew:
// reference counts, from the page maps; which records are free; what frames hold and where there is
// room (restore.cc); lists, sums, ages. A replacement that was begun is finished, an object that
// lies in a scratch frame gets a place, frames and table pages that nothing lives in go back to the
// system. Reservations are gone. Bytes of objects are not read: what became of them load() tells.
//
// An object is lost when its record cannot be true: a length or place that cannot be, bytes that
// lie over another object's. The record stays until its references are gone, and load() answers
// EIO.
//
// A death in here is as any other: the next one begins anew.
// Use: begin(), reference() for all page maps, finish(). Thread safety: one thread's.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "base/mapping.h"
#include "base/os.h"
#include "base/result.h"
#include "pool/arena.h"
#include "pool/layout.h"
#include "pool/record.h"

namespace foldswap {

class Pool;

class PoolTakeOver {
 public:
  // Takes the files, which are closed when this, or the pool, goes: whoever has no other
  // descriptors of them hands in duplicates. `os` outlives the pool. Error: no memory; or they are
  // another version's, or laid out in another way than `config` says (drain first): nothing has
  // changed then, and `files` are still the caller's. The limit may be another one, and less than
  // what is held.
  [[nodiscard]] static Result<PoolTakeOver> begin(Os& os, PoolFiles& files,
                                                  const PoolConfig& config);

  // Once for each entry of a page map. False: the entry names nothing that can be an object, or one
  // that has as many references as can be. It must not stay, as a new object may get the id.
  [[nodiscard]] bool reference(ObjectId id);

  // Called for every object whose bytes lie elsewhere, so that the owner of the file can keep
  // account of it. False: they cannot lie there; the object is lost.
  using Outside = std::function<bool(ObjectId id, SegmentPlace place, std::uint32_t length)>;
  // PoolStats says what there is, and how many are lost. Of no use afterwards.
  [[nodiscard]] std::unique_ptr<Pool> finish(const Outside& outside);

 private:
  PoolTakeOver(Os& os, PoolLayout layout);
  [[nodiscard]] Status make_room();

  Os* os_;
  PoolLayout layout_;
  std::vector<Arena> records_, frames_;  // by shard
  // As long as the tables have been used so far; has memory where something was counted.
  Mapping references_, firsts_;
};

}  // namespace foldswap
