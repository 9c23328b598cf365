// BackingFile: the file that cold objects are written to, as numbered segments of 512 KiB, and the
// account of what lies where. Which objects those are, and what is written when, is writeback.cc's.
//
// Room is counted in blocks of 4 KiB. A block of a full segment in which nothing is live any more
// is dead: it becomes a hole (make_holes()) and counts no longer, while the segment lives on. So
// there may be more segments, with holes, than would fit the maximum without; a segment is written
// as a whole and once, and its places are used again only when all of it is free.
//
// A segment's life:
//   free -> claim() -> writing -> written() -> full -> nothing in it is live any more ->
//   (collect())
//   -> free; or writing -> abandon() -> free, when the write failed.
// Its number times kSegmentBytes is its place in the file. Room is asked for (fallocate) some
// segments at a time, and given back (holes) by give_back().
//
// Each write gets a generation of its own, never used before under this key, not even by a daemon
// that died: they are reserved in blocks in the state file (WritebackState::next_generation) before
// one of a block is used.
//
// The account (a word and a generation per segment, live bytes per block) lies in a memory file of
// its own with a versioned header, position independent. Thread safety: release() and generation()
// from any thread; the rest for one thread, the writer. Nothing is called or waited for under a
// lock; there is none. Invariants: a segment that a record points to is writing or full, and its
// live count includes that
//   object, and the live bytes of each block that it touches do. The segment is not reused before
//   its count is 0, and a block becomes no hole before its live bytes are. Sum over segments of
//   live bytes = live_bytes().
// Errors: ENOSPC the maximum, or what the file system must keep free, is reached; others are the
//   file system's own. Units: bytes; places within a segment in units of kUnit.
#pragma once

#include <array>
#include <atomic>
#include <bitset>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/mapping.h"
#include "base/os.h"
#include "base/result.h"
#include "base/unique_fd.h"
#include "daemon/disk/segment_set.h"
#include "daemon/state/state.h"
#include "daemon/state/versions.h"
#include "pool/record.h"

namespace foldswap {

class BackingFile {
 public:
  static constexpr std::uint32_t kVersion = kDiskVersion;  // of its account
  static constexpr std::uint64_t kSegmentBytes = 512 * 1024;
  static constexpr std::uint64_t kUnit = 16;
  static constexpr std::uint64_t kBlock = 4096;  // reads and writes begin and end at multiples
  static constexpr std::uint32_t kBlocks = kSegmentBytes / kBlock;
  // Numbers that the account has room for: 8 TiB. Limits beyond are cut to this, with a warning.
  static constexpr std::uint32_t kMostSegments = 1U << 24;

  struct Limits {
    std::uint64_t max_bytes = 0;       // of the file; whole segments
    std::uint64_t free_min_bytes = 0;  // what the file system must have left
  };

  // Error, naming the directory and what is wrong with it: it is missing, not writable, in memory
  // (tmpfs), or its file system has not room for one segment above free_min. A file system that
  // refuses O_DIRECT, or has less room than max_bytes, gets a warning in the log.
  [[nodiscard]] static Result<std::unique_ptr<BackingFile>> create(Os& os, State& state,
                                                                   const std::string& directory,
                                                                   Limits limits);

  // -- after a death (take_over.h)
  // The file that a daemon left behind, as the state notes it, with nothing counted yet. Error: the
  // account is of another version, or there is no memory; its descriptors stay open.
  [[nodiscard]] static Result<std::unique_ptr<BackingFile>> take_over(Os& os, State& state);
  // An object lies there. False: it cannot. Before settle().
  [[nodiscard]] bool adopt(SegmentPlace place, std::uint64_t bytes);
  // Every object has been adopted. Segments without any become holes: a write of the dead daemon
  // may still be on its way, and making a hole waits for that (HAZARDS 19).
  void settle();

  // Takes effect from the next claim(); a maximum below what is used stops growth, and the file
  // shrinks as segments become free.
  void set_limits(Limits limits);

  struct Claim {
    std::uint32_t segment = 0;
    std::uint64_t generation = 0;
  };
  // A segment to write. Prefers places that the file has already. ENOSPC: see above. Cleaning may
  // go a segment or two beyond the maximum: it ends with less than there was.
  enum class Purpose : std::uint8_t { more, cleaning };
  [[nodiscard]] Result<Claim> claim(Purpose purpose = Purpose::more);
  // An object that is about to be written there. Before the write, and before any record points
  // there. `bytes`, here and in release(): a multiple of kUnit.
  void fill(SegmentPlace place, std::uint64_t bytes);
  void written(std::uint32_t segment);
  // The write came to nothing and no record points there. `failed`: that may be the place's fault,
  // and others are tried first.
  void abandon(std::uint32_t segment, bool failed = false);

