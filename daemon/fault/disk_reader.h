// DiskReader: the reads of one fault thread from the backing file. An order is a run of pages of a
// client, the first of which somebody waits for; the reader works out which parts of the file
// they lie in, reads those, many orders at a time, and keeps the bytes until the fault thread has
// put them to use. It knows nothing of userfaultfd: what is done with an order that is ready, and
// whether its entries still hold, fault_service_disk.cc decides.
//
// While an order lives it holds a reference to each object on disk that it wants, so no object id
// means another page meanwhile, and no segment that such an object lies in is used again. (Cleaning
// may move an object to another segment; its old bytes then may be overwritten under our read, they
// do not open, and read_again() looks the place up anew.)
//
// Thread safety: one thread's, but for the counters. Nothing allocates after construction.
// Errors: a read that fails or comes back short leaves the pages that it was for without bytes.
// Units: pages of 4 KiB, else bytes.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "base/mapping.h"
#include "base/os.h"
#include "daemon/client/page_store.h"
#include "daemon/disk/disk_format.h"
#include "daemon/disk/disk_traffic.h"

namespace foldswap {

class DiskReader {
 public:
  static constexpr std::uint32_t kOrders = 16;
  static constexpr std::uint64_t kOrderBytes = 256 * 1024;  // of the file, at most
  static constexpr std::uint32_t kOrderPages = 64;

  enum class Purpose : std::uint8_t {
    demand,  // a fault waits for the first page
    ahead,   // one is expected before long
    back,    // a range is brought back
  };
  struct Order {
    enum class State : std::uint8_t { idle, reading, ready };
    State state = State::idle;
    Client* client = nullptr;  // nullptr: nobody wants it any more
    std::uint64_t start = 0;   // address of the first page
    std::uint32_t pages = 0;
    unsigned tries = 0;
    Purpose purpose = Purpose::demand;
    bool waited_for = false;           // by a fault: reading it is demand (DiskTraffic)
    std::uint64_t ready_since_us = 0;  // from when on it can be put to use
    struct Page {
      Entry entry;
      bool on_disk = false;
      ObjectInfo info;
      std::uint64_t generation = 0;
      std::uint32_t in_buffer = 0;  // where its header begins
      std::uint32_t part = 0;
    };
    std::array<Page, kOrderPages> page;

   private:
    friend DiskReader;
    struct Part {
      std::uint64_t offset = 0;  // in the file, block aligned
      std::uint32_t bytes = 0, in_buffer = 0;
      bool queued = false, ended = false, good = false;
    };
    static constexpr std::uint32_t kParts = 16;
    std::array<Part, kParts> part;
    std::uint32_t parts = 0;
  };

  // `file`, `seal` and `traffic` outlive it. Error: io_uring or memory cannot be had.
  [[nodiscard]] static Result<std::unique_ptr<DiskReader>> create(Os& os, PageStore& store,
                                                                  const BackingFile& file,
                                                                  const Seal& seal,
                                                                  DiskTraffic& traffic,
                                                                  Counters& counters);
  DiskReader(const DiskReader&) = delete;
  DiskReader& operator=(const DiskReader&) = delete;
  ~DiskReader();

  enum class Begun : std::uint8_t { reading, busy, not_on_disk };
  // Orders the page at `start`, whose object is on disk, and those after it, up to `pages`, as far
  // as they are evicted and fit. busy: as many orders are under way as can be, or as many of this
  // client as may be while others want some, too. An order of another client that has long been
  // ready and is not put to use makes room: whoever waits for it orders again. `order_pages`: how
  // many it became.
  [[nodiscard]] Begun begin(Client& client, std::uint64_t start, std::uint32_t pages,
                            Purpose purpose, std::uint32_t& order_pages);
  // The order of this client that has the page; nullptr: none.
  [[nodiscard]] Order* find(const Client& client, std::uint64_t page);
  // A fault waits for a page of it, whatever it was ordered for.
  void wait_for(Order& order);
  // An order of this client that is ready, from `after` on (nullptr: from the first).
  [[nodiscard]] Order* next_ready(const Client& client, const Order* after);
  // The codec's output for one page of a ready order, in `packed`. Empty: it could not be read, or
  // is not what was written.
  [[nodiscard]] std::span<const std::byte> open(const Order& order, std::uint32_t page,
                                                std::span<std::byte, kPage> packed) const;
  // Only the first page, from where it lies now; that is another try, unless it has `moved`. False:
  // it is not on disk any more.
  [[nodiscard]] bool read_again(Order& order, bool moved);
  void done(Order& order);
  // The client goes: its orders are nobody's from here.
  void forget(const Client& client);

  // Takes what has ended, and kicks (Client::kicked) whose order became ready. Cheap when there is
  // nothing. True: something became ready.
  bool reap();
  [[nodiscard]] int fd() const { return ring_->fd(); }
  [[nodiscard]] bool idle() const { return under_way_ == 0; }

 private:
  DiskReader(Os& os, PageStore& store, const BackingFile& file, const Seal& seal,
             DiskTraffic& traffic, Counters& counters);
  [[nodiscard]] Order* room_for(const Client& client, Purpose purpose);
  [[nodiscard]] bool want(Order& order, Entry entry);
  [[nodiscard]] bool add_part(Order& order, Order::Page& page);
  void start(Order& order);
  void queue_parts(Order& order);
  void end_part(Order& order, std::uint32_t part, std::int32_t result);
  [[nodiscard]] std::span<std::byte> buffer_of(const Order& order) const;

  Os& os_;
  PageStore& store_;
  const BackingFile& file_;
  const Seal& seal_;
  DiskTraffic& traffic_;
  Counters& counters_;
  std::array<Order, kOrders> orders_;
  std::uint32_t under_way_ = 0;  // orders that are reading
  Mapping buffer_;               // kOrders times kOrderBytes
  std::unique_ptr<IoRing> ring_;
};

}  // namespace foldswap
