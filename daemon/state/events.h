// Messages of a userfaultfd as they lie in a client's inbox (ClientRecord::inbox): which of them
// are events, and which still hold the descriptor of a forked child. Thread safety: pure functions;
// an inbox is the reader's alone, or looked at before any thread is started.
#pragma once

#include <linux/userfaultfd.h>

#include <algorithm>
#include <cstdint>
#include <span>

#include "daemon/state/state.h"

namespace foldswap {

[[nodiscard]] constexpr bool is_address_event(const uffd_msg& message) {
  return message.event == UFFD_EVENT_FORK || message.event == UFFD_EVENT_REMAP ||
         message.event == UFFD_EVENT_UNMAP || message.event == UFFD_EVENT_REMOVE;
}

// The descriptor of a FORK in the inbox whose child has a record of its own by now.
inline constexpr std::uint32_t kForkTaken = ~0U;

// A FORK whose descriptor is in no note yet.
[[nodiscard]] constexpr bool holds_child(const uffd_msg& message) {
  return message.event == UFFD_EVENT_FORK && message.arg.fork.ufd != kForkTaken;
}

// Messages that were read, and that inbox_count may not tell of yet.
[[nodiscard]] inline std::span<uffd_msg> uncounted_messages(ClientRecord& record) {
  const std::uint32_t begin = std::min(record.inbox_count, kInboxMessages);
  return {record.inbox + begin, std::min(kInboxReserve, kInboxMessages - begin)};
}

// All of an inbox, those among them.
[[nodiscard]] inline std::span<uffd_msg> all_messages(ClientRecord& record) {
  return {record.inbox,
          std::min(record.inbox_count, kInboxMessages) + uncounted_messages(record).size()};
}

}  // namespace foldswap
