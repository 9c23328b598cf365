// What is mapped where in a client, and what follows for what is registered: mappings that are not
// ours, and entries that outlive their mapping (HAZARDS 13, 30, 31). See fault_service.h.
#include <algorithm>

#include "base/mutation.h"
#include "daemon/fault/fault_service.h"
#include "daemon/host/log.h"

namespace foldswap {
namespace {

constexpr std::uint64_t kMostForgotten = 2'048;  // pages asked for in a step

}  // namespace

// Error: it cannot be told; or the process is another program by now, and a relative of it keeps
// the address space.
Result<std::vector<ProcessMapping>> FaultService::mapping_of(const Client& client,
                                                             std::uint64_t start,
                                                             std::uint64_t end) const {
  const std::uint64_t staging = client.record.staging;
  const ProcessMappings mappings(os_, client.pid());
  const auto known =
      staging == 0 ? fail("it has no staging") : mappings.of_range(staging, staging + kPage);
  if (!known) return std::unexpected(known.error());
  if (known->empty() || known->front().whole_start != staging)
    return fail("its staging is not there");
  return mappings.of_range(start, end);
}

// Before an mremap: the whole range in one state (HAZARDS 13). A range in which nothing is
// registered stays as it is, whatever it is; what is not ours is not touched in any case (HAZARDS
// 31).
bool FaultService::unify(Client& client, std::uint64_t start, std::uint64_t bytes) {
  const LayoutTryLock lock(client, tunables_.incarnation);
  if (!lock.held()) return false;
  const int fd = client.uffd.get();
  const std::uint64_t end = start + bytes;
  if (os_.uffd_probe(fd, start) == Probe::changing) return false;
  store_word(client.mailbox->registered, 1);
  const auto parts = mapping_of(client, start, end);
  if (!parts ||
      mutated(Mutation::h31_mapping_in_hold)) {  // nobody tells: the kernel has the last word
    (void)os_.uffd_register(fd, start, bytes);
    return os_.uffd_probe(fd, start) != Probe::changing;
  }
  // An agent that was stopped in a command may be about to register a part of it, and nobody waits
  // for that one (HAZARDS 38): that changes nothing if all of it is registered.
  const bool agent_may = std::ranges::any_of(client.mailbox->commands, is_posted);
  const bool any = agent_may || std::ranges::any_of(*parts, [&](const ProcessMapping& part) {
                     return part.ordinary && os_.uffd_probe(fd, part.start) == Probe::registered;
                   });
  for (const ProcessMapping& part : *parts) {
    if (!any || !part.ordinary || os_.uffd_probe(fd, part.start) == Probe::registered) continue;
    if (!forget_stale(client, part.start, part.end)) return false;
    const int error = os_.uffd_register(fd, part.start, part.end - part.start);
    if (error != 0)
      log::debug("{}: range {:#x}-{:#x} cannot be registered: {}", client.label(), part.start,
                 part.end, -error);
    const auto now = mapping_of(client, part.start, part.end);
    for (const ProcessMapping& other : now.value_or(std::vector<ProcessMapping>())) {
      if (!other.ordinary) (void)os_.uffd_unregister(fd, other.start, other.end - other.start);
    }
  }
  // It may grow where it is, over what has gone without an event: that would be registered with it.
  std::uint64_t next = client.map->next_out(end, kAddressEnd);
  for (std::uint64_t i = 0; i < kMostForgotten && next < kAddressEnd; ++i) {
    if (os_.uffd_probe(fd, next) != Probe::unregistered) break;
    if (!forget_stale(client, next, next + kPage)) return false;
    next = client.map->next_out(next + kPage, kAddressEnd);
  }
  return os_.uffd_probe(fd, start) != Probe::changing;
}

// HAZARDS 31. COPY says EINVAL in huge-page memory that was registered by mistake, and would for
// ever. It is unregistered, and whoever waits there goes on by himself.
FaultService::Outcome FaultService::let_go_of_mapping(Client& client, std::uint64_t page) {
  const int fd = client.uffd.get();
  if (mutated(Mutation::h31_unregister_others)) return wake(client, page);
  const Probe probe = os_.uffd_probe(fd, page);
  if (probe == Probe::changing) return Outcome::changing;
  if (probe == Probe::gone) return Outcome::gone;
  if (probe == Probe::unregistered || client.record.inbox_count != 0) return wake(client, page);
  const LayoutTryLock lock(client, tunables_.incarnation);
  if (!lock.held()) return Outcome::later;
  const auto found = mapping_of(client, page, page + kPage);
  // Nobody tells what it is: huge pages are of 2 MiB, mostly.
  ProcessMapping mapping{extent_floor(page), extent_floor(page) + wire::kExtentBytes, false};
  if (found && found->empty()) return wake(client, page);
  if (found) mapping = found->front();
  if (mapping.ordinary) return wake(client, page);  // it is another one by now
  if (found) {
    mapping.start = mapping.whole_start;
    mapping.end = mapping.whole_end;
  } else if (client.map->next_out(mapping.start, mapping.end) < mapping.end) {
    return wake(client, page);
  }
  client.record.unregistering.note(mapping.start, mapping.end - mapping.start);
  const int error = os_.uffd_unregister(fd, mapping.start, mapping.end - mapping.start);
  const bool changing = os_.uffd_probe(fd, page) == Probe::changing;
  if (changing) (void)os_.uffd_register(fd, mapping.start, mapping.end - mapping.start);
  client.record.unregistering.clear();
  // Nothing was ever taken out of such memory: what the map has there is of one that has gone
  // without an event. Sure only now: nothing was on its way elsewhere when it was looked at.
  if (!changing && error == 0) store_.clear_range(client, mapping.start, mapping.end);
  log::debug("{}: {:#x}-{:#x} is no memory of ours: unregistered ({})", client.label(),
             mapping.start, mapping.end, -error);
  return changing ? Outcome::changing : wake(client, page);
}

// Entries of pages that are registered no more: their mapping went without an event (HAZARDS 30).
// That is sure when no event waits, read or unread. What is on its way out need not be registered
// yet.
bool FaultService::forget_stale(Client& client, std::uint64_t start, std::uint64_t end) {
  if (client.record.inbox_count != 0) return false;
  if (mutated(Mutation::h30_drop_stale)) return true;
  std::uint64_t left = kMostForgotten;
  for (std::uint64_t p = client.map->next_out(start, end); p < end;
       p = client.map->next_out(p + kPage, end)) {
    if (client.map->load(p).state() == PageState::out) continue;
    if (left-- == 0) return false;
    switch (os_.uffd_probe(client.uffd.get(), p)) {
      case Probe::changing:
        return false;
      case Probe::gone:
        return true;
      case Probe::registered:
        continue;
      case Probe::unregistered:
        store_.clear_range(client, p, p + kPage);
    }
  }
  return true;
}

void FaultService::run_forget_stale(Client& client, StepResult& result) {
  std::vector<wire::Range> ranges;
  {
    const RankedLock lock(client.mutex);
    if (client.stale_requests.empty()) return;
    ranges.swap(client.stale_requests);
  }
  // What is left is found again at the next look.
  for (const wire::Range& range : ranges) {
    if (forget_stale(client, range.start, range.start + range.bytes)) continue;
    result.again = result.again || client.record.inbox_count != 0;
    return;
  }
}

}  // namespace foldswap
