#include "daemon/state/state.h"

#include <time.h>

#include <bit>
#include <cmath>
#include <cstddef>
#include <cstring>
#include <new>
#include <sstream>
#include <string>
#include <utility>

#include "daemon/state/page_map.h"
#include "daemon/state/versions.h"
#include "pool/layout.h"

namespace foldswap {
namespace {

constexpr std::uint64_t round_page(std::uint64_t bytes) {
  return (bytes + 4095) & ~4095ULL;
}
constexpr std::uint64_t kRecordBytes = round_page(sizeof(ClientRecord));
constexpr std::uint64_t kClientsOffset = round_page(sizeof(StateHeader));
constexpr std::uint64_t kStateBytes = kClientsOffset + kMostClients * kRecordBytes;

// Values below 16 have a bucket each; above, three bits below the leading one choose the bucket.
std::uint32_t latency_bucket(std::uint64_t ns) {
  if (ns < 16) return static_cast<std::uint32_t>(ns);
  const auto top = static_cast<std::uint32_t>(std::bit_width(ns)) - 1;
  const auto bucket = (top - 2) * 8 + static_cast<std::uint32_t>((ns >> (top - 3)) & 7);
  return bucket < kLatencyBuckets ? bucket : kLatencyBuckets - 1;
}

std::uint64_t bucket_top_ns(std::uint32_t bucket) {
  if (bucket < 16) return bucket;
  const std::uint32_t top = bucket / 8 + 2;
  return ((8ULL + bucket % 8 + 1) << (top - 3)) - 1;
}

}  // namespace

Result<std::unique_ptr<State>> State::create(Os& os) {
  auto fd = os.memory_file("foldswap-state", kStateBytes);
  if (!fd) return std::unexpected(fd.error());
  return create(os, std::move(*fd));
}

std::uint64_t State::file_bytes() {
  return kStateBytes;
}

Result<std::unique_ptr<State>> State::create(Os& os, UniqueFd fd) {
  auto mapping = Mapping::shared(fd.get(), kStateBytes);
  if (!mapping) return std::unexpected(mapping.error());
  std::unique_ptr<State> state(new State(os, std::move(fd), std::move(*mapping)));
  StateHeader& h = state->header();
  h.version = kVersion;
  h.bytes = kStateBytes;
  h.client_record_bytes = kRecordBytes;
  h.clients_offset = kClientsOffset;
  h.most_clients = kMostClients;
  h.page_map_version = PageMap::kVersion;
  h.pool_version = PoolHeader::kVersion;
  h.disk_version = kDiskVersion;
  h.protocol_version = wire::kProtocolVersion;
  h.incarnation = 1;
  h.next_client_id = 1;
  h.magic = kMagic;  // last: from here it can be taken over
  return state;
}

bool State::begun(Os& os, int fd) {
  std::uint32_t magic = 0;
  return os.read_at(fd, &magic, sizeof(magic), offsetof(StateHeader, magic)) == sizeof(magic) &&
         magic != 0;
}

Status State::fits(Os& os, int fd) {
  // The file may be shorter than what would be mapped.
  StateHeader head;
  if (os.read_at(fd, static_cast<void*>(&head), offsetof(StateHeader, counters), 0) !=
      static_cast<int>(offsetof(StateHeader, counters))) {
    return fail("the state that was left behind is too short to be one");
  }
  if (head.magic != kMagic) return fail("what was left behind is no state of foldswapd");
  if (head.version != kVersion || head.bytes != kStateBytes ||
      head.client_record_bytes != kRecordBytes || head.clients_offset != kClientsOffset ||
      head.most_clients != kMostClients) {
    return fail("the state that was left behind is of version " + std::to_string(head.version) +
                ", and this is version " + std::to_string(kVersion) +
                ": drain before changing versions");
  }
  if (head.page_map_version != PageMap::kVersion || head.pool_version != PoolHeader::kVersion ||
      head.disk_version != kDiskVersion || head.protocol_version != wire::kProtocolVersion) {
    return fail(
        "the page maps, pool, disk or mailboxes that were left behind are of another version: "
        "drain before changing versions");
  }
  return {};
}

Result<std::unique_ptr<State>> State::open(Os& os, UniqueFd fd) {
  if (auto ok = fits(os, fd.get()); !ok) return std::unexpected(ok.error());
  auto mapping = Mapping::shared(fd.get(), kStateBytes);
  if (!mapping) return std::unexpected(mapping.error());
  return std::unique_ptr<State>(new State(os, std::move(fd), std::move(*mapping)));
}

Result<std::unique_ptr<State>> State::take_over(Os& os, UniqueFd fd) {
  auto state = open(os, std::move(fd));
  if (!state) return state;
  ++(*state)->header().incarnation;
  // A fault's kind may have been counted, and not yet the fault.
  Counters& c = (*state)->counters();
  c.faults_total = c.faults_zero + c.faults_same_filled + c.faults_pool + c.faults_disk +
                   c.faults_rescued + c.faults_poisoned;
  return state;
}

std::vector<std::string> State::settings() const {
  const KeptSettings& kept = header().settings;
  const char* const text = kept.text[kept.now.load(std::memory_order_acquire) & 1];
  std::istringstream lines(std::string(text, ::strnlen(text, sizeof(kept.text[0]))));
  std::vector<std::string> settings;
  for (std::string line; std::getline(lines, line);) settings.push_back(line);
  return settings;
}

void State::keep_setting(const std::string& key, const std::string& value) {
  KeptSettings& kept = header().settings;
  std::string text;
  for (const std::string& line : settings()) {
    if (!line.starts_with(key + "=")) text += line + "\n";
  }
  text += key + "=" + value + "\n";
  if (text.size() >= sizeof(kept.text[0])) return;
  const std::uint32_t other = 1 - (kept.now.load(std::memory_order_relaxed) & 1);
  std::memcpy(kept.text[other], text.c_str(), text.size() + 1);
  kept.now.store(other, std::memory_order_release);
}

void State::forget_settings() {
  KeptSettings& kept = header().settings;
  std::atomic_ref(kept.text[kept.now & 1][0]).store('\0');
}

std::vector<ClientRecord*> State::records() const {
  std::vector<ClientRecord*> records;
  for (std::uint32_t i = 0; i < kMostClients; ++i) {
    if (header().record_in_use[i] != 0)
      records.push_back(reinterpret_cast<ClientRecord*>(record_at(i)));
  }
  return records;
}

std::byte* State::record_at(std::uint32_t index) const {
  return mapping_.data() + kClientsOffset + index * kRecordBytes;
}

ClientRecord* State::claim_record() {
  StateHeader& h = header();
  for (std::uint32_t i = 0; i < kMostClients; ++i) {
    if (h.record_in_use[i] != 0) continue;
    h.record_in_use[i] = 1;
    auto* record = reinterpret_cast<ClientRecord*>(record_at(i));
    record->life = Life::forming;
    record->id = h.next_client_id.fetch_add(1);
    record->resident_max_bytes = wire::kNoLimit;
    record->group_max_bytes = wire::kNoLimit;
    return record;
  }
  return nullptr;
}

std::uint32_t State::index_of(const ClientRecord* record) const {
  const auto offset = reinterpret_cast<const std::byte*>(record) - record_at(0);
  return static_cast<std::uint32_t>(static_cast<std::uint64_t>(offset) / kRecordBytes);
}

// Two files cannot have the same number in the same nanosecond.
std::uint64_t NotedFd::new_stamp() {
  timespec now{};
  ::clock_gettime(CLOCK_MONOTONIC, &now);
  return static_cast<std::uint64_t>(now.tv_sec) * 1'000'000'000 +
         static_cast<std::uint64_t>(now.tv_nsec) + 1;
}

void State::wipe_record(ClientRecord* record) {
  NotedFd::changed();
  if (os_.punch(fd_.get(), kClientsOffset + index_of(record) * kRecordBytes, kRecordBytes) != 0) {
    std::memset(static_cast<void*>(record), 0, sizeof(ClientRecord));
  }
}

std::uint64_t State::resident_bytes() const {
  std::uint64_t records = 0;
  for (const auto& used : header().record_in_use) records += used != 0 ? kRecordBytes : 0;
  return kClientsOffset + records;
}

void record_latency(Counters& counters, std::uint64_t ns) {
  bump(counters.latency[latency_bucket(ns)]);
  std::uint64_t seen = counters.latency_max_ns.load(std::memory_order_relaxed);
  while (ns > seen &&
         !counters.latency_max_ns.compare_exchange_weak(seen, ns, std::memory_order_relaxed)) {
  }
}

std::uint64_t latency_quantile(const Counters& counters, double share) {
  std::uint64_t total = 0;
  for (const auto& bucket : counters.latency) total += bucket.load(std::memory_order_relaxed);
  if (total == 0) return 0;
  const auto wanted = static_cast<std::uint64_t>(std::ceil(share * static_cast<double>(total)));
  std::uint64_t seen = 0;
  for (std::uint32_t i = 0; i < kLatencyBuckets; ++i) {
    seen += counters.latency[i].load(std::memory_order_relaxed);
    if (seen >= wanted) {
      const std::uint64_t max = counters.latency_max_ns.load(std::memory_order_relaxed);
      return bucket_top_ns(i) < max ? bucket_top_ns(i) : max;
    }
  }
  return counters.latency_max_ns.load(std::memory_order_relaxed);
}

}  // namespace foldswap
