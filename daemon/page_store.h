// PageStore: the page map's words meet the pool's objects here, and nowhere else. Every change of
// an entry that takes or gives up an object goes through it, so counts and references cannot drift
// apart. Thread safety: as its parts; any thread. `codec` belongs to the calling thread. Order
// (DESIGN §10): object -> record -> entry on the way out; COPY -> entry cleared -> object released
// on the way in.
#pragma once

#include <cstddef>
#include <span>

#include "compress/codec.h"
#include "daemon/client.h"
#include "pool/pool.h"

namespace foldswap {

class PageStore {
 public:
  explicit PageStore(Pool& pool) : pool_(pool) {}

  // The bytes of an evicted page. Error: its object does not verify.
  [[nodiscard]] Status fetch(Entry entry, PageCodec& codec, std::span<std::byte, kPage> page);

  // Compresses and stores a page that left the client: the entry to publish. Error: the pool could
  // not take it.
  [[nodiscard]] Result<Entry> put(std::span<const std::byte, kPage> page, CodecSpec spec,
                                  PageCodec& codec);
  // out -> entry. False (and the entry's object is freed) when the page map says something else by
  // now.
  [[nodiscard]] bool publish(Client& client, std::uint64_t page, Entry out, Entry entry);
  // Frees the object of an entry that was never published.
  void discard(Entry entry);

  // entry -> none; releases what it held. False when the page map says something else by now.
  bool clear(Client& client, std::uint64_t page, Entry entry, unsigned heat = 0);
  // Whatever the pages of [start, end) hold is let go: their mapping is gone.
  void clear_range(Client& client, std::uint64_t start, std::uint64_t end);
  // entry -> bad; releases what it held.
  bool poison(Client& client, std::uint64_t page, Entry entry);
  // The child of a fork gets the same page: one more reference. False: the count is full.
  [[nodiscard]] bool share(Client& child, std::uint64_t page, Entry entry);
  // Moves an entry to another address of the same client (mremap). The target is `none`.
  void move(Client& client, std::uint64_t from, std::uint64_t to, Entry entry);

  [[nodiscard]] Pool& pool() { return pool_; }

 private:
  void count(Client& client, Entry entry, bool up);
  Pool& pool_;
};

}  // namespace foldswap
