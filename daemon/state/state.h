// The daemon's state file: one versioned memfd with the counters and the client table. Position
// independent, no pointers, no std containers, so that a later daemon can take it over (DESIGN
// §10). Page maps and the pool have memfds of their own.
//
// Thread safety: atomics are for all; the rest of a ClientRecord is written by the thread named
// beside it.
#pragma once

#include <linux/userfaultfd.h>

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "base/mapping.h"
#include "base/os.h"
#include "base/wire.h"

namespace foldswap {

using Counter = std::atomic<std::uint64_t>;
inline void bump(Counter& counter, std::uint64_t by = 1) {
  counter.fetch_add(by, std::memory_order_relaxed);
}
inline void drop(Counter& counter, std::uint64_t by = 1) {
  counter.fetch_sub(by, std::memory_order_relaxed);
}

// Latency histogram: 8 linear buckets per power of two of nanoseconds.
inline constexpr std::uint32_t kLatencyBuckets = 8 * 40;

struct Counters {
  Counter faults_total;  // counted by itself: the kinds below must sum up to it
  Counter faults_zero, faults_same_filled, faults_pool, faults_disk, faults_rescued,
      faults_poisoned;
  Counter readahead_pages;
  Counter lost_pages;  // that could not be given back, and were poisoned, met by a fault or not
  Counter evict_pages, evict_pinned, evict_shared, evict_aborted;
  Counter evict_unchanged;  // of the pages: they were on disk still, as they are
  Counter disk_written_bytes, disk_read_bytes;  // writeback; what cleaning moves is in the first
  Counter disk_cleaned_bytes;                   // of these, written again by cleaning
  Counter disk_errors;                          // reads and writes that failed or did not verify
  Counter latency_max_ns;
  Counter latency[kLatencyBuckets];
};

// WriteBudget's: the hour that runs and the 24 before it; hours of the monotonic clock.
inline constexpr std::uint32_t kBudgetHours = 25;
struct WrittenByHour {
  std::atomic<std::uint64_t> hour;
  Counter bytes[kBudgetHours];  // hour modulo kBudgetHours
};

// What the next daemon must know of the backing file. The key never leaves this memory.
struct WritebackState {
  std::byte key[32];
  std::uint64_t has_key;
  std::uint64_t next_generation;  // everything below may have been used (backing_file.h)
  WrittenByHour written;
};

// More than there are threads that can wait for an event of theirs to be read, once the client's
// threads are being stopped (HAZARDS 5). Only what is used costs memory.
inline constexpr std::uint32_t kInboxMessages = 4096;
inline constexpr std::uint32_t kInboxReserve = 64;  // what one read may add
inline constexpr std::uint32_t kQuarantines = 512;
inline constexpr std::uint32_t kMostClients = 1024;

// A range whose pages a REMOVE event announced as going (DESIGN §5); written by the reader and the
// evictor under the client's mutex.
struct Quarantine {
  std::uint64_t start, end;
  std::uint64_t since_us;  // of the last REMOVE that touched it
  std::uint64_t witness;   // generation of the thread snapshot that was taken after it; 0: none yet
};

// Never changed in place: the one that holds is copied into the other, that is changed, and from
// then on holds. So a death in between loses no range.
struct QuarantineTable {
  std::uint32_t count, reserved;
  Quarantine range[kQuarantines];
};

// A REMAP, with its true length.
struct Move {
  std::uint64_t from, to, bytes;
  std::uint64_t target_bytes = bytes;  // of what it took the place of: it may have grown
};

// The moves of a set of events while they are being applied, in their order
// (daemon/state/event_journal.h). The reader's.
struct MovePlan {
  std::atomic<std::uint32_t> count;    // 0: none. Noted last, and cleared last
  std::uint32_t messages;              // of the inbox, at its start, that the set was made of
  std::atomic<std::uint32_t> cleared;  // so many targets have been emptied
  std::atomic<std::uint32_t> done;     // so many moves have been made
  Move move[kInboxMessages];
};

// A range that something is being done to, by one thread.
class NotedRange {
 public:
  void note(std::uint64_t start, std::uint64_t bytes) {
    start_.store(start, std::memory_order_relaxed);
    bytes_.store(bytes, std::memory_order_release);
  }
  void clear() { bytes_.store(0, std::memory_order_release); }
  [[nodiscard]] std::uint64_t start() const { return start_.load(std::memory_order_relaxed); }
  [[nodiscard]] std::uint64_t bytes() const { return bytes_.load(std::memory_order_acquire); }

