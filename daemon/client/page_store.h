// PageStore: the page map's words meet the pool's objects here, and nowhere else. Every change of
// an entry that takes or gives up an object goes through it, so counts and references cannot drift
// apart. Thread safety: as its parts; any thread. `codec` belongs to the calling thread. Order
// (DESIGN §10): object -> record -> entry on the way out; COPY -> entry cleared -> object released
// on the way in.
#pragma once

#include <cstddef>
#include <optional>
#include <span>

#include "compress/codec.h"
#include "daemon/client/client.h"
#include "daemon/disk/backing_file.h"
#include "pool/pool.h"

namespace foldswap {

class PageStore {
 public:
  explicit PageStore(Pool& pool) : pool_(pool) {}

  // Where objects lie that are not in the pool's frames, and whether those of pages that were read
  // back stay there (kept_copies.h). Before any thread uses the store; it outlives the store.
  void set_backing(BackingFile* file, bool keep_copies = true) {
    file_ = file;
    keep_copies_ = keep_copies;
  }

  enum class Fetched : std::uint8_t { page, on_disk };
  // The bytes of an evicted page, unless they are on disk. Error: its object does not verify.
  [[nodiscard]] Result<Fetched> fetch(Entry entry, PageCodec& codec,
                                      std::span<std::byte, kPage> page);
  // Where on disk the object of an entry lies; nothing: it does not.
  [[nodiscard]] std::optional<ObjectInfo> on_disk(Entry entry);
  // A page from what its object was stored with, as it came from the disk. Error: it is not that.
  [[nodiscard]] Status unpack(Entry entry, Codec with, std::span<const std::byte> packed,
                              PageCodec& codec, std::span<std::byte, kPage> page);

  // Compresses and stores a page that left the client: the entry to publish. Error: the pool could
  // not take it.
  [[nodiscard]] Result<Entry> put(std::span<const std::byte, kPage> page, CodecSpec spec,
                                  PageCodec& codec);
  // For a mutation: what put() left out, if the object is still there.
  void complete(Entry entry, std::span<const std::byte, kPage> page, CodecSpec spec,
                PageCodec& codec);
  // out -> entry. False (and the entry's object is freed) when the page map says something else by
  // now.
  [[nodiscard]] bool publish(Client& client, std::uint64_t page, Entry out, Entry entry);
  // Frees the object of an entry that was never published.
  void discard(Entry entry);
  // One reference less, and the file learns of the room when it was the last one.
  void unref(ObjectId id);

  // entry -> none; releases what it held. False when the page map says something else by now.
  bool clear(Client& client, std::uint64_t page, Entry entry, unsigned heat = 0);
  // Whatever the pages of [start, end) hold is let go: their mapping is gone.
  void clear_range(Client& client, std::uint64_t start, std::uint64_t end);
  // entry -> bad; releases what it held.
  bool poison(Client& client, std::uint64_t page, Entry entry);
  // The child of a fork gets the same page: one more reference, unless it has it. False: the count
  // is full.
  [[nodiscard]] bool share(Client& child, std::uint64_t page, Entry entry);
  // Moves an entry to another address of the same client (mremap). The target is `none`.
  void move(Client& client, std::uint64_t from, std::uint64_t to, Entry entry);

  // -- copies of resident pages that are still on disk (kept_copies.h)
  // Whether there is room for them: they may have it while less than half of the file is in use.
  [[nodiscard]] bool keeps_copies() const {
    return keep_copies_ && file_ != nullptr && file_->used_bytes() < file_->max_bytes() / 2;
  }
  // As clear(), but what the entry held stays. `bytes`: what it holds, verified.
  bool clear_keeping(Client& client, std::uint64_t page, Entry entry,
                     std::span<const std::byte, kPage> bytes, unsigned heat);
  // The entry of a page that leaves the client unchanged since it was read from disk: to publish,
  // or to discard. Nothing: put() it. What was kept for the page is let go in that case.
  [[nodiscard]] std::optional<Entry> reuse(Client& client, std::uint64_t page,
                                           std::span<const std::byte, kPage> bytes);
  // In so many rounds (of KeptCopies::kMostTaken). True: there is none left.
  bool forget_copies(Client& client, std::uint64_t start = 0, std::uint64_t end = kAddressEnd,
                     unsigned rounds = ~0U);

  [[nodiscard]] Pool& pool() { return pool_; }

 private:
  void count(Client& client, Entry entry, bool up);
  [[nodiscard]] bool holds(SegmentPlace place, std::uint32_t length) const;
  Pool& pool_;
  BackingFile* file_ = nullptr;
  bool keep_copies_ = false;
  const PageTagger tagger_;
};

}  // namespace foldswap