  // An object less. Any thread. As it was counted by fill().
  void release(SegmentPlace place, std::uint64_t bytes);
  // Whether anything is live there. Any thread, any number.
  [[nodiscard]] bool in_use(std::uint32_t segment) const;
  // Of the write that a place of this segment came from. Any thread.
  [[nodiscard]] std::uint64_t generation(std::uint32_t segment) const;

  // Full segments without live objects become free; returns how many. Cheap when there are none.
  std::uint32_t collect();
  // Holes where free segments were, but for `keep` of them (none beyond the maximum is kept).
  void give_back(std::uint32_t keep);
  // Holes where blocks are dead, until so many bytes are free; returns how many became.
  std::uint64_t make_holes(std::uint64_t bytes);
  // Up to `most` full segments whose emptiest_blocks() have the least that is live, sparsest first;
  // at most `percent_max` of those blocks is. Looks closely only at segments that are sparse as a
  // whole. (Without holes: of all the segment's blocks.)
  struct Sparse {
    std::uint32_t segment = 0;
    std::uint32_t blocks = 0;  // that are best vacated
    std::uint64_t live = 0;    // bytes in them, and, by estimate, of the same objects beyond them
  };
  [[nodiscard]] std::vector<Sparse> sparsest(std::size_t most, std::uint32_t percent_max) const;
  // The blocks of a full segment that are best vacated: an eighth of those with something live, the
  // emptiest; all, where there are few, where objects are so large that most of them reach from one
  // block into the next, or where no holes can be made.
  using BlockSet = std::bitset<kBlocks>;
  [[nodiscard]] BlockSet emptiest_blocks(std::uint32_t segment) const;
  // These, and those next to them that share an object with one of them: all of each object that
  // touches one lies in what is returned.
  [[nodiscard]] BlockSet with_whole_objects(std::uint32_t segment, const BlockSet& blocks) const;
  // Where the first object begins that begins in the block, in units; nothing: none does. As it was
  // written. (One that begins at a block's last unit is not known: the writer puts none there.)
  [[nodiscard]] std::optional<std::uint32_t> first_unit(std::uint32_t segment,
                                                        std::uint32_t block) const;
  [[nodiscard]] std::uint64_t live_bytes(std::uint32_t segment) const;
  [[nodiscard]] std::uint64_t live_bytes(std::uint32_t segment, std::uint32_t block) const;
  // All that release() and abandon() ever took away.
  [[nodiscard]] std::uint64_t died_bytes() const { return filled_bytes_ - live_bytes_.load(); }
  // What the file system has beyond what it is to keep.
  [[nodiscard]] Result<std::uint64_t> spare_bytes() const;
  // False once the file system has said that it has no holes.
  [[nodiscard]] bool can_punch() const { return can_punch_; }

  // -- any thread
  [[nodiscard]] std::uint64_t live_bytes() const { return live_bytes_.load(); }
  [[nodiscard]] std::uint64_t live_objects() const { return live_objects_.load(); }
  // Segments that are writing or full, without their holes.
  [[nodiscard]] std::uint64_t used_bytes() const {
    return used_segments_.load() * kSegmentBytes - hole_blocks_.load() * kBlock;
  }
  // Of that, what make_holes() could free.
  [[nodiscard]] std::uint64_t dead_bytes() const;
  [[nodiscard]] std::uint64_t max_bytes() const { return max_bytes_.load(); }
  [[nodiscard]] std::uint64_t file_bytes() const;  // blocks, as the file system counts them
  [[nodiscard]] int fd() const { return fd_.get(); }
  [[nodiscard]] bool direct() const { return direct_; }
  [[nodiscard]] std::uint64_t resident_bytes() const;  // of the account
  // What is wrong with the account, or nullptr. Only while no other thread uses it.
  [[nodiscard]] const char* validate() const;

  // -- places
  [[nodiscard]] static constexpr std::uint64_t offset_of(std::uint32_t segment) {
    return std::uint64_t{segment} * kSegmentBytes;
  }

