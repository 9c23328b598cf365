#include "daemon/client/page_store.h"

#include "base/mutation.h"
#include "compress/same_filled.h"
#include "daemon/disk/disk_format.h"

namespace foldswap {
namespace {

ObjectId object_of(Entry entry) {
  return ObjectId{entry.object_id()};
}

}  // namespace

void PageStore::count(Client& client, Entry entry, bool up) {
  if (!entry.evicted()) return;
  Counter& counter = entry.state() == PageState::object ? client.record.pool_pages
                                                        : client.record.same_filled_pages;
  up ? bump(counter) : drop(counter);
}

Result<PageStore::Fetched> PageStore::fetch(Entry entry, PageCodec& codec,
                                            std::span<std::byte, kPage> page) {
  if (entry.state() == PageState::same) {
    fill_pattern(page, entry.pattern());
    return Fetched::page;
  }
  std::byte packed[kPage];
  const auto loaded = pool_.load(object_of(entry), packed);
  if (!loaded) return std::unexpected(loaded.error());
  if (loaded->elsewhere) {
    const SegmentPlace place = loaded->elsewhere->place;
    if (holds(place, loaded->elsewhere->length)) return Fetched::on_disk;
    // Cleaning may have moved it since, and its old segment be free already.
    const auto now = pool_.peek(object_of(entry));
    if (now && now->tier == Tier::segment && now->place != place) return Fetched::on_disk;
    return fail_errno("its record names a place on disk where nothing is", EIO);
  }
  if (loaded->codec == Codec::pattern) {
    fill_pattern(page, loaded->pattern);
    return Fetched::page;
  }
  const auto done = codec.decompress(loaded->codec, std::span(packed, loaded->length), page);
  if (!done) return std::unexpected(done.error());
  return Fetched::page;
}

// A damaged record must not make us read elsewhere, or count what was never there.
bool PageStore::holds(SegmentPlace place, std::uint32_t length) const {
  return file_ != nullptr && length != 0 && length <= kPage && file_->in_use(place.segment) &&
         place.unit * BackingFile::kUnit + disk_bytes(length) <= BackingFile::kSegmentBytes;
}

std::optional<ObjectInfo> PageStore::on_disk(Entry entry) {
  if (file_ == nullptr || entry.state() != PageState::object) return std::nullopt;
  const auto info = pool_.peek(object_of(entry));
  return info && info->tier == Tier::segment && holds(info->place, info->length) ? info
                                                                                 : std::nullopt;
}

Status PageStore::unpack(Entry entry, Codec with, std::span<const std::byte> packed,
                         PageCodec& codec, std::span<std::byte, kPage> page) {
  if (!pool_.verify(object_of(entry), packed)) {
    return fail_errno("what came from the disk is not what was written", EIO);
  }
  return codec.decompress(with, packed, page);
}

Result<Entry> PageStore::put(std::span<const std::byte, kPage> page, CodecSpec spec,
                             PageCodec& codec) {
  if (const auto pattern = same_filled(page)) {
    if (const auto entry = Entry::same(*pattern)) return *entry;
    const auto id = pool_.store_pattern(*pattern);
    if (!id) return std::unexpected(id.error());
    return Entry::same_record(static_cast<std::uint64_t>(*id));
  }
  std::byte packed[kPage];
  const auto result = codec.compress(spec, page, packed);
  const auto id = pool_.store(std::span(packed, result.length), result.codec);
  if (!id) return std::unexpected(id.error());
  return Entry::object(static_cast<std::uint64_t>(*id));
}

void PageStore::complete(Entry entry, std::span<const std::byte, kPage> page, CodecSpec spec,
                         PageCodec& codec) {
  if (entry.state() != PageState::object) return;
  std::byte packed[kPage];
  const auto result = codec.compress(spec, page, packed);
  (void)pool_.replace(object_of(entry), std::span(packed, result.length), result.codec);
}

bool PageStore::publish(Client& client, std::uint64_t page, Entry out, Entry entry) {
  // Counted before it can be seen, so that a fault in between never counts below zero.
  count(client, entry, true);
  if (client.map->replace(page, out, entry)) return true;
  count(client, entry, false);
  discard(entry);
  return false;
}

void PageStore::discard(Entry entry) {
  if (entry.has_record()) unref(object_of(entry));
}

void PageStore::unref(ObjectId id) {
  const auto vacated = pool_.unref(id);
  if (vacated && holds(vacated->place, vacated->length))
    file_->release(vacated->place, disk_bytes(vacated->length));
}

bool PageStore::clear(Client& client, std::uint64_t page, Entry entry, unsigned heat) {
  if (!client.map->replace(page, entry, Entry::none(heat))) return false;
  count(client, entry, false);
  discard(entry);
  return true;
}

bool PageStore::clear_keeping(Client& client, std::uint64_t page, Entry entry,
                              std::span<const std::byte, kPage> bytes, unsigned heat) {
  if (!client.map->replace(page, entry, Entry::none(heat))) return false;
  count(client, entry, false);
  const ObjectId lost = client.kept.put(page, object_of(entry), tagger_(bytes));
  if (lost != ObjectId::none) unref(lost);
  return true;
}

std::optional<Entry> PageStore::reuse(Client& client, std::uint64_t page,
                                      std::span<const std::byte, kPage> bytes) {
  const auto kept = client.kept.take(page);
  if (!kept) return std::nullopt;
  if (tagger_(bytes) == kept->tag || mutated(Mutation::kept_without_looking))
    return Entry::object(static_cast<std::uint64_t>(kept->object));
  unref(kept->object);
  return std::nullopt;
}

bool PageStore::forget_copies(Client& client, std::uint64_t start, std::uint64_t end,
                              unsigned rounds) {
  for (; rounds != 0; --rounds) {
    const std::vector<ObjectId> taken = client.kept.take_some(start, end);
    for (const ObjectId id : taken) unref(id);
    if (taken.size() < KeptCopies::kMostTaken) return true;
  }
  return false;
}

void PageStore::clear_range(Client& client, std::uint64_t start, std::uint64_t end) {
  for (std::uint64_t p = client.map->next_out(start, end); p < end;
       p = client.map->next_out(p + kPage, end)) {
    // The evictor may be publishing this very page: look again until it holds still.
    for (Entry e = client.map->load(p); e.state() != PageState::none; e = client.map->load(p)) {
      (void)clear(client, p, e);
    }
  }
}

bool PageStore::poison(Client& client, std::uint64_t page, Entry entry) {
  if (!client.map->replace(page, entry, Entry::bad())) return false;
  count(client, entry, false);
  discard(entry);
  return true;
}

bool PageStore::share(Client& child, std::uint64_t page, Entry entry) {
  if (entry.state() == PageState::none) return true;
  // The daemon before this one died in the middle of the fork: so far it has come.
  if (child.map->load(page) == entry) return true;
  if (entry.has_record() && !mutated(Mutation::fork_references) && !pool_.ref(object_of(entry)))
    return false;
  {
    const RankedLock lock(child.mutex);
    if (child.map->ensure(page) == nullptr) {
      discard(entry);
      return false;
    }
  }
  count(child, entry, true);
  if (child.map->replace(page, Entry::none(), entry)) return true;
  count(child, entry, false);
  discard(entry);
  return false;
}

void PageStore::move(Client& client, std::uint64_t from, std::uint64_t to, Entry entry) {
  bool room = false;
  {
    const RankedLock lock(client.mutex);
    room = client.map->ensure(to) != nullptr;
  }
  if (!room) {
    client.kill("its page map is full, a moved page cannot be noted");
    return;
  }
  // The reader alone moves, with no batch in flight: nobody else changes these two words.
  (void)client.map->replace(to, client.map->load(to), entry);
  (void)client.map->replace(from, entry, Entry::none());
}

}  // namespace foldswap
