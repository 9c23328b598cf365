#include "daemon/server/metrics.h"

#include <unistd.h>

#include <algorithm>

#include "daemon/host/version.h"

namespace foldswap {
namespace {

using nlohmann::json;

std::uint64_t value(const Counter& counter) {
  return counter.load(std::memory_order_relaxed);
}

json or_null(std::uint64_t bytes) {
  return bytes == wire::kNoLimit ? json(nullptr) : json(bytes);
}

// Pages of a client that are on disk now. Entries may change under the walk.
std::uint64_t disk_pages(const Client& client, PageStore& store) {
  std::uint64_t pages = 0;
  for (std::uint64_t p = client.map->next_out(0, kAddressEnd); p < kAddressEnd;
       p = client.map->next_out(p + kPage, kAddressEnd)) {
    pages += store.on_disk(client.map->load(p)) ? 1 : 0;
  }
  return pages;
}

json client_json(const Client& client, PageStore& store, bool disk_in_use) {
  const std::uint64_t objects = value(client.record.pool_pages),
                      same = value(client.record.same_filled_pages);
  const std::uint64_t disk = disk_in_use ? std::min(disk_pages(client, store), objects) : 0;
  return {{"pid", client.pid()},
          {"name", client.name()},
          {"uid", client.uid},
          {"state", to_string(client.state())},
          {"resident_max_bytes", or_null(client.record.resident_max_bytes.load())},
          {"resident_bytes", client.rss_bytes.load()},
          {"evicted_pages", client.map->evicted_total()},
          {"pool_pages", objects - disk},
          {"disk_pages", disk},
          {"same_filled_pages", same},
          {"faults", value(client.record.faults)},
          {"reason", ""}};
}

json announced_json(const Announced& process) {
  return {{"pid", process.pid},
          {"name", process.name},
          {"uid", process.uid},
          {"state", process.refused ? "refused" : "announced"},
          {"resident_max_bytes", or_null(process.resident_max_bytes)},
          {"resident_bytes", process.resident_bytes},
          {"evicted_pages", 0},
          {"pool_pages", 0},
          {"disk_pages", 0},
          {"same_filled_pages", 0},
          {"faults", 0},
          {"reason", process.reason}};
}

// resident memory of this process, shared memory files included
std::uint64_t own_rss_bytes(Os& os) {
  const auto text = os.read_file("/proc/self/statm");
  unsigned long long size = 0, resident = 0;
  if (!text || std::sscanf(text->c_str(), "%llu %llu", &size, &resident) != 2) return 0;
  return resident * 4096;
}

json faults_json(const Counters& c) {
  const std::uint64_t zero = value(c.faults_zero), same = value(c.faults_same_filled),
                      pool = value(c.faults_pool), disk = value(c.faults_disk),
                      rescued = value(c.faults_rescued), poisoned = value(c.faults_poisoned);
  const auto us = [&](double share) {
    return static_cast<double>(latency_quantile(c, share)) / 1000.0;
  };
  return {{"total", value(c.faults_total)},
          {"zero", zero},
          {"same_filled", same},
          {"pool", pool},
          {"disk", disk},
          {"rescued", rescued},
          {"readahead_pages", value(c.readahead_pages)},
          {"poisoned", poisoned},
          {"lost_pages", value(c.lost_pages)},
          {"latency_us",
           {{"p50", us(0.5)},
            {"p90", us(0.9)},
            {"p99", us(0.99)},
            {"max", static_cast<double>(value(c.latency_max_ns)) / 1000.0}}}};
}

// read_bytes and written_bytes: what went to and came from the disk, cleaning included.
json writeback_json(const DiskTier* disk, const PoolStats& pool, const Counters& c,
                    std::uint64_t kept) {
  const bool enabled = disk != nullptr;
  return {{"enabled", enabled},
          {"file_bytes", enabled ? disk->file().file_bytes() : 0},
          {"live_bytes", enabled ? disk->file().live_bytes() : 0},
          {"max_bytes", enabled ? disk->file().max_bytes() : 0},
          {"pages", pool.outside - std::min(kept, pool.outside)},  // of a fork's, once for all
          {"kept_pages", kept},
          {"compressed_bytes", pool.outside_bytes},
          {"written_bytes", value(c.disk_written_bytes)},
          {"cleaned_bytes", value(c.disk_cleaned_bytes)},
          {"read_bytes", value(c.disk_read_bytes)},
          {"errors", value(c.disk_errors)},
          {"cipher", enabled ? disk->cipher() : "none"},
          {"trouble", enabled ? disk->trouble() : ""}};
}

}  // namespace

json clients_json(const Registry& registry, PageStore& store,
                  const std::vector<Announced>& announced) {
  json list = json::array();
  const bool disk_in_use = store.pool().stats().outside != 0;
  const auto clients = registry.all();
  for (const auto& client : clients) list.push_back(client_json(*client, store, disk_in_use));
  for (const Announced& process : announced) {
    // It has just become one.
    if (std::ranges::any_of(clients, [&](const auto& c) { return c->pid() == process.pid; }))
      continue;
    list.push_back(announced_json(process));
  }
  return list;
}

json stats_json(Os& os, State& state, Registry& registry, PageStore& store, const DiskTier* disk,
                std::uint64_t started_us, const std::vector<Announced>& announced) {
  const auto clients = registry.all();
  const PoolStats p = store.pool().stats();
  std::uint64_t same_pages = 0, quarantined = 0, kept = 0, maps = state.resident_bytes();
  for (const auto& client : clients) {
    same_pages += value(client->record.same_filled_pages);
    kept += client->kept.size();
    maps += client->kept.resident_bytes();
    const RankedLock lock(client->mutex);
    maps += client->map->resident_bytes();
    quarantined += client->quarantine.pages();
  }
  const Counters& c = state.counters();
  return {{"schema", 1},
          {"version", kVersion},
          {"uptime_s", (os.now_us() - started_us) / 1'000'000},
          {"daemon",
           {{"pid", ::getpid()},
            {"rss_bytes", own_rss_bytes(os)},
            {"clients", clients.size()},
            {"restarts", state.header().incarnation - 1},
            {"held_locks_max", rank_check::held_max()}}},
          {"pool",
           {{"stored_pages", p.objects},
            {"same_filled_pages", same_pages},
            {"incompressible_pages", p.incompressible},
            {"compressed_bytes", p.compressed_bytes},
            {"frame_bytes", p.frame_bytes},
            {"metadata_bytes",
             p.metadata_bytes + maps + (disk != nullptr ? disk->file().resident_bytes() : 0)},
            {"limit_bytes", p.limit_bytes},
            {"limit_in_force_bytes", p.limit_in_force_bytes},
            {"empty_frame_bytes", p.empty_frame_bytes},
            {"unused_bytes", p.unused_bytes},
            {"moved_bytes", p.moved_bytes},
            {"damaged_frames", p.damages}}},
          {"writeback", writeback_json(disk, p, c, kept)},
          {"faults", faults_json(c)},
          {"evict",
           {{"pages", value(c.evict_pages)},
            {"pinned", value(c.evict_pinned)},
            {"shared", value(c.evict_shared)},
            {"quarantined", quarantined},
            {"aborted", value(c.evict_aborted)},
            {"unchanged", value(c.evict_unchanged)}}},
          {"clients", clients_json(registry, store, announced)}};
}

}  // namespace foldswap
