// What a fault thread does with pages that are on disk: it orders them and goes on with other
// faults; when they have come, it looks their entries up again and copies them in. See
// fault_service.h and disk_reader.h.
#include <algorithm>
#include <array>
#include <bit>

#include "daemon/fault/fault_service.h"
#include "daemon/host/log.h"

namespace foldswap {
namespace {

constexpr std::uint64_t kRetryBusyUs = 200;
constexpr unsigned kMostTries = 4;

}  // namespace

FaultService::Outcome FaultService::order_read(Client& client, PendingFault& fault,
                                               std::uint32_t want) {
  // Nothing to look at before it has come: that kicks the client.
  fault.retry_at_us = os_.now_us() + 1'000'000;
  if (DiskReader::Order* const there = reader_->find(client, fault.page)) {
    reader_->wait_for(*there);
    return Outcome::later;
  }
  std::uint32_t pages = 0;
  switch (reader_->begin(client, fault.page, want, DiskReader::Purpose::demand, pages)) {
    case DiskReader::Begun::reading:
      client.window_pages = want;
      client.window_next = read_ahead(client, fault.page + pages * kPage, want - pages);
      return Outcome::later;
    case DiskReader::Begun::busy:
    case DiskReader::Begun::not_on_disk:  // it was when we looked; it has been freed since
      break;
  }
  fault.retry_at_us = os_.now_us() + kRetryBusyUs;
  return Outcome::later;
}

// Orders the rest of a window whose first run of evicted pages ends at `page`, over what is
// resident in between. Returns where it ends. A stream gets another window at once: that is read
// while the first is unpacked.
std::uint64_t FaultService::read_ahead(Client& client, std::uint64_t page, std::uint32_t left) {
  const std::uint32_t most = std::clamp<std::uint32_t>(
      tunables_.readahead_max.load(std::memory_order_relaxed), 1, kMostWindow);
  if (client.window_pages == most && most > 1) left += most;
  while (left != 0) {
    const std::uint64_t next = skip_resident(client, page);
    std::uint32_t pages = 0;
    if (reader_->find(client, next) != nullptr ||
        reader_->begin(client, next, left, DiskReader::Purpose::ahead, pages) !=
            DiskReader::Begun::reading)
      break;
    page = next + pages * kPage;
    left -= pages;
  }
  return page;
}

bool FaultService::order_back(Client& client, std::uint64_t& cursor, StepResult& result) {
  result.retry_us = kRetryBusyUs;
  const DiskReader::Order* const there = reader_->find(client, cursor);
  std::uint32_t pages = 0;
  if (there != nullptr) {
    cursor = there->start + there->pages * kPage;
    return true;
  }
  if (reader_->begin(client, cursor, kMostWindow, DiskReader::Purpose::back, pages) !=
      DiskReader::Begun::reading)
    return false;
  cursor += pages * kPage;
  return true;
}

bool FaultService::deliver(Client& client, StepResult& result) {
  if (reader_ == nullptr) return true;
  (void)reader_->reap();
  DiskReader::Order* order = reader_->next_ready(client, nullptr);
  while (order != nullptr) {
    if (!deliver_order(client, *order, result)) return false;
    order = reader_->next_ready(client, order);
  }
  return true;
}

// The order ends, is read again, or stays ready (false: until events have been read; later: until
// there is memory).
bool FaultService::deliver_order(Client& client, DiskReader::Order& order, StepResult& result) {
  if (client.map->load(order.start) != order.page[0].entry) {
    end_order(client, order);  // discarded, moved or brought back meanwhile
    return true;
  }
  std::uint32_t pages = unpack_order(client, order);
  if (pages == 0) return give_up_order(client, order);
  const bool demanded = order.purpose == DiskReader::Purpose::demand;
  if (pages > 1 || !demanded) {
    const std::uint32_t clear = clear_way(client, order.start, pages);
    if (clear == 0 && !demanded) {
      end_order(client, order);  // a guard was put there meanwhile (HAZARDS 12)
      return true;
    }
    pages = std::max(1U, clear);
  }
  std::uint32_t done = 0;
  Outcome outcome = copy_in(client, order.start, pages, demanded, done);
  if (done == 0 && pages > 1 && outcome == Outcome::later)
    outcome = copy_in(client, order.start, 1, demanded, done);
  switch (outcome) {
    case Outcome::changing:
      return false;
    case Outcome::gone:
      client.set_state(ClientState::exiting);
      return false;
    case Outcome::later:
      result.retry_us = 5'000;
      return true;
    case Outcome::done:
      break;
  }
  result.worked = true;
  finish_delivered(client, order, done);
  end_order(client, order);
  return true;
}

// Whoever waits for a page of it is to be looked at anew.
void FaultService::end_order(Client& client, DiskReader::Order& order) {
  for (PendingFault& fault : client.pending) {
    if (fault.page - order.start < order.pages * kPage) fault.retry_at_us = 0;
  }
  reader_->done(order);
}

// The run of pages that begins at the order's start and is still what it was when it was ordered.
std::uint32_t FaultService::unpack_order(Client& client, const DiskReader::Order& order) {
  std::uint32_t pages = 0;
  std::array<std::byte, kPage> packed;
  // Who brings everything back is about to let the client go: nothing of it is kept.
  const bool keep = order.purpose != DiskReader::Purpose::back && store_.keeps_copies();
  window_kept_ = 0;
  for (; pages < order.pages; ++pages) {
    const DiskReader::Order::Page& wanted = order.page[pages];
    if (client.map->load(order.start + pages * kPage) != wanted.entry) break;
    const std::span<std::byte, kPage> page(buffer_.data() + pages * kPage, kPage);
    if (wanted.on_disk) {
      const auto bytes = reader_->open(order, pages, packed);
      if (bytes.empty() || !store_.unpack(wanted.entry, wanted.info.codec, bytes, *codec_, page))
        break;
      if (keep) window_kept_ |= 1ULL << pages;
    } else {
      const auto fetched = store_.fetch(wanted.entry, *codec_, page);
      if (!fetched || *fetched != PageStore::Fetched::page) break;
    }
    window_[pages] = wanted.entry;
  }
  // Nor is what changes as soon as it is there.
  for (const PendingFault& fault : client.pending) {
    if (fault.write && fault.page - order.start < pages * kPage)
      window_kept_ &= ~(1ULL << ((fault.page - order.start) / kPage));
  }
  return pages;
}

// Its first page did not come, or not as it was written: once more, from where it lies now; then
// nobody may ever read there again.
bool FaultService::give_up_order(Client& client, DiskReader::Order& order) {
  const std::uint64_t page = order.start;
  const Entry entry = order.page[0].entry;
  const auto now = store_.on_disk(entry);
  const bool moved = !now || now->place != order.page[0].info.place;
  if (!moved) bump(counters_.disk_errors);
  if (moved || order.tries < kMostTries) {
    for (PendingFault& fault : client.pending) {
      if (fault.page - page < order.pages * kPage) fault.retry_at_us = 0;
    }
    if (!reader_->read_again(order, moved)) reader_->done(order);
    return true;
  }
  if (order.purpose == DiskReader::Purpose::ahead) {
    end_order(client, order);  // whoever wants the page asks for it himself
    return true;
  }
  // For nobody in particular: poisoned first, noted then, because until the kernel has it the page
  // must not count as dealt with. For a fault, its answer does it.
  if (order.purpose != DiskReader::Purpose::demand &&
      os_.uffd_poison(client.uffd.get(), page) == -EAGAIN)
    return false;
  if (store_.poison(client, page, entry)) {
    bump(counters_.lost_pages);
    log::error("{}: page {:#x} cannot be read from the backing file: it is poisoned",
               client.label(), page);
  }
  end_order(client, order);
  return true;
}

void FaultService::finish_delivered(Client& client, const DiskReader::Order& order,
                                    std::uint32_t pages) {
  const std::uint64_t end = order.start + pages * kPage;
  std::uint64_t faulted = 0;  // a bit for each page; several threads may have waited for one
  std::erase_if(client.pending, [&](const PendingFault& fault) {
    // Nothing was copied: its waiters were woken, and raise it again.
    if (pages == 0) return fault.page == order.start;
    if (fault.page < order.start || fault.page >= end) return false;
    finish_fault(client, fault, counters_.faults_disk);
    faulted |= 1ULL << ((fault.page - order.start) / kPage);
    return true;
  });
  if (order.purpose == DiskReader::Purpose::back) return;
  const std::uint32_t least = order.purpose == DiskReader::Purpose::demand ? 1 : 0;
  const auto asked = std::max(least, static_cast<std::uint32_t>(std::popcount(faulted)));
  if (pages > asked) bump(counters_.readahead_pages, pages - asked);
  if (order.purpose == DiskReader::Purpose::demand && pages < order.pages) client.window_next = end;
}

}  // namespace foldswap
