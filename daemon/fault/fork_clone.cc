#include "daemon/fault/fork_clone.h"

#include <algorithm>

#include "base/mutation.h"

namespace foldswap {
namespace {

constexpr unsigned kMostReads = 16;  // of a child's events, per page

// What a process's own events did to a place, in their order.
struct Trail {
  std::uint64_t place;  // where what was there at first is now
  bool unmapped = false;
  bool moved = false, in_doubt = false;  // whether it was unmapped where it went: who probes knows
  bool forked = false;                   // before it was unmapped
  bool covered = false;  // something came here, and nothing registered was in its way
};

Trail follow(std::span<const uffd_msg> events, std::uint64_t page) {
  Trail trail{page};
  for (const uffd_msg& m : events) {
    trail.forked = trail.forked || m.event == UFFD_EVENT_FORK;
    if (m.event == UFFD_EVENT_UNMAP && trail.place >= m.arg.remove.start &&
        trail.place < m.arg.remove.end) {
      if (trail.moved) {  // there, or was the place cleared before, by another thread?
        trail.in_doubt = true;
        continue;
      }
      trail.unmapped = true;
      return trail;
    }
    if (m.event != UFFD_EVENT_REMAP) continue;
    if (trail.place - m.arg.remap.from < m.arg.remap.len) {
      trail.place = m.arg.remap.to + (trail.place - m.arg.remap.from);
      trail.moved = true;
    } else if (trail.place - m.arg.remap.to < m.arg.remap.len) {
      trail.covered = true;
      return trail;
    }
  }
  return trail;
}

}  // namespace

ForkClone::ForkClone(Os& os, PageStore& store, const ReadMore& read_more, Client& parent,
                     Client& child, std::size_t fork, std::span<const Move> moves,
                     std::uint64_t& cursor)
    : os_(os),
      store_(store),
      read_more_(read_more),
      parent_(parent),
      child_(child),
      fork_(fork),
      inbox_(parent.record.inbox, parent.record.inbox_count),
      moves_(moves),
      cursor_(cursor) {}

ForkClone::Then ForkClone::look(std::uint64_t page) {
  for (unsigned reads = 0; !mute_; ++reads) {
    const Trail trail = follow({child_.record.inbox, child_.record.inbox_count}, page);
    if (trail.unmapped) return trail.forked ? Then::left : Then::gone;
    if (trail.covered) return Then::nothing;
    const Probe probe = os_.uffd_probe(child_.uffd.get(), trail.place);
    if (probe == Probe::registered) return Then::there;
    if (probe == Probe::unregistered && trail.in_doubt)
      return trail.forked ? Then::left : Then::gone;
    // It has forked and ended. What it had its children have, who are asked in their turn.
    if (probe == Probe::gone && has_forked()) {
      gone_ = mute_ = true;
      break;
    }
    if (probe != Probe::changing || mutated(Mutation::fork_running_child)) return Then::nothing;
    mute_ = reads == kMostReads || !read_more_(child_);
  }
  return Then::unknown;
}

bool ForkClone::has_forked() const {
  return std::ranges::any_of(std::span(child_.record.inbox, child_.record.inbox_count),
                             [](const uffd_msg& m) { return m.event == UFFD_EVENT_FORK; });
}

// The parent was killed in the middle of a call, and what that call would have told of goes with
// it: a fork that came behind an mremap may have been read before it. Each fork() that is under way
// is announced, too, and does no harm.
bool ForkClone::events_lost() const {
  if (parent_.mailbox == nullptr || os_.uffd_probe(parent_.uffd.get(), kPage) != Probe::gone)
    return false;
  const std::uint32_t forking = load_word(parent_.mailbox->fork_seq) & 1U;
  return load_word(parent_.mailbox->layout_busy) > forking;
}

// Whether the set changes something here.
bool ForkClone::in_doubt(std::uint64_t page) const {
  return std::ranges::any_of(
             moves_,
             [&](const Move& m) { return page - m.from < m.bytes || page - m.to < m.bytes; }) ||
         told(UFFD_EVENT_UNMAP, page);
}

// Before the fork, or at the same time: read before it, after an earlier FORK that held it up. A
// child that has the page where it was (`target`) is older than what was done to it elsewhere.
bool ForkClone::discarded(std::uint64_t page, std::uint64_t target) const {
  for (std::size_t i = 0; i < fork_; ++i) {
    if (inbox_[i].event != UFFD_EVENT_REMOVE) continue;
    const Trail trail = follow(inbox_.first(i), page);
    if (target == page && trail.place != page) return false;
    if (!trail.unmapped && trail.place >= inbox_[i].arg.remove.start &&
        trail.place < inbox_[i].arg.remove.end) {
      return !mutated(Mutation::h01_fork_order);
    }
  }
  return false;
}

bool ForkClone::told(std::uint8_t event, std::uint64_t page) const {
  return std::ranges::any_of(inbox_, [&](const uffd_msg& m) {
    return m.event == event && page >= m.arg.remove.start && page < m.arg.remove.end;
  });
}

// The set moves the page away, and the child has something where it was. Nothing: that it has it
// says that it is older than the move.
std::optional<ForkClone::Verdict> ForkClone::judge_what_stays(std::uint64_t page, const Move& away,
                                                              std::uint64_t& target) {
  const std::uint64_t there = away.to + (page - away.from);
  const bool back = std::ranges::any_of(moves_, [&](const Move& m) {
    return there - m.from < m.bytes && m.to + (there - m.from) == page;
  });
  if (back) {
    // Away first, and then back: then it is there in the parent, and was in every child that has
    // anything there.
    const bool sure = os_.uffd_probe(parent_.uffd.get(), page) == Probe::registered &&
                      !told(UFFD_EVENT_REMOVE, page) && !told(UFFD_EVENT_REMOVE, there);
    return sure ? Verdict::share : Verdict::never;
  }
  if (told(UFFD_EVENT_UNMAP, page)) return std::nullopt;
  const auto touches = std::ranges::count_if(moves_, [&](const Move& m) {
    return there - m.from < m.bytes || there - m.to < m.target_bytes;
  });
  // MREMAP_DONTUNMAP: younger children have the place, too, and nothing in it. Only where it went
  // can tell.
  if (touches > 1 || told(UFFD_EVENT_UNMAP, there)) return Verdict::never;
  switch (look(there)) {
    case Then::there:
      target = there;
      return Verdict::share;
    case Then::nothing:
      return Verdict::share;
    case Then::gone:
    case Then::left:
      return Verdict::never;
    case Then::unknown:
      break;
  }
  return Verdict::ask;
}

// `page` is where the parent's map has it, before the set's moves. The fork came before a move, and
// the child has the page where it was; or after it, and the child has it where it went.
ForkClone::Verdict ForkClone::judge(std::uint64_t page, std::uint64_t& target) {
  target = page;
  const Then here = look(page);
  if (here == Then::unknown) return in_doubt(page) ? Verdict::ask : Verdict::share;
  const auto away =
      std::ranges::find_if(moves_, [&](const Move& m) { return page - m.from < m.bytes; });
  if (here == Then::there && away != moves_.end()) {
    if (const auto verdict = judge_what_stays(page, *away, target)) return *verdict;
  }
  bool vacated = false, touched = false;
  for (const Move& m : moves_) {
    touched = touched || page - m.from < m.bytes;
    const std::uint64_t offset = page - m.to;
    if (offset >= m.target_bytes) continue;
    // Something comes here in the set, or a mapping grows over it. If the child does not have it
    // where it came from, it has it here, and not this page.
    touched = touched || offset < m.bytes;
    switch (look(m.from + std::min(offset, m.bytes - kPage))) {
      case Then::there:
        break;
      case Then::nothing:
        vacated = true;
        break;
      case Then::gone:
      case Then::left:
        return Verdict::never;  // from here, or from there? It cannot be told.
      case Then::unknown:
        return Verdict::ask;
    }
  }
  if (here == Then::gone) return touched ? Verdict::never : Verdict::skip;
  // Its FORK passes the page on, and then its UNMAP takes it away.
  if (here == Then::left) return touched ? Verdict::never : Verdict::share;
  if (here == Then::there && !vacated) return Verdict::share;
  for (const Move& m : moves_) {
    if (page - m.from >= m.bytes) continue;
    target = m.to + (page - m.from);
    switch (look(target)) {
      case Then::there:
        return Verdict::share;
      case Then::nothing:
        break;
      case Then::gone:
      case Then::left:
        return Verdict::never;
      case Then::unknown:
        return Verdict::ask;
    }
  }
  return Verdict::skip;
}

ForkClone::Result ForkClone::run(std::uint64_t most) {
  const bool settled_places = std::ranges::none_of(inbox_, [](const uffd_msg& m) {
    return m.event == UFFD_EVENT_UNMAP || m.event == UFFD_EVENT_REMAP;
  });
  std::uint64_t extent_end = 0;
  bool all_in = false;
  for (cursor_ = parent_.map->next_out(cursor_, kAddressEnd); cursor_ < kAddressEnd;
       cursor_ = parent_.map->next_out(cursor_ + kPage, kAddressEnd)) {
    if (most-- == 0) return Result::more;
    if (extent_end == 0 && events_lost()) return Result::never;
    if (cursor_ >= extent_end) {
      // Without moves and unmaps in the set one probe speaks for the pages of an extent when its
      // first and last page out are both there.
      extent_end = extent_floor(cursor_) + wire::kExtentBytes;
      std::uint64_t last = cursor_;
      for (std::uint64_t p = last; p < extent_end; p = parent_.map->next_out(p + kPage, extent_end))
        last = p;
      all_in = settled_places && look(cursor_) == Then::there && look(last) == Then::there;
    }
    std::uint64_t target = cursor_;
    const Verdict verdict = all_in ? Verdict::share : judge(cursor_, target);
    if (verdict == Verdict::ask) return gone_ ? Result::never : Result::ask;
    if (verdict == Verdict::never) return Result::never;
    if (verdict == Verdict::skip || discarded(cursor_, target)) continue;
    const Entry entry = parent_.map->load(cursor_);
    // What is still in flight cannot be given to the child (its parent died under the batch).
    if (entry.state() == PageState::out || !store_.share(child_, target, entry)) {
      return Result::never;
    }
  }
  return Result::all;
}

}  // namespace foldswap