 private:
  std::atomic<std::uint64_t> start_, bytes_;  // no bytes: none
};

// What a batch in flight took: page of each slot. Written by the evictor before the command is
// posted.
struct BatchRecord {
  std::uint64_t batch;  // generation; part of the OUT entries
  std::uint32_t pages;  // 0: none in flight
  std::uint32_t reserved;
  std::uint64_t page[wire::kHalfPages];
};

// A descriptor that whoever comes after a daemon finds under the same number (keeper.h); all zeros:
// none. Noted when it is ours, and taken back before it is closed. Numbers are used again, so a
// stamp goes with each open file as long as it is noted anywhere: no other ever has both.
class NotedFd {
 public:
  // A number that is noted here already keeps its stamp. 0: a new one.
  void note(int fd, std::uint64_t stamp = 0) {
    if (fd >= 0 && fd == get()) return;
    plus_one_.store(0, std::memory_order_release);
    if (fd >= 0) {
      stamp_.store(stamp != 0 ? stamp : new_stamp(), std::memory_order_relaxed);
      plus_one_.store(fd + 1, std::memory_order_release);
    }
    changed();
  }
  [[nodiscard]] int get() const { return plus_one_.load(std::memory_order_acquire) - 1; }
  // Of what get() says, if that is the same before and after.
  [[nodiscard]] std::uint64_t stamp() const { return stamp_.load(std::memory_order_relaxed); }

  [[nodiscard]] static std::uint64_t new_stamp();
  // Any note of this process, or record that was given up.
  static void changed() { changes_.fetch_add(1); }
  [[nodiscard]] static std::uint64_t changes() { return changes_.load(); }

 private:
  static inline std::atomic<std::uint64_t> changes_{0};
  std::atomic<std::int32_t> plus_one_;
  std::atomic<std::uint64_t> stamp_;
};

// What the service manager may have (descriptor_store.h): number and stamp are there before it is
// told, and until it has certainly let go.
struct StoredNote {
  static constexpr std::uint32_t kForking = 1;  // of a FORK in an inbox: no note has it yet
  static constexpr std::uint32_t kKept = 2;     // it has it: it has answered, or given it to us
  std::atomic<std::int32_t> plus_one;           // 0: free
  std::atomic<std::uint32_t> flags;
  std::atomic<std::uint64_t> stamp;
};

// As FileDescriptorStoreMax= in systemd/foldswapd.service.in. The names, of 16 characters at most,
// must fit into one environment variable, of 128 KiB.
inline constexpr std::uint32_t kMostStored = 8'000;

struct ClientFds {
  NotedFd uffd, map, pidfd, pagemap, lifeline, mailbox, transfer;
};

// Of a record: a client that is being made, or a forked child that does not have all of its
// parent's pages yet; one that is served; one whose descriptors are being closed.
enum class Life : std::uint32_t { none, forming, serving, ending };

struct ClientRecord {
  std::atomic<std::int32_t> pid;  // 0: not known yet (a forked child before its hello)
  std::atomic<Life> life;
  ClientFds fds;
  std::atomic<std::uint32_t> state;       // ClientState
  std::atomic<std::uint32_t> doomed;      // it has been killed, and may only wait for its end
  std::atomic<std::uint32_t> incomplete;  // a descriptor of it was lost with its keeper
  std::atomic<std::uint32_t> attached;    // its agent may have been told that it is one
  std::atomic<std::uint32_t> forked;    // made by a FORK: it had its parent's pages from the first
  NotedRange unregistering;             // that may not be registered, and should be
  std::atomic<std::uint64_t> shifting;  // of the inbox: see close_gaps() in event_journal.h
  std::atomic<std::uint32_t> reading_fork_seq;  // of a FORK that may just be read
  std::uint64_t id, parent_id;
  std::uint32_t uid, fork_seq;
  std::uint64_t staging;                                           // 0: none (a forked child)
  std::atomic<std::uint64_t> resident_max_bytes, group_max_bytes;  // wire::kNoLimit: none
  wire::Range own[wire::kOwnRanges];
  char name[wire::kNameBytes];
  char group[wire::kNameBytes];
  Counter pool_pages, same_filled_pages, faults;
  // The event inbox: read(2) writes straight into it. The reader's. Of the first inbox_count
  // entries those that are not all zeros are not yet applied; what lies behind them has been read,
  // and not been looked at, or is zeros.
  std::uint32_t inbox_count, inbox_reserved;
  uffd_msg inbox[kInboxMessages];
  MovePlan plan;
  std::atomic<std::uint32_t> quarantine_now;  // which of the two holds
  QuarantineTable quarantine[2];
  BatchRecord batch[wire::kHalves];
};

// Userfaultfds of forked children that nobody can serve: whoever closes one lets its process read
// zeros. Those beyond this many do not outlive the daemon. Only what is used costs memory.
inline constexpr std::uint32_t kMostDoomed = 16'384;
inline constexpr std::size_t kDoomedMessages = 16;

// The daemon's own files that outlive it.
enum NotedFile : std::uint8_t {
  kPoolFrames,
  kPoolRecords,
  kPoolMeta,
  kBackingFile,
  kBackingAccount
};
inline constexpr std::size_t kNotedFiles = 5;

// What `foldswap set` has changed, in lines of KEY=VALUE. Like a quarantine never changed in place.
struct KeptSettings {
  std::atomic<std::uint32_t> now;  // which of the two holds
  char text[2][4096];
};

struct StateHeader {
  std::uint32_t magic, version;
  std::uint64_t bytes, client_record_bytes, clients_offset;
  std::uint32_t most_clients;
  std::uint32_t incarnation;  // of the daemon that runs: 1, 2, ... part of the layout lock words
  // Of what else this state leads to.
  std::uint32_t page_map_version, pool_version, disk_version, protocol_version;
  std::atomic<std::uint64_t> next_client_id;
  Counters counters;
  WritebackState writeback;
  std::atomic<std::uint8_t> record_in_use[kMostClients];  // counted while others claim
  NotedFd doomed[kMostDoomed];                            // Registry's
  // Likewise: what was read of one of them. A FORK stays until the descriptor in it is noted.
  uffd_msg doomed_messages[kDoomedMessages];
  NotedFd files[kNotedFiles];
  StoredNote stored[kMostStored];
  // Both of CLOCK_BOOTTIME. When the manager was told something last; and when keeper and daemon
  // had died, and a FORK's descriptor with them (0: never): a forked child that is as old, and of
  // which nobody knows, may have had pages out.
  std::atomic<std::uint64_t> told_ns, forks_lost_ns;
  // Descriptors of doomed children that no note tells of. If a daemon dies meanwhile, nobody may
  // close what he does not know any more.
  std::atomic<std::uint32_t> unnoted;
  std::atomic<std::uint32_t> drained;  // by an administrator: new clients are refused
  KeptSettings settings;
};

class State {
 public:
  static constexpr std::uint32_t kMagic = 0x53545346, kVersion = 10;  // "FSTS"
  static Result<std::unique_ptr<State>> create(Os& os);
  // Likewise, in a file that is empty, of file_bytes().
  static Result<std::unique_ptr<State>> create(Os& os, UniqueFd fd);
  [[nodiscard]] static std::uint64_t file_bytes();
  // Whether a daemon has come so far that there is something to take over.
  [[nodiscard]] static bool begun(Os& os, int fd);
  // Whether this program could take it over. Error: it is of another version or shape.
  [[nodiscard]] static Status fits(Os& os, int fd);
  // As a daemon left it that has died, or handed over. Error: as of fits(); nothing was touched.
  static Result<std::unique_ptr<State>> take_over(Os& os, UniqueFd fd);
  // Likewise, only to look at it, or to mend it before any daemon does.
  static Result<std::unique_ptr<State>> open(Os& os, UniqueFd fd);