 private:
  enum class Life : std::uint8_t {
    hole,     // free, and takes no room on the disk
    free,     // free, but the file has the place
    writing,  // claimed
    full,
  };
  // Opens the account's file; the table of segments follows on the next page.
  struct Header {
    std::uint64_t magic;
    std::uint32_t version, segment_bytes;
    std::uint64_t file_bytes;             // of the account
    std::atomic<std::uint32_t> segments;  // that the account has memory for; the file is no longer
    std::uint32_t direct;
  };
  // word: life, live units and objects, dead blocks and holes (Word in the .cc), so that the last
  // release() and written() agree on who of them found the segment dead.
  struct Segment {
    std::atomic<std::uint64_t> word;
    std::atomic<std::uint64_t> generation;
  };
  struct Blocks {
    std::array<std::atomic<std::uint16_t>, kBlocks> live;  // units, or kHole
    std::array<std::uint8_t, kBlocks> first;  // the writer's: a unit; kBlock / kUnit - 1: none
  };
  static constexpr std::uint16_t kHole = 0xffff;
  static constexpr std::uint64_t kAccountPage = 4096;
  [[nodiscard]] static constexpr std::uint64_t account_bytes() {
    return kAccountPage + std::uint64_t{kMostSegments} * (sizeof(Segment) + sizeof(Blocks));
  }
  static constexpr std::uint64_t kMagic = 0x00544e4343414642;  // "BFACCNT"

  struct Account {
    UniqueFd fd;
    Mapping mapping;
  };
  [[nodiscard]] static Result<Account> make_account(Os& os);
  [[nodiscard]] static Result<UniqueFd> open_file(Os& os, const std::string& directory,
                                                  bool& direct);
  BackingFile(Os& os, State& state, UniqueFd fd, bool direct, Account account, Limits limits);

  void begin_to_count();
  [[nodiscard]] Segment& segment(std::uint32_t number) const;
  [[nodiscard]] Blocks& blocks(std::uint32_t number) const;
  [[nodiscard]] bool has_room() const { return used_bytes() + kSegmentBytes <= max_bytes_.load(); }
  [[nodiscard]] std::uint64_t next_generation();
  [[nodiscard]] Status extend();
  [[nodiscard]] Result<std::uint32_t> next_free();
  [[nodiscard]] Result<std::uint32_t> affordable(std::uint32_t wanted) const;
  [[nodiscard]] std::uint32_t run_of_holes(std::uint32_t most, std::uint32_t& first);
  [[nodiscard]] int take_room(std::uint32_t first, std::uint32_t count);
  [[nodiscard]] int back_account(std::uint32_t end);
  [[nodiscard]] int back(std::uint64_t begin, std::uint64_t end);
  void make_free(std::uint32_t number, Life life);
  void subtract_live(std::uint64_t objects, std::uint64_t units);
  [[nodiscard]] bool punch(std::uint64_t offset, std::uint64_t bytes);
  [[nodiscard]] std::uint32_t punch_dead(std::uint32_t number);
  [[nodiscard]] BlockSet blocks_with_live(std::uint32_t number) const;
  [[nodiscard]] std::uint64_t cost_of_vacating(std::uint32_t number, const BlockSet& set) const;
  [[nodiscard]] const char* check_segment(std::uint32_t number) const;
  [[nodiscard]] const char* check_blocks(std::uint32_t number) const;

  // constant
  Os& os_;
  State& state_;
  const UniqueFd fd_;
  const bool direct_;
  const UniqueFd account_fd_;
  const Mapping account_;

  // any thread
  std::atomic<std::uint64_t> live_bytes_{0}, live_objects_{0}, used_segments_{0}, max_bytes_{0};
  std::atomic<std::int64_t> dead_{0};  // full without live objects; collect() may be ahead of it
  std::atomic<std::int64_t> dead_blocks_{0};    // of used segments
  std::atomic<std::uint64_t> hole_blocks_{0};   // likewise
  std::atomic<std::uint64_t> backed_bytes_{0};  // of the account
  std::atomic<std::uint32_t> backed_{0};        // segments

  // the writer's
  std::uint64_t free_min_bytes_ = 0, filled_bytes_ = 0;
  SegmentSet free_, holes_;
  std::uint32_t first_choice_ = 0;  // after the last place that could not be written
  std::uint32_t next_hole_ = 0;     // where make_holes() goes on
  std::uint32_t end_ = 0;           // one past the highest that was ever part of the file
  std::uint64_t generation_ = 0, generations_end_ = 0;
  bool can_allocate_ = true, can_punch_ = true, punch_failed_ = false;
};

}  // namespace foldswap
