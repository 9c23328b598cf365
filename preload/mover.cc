#include "preload/mover.h"

#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <sys/mman.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <iterator>

#include "base/mutation.h"
#include "base/uapi.h"
#include "preload/mappings.h"

namespace foldswap::preload {
namespace {

using wire::AbortReason;
using wire::PageResult;

constexpr std::uint32_t kSmallChunk =
    64;  // pages of one lock hold while the daemon or a fault waits
constexpr std::uint32_t kLockTurns = 3000;
constexpr std::uint32_t kGiveWayTurns = 220;
constexpr std::uint32_t kMostInVain = 8;
constexpr std::uint32_t kMostMappings = 64;  // looked at for one REGISTER

long uffd_register(const Control& c, std::uint64_t start, std::uint64_t bytes) {
  uffdio_register reg{};
  reg.range = {start, bytes};
  reg.mode = UFFDIO_REGISTER_MODE_MISSING;
  return sys::call(SYS_ioctl, c.uffd, UFFDIO_REGISTER, &reg);
}

long uffd_unregister(const Control& c, std::uint64_t start, std::uint64_t bytes) {
  uffdio_range range{start, bytes};
  return sys::call(SYS_ioctl, c.uffd, UFFDIO_UNREGISTER, &range);
}

std::uint64_t half_start(const Control& c, std::uint32_t half) {
  return reinterpret_cast<std::uint64_t>(c.staging) + half * wire::kHalfBytes;
}

bool arm_half(Control& c, std::uint32_t half) {
  if (!c.half_armed[half]) {
    c.half_armed[half] = uffd_register(c, half_start(c, half), wire::kHalfBytes) == 0;
  }
  return c.half_armed[half];
}

// HAZARDS 21. MADV_COLD refuses locked memory with EINVAL and does nothing to an empty range;
// MADV_DONTNEED would raise a REMOVE event on a registered one, and wait for a reader who may be
// waiting for our lock.
bool staging_locked(const Control& c, std::uint32_t half) {
  if (mutated(Mutation::h21_locked_staging)) return false;
  return sys::call(SYS_madvise, half_start(c, half), wire::kHalfBytes, MADV_COLD) == -EINVAL;
}

// Moved in the lock hold that is under way: becomes `moved` when it has been copied out. (An
// earlier hold's slots are empty again, and must not be copied out twice.)
constexpr auto kMovedNow = static_cast<PageResult>(0x80);
constexpr std::uint32_t kMostBusy = 64;   // pieces of a command that were EBUSY
constexpr std::uint32_t kLookPages = 64;  // of the page map at a time

// Words of the kernel's admin-guide/mm/pagemap.
constexpr std::uint64_t kPresent = 1ULL << 63, kSwapped = 1ULL << 62, kFile = 1ULL << 61,
                        kMappedOnce = 1ULL << 56;

// False: /proc cannot be had. (Not /proc/self, which is empty once the leader has ended.)
bool look(Control& c, std::uint64_t start, std::uint32_t pages, std::uint64_t* words) {
  if (c.pagemap == 0) {
    const long fd =
        sys::call(SYS_openat, AT_FDCWD, "/proc/thread-self/pagemap", O_RDONLY | O_CLOEXEC);
    if (fd < 0) return false;
    c.pagemap = static_cast<int>(fd) + 1;
  }
  const std::size_t bytes = pages * sizeof(words[0]);
  return sys::call(SYS_pread64, c.pagemap - 1, words, bytes,
                   start / wire::kPageBytes * sizeof(words[0])) == static_cast<long>(bytes);
}

// Which of at most 64 pages of ours hold anything, be it in the kernel's swap. Without /proc the
// kernel's word is mincore(), which knows nothing of swap.
std::uint64_t anything_at(Control& c, std::uint64_t start, std::uint32_t pages) {
  std::uint64_t words[kLookPages]{};
  std::uint64_t found = 0;
  if (look(c, start, pages, words)) {
    for (std::uint32_t i = 0; i < pages; ++i) {
      if ((words[i] & (kPresent | kSwapped)) != 0) found |= std::uint64_t{1} << i;
    }
    return found;
  }
  for (std::uint32_t i = 0; i < pages; ++i) {
    unsigned char resident = 0;
    const std::uint64_t page = start + i * wire::kPageBytes;
    if (sys::call(SYS_mincore, page, wire::kPageBytes, &resident) == 0 && (resident & 1) != 0) {
      found |= std::uint64_t{1} << i;
    }
  }
  return found;
}

// Contiguous pages and the contiguous slots they go to.
struct Piece {
  std::uint64_t source;
  std::uint32_t slot, pages, reg;
  void skip(std::uint32_t count) {
    source += count * wire::kPageBytes;
    slot += count;
    pages -= count;
  }
};

class Executor {
 public:
  Executor(const Executor&) = delete;
  Executor& operator=(const Executor&) = delete;
  ~Executor() {  // or the program could not unmount /proc
    if (c_.pagemap != 0) sys::call(SYS_close, c_.pagemap - 1);
    c_.pagemap = 0;
  }
  Executor(Control& c, std::uint32_t half)
      : c_(c), box_(*c.mailbox), cmd_(c.mailbox->commands[half]), half_(half) {
    epoch_ = sys::load(cmd_.epoch);
    threads_ = sys::load(cmd_.threads_created);
    nruns_ = std::min(sys::load(cmd_.nruns), wire::kMaxRuns);
    nregs_ = std::min(sys::load(cmd_.nregs), wire::kMaxRegs);
    closed_ = wire::closed_regs(cmd_.regs, nregs_);
    check_staging();
    sys::zero_bytes(c_.results, sizeof(c_.results));
    load_run();
  }