  [[nodiscard]] int fd() const { return fd_.get(); }
  [[nodiscard]] StateHeader& header() const { return *mapping_.as<StateHeader>(); }
  [[nodiscard]] Counters& counters() const { return header().counters; }
  // What was `set`, and outlives a death of the daemon (not a restart that was asked for). One
  // thread at a time. What does not fit is not kept.
  [[nodiscard]] std::vector<std::string> settings() const;
  void keep_setting(const std::string& key, const std::string& value);
  void forget_settings();
  // A zeroed record, or nullptr when the table is full. Callers serialise claim_record() and
  // free_record().
  [[nodiscard]] ClientRecord* claim_record();
  [[nodiscard]] std::vector<ClientRecord*> records() const;  // that are in use
  // Giving one back, in two steps because no system call is made under a lock.
  void wipe_record(ClientRecord* record);
  void free_record(ClientRecord* record) { header().record_in_use[index_of(record)] = 0; }
  [[nodiscard]] std::uint64_t resident_bytes() const;

 private:
  State(Os& os, UniqueFd fd, Mapping mapping)
      : os_(os), fd_(std::move(fd)), mapping_(std::move(mapping)) {}
  [[nodiscard]] std::byte* record_at(std::uint32_t index) const;
  [[nodiscard]] std::uint32_t index_of(const ClientRecord* record) const;
  Os& os_;
  UniqueFd fd_;
  Mapping mapping_;
};

void record_latency(Counters& counters, std::uint64_t ns);
// Latency in nanoseconds below which `share` (0..1) of the recorded ones lie (upper bound of its
// bucket).
[[nodiscard]] std::uint64_t latency_quantile(const Counters& counters, double share);

}  // namespace foldswap
