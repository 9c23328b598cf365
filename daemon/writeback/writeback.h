// Writeback: moves cold objects from the pool to the backing file, still compressed, many to a
// segment and each segment in one write; and moves what is left in mostly dead segments together.
// Reads top to bottom as one segment:
//   what is needed -> which objects are cold -> seal them into a buffer -> write -> the write has
//   ended -> their records say where they are
//
// While a segment is written its objects stay in the pool, and a reference to each is held: a fault
// finds the object where it was, an unmap frees it for everybody but us, and only when the write
// has ended does the record's one word change (Pool::move_out), if there is still anybody to see
// it. Nobody waits for a write.
//
// What is dead costs nothing where a whole block of it is: such blocks become holes when room is
// wanted (BackingFile::make_holes), and so objects are packed not to cross from one block into the
// next without reason. When that is not enough, cleaning reads the emptiest blocks of the segment
// that is sparsest, takes from them what its objects' records still point to, and writes that again
// as part of a segment of its own, under a new generation; the blocks are dead then. It is put off
// for as long as there is room: the longer, the less is left to move. (When nothing is to be
// written it begins a little earlier, with an eighth of what the file may take left, if most of
// what it holds is dead.) And nothing is moved that makes no room (makes_room()): a full file is
// left alone until something in it dies.
//
// Shape (DESIGN §10): step() does what can be done now and never waits; system calls go through the
// Os seam. Thread safety: one thread's (DiskTier::run); counters and report() are for all.
// Errors: a write that fails is tried again elsewhere; after kMostFailures in a row, or when there
// is no room on the disk, it stops, says so in log and report(), and tries again later. What was to
// be written stays in the pool, and is lost in no case. Units: bytes.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <unordered_set>
#include <vector>

#include "base/mapping.h"
#include "base/mutex.h"
#include "base/os.h"
#include "daemon/client/page_store.h"
#include "daemon/config/tunables.h"
#include "daemon/disk/backing_file.h"
#include "daemon/disk/disk_format.h"
#include "daemon/disk/disk_traffic.h"
#include "daemon/disk/write_budget.h"
#include "daemon/host/pressure.h"

namespace foldswap {

class Writeback {
 public:
  // `file`, `seal`, `store` and `traffic` outlive it. Error: io_uring or memory cannot be had.
  [[nodiscard]] static Result<std::unique_ptr<Writeback>> create(
      Os& os, State& state, PageStore& store, BackingFile& file, const Seal& seal,
      DiskTraffic& traffic, const Tunables& tunables);
  Writeback(const Writeback&) = delete;
  Writeback& operator=(const Writeback&) = delete;
  ~Writeback();

  // Microseconds after which to call again at the latest; sooner when fd() polls readable, or
  // somebody wants room (DiskTraffic::want_room).
  std::uint64_t step();
  [[nodiscard]] int fd() const { return ring_->fd(); }

  // Why nothing is written though something should be; empty: all is well. Any thread.
  [[nodiscard]] std::string report() const;

  static constexpr std::uint32_t kBuffers = 3;
  static constexpr std::size_t kOpenBlocks = 16;
  static constexpr std::uint32_t kMostReads = 8;  // of one segment
  static constexpr std::uint32_t kDepth = 2 * kBuffers + kMostReads;

 private:
  // An object on its way.
  struct Item {
    ObjectId id;
    Loaded loaded;  // from the pool: as it was when it was sealed
    SegmentPlace to, from;
    bool cleaned = false;  // from another segment (`from`)
    std::uint32_t length = 0;
  };
  struct Run {
    std::uint32_t first = 0, end = 0;  // blocks
  };
  struct Buffer {
    enum class State : std::uint8_t { idle, filling, writing, reading, cleaning };
    State state = State::idle;
    BackingFile::Claim claim;
    std::uint32_t used = 0;                         // bytes; cleaning: those looked at
    std::uint32_t gaps = 0;                         // of those used, before the last block
    std::array<std::uint32_t, kOpenBlocks> open{};  // where gaps begin that are worth filling
    BackingFile::BlockSet vacate;                   // cleaning: these blocks
    BackingFile::BlockSet there;                    // and what is read for that
    std::array<Run, kMostReads> runs;               // likewise
    std::uint32_t reading = 0;                      // of the runs
    unsigned tries = 0;
    std::vector<Item> items;
    std::span<std::byte> bytes;
  };
  enum class Need : std::uint8_t { none, some, urgent };
  static constexpr std::uint64_t kRetryRoomUs = 1'000'000;  // when there was none

  Writeback(Os& os, State& state, PageStore& store, BackingFile& file, const Seal& seal,
            DiskTraffic& traffic, const Tunables& tunables);

  // -- what is needed
  [[nodiscard]] Need need();
  [[nodiscard]] bool budget_allows_one();
  [[nodiscard]] bool may_start(Need need);

