#include "preload/mover.h"

#include <linux/userfaultfd.h>
#include <sys/mman.h>

#include <algorithm>
#include <cerrno>
#include <iterator>

#include "base/uapi.h"

namespace foldswap::preload {
namespace {

using wire::AbortReason;
using wire::PageResult;

constexpr std::uint32_t kSmallChunk =
    64;  // pages of one lock hold while the daemon or a fault waits
constexpr std::uint32_t kLockTurns = 3000;
constexpr std::uint32_t kGiveWayTurns = 220;

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
  return sys::call(SYS_madvise, half_start(c, half), wire::kHalfBytes, MADV_COLD) == -EINVAL;
}

class Executor {
 public:
  Executor(Control& c, std::uint32_t half)
      : c_(c), box_(*c.mailbox), cmd_(c.mailbox->commands[half]), half_(half) {
    epoch_ = sys::load(cmd_.epoch);
    threads_ = sys::load(cmd_.threads_created);
    nruns_ = std::min(sys::load(cmd_.nruns), wire::kMaxRuns);
    nregs_ = std::min(sys::load(cmd_.nregs), wire::kMaxRegs);
    sys::zero_bytes(c_.results, sizeof(c_.results));
    load_run();
  }

  void run() {
    AbortReason reason = wire::kAbortNone;
    if (sys::load(box_.mode) != static_cast<std::uint32_t>(wire::ClientMode::active)) {
      reason = wire::kAbortOther;
    }
    while (!finished() && reason == wire::kAbortNone) {
      reason = chunk();
      give_way();
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
  [[nodiscard]] std::uint64_t slot_address() const {
    return half_start(c_, half_) + slot_ * wire::kPageBytes;
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

  void mark(PageResult result, std::uint32_t pages) {
    for (std::uint32_t i = 0; i < pages; ++i) {
      c_.results[slot_ + i] = static_cast<std::uint8_t>(result);
    }
    slot_ += pages;
    offset_ += pages;
    if (offset_ >= run_pages_) {
      ++run_;
      load_run();
    }
  }

  // One hold of the layout lock.
  AbortReason chunk() {
    const bool waited_for = sys::load(box_.faults_wait) != 0 || sys::load(box_.reader_waits) != 0;
    if (!arm_half(c_, half_) || !lock()) return wire::kAbortOther;
    sys::store(box_.layout_agent, 1U);
    const std::uint32_t first = slot_;
    moved_ = 0;
    AbortReason reason = must_not();
    if (reason == wire::kAbortNone) reason = move(waited_for ? kSmallChunk : wire::kHalfPages);
    if (moved_ != 0) copy_out(first);
    sys::store(box_.layout, static_cast<std::uint32_t>(wire::kLayoutFree));
    sys::store(box_.layout_agent, 0U);
    if (moved_ != 0) refresh_staging();
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

  // Reasons not to touch anything, seen under the lock and with layout_agent announced.
  AbortReason must_not() {
    if (sys::load(box_.epoch) != epoch_) return wire::kAbortEpoch;
    if (sys::load(box_.layout_busy) != 0) return wire::kAbortBusy;
    if (sys::load(box_.threads_created) != threads_) return wire::kAbortThreads;
    if (staging_locked(c_, half_)) return wire::kAbortLocked;
    return wire::kAbortNone;
  }

  AbortReason move(std::uint32_t limit) {
    std::uint64_t armed = 0;  // bit per range registered in this lock hold
    while (!finished() && limit > 0) {
      const std::uint32_t pages = std::min(left_in_run(), limit);
      limit -= pages;
      if (!acceptable(pages)) {
        mark(PageResult::refused, pages);
        continue;
      }
      // HAZARDS 3: registered in the same hold, or the program could have mapped the source anew.
      const std::uint64_t bit = std::uint64_t{1} << run_reg_;
      if ((armed & bit) == 0 && !register_source()) {
        mark(PageResult::refused, pages);
        return wire::kAbortRegister;
      }
      armed |= bit;
      const AbortReason reason = move_piece(pages);
      if (reason != wire::kAbortNone) return reason;
    }
    return wire::kAbortNone;
  }

  [[nodiscard]] bool acceptable(std::uint32_t pages) const {
    const std::uint64_t start = source();
    const std::uint64_t end = start + pages * wire::kPageBytes;
    if (run_reg_ >= nregs_ || start % wire::kPageBytes != 0 || end < start) return false;
    const auto overlaps = [&](std::uint64_t from, std::uint64_t bytes) {
      return start < from + bytes && from < end;
    };
    if (overlaps(half_start(c_, 0), wire::kStagingBytes)) return false;
    return std::none_of(std::begin(c_.own), std::end(c_.own),
                        [&](const wire::Range& own) { return overlaps(own.start, own.bytes); });
  }

  bool register_source() {
    const wire::Range& reg = cmd_.regs[run_reg_];
    const std::uint64_t start = sys::load(reg.start);
    const std::uint64_t bytes = sys::load(reg.bytes);
    sys::store(box_.registered, 1U);
    return uffd_register(c_, start, bytes) == 0;
  }

  // `pages` pages of the current run into the slots of their numbers.
  AbortReason move_piece(std::uint32_t pages) {
    bool emptied = false;
    while (pages > 0) {
      uapi::UffdMove move{slot_address(), source(), pages * wire::kPageBytes,
                          uapi::kMoveModeDontWake, 0};
      const long error = sys::call(SYS_ioctl, c_.uffd, uapi::kUffdioMove, &move);
      const std::uint64_t bytes = move.move > 0 ? static_cast<std::uint64_t>(move.move) : 0;
      const std::uint32_t done =
          error == 0 ? pages
                     : std::min(pages, static_cast<std::uint32_t>(bytes / wire::kPageBytes));
      if (done > 0) {  // if it stopped part-way, the next call says why
        mark(PageResult::moved, done);
        moved_ += done;
        pages -= done;
        continue;
      }
      if (error == -EAGAIN) return wire::kAbortEpoch;  // an event waits to be read
      if (error == -EEXIST && !emptied) {
        // mlockall, or a stray touch, put pages into the slots that come next.
        emptied = true;
        if (empty_slots(pages)) continue;
      }
      const bool single = error == -EBUSY || error == -ENOENT || error == -EEXIST;
      const std::uint32_t count = single ? 1 : pages;
      mark(failure(error), count);
      pages -= count;
    }
    return wire::kAbortNone;
  }

  static PageResult failure(long error) {
    if (error == -EBUSY) return PageResult::pinned;
    return error == -ENOENT ? PageResult::hole : PageResult::refused;
  }

  // The next `pages` slots, none of which holds a moved page. Unregistered first: no REMOVE event
  // then.
  bool empty_slots(std::uint32_t pages) {
    const std::uint64_t start = slot_address();
    const std::uint64_t bytes = pages * wire::kPageBytes;
    if (uffd_unregister(c_, start, bytes) != 0) return false;
    sys::call(SYS_madvise, start, bytes, uapi::kMadvDontneedLocked);
    if (uffd_register(c_, start, bytes) == 0) return true;
    c_.half_armed[half_] = false;
    return false;
  }

  // What moved goes to the transfer area before the lock is let go. Unregistering first only serves
  // refresh_staging(): the pages are present, so reading them cannot fault.
  void copy_out(std::uint32_t first) {
    if (uffd_unregister(c_, half_start(c_, half_), wire::kHalfBytes) == 0) {
      c_.half_armed[half_] = false;
    }
    const std::size_t base = half_ * wire::kHalfBytes;
    for (std::uint32_t at = first; at < slot_;) {
      std::uint32_t end = at;
      while (end < slot_ && c_.results[end] == static_cast<std::uint8_t>(PageResult::moved)) ++end;
      const std::size_t offset = base + at * wire::kPageBytes;
      sys::copy_bytes(c_.transfer + offset, c_.staging + offset, (end - at) * wire::kPageBytes);
      at = end == at ? at + 1 : end;
    }
    // Before the lock is let go: if this thread dies now, the daemon still knows what lies in the
    // transfer area.
    sys::copy_bytes(cmd_.result + first, c_.results + first, slot_ - first);
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

  void publish(AbortReason reason) {
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
  // Where it stands: page `offset_` of run `run_`, which is page `slot_` of the command.
  std::uint32_t run_ = 0, offset_ = 0, slot_ = 0;
  std::uint64_t run_start_ = 0;
  std::uint32_t run_pages_ = 0, run_reg_ = 0;
  std::uint32_t moved_ = 0;  // in this lock hold
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
