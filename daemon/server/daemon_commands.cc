// What administrators ask of the daemon. See daemon.h.
#include <algorithm>
#include <charconv>

#include "daemon/host/log.h"
#include "daemon/server/daemon.h"
#include "daemon/server/metrics.h"

namespace foldswap {
namespace {

constexpr std::uint64_t kPollUs = 2'000;

std::uint64_t memory_available(Os& os) {
  const auto text = os.read_file("/proc/meminfo");
  const std::size_t at = text ? text->find("MemAvailable:") : std::string::npos;
  if (at == std::string::npos) return ~std::uint64_t{0};
  const std::size_t digits = text->find_first_of("0123456789", at);
  std::uint64_t kib = 0;
  (void)std::from_chars(text->data() + digits, text->data() + text->size(), kib);
  return kib * 1024;
}

}  // namespace

Config Daemon::config() const {
  const RankedLock lock(config_mutex_);
  return config_;
}

void Daemon::apply_tunables() {
  const Config config = this->config();
  tunables_.spin_us = static_cast<std::uint32_t>(config.fault_spin_us);
  tunables_.readahead_max = static_cast<std::uint32_t>(config.fault_readahead_max_pages);
  tunables_.quarantine_us = config.evict_quarantine_s * 1'000'000;
  limits_.clients_per_user = config.quota_clients_per_user;
  finder_limits_.min_size = config.client_min_size_bytes;
  if (const auto spec = parse_codec_spec(config.pool_codec)) {
    tunables_.codec = static_cast<std::uint32_t>(spec->codec);
    tunables_.codec_level = spec->level;
  }
  const auto cold = parse_codec_spec(config.pool_cold_codec);
  const CodecSpec cold_spec = cold ? *cold : CodecSpec{Codec::raw, 0};  // none
  tunables_.cold_codec = static_cast<std::uint32_t>(cold_spec.codec);
  tunables_.cold_level = cold_spec.level;
  tunables_.writeback_max = config.writeback_max_bytes;
  tunables_.writeback_free_min = config.writeback_free_min_bytes;
  tunables_.writeback_per_day = config.writeback_budget_per_day;
  tunables_.available_low = config.policy_mem_available_low.resolve(memory_total());
  tunables_.psi_ms = static_cast<std::uint32_t>(config.policy_psi_ms);
  pool_->set_waste(static_cast<std::uint32_t>(config.pool_waste_max));
  log::set_level(config.log_level);
}

Status Daemon::set(const std::string& key, const std::string& value) {
  Config changed = config();
  if (auto done = set_runtime_key(changed, key, value); !done) return done;
  if (key == "pool.limit") {
    if (auto done = pool_->set_limit(changed.pool_limit.resolve(memory_total())); !done)
      return done;
  }
  {
    const RankedLock lock(config_mutex_);
    config_ = changed;
    state_->keep_setting(key, value);
  }
  apply_tunables();
  log::info("{} is now {}", key, value);
  return {};
}

Result<Reclaimed> Daemon::reclaim(Client& client, std::uint64_t pages,
                                  const std::atomic<bool>& stop) {
  if (client.gone()) return Reclaimed{};  // nothing of it can be missed
  if (!client.has_agent())
    return fail(client.label() + " is " + to_string(client.state()) + ": nothing can be evicted");
  if (client.reclaim_claimed.exchange(true))
    return fail(client.label() + " is being reclaimed already");
  client.hold_until_us = 0;
  client.reclaim_stuck = false;
  client.reclaim_stalled = false;
  client.reclaimed_pages = 0;
  // "Everything" is what is resident now, and not also what the program touches meanwhile.
  const std::uint64_t everything = client.rss_bytes / kPage + (64ULL << 20) / kPage;
  const auto rss = read_rss_anon(os_, client.pid());
  client.reclaim_pages = pages == ~std::uint64_t{0} ? (rss ? *rss / kPage : everything) : pages;
  client.reclaim_fresh = true;
  client.reclaim_running = true;  // last: from here the evictor acts on all of it
  kick_evictor(client);
  while (client.reclaim_running && !client.gone() && !stop) os_.sleep_us(kPollUs);
  client.reclaim_running = false;
  const Reclaimed reclaimed{client.reclaimed_pages.load(), client.reclaim_stalled.load()};
  client.reclaim_claimed = false;
  return reclaimed;
}

// Bringing everything back needs memory that the pool's shrinking gives back only bit by bit.
Status Daemon::fits(const std::vector<std::shared_ptr<Client>>& clients) {
  std::uint64_t pages = 0;
  for (const auto& client : clients) pages += client->evicted_pages();
  const std::uint64_t available = memory_available(os_);
  if (pages * kPage <= available) return {};
  return fail("bringing back " + std::to_string(pages * kPage >> 20) +
              " MiB needs more memory than the " + std::to_string(available >> 20) +
              " MiB that are available");
}

Status Daemon::restore(const std::vector<std::shared_ptr<Client>>& clients,
                       std::uint64_t hold_until_us, const std::atomic<bool>& stop) {
  if (auto ok = fits(clients); !ok) return ok;
  for (const auto& client : clients) {
    client->hold_until_us = ~std::uint64_t{0};  // budgets are suspended while it runs, too
    client->restore_wanted = true;
    reader_of(*client).kick(*client);
  }
  std::string stalled;
  for (const auto& client : clients) {
    if (!wait_for_progress(*client, [&] { return client->restore_wanted.load(); }, stop))
      stalled += " " + client->label();
    client->hold_until_us = hold_until_us;
    if (hold_until_us > os_.now_us()) client->stays = true;
  }
  if (!stalled.empty()) return fail("no progress (stopped?), still being restored:" + stalled);
  return {};
}

// False: the client is still at it, but nothing has come back for kPatienceUs; it goes on when it
// can.
bool Daemon::wait_for_progress(Client& client, const std::function<bool()>& busy,
                               const std::atomic<bool>& stop) {
  constexpr std::uint64_t kPatienceUs = 10'000'000;
  std::uint64_t left = client.map->out_total(), since_us = os_.now_us();
  while (busy() && !client.gone() && !stop) {
    reader_of(client).kick(client);
    os_.sleep_us(kPollUs);
    const std::uint64_t now_left = client.map->out_total();
    if (now_left != left) since_us = os_.now_us();
    left = now_left;
    if (os_.now_us() - since_us > kPatienceUs) return false;
  }
  return true;
}

Status Daemon::drain(const std::atomic<bool>& stop) {
  draining_ = true;
  std::string stalled;
  // Children forked meanwhile have pages out, too: again until nobody has. A client that lost its
  // agent cannot be unregistered from here; what it has is back, and that is all there is to do.
  for (int pass = 0; pass < 100 && !stop && stalled.empty(); ++pass) {
    auto clients = registry_->all();
    std::erase_if(clients, [](const auto& c) {
      const bool back = c->state() == ClientState::agentless && c->map->out_total() == 0;
      return (c->gone() && c->reader_done) || c->state() == ClientState::released || back;
    });
    if (clients.empty()) break;
    // A program that has just ended may still be taking a child with it: until the reader has let
    // go of it, that child is in no list.
    if (std::ranges::all_of(clients, [](const auto& c) { return c->gone(); })) {
      os_.sleep_us(kPollUs);
      --pass;
      continue;
    }
    std::erase_if(clients, [](const auto& c) { return c->gone(); });
    if (auto ok = fits(clients); !ok) {
      if (pass == 0) draining_ = false;
      return ok;
    }
    for (const auto& client : clients) {
      client->restore_wanted = true;
      client->release_wanted = true;
      reader_of(*client).kick(*client);
      kick_evictor(*client);
    }
    for (const auto& client : clients) {
      const auto busy = [&] { return client->restore_wanted || client->release_wanted; };
      if (!wait_for_progress(*client, busy, stop)) stalled += " " + client->label();
    }
  }
  (void)pool_->trim(0);
  if (!stalled.empty()) return fail("no progress (stopped?), still being drained:" + stalled);
  state_->header().drained = 1;
  return {};
}

Status Daemon::resume() {
  draining_ = false;
  state_->header().drained = 0;
  std::string failed;
  for (const auto& client : registry_->all()) {
    if (client->state() != ClientState::released || client->retire_wanted) continue;
    // Staging was unregistered with the rest; the agent moves into it again.
    if (os_.uffd_register(client->uffd.get(), client->record.staging, wire::kStagingBytes) != 0) {
      if (!client->gone()) failed += " " + client->label();
      continue;
    }
    client->set_state(ClientState::active);
    kick_evictor(*client);
  }
  if (!failed.empty())
    return fail("still released, because their staging cannot be registered:" + failed);
  return {};
}

nlohmann::json Daemon::show_stats() {
  return stats_json(os_, *state_, *registry_, *store_, disk_.get(), started_us_,
                    finder_->announced());
}

nlohmann::json Daemon::show_clients() {
  return clients_json(*registry_, *store_, finder_->announced());
}

}  // namespace foldswap