  // -- one segment
  [[nodiscard]] Buffer* idle_buffer();
  [[nodiscard]] bool write_cold();
  [[nodiscard]] bool make_room(std::uint64_t bytes);
  [[nodiscard]] bool open_segment(Buffer& buffer, bool for_cleaning);
  void add_cold(Buffer& buffer);
  // Without those that are gone.
  [[nodiscard]] std::vector<ObjectId> in_packing_order(const std::vector<ObjectId>& found);
  [[nodiscard]] bool next_candidate(ObjectId& id);
  // Where the next object goes; nothing: it has no room there.
  [[nodiscard]] static std::optional<std::uint32_t> make_place(Buffer& buffer, std::uint32_t bytes);
  // Seals an object into the buffer. False: it has no room there.
  [[nodiscard]] bool put(Buffer& buffer, Item item, std::span<const std::byte> packed) const;
  void start_write(Buffer& buffer);
  void submit_write(Buffer& buffer);
  void reap();
  void end_write(Buffer& buffer, std::int32_t result);
  void publish(Buffer& buffer);
  void drop(Buffer& buffer, bool failed = false);
  void let_go(Buffer& buffer);

  // -- cleaning
  [[nodiscard]] bool clean(Need need);
  [[nodiscard]] bool little_room_left() const;
  [[nodiscard]] bool worth_tidying() const;
  [[nodiscard]] bool start_cleaning(Need need);
  void read_victim(Buffer& buffer);
  void end_read(Buffer& buffer, const Run& run, std::int32_t result);
  // Goes on with what was read; false: there is no buffer to move it to now.
  [[nodiscard]] bool keep_live(Buffer& from);
  [[nodiscard]] std::uint32_t first_object(const Buffer& from, std::uint32_t block) const;
  [[nodiscard]] bool keep_object(const Buffer& from, SegmentPlace at, const DiskHeader& header);
  // Whether cleaning these would make room, as far as the account tells.
  [[nodiscard]] bool promises_room(std::span<const BackingFile::Sparse> victims) const;
  // Whether moving what is in the buffer does.
  [[nodiscard]] bool makes_room(const Buffer& buffer) const;
  // `sure`: there was nothing better to move with it. False: it makes no room, and stays.
  bool flush_cleaned(bool sure);
  void end_round();
  void forget_sources(const Buffer& buffer);
  [[nodiscard]] bool futile();
  // All that died on disk, but for what moved.
  [[nodiscard]] std::uint64_t lost_bytes() const { return file_.died_bytes() - moved_bytes_; }
  [[nodiscard]] bool cleaned_under_way() const;
  [[nodiscard]] bool cleaning_pending() const;
  void forget_victims();
  // A segment that is being cleaned, or that nothing comes of.
  struct Victim {
    BackingFile::Claim claim;
    std::uint64_t live_bytes = 0;  // when its cleaning began
  };
  [[nodiscard]] bool as_it_was(const Victim& victim) const;

  void stop(const std::string& why, std::uint64_t retry_us);
  void go_on();
  void say(const std::string& why);
  void keep_house(std::uint64_t now_us);

  Os& os_;
  Counters& counters_;
  PageStore& store_;
  Pool& pool_;
  BackingFile& file_;
  const Seal& seal_;
  DiskTraffic& traffic_;
  const Tunables& tunables_;
  WriteBudget budget_;
  Pressure pressure_;
  bool writing_ = false;                  // between the two lines of the hysteresis
  bool pressed_ = false;                  // the machine is short of memory
  std::unordered_set<ObjectId> leaving_;  // being written, and still in the pool
  std::vector<ObjectId> candidates_;      // the oldest, in the order in which they fill blocks
  std::size_t next_candidate_ = 0;
  std::uint64_t search_again_us_ = 0;  // not before: the last search found little
  Mapping memory_;
  std::array<Buffer, kBuffers> buffers_;
  Buffer* cleaned_ = nullptr;  // being filled with what cleaning keeps
  // Segments whose objects are on their way elsewhere, and those that hold something that does not
  // open: not to be cleaned (again), until something of them is gone.
  std::vector<Victim> victims_, stuck_;
  // lost_bytes() when cleaning was found to make no room: it rests until more is lost.
  std::optional<std::uint64_t> futile_at_;
  bool round_made_room_ = false;  // since the first of victims_
  std::uint64_t moved_bytes_ = 0;
  std::unique_ptr<IoRing> ring_;
  unsigned failures_ = 0;  // in a row
  std::uint64_t stopped_until_us_ = 0, demand_since_us_ = 0, house_us_ = 0;
  bool little_left_ = false;  // of what the file may take; looked at now and then
  bool no_room_ = false;      // the file is full, until something is cleaned or freed
  BackingFile::Limits limits_;
  mutable RankedMutex<LockRank::leaf> mutex_;
  std::string why_ FS_GUARDED_BY(mutex_);
};

}  // namespace foldswap