  void run() {
    AbortReason reason = wire::kAbortNone;
    if (sys::load(box_.mode) != static_cast<std::uint32_t>(wire::ClientMode::active)) {
      reason = wire::kAbortOther;
    }
    while (!finished() && reason == wire::kAbortNone) {
      reason = chunk([this](std::uint32_t limit) { return move_runs(limit); });
      give_way();
    }
    if (reason == wire::kAbortNone && nbusy_ != 0 && renew_busy()) {
      reason = chunk([this](std::uint32_t) { return move_renewed(); });
    }
    // A lock that came in between is told even when everything moved: the daemon then brings it
    // back.
    if (reason == wire::kAbortNone && staging_locked(c_, half_)) reason = wire::kAbortLocked;
    publish(reason);
  }

 private:
  [[nodiscard]] bool finished() const { return run_ >= nruns_ || slot_ >= wire::kHalfPages; }
  [[nodiscard]] std::uint32_t left_in_run() const {
    return std::min(run_pages_ - offset_, wire::kHalfPages - slot_);
  }
  [[nodiscard]] std::uint64_t source() const { return run_start_ + offset_ * wire::kPageBytes; }
  [[nodiscard]] std::uint64_t slot_address(std::uint32_t slot) const {
    return half_start(c_, half_) + slot * wire::kPageBytes;
  }

  // Reads the run at run_, passing over empty ones.
  void load_run() {
    offset_ = 0;
    for (; run_ < nruns_; ++run_) {
      run_start_ = sys::load(cmd_.runs[run_].start);
      run_pages_ = std::min(sys::load(cmd_.runs[run_].pages), wire::kHalfPages);
      run_reg_ = sys::load(cmd_.runs[run_].reg);
      if (run_pages_ != 0) return;
    }
  }

  void mark(std::uint32_t slot, PageResult result, std::uint32_t pages) {
    for (std::uint32_t i = 0; i < pages; ++i) {
      c_.results[slot + i] = static_cast<std::uint8_t>(result);
    }
  }

  void advance(std::uint32_t pages) {
    slot_ += pages;
    offset_ += pages;
    if (offset_ >= run_pages_) {
      ++run_;
      load_run();
    }
  }

