// What the evictor does about an agent that is stopped in the middle of a command, while somebody
// waits for what only that command's end can bring (HAZARDS 38). See evictor.h.
#include <algorithm>
#include <cstring>

#include "daemon/evict/evictor.h"
#include "daemon/host/log.h"

namespace foldswap {
namespace {

// An agent that is seen stopped gets the first, any other the second: it may be starved of CPU
// time, or frozen, which does not show.
constexpr std::uint64_t kStoppedUs = 5'000, kOverdueUs = 100'000;

[[nodiscard]] bool moved(const wire::Command& command, std::uint32_t slot) {
  return __atomic_load_n(&command.result[slot], __ATOMIC_ACQUIRE) ==
         static_cast<std::uint8_t>(wire::PageResult::moved);
}

}  // namespace

bool Evictor::agent_stopped(const Client& client) const {
  const std::uint32_t tid = load_word(client.mailbox->agent_tid);
  const auto text = os_.read_file("/proc/" + std::to_string(client.pid()) + "/task/" +
                                  std::to_string(tid) + "/stat");
  ThreadInfo agent;
  return text && parse_stat(*text, agent) && (agent.state == 't' || agent.state == 'T');
}

std::uint64_t Evictor::watch_agent(Client& client, std::uint64_t now_us) {
  constexpr std::uint64_t kSoonUs = 2'000, kLateUs = 50'000, kLongUs = 1'000'000;
  if (!client.has_agent()) return 0;
  std::uint64_t oldest_us = now_us;
  bool posted = false, may_move = false;
  for (const Batch& batch : client.batch) {
    if (batch.phase != Batch::Phase::posted) continue;
    posted = true;
    may_move = may_move || !client.is_void(batch.epoch);
    oldest_us = std::min(oldest_us, batch.posted_at_us);
  }
  if (client.revoked && !posted) {
    kick_reader_(client);  // it sees when the agent has gone on
    return kLateUs;
  }
  const wire::Mailbox& mailbox = *client.mailbox;
  const bool waited_for = client.unapplied || client.faults_parked || client.restore_wanted ||
                          client.release_wanted || load_word(mailbox.reader_waits) != 0 ||
                          load_word(mailbox.layout_busy) != 0 ||
                          load_word(mailbox.request.seq) != load_word(mailbox.request.served);
  if (!posted || !waited_for) return 0;
  const std::uint64_t age_us = now_us - oldest_us;
  const std::uint64_t again_us = age_us < kLongUs ? kSoonUs : kLateUs;
  if (age_us < kStoppedUs || (age_us < kOverdueUs && !agent_stopped(client))) return again_us;
  if (may_move) {
    client.agent_overdue = true;
    kick_reader_(client);
    return again_us;
  }
  for (std::uint32_t h = 0; h < wire::kHalves; ++h) {
    if (client.batch[h].phase == Batch::Phase::posted) take_over_batch(client, h);
  }
  return again_us;
}

// The command is void: nothing moves any more. What has moved lies in the transfer area, and its
// result says so; or still in staging; the rest is where it was. The command itself stays posted
// until the agent goes on, and its half is not used meanwhile.
void Evictor::take_over_batch(Client& client, std::uint32_t half) {
  Batch& batch = client.batch[half];
  if (!fetch_staging(client, half)) return;
  log::debug("{}: {} pages are taken over from its agent, which is stopped", client.label(),
             batch.pages.load());
  batch.phase = Batch::Phase::settling;
  batch.next_slot = 0;
  batch.in_transfer.store(true, std::memory_order_release);
  bump(counters_.evict_aborted);
  kick_reader_(client);
}

// Into private memory, because an agent that goes on writes to the transfer area. If it does so
// now, it notes a result before it empties staging: so what was read of staging is good if there is
// no result afterwards. /proc/PID/mem never waits for a userfaultfd, whoever has registered staging
// (HAZARDS 4): it fails. A file could make it wait: so staging must be what it was, just before (a
// client that changes that in between holds its evict thread up: HAZARDS 41).
bool Evictor::fetch_staging(Client& client, std::uint32_t half) {
  constexpr std::uint64_t kThere = 1ULL << 63;
  Batch& batch = client.batch[half];
  const wire::Command& command = client.mailbox->commands[half];
  const std::uint64_t staging = client.record.staging + half * wire::kHalfBytes;
  const ProcessMappings mappings(os_, client.pid());
  const auto parts = mappings.of_range(staging, staging + wire::kHalfBytes);
  if (parts && !std::ranges::all_of(*parts, &ProcessMapping::ordinary)) return false;
  if (!batch.taken.valid()) {
    auto made = Mapping::anonymous(wire::kHalfBytes);
    if (!made) return false;
    batch.taken = std::move(*made);
  }
  std::array<std::uint64_t, wire::kHalfPages> words{};
  const std::size_t bytes = batch.pages * sizeof(words[0]);
  if (os_.read_at(client.pagemap_fd(), words.data(), bytes, staging / kPage * sizeof(words[0])) !=
      static_cast<int>(bytes))
    return false;
  for (std::uint32_t slot = 0; slot < batch.pages; ++slot) {
    std::byte* const to = batch.taken.data() + std::size_t{slot} * kPage;
    const std::size_t offset = std::size_t{slot} * kPage;
    const std::byte* const transfer = client.transfer + half * wire::kHalfBytes + offset;
    batch.moved[slot] = moved(command, slot);
    if (!batch.moved[slot] && (words[slot] & (kThere | 1ULL << 62)) != 0) {
      const int got = os_.read_at(client.memory_fd(), to, kPage, staging + offset);
      batch.moved[slot] = true;
      if (!moved(command, slot)) {
        if (got != static_cast<int>(kPage)) return false;
        continue;
      }
    }
    if (batch.moved[slot]) std::memcpy(to, transfer, kPage);
  }
  batch.source = batch.taken.data();
  return true;
}

}  // namespace foldswap
