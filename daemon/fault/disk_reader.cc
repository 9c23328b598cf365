#include "daemon/fault/disk_reader.h"

#include <algorithm>

namespace foldswap {
namespace {

// A hole between two wanted places is read over rather than asked for separately, up to here.
constexpr std::uint64_t kReadOver = 32 * 1024;
constexpr unsigned kDepth = 128;
constexpr std::ptrdiff_t kForDemand = 4;  // orders that are for faults only
constexpr std::ptrdiff_t kForOthers = 2;  // of these, for whoever has none yet
// An order that is ready and is not put to use for so long is given up when another needs one: its
// client's events cannot be read, or it has no memory.
constexpr std::uint64_t kStaleUs = 50'000;

std::uint64_t file_offset(SegmentPlace place) {
  return BackingFile::offset_of(place.segment) + place.unit * BackingFile::kUnit;
}
std::uint64_t sealed_end(const ObjectInfo& info) {
  return file_offset(info.place) + info.length + kSealedOverhead;
}

}  // namespace

DiskReader::DiskReader(Os& os, PageStore& store, const BackingFile& file, const Seal& seal,
                       DiskTraffic& traffic, Counters& counters)
    : os_(os),
      store_(store),
      file_(file),
      seal_(seal),
      traffic_(traffic),
      counters_(counters),
      buffer_(Mapping::anonymous(kOrders * kOrderBytes).value()) {}

Result<std::unique_ptr<DiskReader>> DiskReader::create(Os& os, PageStore& store,
                                                       const BackingFile& file, const Seal& seal,
                                                       DiskTraffic& traffic, Counters& counters) {
  std::unique_ptr<DiskReader> reader(new DiskReader(os, store, file, seal, traffic, counters));
  auto ring = os.io_ring(file.fd(), {reader->buffer_.data(), kOrders * kOrderBytes}, kDepth);
  if (!ring) return std::unexpected(ring.error());
  reader->ring_ = std::move(*ring);
  return reader;
}

DiskReader::~DiskReader() {
  ring_.reset();  // waits for what is under way; the buffers go after it
  for (Order& order : orders_) {
    if (order.state == Order::State::idle) continue;
    if (order.state == Order::State::reading && order.waited_for) traffic_.demand.fetch_sub(1);
    done(order);
  }
}

std::span<std::byte> DiskReader::buffer_of(const Order& order) const {
  const auto index = static_cast<std::size_t>(&order - orders_.data());
  return {buffer_.data() + index * kOrderBytes, kOrderBytes};
}

// Nobody may keep the others from the disk: not by wanting much, and not by letting what he wanted
// lie about.
DiskReader::Order* DiskReader::room_for(const Client& client, Purpose purpose) {
  const std::uint64_t now_us = os_.now_us();
  Order *free = nullptr, *stale = nullptr;
  std::ptrdiff_t idle = 0;
  bool has_some = false;
  for (Order& order : orders_) {
    if (order.state == Order::State::idle) {
      free = free == nullptr ? &order : free;
      ++idle;
    } else if (order.client == &client) {
      has_some = true;
    } else if (order.state == Order::State::ready && now_us - order.ready_since_us > kStaleUs) {
      stale = &order;
    }
  }
  const std::ptrdiff_t for_others = (purpose == Purpose::demand ? 0 : kForDemand) +
                                    (has_some && purpose != Purpose::ahead ? kForOthers : 0);
  if (idle > for_others) return free;
  if (stale != nullptr) done(*stale);
  return stale;
}

DiskReader::Begun DiskReader::begin(Client& client, std::uint64_t start, std::uint32_t pages,
                                    Purpose purpose, std::uint32_t& order_pages) {
  Order* const room = room_for(client, purpose);
  if (room == nullptr) return Begun::busy;
  Order& order = *room;
  order.client = &client;
  order.start = start;
  order.pages = 0;
  order.parts = 0;
  order.tries = 1;
  order.purpose = purpose;
  order.waited_for = purpose == Purpose::demand;
  const std::uint32_t most = std::clamp<std::uint32_t>(pages, 1, kOrderPages);
  while (order.pages < most) {
    if (!want(order, client.map->load(start + order.pages * kPage))) break;
    ++order.pages;
  }
  if (order.pages == 0 || !order.page[0].on_disk) {
    done(order);
    return Begun::not_on_disk;
  }
  order_pages = order.pages;
  this->start(order);
  return Begun::reading;
}

// Takes the page into the order, with a reference to its object if that is on disk.
bool DiskReader::want(Order& order, Entry entry) {
  if (!entry.evicted()) return false;
  Order::Page& page = order.page[order.pages];
  page = Order::Page{};
  page.entry = entry;
  if (entry.state() != PageState::object) return true;
  const ObjectId id{entry.object_id()};
  if (!store_.pool().try_ref(id)) return false;
  // Looked up after the reference is had: from here its segment stays.
  const auto info = store_.on_disk(entry);
  if (info) {
    page.info = *info;
    page.generation = file_.generation(info->place.segment);
    if (add_part(order, page)) {
      page.on_disk = true;
      return true;
    }
  }
  store_.unref(id);
  return !info;
}

// Extends a part that lies near, or begins another one. False: the order is full.
bool DiskReader::add_part(Order& order, Order::Page& page) {
  const std::uint64_t first = block_floor(file_offset(page.info.place));
  const std::uint64_t last = block_ceil(sealed_end(page.info));
  std::uint64_t bytes = 0;
  for (std::uint32_t i = 0; i < order.parts; ++i) bytes += order.part[i].bytes;
  for (std::uint32_t i = 0; i < order.parts; ++i) {
    Order::Part& part = order.part[i];
    const std::uint64_t end = part.offset + part.bytes;
    // Never over the border of a segment: what lies there has another generation.
    if (part.offset / BackingFile::kSegmentBytes != first / BackingFile::kSegmentBytes) continue;
    if (last + kReadOver < part.offset || first > end + kReadOver) continue;
    const std::uint64_t from = std::min(first, part.offset), to = std::max(last, end);
    if (bytes - part.bytes + (to - from) > kOrderBytes) return false;
    part.offset = from;
    part.bytes = static_cast<std::uint32_t>(to - from);
    page.part = i;
    return true;
  }
  if (order.parts == Order::kParts || bytes + (last - first) > kOrderBytes) return false;
  page.part = order.parts;
  order.part[order.parts++] = {first, static_cast<std::uint32_t>(last - first), 0};
  return true;
}

void DiskReader::start(Order& order) {
  std::uint32_t at = 0;
  for (std::uint32_t i = 0; i < order.parts; ++i) {
    Order::Part& part = order.part[i];
    part.in_buffer = at;
    part.queued = part.ended = part.good = false;
    at += part.bytes;
  }
  for (std::uint32_t i = 0; i < order.pages; ++i) {
    Order::Page& page = order.page[i];
    if (!page.on_disk) continue;
    const Order::Part& part = order.part[page.part];
    page.in_buffer =
        part.in_buffer + static_cast<std::uint32_t>(file_offset(page.info.place) - part.offset);
  }
  order.state = Order::State::reading;
  ++under_way_;
  if (order.waited_for) traffic_.demand.fetch_add(1);
  queue_parts(order);
  (void)ring_->submit();
}

void DiskReader::queue_parts(Order& order) {
  const auto index = static_cast<std::uint64_t>(&order - orders_.data());
  for (std::uint32_t i = 0; i < order.parts; ++i) {
    Order::Part& part = order.part[i];
    if (part.queued) continue;
    const auto into = buffer_of(order).subspan(part.in_buffer, part.bytes);
    part.queued = ring_->read(into, part.offset, index << 8 | i);
  }
}

bool DiskReader::reap() {
  if (under_way_ == 0) return false;
  std::array<IoDone, 32> ended;
  bool ready = false;
  for (;;) {
    const std::size_t count = ring_->reap(ended);
    for (std::size_t i = 0; i < count; ++i) {
      Order& order = orders_[ended[i].tag >> 8];
      end_part(order, static_cast<std::uint32_t>(ended[i].tag & 0xff), ended[i].result);
      ready = ready || order.state == Order::State::ready;
    }
    if (count < ended.size()) break;
  }
  for (Order& order : orders_) {
    if (order.state == Order::State::reading) queue_parts(order);  // what the ring had no room for
  }
  (void)ring_->submit();
  return ready;
}

void DiskReader::end_part(Order& order, std::uint32_t index, std::int32_t result) {
  Order::Part& part = order.part[index];
  part.ended = true;
  part.good = result == static_cast<std::int32_t>(part.bytes);
  if (result > 0) bump(counters_.disk_read_bytes, static_cast<std::uint64_t>(result));
  for (std::uint32_t i = 0; i < order.parts; ++i) {
    if (!order.part[i].ended) return;
  }
  order.state = Order::State::ready;
  order.ready_since_us = os_.now_us();
  --under_way_;
  if (order.waited_for) traffic_.demand.fetch_sub(1);
  if (order.client == nullptr) {
    done(order);
  } else {
    order.client->kicked = true;
  }
}

DiskReader::Order* DiskReader::find(const Client& client, std::uint64_t page) {
  for (Order& order : orders_) {
    if (order.state != Order::State::idle && order.client == &client && page >= order.start &&
        page - order.start < order.pages * kPage) {
      return &order;
    }
  }
  return nullptr;
}

void DiskReader::wait_for(Order& order) {
  if (order.waited_for || order.state != Order::State::reading) return;
  order.waited_for = true;
  traffic_.demand.fetch_add(1);
}

DiskReader::Order* DiskReader::next_ready(const Client& client, const Order* after) {
  const auto first = after == nullptr ? 0 : static_cast<std::size_t>(after - orders_.data()) + 1;
  for (std::size_t i = first; i < orders_.size(); ++i) {
    if (orders_[i].state == Order::State::ready && orders_[i].client == &client) return &orders_[i];
  }
  return nullptr;
}

std::span<const std::byte> DiskReader::open(const Order& order, std::uint32_t index,
                                            std::span<std::byte, kPage> packed) const {
  const Order::Page& page = order.page[index];
  if (!order.part[page.part].good) return {};
  const auto sealed = buffer_of(order).subspan(page.in_buffer + sizeof(DiskHeader),
                                               page.info.length + Seal::kTagBytes);
  const Seal::Place place{page.entry.object_id(), page.generation, page.info.place.unit};
  const auto plain = std::span(packed).first(page.info.length);
  if (!seal_.open(place, sealed, plain)) return {};
  return plain;
}

bool DiskReader::read_again(Order& order, bool moved) {
  for (std::uint32_t i = 1; i < order.pages; ++i) {
    if (order.page[i].on_disk) store_.unref(ObjectId{order.page[i].entry.object_id()});
  }
  order.pages = 1;
  order.parts = 0;
  Order::Page& page = order.page[0];
  const auto info = store_.on_disk(page.entry);
  if (!info) return false;
  page.info = *info;
  page.generation = file_.generation(info->place.segment);
  (void)add_part(order, page);
  if (!moved) ++order.tries;
  start(order);
  return true;
}

void DiskReader::done(Order& order) {
  for (std::uint32_t i = 0; i < order.pages; ++i) {
    if (order.page[i].on_disk) store_.unref(ObjectId{order.page[i].entry.object_id()});
  }
  order.pages = 0;
  order.client = nullptr;
  order.state = Order::State::idle;
}

void DiskReader::forget(const Client& client) {
  for (Order& order : orders_) {
    if (order.client != &client) continue;
    if (order.state == Order::State::ready) done(order);
    order.client = nullptr;  // what is reading ends by itself
  }
}

}  // namespace foldswap
