#include "daemon/state/event_journal.h"

#include <algorithm>
#include <atomic>

namespace foldswap {
namespace {

constexpr std::int64_t kMostGaps = 64;

// Stores before it are made before those behind it: who dies has made a first part of them all.
void in_order() {
  std::atomic_signal_fence(std::memory_order_seq_cst);
}

bool is_gap(const uffd_msg& message) {
  return message.event == 0;
}

}  // namespace

// The kind goes first: a message is whole, or it is none.
void clear_message(uffd_msg& message) {
  std::atomic_ref(message.event).store(0);
  in_order();
  message = uffd_msg{};
}

void close_gaps(ClientRecord& record) {
  std::uint32_t end = record.inbox_count;
  while (end != 0 && is_gap(record.inbox[end - 1])) --end;
  record.inbox_count = end;
  if (std::count_if(record.inbox, record.inbox + end, is_gap) < kMostGaps) return;
  std::uint32_t kept = 0;
  for (std::uint32_t i = 0; i < end; ++i) {
    if (is_gap(record.inbox[i])) continue;
    if (i != kept) {
      record.shifting = std::uint64_t{i} << 32 | kept;
      finish_closing_gaps(record);
    }
    ++kept;
  }
  record.inbox_count = kept;
}

void finish_closing_gaps(ClientRecord& record) {
  const std::uint64_t shifting = record.shifting;
  const auto from = static_cast<std::uint32_t>(shifting >> 32);
  const auto to = static_cast<std::uint32_t>(shifting);
  if (from >= kInboxMessages || to >= from) return;  // nothing is
  // As long as the message is there it is the one to go by.
  if (!is_gap(record.inbox[from])) record.inbox[to] = record.inbox[from];
  in_order();
  clear_message(record.inbox[from]);
  in_order();
  record.shifting = 0;
}

void note_moves(ClientRecord& record, std::span<const Move> moves) {
  MovePlan& plan = record.plan;
  std::ranges::copy(moves, plan.move);
  plan.messages = record.inbox_count;
  plan.cleared = 0;
  plan.done = 0;
  in_order();
  plan.count = static_cast<std::uint32_t>(moves.size());
}

void forget_moves(ClientRecord& record) {
  for (uffd_msg& message : std::span(record.inbox, record.plan.messages)) {
    if (message.event == UFFD_EVENT_REMAP || message.event == UFFD_EVENT_UNMAP)
      clear_message(message);
  }
  in_order();
  record.plan.count = 0;
}

bool finish_moves(ClientRecord& record, PageMap& map) {
  if (record.plan.count == 0) return true;
  bool room = true;
  make_moves(
      record.plan, map,
      [&](std::uint64_t start, std::uint64_t end) {
        for (std::uint64_t p = map.next_out(start, end); p < end; p = map.next_out(p + kPage, end))
          (void)map.replace(p, map.load(p), Entry::none());
      },
      [&](std::uint64_t from, std::uint64_t to, Entry entry) {
        room = room && map.ensure(to) != nullptr;
        if (!room) {
          record.doomed = 1;  // before the move counts as made
          return;
        }
        (void)map.replace(to, map.load(to), entry);
        (void)map.replace(from, entry, Entry::none());
      });
  if (room) forget_moves(record);
  return room;
}

}  // namespace foldswap
