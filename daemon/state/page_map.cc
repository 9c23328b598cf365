#include "daemon/state/page_map.h"

#include <algorithm>
#include <utility>

namespace foldswap {

// Index 0 means "none" for nodes and leaves alike, so both count from 1.
struct PageMap::Header {
  std::uint32_t magic, version;
  std::uint32_t nodes_used;   // highest node index handed out
  std::uint32_t leaves_used;  // highest leaf index handed out
  std::uint32_t free_leaf;    // head of the list of freed leaves, through LeafInfo::next_free
  std::uint32_t leaves_in_use;
  std::atomic<std::uint64_t> out_pages, evicted_pages;
};

struct PageMap::LeafInfo {
  std::uint32_t extent;  // address / kExtentBytes
  std::uint32_t next_free;
  std::atomic<std::uint32_t> out_pages;
  std::uint32_t in_use;
};

namespace {

constexpr std::uint64_t kDirectoryOffset = 4096;
constexpr std::uint64_t kNodesOffset = kDirectoryOffset + std::uint64_t{PageMap::kFan} * 4;
constexpr std::uint64_t kInfosOffset =
    kNodesOffset + std::uint64_t{PageMap::kMostNodes} * PageMap::kFan * 4;
constexpr std::uint64_t kLeavesOffset = kInfosOffset + std::uint64_t{PageMap::kMostLeaves} * 16;
constexpr std::uint64_t kMapBytes = kLeavesOffset + std::uint64_t{PageMap::kMostLeaves} * kPage;

constexpr std::uint32_t extent_of(std::uint64_t address) {
  return static_cast<std::uint32_t>(address / wire::kExtentBytes);
}
constexpr std::uint32_t slot_of(std::uint64_t address) {
  return static_cast<std::uint32_t>((address / kPage) % wire::kExtentPages);
}

}  // namespace

Result<std::unique_ptr<PageMap>> PageMap::create(Os& os) {
  static_assert(sizeof(LeafInfo) == 16 && kLeavesOffset % kPage == 0);
  auto fd = os.memory_file("foldswap-pagemap", kMapBytes);
  if (!fd) return std::unexpected(fd.error());
  auto mapping = Mapping::shared(fd->get(), kMapBytes);
  if (!mapping) return std::unexpected(mapping.error());
  std::unique_ptr<PageMap> map(new PageMap(os, std::move(*fd), std::move(*mapping)));
  map->header_->magic = kMagic;
  map->header_->version = kVersion;
  return map;
}

Result<std::unique_ptr<PageMap>> PageMap::take_over(Os& os, UniqueFd fd) {
  std::byte last{};
  if (os.read_at(fd.get(), &last, 1, kMapBytes - 1) != 1)
    return fail("the page map that was left behind is too short to be one");
  auto mapping = Mapping::shared(fd.get(), kMapBytes);
  if (!mapping) return std::unexpected(mapping.error());
  std::unique_ptr<PageMap> map(new PageMap(os, std::move(fd), std::move(*mapping)));
  if (map->header_->magic != kMagic || map->header_->version != kVersion)
    return fail("the page map that was left behind is of another version");
  if (auto rebuilt = map->rebuild(); !rebuilt) return std::unexpected(rebuilt.error());
  return map;
}

// A leaf may have been on its way into the tree, or out of it: it is in the tree or it is free.
Status PageMap::rebuild() {
  const auto damaged = [] { return fail("the page map that was left behind has no sound tree"); };
  Header& h = *header_;
  if (h.nodes_used > kMostNodes || h.leaves_used > kMostLeaves) return damaged();
  h.out_pages = 0;
  h.evicted_pages = 0;
  for (std::uint32_t leaf = 1; leaf <= h.leaves_used; ++leaf) infos_[leaf - 1].in_use = 0;
  std::vector<bool> seen(h.nodes_used + 1);
  for (std::uint32_t i = 0; i < kFan; ++i) {
    const std::uint32_t node = directory_[i].load(std::memory_order_relaxed);
    if (node == 0) continue;
    if (node > h.nodes_used || seen[node]) return damaged();
    seen[node] = true;
    for (std::uint32_t j = 0; j < kFan; ++j) {
      const std::uint32_t leaf =
          nodes_[std::size_t{node - 1} * kFan + j].load(std::memory_order_relaxed);
      if (leaf == 0) continue;
      if (leaf > h.leaves_used || infos_[leaf - 1].in_use != 0) return damaged();
      if (auto sound = rebuild_leaf(leaf, i * kFan + j); !sound) return sound;
    }
  }
  std::vector<std::uint32_t> spare;
  for (std::uint32_t leaf = 1; leaf <= h.leaves_used; ++leaf) {
    if (infos_[leaf - 1].in_use == 0) spare.push_back(leaf);
  }
  punch_leaves(spare);
  h.free_leaf = 0;
  h.leaves_in_use = h.leaves_used;
  recycle_leaves(spare);
  return {};
}

Status PageMap::rebuild_leaf(std::uint32_t leaf, std::uint32_t extent) {
  LeafInfo& info = infos_[leaf - 1];
  info.extent = extent;
  info.in_use = 1;
  std::uint32_t out = 0;
  std::uint64_t evicted = 0;
  const auto* words = leaf_words(leaf);
  for (std::uint32_t i = 0; i < wire::kExtentPages; ++i) {
    const Entry entry(words[i].load(std::memory_order_relaxed));
    if (entry.state() > PageState::bad)
      return fail("the page map that was left behind has entries of no kind");
    out += entry.state() != PageState::none ? 1 : 0;
    evicted += entry.evicted() ? 1 : 0;
  }
  info.out_pages = out;
  header_->out_pages.fetch_add(out, std::memory_order_relaxed);
  header_->evicted_pages.fetch_add(evicted, std::memory_order_relaxed);
  return {};
}

PageMap::PageMap(Os& os, UniqueFd fd, Mapping mapping)
    : os_(os),
      fd_(std::move(fd)),
      mapping_(std::move(mapping)),
      header_(mapping_.as<Header>()),
      directory_(mapping_.as<std::atomic<std::uint32_t>>(kDirectoryOffset)),
      nodes_(mapping_.as<std::atomic<std::uint32_t>>(kNodesOffset)),
      infos_(mapping_.as<LeafInfo>(kInfosOffset)) {}

std::uint64_t PageMap::leaf_offset(std::uint32_t leaf) const {
  return kLeavesOffset + std::uint64_t{leaf - 1} * kPage;
}

std::atomic<std::uint64_t>* PageMap::leaf_words(std::uint32_t leaf) const {
  return mapping_.as<std::atomic<std::uint64_t>>(leaf_offset(leaf));
}

std::uint32_t PageMap::leaf_of(std::uint64_t address) const {
  if (address >= kAddressEnd) return 0;
  const std::uint32_t extent = extent_of(address);
  const std::uint32_t node = directory_[extent / kFan].load(std::memory_order_acquire);
  if (node == 0) return 0;
  return nodes_[std::size_t{node - 1} * kFan + extent % kFan].load(std::memory_order_acquire);
}

std::atomic<std::uint64_t>* PageMap::find(std::uint64_t address) const {
  const std::uint32_t leaf = leaf_of(address);
  return leaf == 0 ? nullptr : leaf_words(leaf) + slot_of(address);
}

std::atomic<std::uint64_t>* PageMap::ensure(std::uint64_t address) {
  if (auto* word = find(address)) return word;
  if (address >= kAddressEnd) return nullptr;
  const std::uint32_t extent = extent_of(address);
  auto& node_word = directory_[extent / kFan];
  std::uint32_t node = node_word.load(std::memory_order_relaxed);
  if (node == 0) {
    if (header_->nodes_used == kMostNodes) return nullptr;
    node = ++header_->nodes_used;
    node_word.store(node, std::memory_order_release);
  }
  std::uint32_t leaf = header_->free_leaf;
  if (leaf != 0) {
    header_->free_leaf = infos_[leaf - 1].next_free;
  } else {
    if (header_->leaves_used == kMostLeaves) return nullptr;
    leaf = ++header_->leaves_used;
  }
  LeafInfo& info = infos_[leaf - 1];
  info.extent = extent;
  info.next_free = 0;
  info.in_use = 1;
  ++header_->leaves_in_use;
  nodes_[std::size_t{node - 1} * kFan + extent % kFan].store(leaf, std::memory_order_release);
  return leaf_words(leaf) + slot_of(address);
}

bool PageMap::replace(std::uint64_t address, Entry from, Entry to) {
  const std::uint32_t leaf = leaf_of(address);
  if (leaf == 0) return false;
  std::uint64_t expected = from.raw();
  auto& word = leaf_words(leaf)[slot_of(address)];
  if (!word.compare_exchange_strong(expected, to.raw(), std::memory_order_acq_rel)) return false;
  const bool was_out = from.state() != PageState::none;
  const bool is_out = to.state() != PageState::none;
  if (was_out != is_out) {
    const auto delta = is_out ? 1U : ~0U;
    infos_[leaf - 1].out_pages.fetch_add(delta, std::memory_order_relaxed);
    header_->out_pages.fetch_add(is_out ? 1 : ~std::uint64_t{0}, std::memory_order_relaxed);
  }
  if (from.evicted() != to.evicted()) {
    header_->evicted_pages.fetch_add(to.evicted() ? 1 : ~std::uint64_t{0},
                                     std::memory_order_relaxed);
  }
  return true;
}

std::uint64_t PageMap::next_out(std::uint64_t from, std::uint64_t end) const {
  end = std::min(end, kAddressEnd);
  std::uint64_t at = page_floor(from);
  while (at < end) {
    const std::uint32_t extent = extent_of(at);
    const std::uint32_t node = directory_[extent / kFan].load(std::memory_order_acquire);
    if (node == 0) {
      at = (std::uint64_t{extent / kFan} + 1) * kFan * wire::kExtentBytes;
      continue;
    }
    const std::uint32_t leaf =
        nodes_[std::size_t{node - 1} * kFan + extent % kFan].load(std::memory_order_acquire);
    if (leaf == 0 || infos_[leaf - 1].out_pages.load(std::memory_order_relaxed) == 0) {
      at = (std::uint64_t{extent} + 1) * wire::kExtentBytes;
      continue;
    }
    const auto* words = leaf_words(leaf);
    for (std::uint32_t slot = slot_of(at); slot < wire::kExtentPages && at < end;
         ++slot, at += kPage) {
      if (Entry(words[slot].load(std::memory_order_acquire)).state() != PageState::none) return at;
    }
  }
  return end;
}

std::uint64_t PageMap::end_of_out(std::uint64_t start, std::uint64_t end) const {
  std::uint64_t at = page_floor(std::min(end, kAddressEnd));
  while (at > start) {
    const std::uint32_t extent = extent_of(at - kPage);
    const std::uint32_t node = directory_[extent / kFan].load(std::memory_order_acquire);
    if (node == 0) {
      at = std::uint64_t{extent / kFan} * kFan * wire::kExtentBytes;
      continue;
    }
    const std::uint32_t leaf =
        nodes_[std::size_t{node - 1} * kFan + extent % kFan].load(std::memory_order_acquire);
    if (leaf == 0 || infos_[leaf - 1].out_pages.load(std::memory_order_relaxed) == 0) {
      at = std::uint64_t{extent} * wire::kExtentBytes;
      continue;
    }
    const auto* words = leaf_words(leaf);
    for (std::uint32_t slot = slot_of(at - kPage) + 1; slot-- > 0 && at > start; at -= kPage) {
      if (Entry(words[slot].load(std::memory_order_acquire)).state() != PageState::none) return at;
    }
  }
  return start;
}

std::uint64_t PageMap::out_in_extents(std::uint64_t start, std::uint64_t end) const {
  std::uint64_t pages = 0;
  for (std::uint64_t at = extent_floor(start); at < end; at += wire::kExtentBytes) {
    const std::uint32_t extent = extent_of(at);
    if (directory_[extent / kFan].load(std::memory_order_acquire) == 0) {
      at = (std::uint64_t{extent / kFan} + 1) * kFan * wire::kExtentBytes - wire::kExtentBytes;
      continue;
    }
    const std::uint32_t leaf = leaf_of(at);
    if (leaf != 0) pages += infos_[leaf - 1].out_pages.load(std::memory_order_relaxed);
  }
  return pages;
}

std::uint64_t PageMap::out_total() const {
  return header_->out_pages.load(std::memory_order_relaxed);
}

std::uint64_t PageMap::evicted_total() const {
  return header_->evicted_pages.load(std::memory_order_relaxed);
}

std::vector<std::uint32_t> PageMap::unlink_empty_leaves() {
  std::vector<std::uint32_t> leaves;
  for (std::uint32_t leaf = 1; leaf <= header_->leaves_used; ++leaf) {
    LeafInfo& info = infos_[leaf - 1];
    if (info.in_use == 0 || info.out_pages.load(std::memory_order_relaxed) != 0) continue;
    const std::uint32_t node = directory_[info.extent / kFan].load(std::memory_order_relaxed);
    nodes_[std::size_t{node - 1} * kFan + info.extent % kFan].store(0, std::memory_order_release);
    info.in_use = 0;
    leaves.push_back(leaf);
  }
  return leaves;
}

void PageMap::punch_leaves(const std::vector<std::uint32_t>& leaves) {
  for (const std::uint32_t leaf : leaves) {
    if (os_.punch(fd_.get(), leaf_offset(leaf), kPage) == 0) continue;
    // What is left in an empty leaf is heat: it must not come back as another extent's.
    auto* words = leaf_words(leaf);
    for (std::uint32_t i = 0; i < wire::kExtentPages; ++i)
      words[i].store(0, std::memory_order_relaxed);
  }
}

void PageMap::recycle_leaves(const std::vector<std::uint32_t>& leaves) {
  for (const std::uint32_t leaf : leaves) {
    infos_[leaf - 1].next_free = header_->free_leaf;
    header_->free_leaf = leaf;
    --header_->leaves_in_use;
  }
}

std::uint64_t PageMap::resident_bytes() const {
  return (std::uint64_t{header_->leaves_in_use} + 3) * kPage +
         std::uint64_t{header_->nodes_used} * 2 * kPage;
}

}  // namespace foldswap