  // One hold of the layout lock; `move` answers why it stopped.
  template <typename Move>
  AbortReason chunk(Move move) {
    const bool waited_for = sys::load(box_.faults_wait) != 0 || sys::load(box_.reader_waits) != 0;
    if (!arm_half(c_, half_) || !lock()) return wire::kAbortOther;
    sys::store(box_.layout_agent, 1U);
    moved_first_ = wire::kHalfPages;
    moved_end_ = 0;
    AbortReason reason = must_not();
    if (reason == wire::kAbortNone) reason = move(waited_for ? kSmallChunk : wire::kHalfPages);
    const bool moved = moved_first_ < moved_end_;
    moved_none_ = moved_none_ && !moved;
    if (moved && !mutated(Mutation::h04_copy_in_hold)) copy_out();
    sys::store(box_.layout, static_cast<std::uint32_t>(wire::kLayoutFree));
    sys::store(box_.layout_agent, 0U);
    if (moved && mutated(Mutation::h04_copy_in_hold)) {
      sys::sleep_us(2'000);
      copy_out();
    }
    if (moved) refresh_staging();
    return reason;
  }

  // HAZARDS 14: the word names side and incarnation. The wait is bounded, because a dead holder's
  // successor clears the word, but a stopped one's does not.
  bool lock() {
    sys::Backoff backoff;
    while (backoff.turns() < kLockTurns) {
      const std::uint32_t mine = (sys::load(box_.incarnation) << 2) | wire::kLayoutAgent;
      if (sys::exchange_if(box_.layout, wire::kLayoutFree, mine)) return true;
      backoff.next();
    }
    return false;
  }

  // Reasons not to touch anything, seen under the lock and with layout_agent announced. The epoch
  // comes last, after all that may register staging: a reader that does not wait for this lock any
  // more raises the epoch and then unregisters staging, so that no MOVE of ours can come through
  // (HAZARDS 38).
  AbortReason must_not() {
    if (sys::load(box_.layout_busy) != 0) return wire::kAbortBusy;
    if (sys::load(box_.threads_created) != threads_) return wire::kAbortThreads;
    if (staging_locked(c_, half_)) return wire::kAbortLocked;
    if (mutated(Mutation::h21_announce)) sys::sleep_us(1'000);  // or it would strike too rarely
    if (!empty_half()) return wire::kAbortOther;
    if (sys::load(box_.epoch) != epoch_ && !mutated(Mutation::layout_epoch)) {
      return wire::kAbortEpoch;
    }
    return wire::kAbortNone;
  }

  AbortReason move_runs(std::uint32_t limit) {
    while (!finished() && limit > 0) {
      const Piece piece{source(), slot_, std::min(left_in_run(), limit), run_reg_};
      limit -= piece.pages;
      const AbortReason reason = move_piece(piece);
      if (reason == wire::kAbortEpoch) return reason;  // the rest of the piece was not tried
      advance(piece.pages);
      if (reason != wire::kAbortNone) return reason;
    }
    return wire::kAbortNone;
  }

  // Pages that were EBUSY because a fork had shared them, and are no longer (renew_busy).
  AbortReason move_renewed() {
    for (std::uint32_t i = 0; i < nbusy_; ++i) {
      const Piece busy = busy_[i];
      for (std::uint32_t at = 0; at < busy.pages;) {
        std::uint32_t pages = 0;
        while (at + pages < busy.pages && c_.results[busy.slot + at + pages] ==
                                              static_cast<std::uint8_t>(PageResult::renewed)) {
          ++pages;
        }
        const Piece piece{busy.source + at * wire::kPageBytes, busy.slot + at, pages, busy.reg};
        if (pages != 0) {
          const AbortReason reason = move_piece(piece);
          if (reason != wire::kAbortNone) return reason;
        }
        at += pages + 1;
      }
    }
    return wire::kAbortNone;
  }

  AbortReason move_piece(const Piece& piece) {
    if (!acceptable(piece)) {
      mark(piece.slot, PageResult::refused, piece.pages);
      return wire::kAbortNone;
    }
    if (may_register(piece.reg)) {
      const wire::Range& reg = cmd_.regs[piece.reg];
      const long all = probe_bytes(sys::load(reg.start), sys::load(reg.bytes));
      if (all == -EAGAIN) return wire::kAbortEpoch;
      if (all != -EINVAL && !register_source(piece.reg)) {
        mark(piece.slot, PageResult::refused, piece.pages);
        return wire::kAbortRegister;
      }
    }
    const long whole = probe(piece.source, piece.pages);
    if (whole == -EAGAIN) return wire::kAbortEpoch;
    return whole == -EINVAL ? move_pages(piece) : move_what_is_registered(piece);
  }

  // HAZARDS 30: REGISTER must never cover a page that is out. If its mapping has gone without an
  // event (shmat raises none) and another one has come there, the other one would show its bytes.
  // So a range with pages out is closed, and any other is registered once in a command, before
  // anything of it moves. What is not registered then stays: it is looked at anew, as a mapping of
  // its own.
  [[nodiscard]] bool may_register(std::uint32_t reg) {
    const std::uint64_t bit = std::uint64_t{1} << reg;
    const bool may = (closed_ & bit) == 0;
    closed_ |= bit;
    return (may || mutated(Mutation::h30_closed_ranges)) &&
           !mutated(Mutation::h03_register_in_hold);
  }

  // HAZARDS 3. REGISTER passes over holes, and the program may map one anew after that: pages there
  // would go without any event telling of them. What PROBE finds registered can only go with one.
  AbortReason move_what_is_registered(const Piece& piece) {
    for (std::uint32_t at = 0, end = 0; at < piece.pages; at = end + 1) {
      long last = -EINVAL;
      for (end = at; end < piece.pages; ++end) {
        last = probe(piece.source + end * wire::kPageBytes, 1);
        if (last != -EINVAL) break;
      }
      if (last == -EAGAIN) return wire::kAbortEpoch;
      const AbortReason reason =
          move_pages({piece.source + at * wire::kPageBytes, piece.slot + at, end - at, piece.reg});
      if (reason != wire::kAbortNone) return reason;
      if (end < piece.pages) mark(piece.slot + end, PageResult::refused, 1);
    }
    return wire::kAbortNone;
  }

  // UFFDIO_CONTINUE changes nothing in anonymous memory: EINVAL when all of it is one registered
  // mapping, ENOENT when not, EAGAIN when an event waits.
  [[nodiscard]] long probe(std::uint64_t start, std::uint32_t pages) const {
    return probe_bytes(start, pages * wire::kPageBytes);
  }
  [[nodiscard]] long probe_bytes(std::uint64_t start, std::uint64_t bytes) const {
    uffdio_continue probe{};
    probe.range = {start, bytes};
    return sys::call(SYS_ioctl, c_.uffd, UFFDIO_CONTINUE, &probe);
  }

  [[nodiscard]] bool acceptable(const Piece& piece) const {
    const std::uint64_t start = piece.source;
    const std::uint64_t end = start + piece.pages * wire::kPageBytes;
    if (piece.reg >= nregs_ || start % wire::kPageBytes != 0 || end < start) return false;
    const auto overlaps = [&](std::uint64_t from, std::uint64_t bytes) {
      return start < from + bytes && from < end;
    };
    if (overlaps(half_start(c_, 0), wire::kStagingBytes)) return false;
    return std::none_of(std::begin(c_.own), std::end(c_.own),
                        [&](const wire::Range& own) { return overlaps(own.start, own.bytes); });
  }

  // Every mapping of the range that may be ours. True: there was one.
  bool register_source(std::uint32_t index) {
    const wire::Range& reg = cmd_.regs[index];
    const std::uint64_t start = sys::load(reg.start);
    const std::uint64_t bytes = sys::load(reg.bytes);
    if (bytes == 0 || start + bytes < start) return false;
    sys::store(box_.registered, 1U);
    const Mappings mappings;
    bool any = false;
    std::uint64_t at = start;
    for (std::uint32_t i = 0; i < kMostMappings && at < start + bytes; ++i) {
      MappingInfo info;
      const Mappings::Answer answer = mappings.at_or_after(at, info);
      if (answer == Mappings::Answer::unknown || mutated(Mutation::h31_mapping_in_hold)) {
        return uffd_register(c_, at, start + bytes - at) == 0 || any;
      }
      if (answer == Mappings::Answer::none || info.start >= start + bytes) break;
      const std::uint64_t from = std::max(at, info.start);
      const std::uint64_t to = std::min(start + bytes, info.end);
      if (info.ordinary && uffd_register(c_, from, to - from) == 0) {
        any = true;
        let_go_of_others(mappings, from, to);
      }
      at = to;
    }
    return any;
  }

  // HAZARDS 31. What the program has put there since it was looked at may be memory of huge pages,
  // in which no fault could be answered, or shared memory. What comes from now on is not
  // registered.
  void let_go_of_others(const Mappings& mappings, std::uint64_t start, std::uint64_t end) const {
    MappingInfo info;
    for (std::uint32_t i = 0; i < kMostMappings && start < end; ++i) {
      if (mappings.at_or_after(start, info) != Mappings::Answer::found || info.start >= end) return;
      if (!info.ordinary) uffd_unregister(c_, info.start, info.end - info.start);
      start = info.end;
    }
  }

  AbortReason move_pages(Piece piece) {
    std::uint32_t occupied = wire::kHalfPages;  // slot that was found so, by somebody else
    while (piece.pages > 0) {
      uapi::UffdMove move{slot_address(piece.slot), piece.source, piece.pages * wire::kPageBytes,
                          uapi::kMoveModeDontWake, 0};
      const long error = sys::call(SYS_ioctl, c_.uffd, uapi::kUffdioMove, &move);
      const std::uint64_t bytes = move.move > 0 ? static_cast<std::uint64_t>(move.move) : 0;
      const std::uint32_t done =
          error == 0 ? piece.pages
                     : std::min(piece.pages, static_cast<std::uint32_t>(bytes / wire::kPageBytes));
      if (done > 0) {  // if it stopped part-way, the next call says why
        took(piece, done);
        continue;
      }
      if (error != -EBUSY && !mutated(Mutation::move_untold)) {
        if (const std::uint32_t untold = moved_untold(piece, error == -EAGAIN); untold > 0) {
          took(piece, untold);
          continue;
        }
      }
      if (error == -EAGAIN) return wire::kAbortEpoch;  // an event waits to be read
      // Something in the slot, and something in the source? A stray page, unless an event waits by
      // now and it was no use to look at the source: trying again tells.
      if (error != -EBUSY && occupied != piece.slot &&
          anything_at(c_, slot_address(piece.slot), 1) != 0) {
        occupied = piece.slot;
        continue;
      }
      const bool single = error == -EBUSY || error == -ENOENT || error == -EEXIST;
      const std::uint32_t count = single ? 1 : piece.pages;
      mark(piece.slot, failure(error), count);
      if (error == -EBUSY) note_busy({piece.source, piece.slot, 1, piece.reg});
      piece.skip(count);
    }
    return wire::kAbortNone;
  }

  void took(Piece& piece, std::uint32_t pages) {
    mark(piece.slot, kMovedNow, pages);
    moved_first_ = std::min(moved_first_, piece.slot);
    moved_end_ = std::max(moved_end_, piece.slot + pages);
    piece.skip(pages);
  }

  // Linux 6.18's MOVE takes several pages in a step, and when a step has to be tried again (the
  // processor has just noted an access to its first page, say) it forgets that the second try
  // succeeded: it runs into the pages that it has put there itself, says EEXIST, and counts none of
  // them. So how many pages of the front of the piece have in fact gone? What is in a slot came
  // from its source when the source has nothing any more. While an event waits the source says
  // nothing, it may be another mapping by now: then a slot that holds something counts. Should that
  // be a stray page, it does no harm, because what the program has in its place is what it sees.
  std::uint32_t moved_untold(const Piece& piece, bool event_waits) {
    for (std::uint32_t at = 0; at < piece.pages; at += kLookPages) {
      const std::uint32_t pages = std::min(kLookPages, piece.pages - at);
      std::uint64_t gone = anything_at(c_, slot_address(piece.slot + at), pages);
      if (gone != 0 && !event_waits) {
        gone &= ~anything_at(c_, piece.source + at * wire::kPageBytes, pages);
      }
      const auto front = static_cast<std::uint32_t>(std::countr_one(gone));
      if (front < pages) return at + front;
    }
    return piece.pages;
  }

  // In the order of slots; forgotten when there are too many pieces of them: their turn comes
  // again.
  void note_busy(const Piece& page) {
    if (renewing_) return;
    if (nbusy_ != 0) {
      Piece& last = busy_[nbusy_ - 1];
      if (last.slot + last.pages == page.slot && last.reg == page.reg &&
          last.source + last.pages * wire::kPageBytes == page.source) {
        ++last.pages;
        return;
      }
    }
    if (nbusy_ < kMostBusy) busy_[nbusy_++] = page;
  }

  // After a fork a page stays EBUSY, even when no relative maps it any more, until it is written
  // to; but never to a page that is still mapped elsewhere, because that would copy it. Without the
  // layout lock: should the program have replaced the page since it was looked at, write_nothing()
  // changes no byte of the new one either. True: there is something that MOVE may take now.
  bool renew_busy() {
    if (mutated(Mutation::renew_shared)) return false;
    renewing_ = true;
    bool any = false;
    for (std::uint32_t i = 0; i < nbusy_; ++i) {
      for (std::uint32_t at = 0; at < busy_[i].pages; at += kLookPages) {
        any = renew(busy_[i], at) || any;
      }
    }
    return any;
  }

  bool renew(const Piece& busy, std::uint32_t first) {
    std::uint64_t words[kLookPages]{};
    const std::uint32_t count = std::min(kLookPages, busy.pages - first);
    const std::uint64_t start = busy.source + first * wire::kPageBytes;
    if (!look(c_, start, count, words)) return false;
    const auto ours = [&](std::uint32_t i) {
      if (mutated(Mutation::renew_only_ones_own)) return (words[i] & kPresent) != 0;
      return (words[i] & (kPresent | kFile | kMappedOnce)) == (kPresent | kMappedOnce);
    };
    bool any = false;
    for (std::uint32_t i = 0; i < count;) {
      std::uint32_t pages = 0;
      while (i + pages < count && ours(i + pages)) ++pages;
      if (pages == 0) {
        const bool shared = (words[i] & (kPresent | kMappedOnce)) == kPresent;
        if (shared) mark(busy.slot + first + i, PageResult::shared, 1);
        ++i;
        continue;
      }
      for (std::uint32_t page = i; page < i + pages; ++page) {
        if (!write_nothing(start + page * wire::kPageBytes)) continue;
        mark(busy.slot + first + page, PageResult::renewed, 1);
        any = true;
      }
      i += pages;
    }
    return any;
  }

  // HAZARDS 53. Writes to a page without changing it, and without ever waiting for it: should it be
  // missing by now, the daemon that would have to bring it may be waiting for the end of this
  // command. A futex's operation on its second word (or it with 0) is EFAULT then, where
  // MADV_POPULATE_WRITE would wait. It wakes whoever waits for the first word, which nobody does,
  // and one who waits for the second if that holds a certain number, which does no harm.
  [[nodiscard]] bool write_nothing(std::uint64_t page) const {
    constexpr int kOrNothing = FUTEX_OP(FUTEX_OP_OR, 0, FUTEX_OP_CMP_EQ, 0x5a5);
    return sys::call(SYS_futex, &c_.start_errno, FUTEX_WAKE_OP | FUTEX_PRIVATE_FLAG, 0, 0, page,
                     kOrNothing) >= 0;
  }

  static PageResult failure(long error) {
    if (error == -EBUSY) return PageResult::pinned;
    return error == -ENOENT ? PageResult::hole : PageResult::refused;
  }

  // The daemon may have unregistered staging (HAZARDS 38): it is registered again for this command.
  void check_staging() {
    if (!c_.half_armed[half_]) return;
    const long registered = probe(half_start(c_, half_), wire::kHalfPages);
    c_.half_armed[half_] = registered == -EINVAL || registered == -EAGAIN;
  }

  // An mlockall that is over, or a stray touch, may have put pages where the moved ones are to go.
  // Unregistered first: no REMOVE event then.
  bool empty_half() {
    unsigned char resident[wire::kHalfPages];
    const std::uint64_t start = half_start(c_, half_);
    bool empty = sys::call(SYS_mincore, start, wire::kHalfBytes, resident) == 0;
    for (std::uint32_t i = 0; empty && i < wire::kHalfPages; ++i) {
      // NOLINTNEXTLINE(clang-analyzer-core.UndefinedBinaryOperatorResult): the call has filled it
      empty = (resident[i] & 1) == 0;
    }
    if (empty) return true;
    if (uffd_unregister(c_, start, wire::kHalfBytes) != 0) return false;
    c_.half_armed[half_] = false;
    sys::call(SYS_madvise, start, wire::kHalfBytes, uapi::kMadvDontneedLocked);
    return arm_half(c_, half_);
  }

  // What moved goes to the transfer area before the lock is let go. Unregistering first only serves
  // refresh_staging(): the pages are present, so reading them cannot fault.
  void copy_out() {
    if (uffd_unregister(c_, half_start(c_, half_), wire::kHalfBytes) == 0) {
      c_.half_armed[half_] = false;
    }
    const std::size_t base = half_ * wire::kHalfBytes;
    for (std::uint32_t at = moved_first_; at < moved_end_;) {
      std::uint32_t end = at;
      while (end < moved_end_ && c_.results[end] == static_cast<std::uint8_t>(kMovedNow)) ++end;
      const std::size_t offset = base + at * wire::kPageBytes;
      sys::copy_bytes(c_.transfer + offset, c_.staging + offset, (end - at) * wire::kPageBytes);
      mark(at, PageResult::moved, end - at);
      at = end == at ? at + 1 : end;
    }
    // Before the lock is let go: if this thread dies now, the daemon still knows what lies in the
    // transfer area.
    sys::copy_bytes(cmd_.result + moved_first_, c_.results + moved_first_,
                    moved_end_ - moved_first_);
  }

  // Without the lock: if unregistering failed this raises a REMOVE event, and waits until it is
  // read.
  void refresh_staging() {
    sys::call(SYS_madvise, half_start(c_, half_), wire::kHalfBytes, uapi::kMadvDontneedLocked);
    (void)arm_half(c_, half_);  // tried again, and told, at the next chunk
  }

  void give_way() {
    sys::Backoff backoff;
    while (sys::load(box_.reader_waits) != 0 && backoff.turns() < kGiveWayTurns) backoff.next();
  }

  // A program that makes one announced call after the other would never be evicted. After so many
  // commands in vain the calls wait a moment for the next one.
  void ask_for_room(AbortReason reason) {
    const std::uint32_t calls = sys::load(c_.announced);
    const bool by_call = calls != c_.announced_seen || reason == wire::kAbortBusy;
    c_.announced_seen = calls;
    const bool stopped =
        reason == wire::kAbortBusy || reason == wire::kAbortEpoch || reason == wire::kAbortThreads;
    c_.in_vain = stopped && by_call && moved_none_ && c_.in_vain < kMostInVain ? c_.in_vain + 1 : 0;
    sys::store(c_.agent_waits, c_.in_vain == kMostInVain ? 1U : 0U);
  }

  void publish(AbortReason reason) {
    ask_for_room(reason);
    sys::copy_bytes(cmd_.result, c_.results, sizeof(c_.results));
    sys::store(cmd_.aborted, static_cast<std::uint32_t>(reason));
    sys::store(cmd_.state, static_cast<std::uint32_t>(wire::CommandState::done));
    sys::add(box_.to_daemon, 1);
    sys::futex_wake(box_.to_daemon, sys::Scope::shared);
  }

  Control& c_;
  wire::Mailbox& box_;
  wire::Command& cmd_;
  const std::uint32_t half_;
  std::uint32_t epoch_ = 0, threads_ = 0, nruns_ = 0, nregs_ = 0;
  std::uint64_t closed_ = 0;  // bit per range that must not be registered (any more)
  // Where it stands: page `offset_` of run `run_`, which is page `slot_` of the command.
  std::uint32_t run_ = 0, offset_ = 0, slot_ = 0;
  std::uint64_t run_start_ = 0;
  std::uint32_t run_pages_ = 0, run_reg_ = 0;
  // Slots between which this lock hold has moved pages.
  std::uint32_t moved_first_ = 0, moved_end_ = 0;
  Piece busy_[kMostBusy];
  std::uint32_t nbusy_ = 0;
  bool moved_none_ = true;
  bool renewing_ = false;  // second look: what is busy now is pinned
};

void follow_cpu(Control& c, std::uint32_t cpu) {
  if (cpu == c.cpu || c.affinity_bytes == 0) return;
  std::uint64_t mask[16]{};
  if (cpu == ~0U) {
    sys::copy_bytes(mask, c.affinity, sizeof(mask));
  } else if (cpu < 64 * 16) {
    mask[cpu / 64] = std::uint64_t{1} << (cpu % 64);
  } else {
    return;
  }
  if (sys::call(SYS_sched_setaffinity, 0, c.affinity_bytes, mask) == 0) c.cpu = cpu;
}

}  // namespace

long arm_staging(Control& control) {
  const long error = uffd_register(control, half_start(control, 0), wire::kStagingBytes);
  for (bool& armed : control.half_armed) armed = error == 0;
  return error;
}

void execute_command(Control& control, std::uint32_t half) {
  follow_cpu(control, sys::load(control.mailbox->commands[half].cpu));
  Executor(control, half).run();
}

}  // namespace foldswap::preload
