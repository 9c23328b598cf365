// Daemon: puts the parts together and does what administrators ask. Start-up reads top to bottom in
// daemon.cc. Thread safety: construction, run() and destruction on the main thread; the commands
// (reclaim, restore, drain, ...) on any.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/mutex.h"
#include "daemon/admission/access.h"
#include "daemon/admission/finder.h"
#include "daemon/admission/handshake.h"
#include "daemon/admission/injector.h"
#include "daemon/admission/vetting.h"
#include "daemon/client/registry.h"
#include "daemon/config/config.h"
#include "daemon/config/tunables.h"
#include "daemon/evict/budget.h"
#include "daemon/fault/thread_stopper.h"
#include "daemon/recovery/descriptor_store.h"
#include "daemon/recovery/take_over.h"
#include "daemon/server/admin_commands.h"
#include "daemon/server/disk_tier.h"
#include "daemon/server/threads.h"
#include "daemon/writeback/pool_care.h"
#include "pool/pool.h"

namespace foldswap {

class Daemon final : public AdminCommands {
 public:
  // Processes that were started before any thread.
  struct Helpers {
    Vetting vetting;
    Injector injector;
  };
  // `state`: a new one, or that of a daemon that died, whose clients are taken over.
  static Result<std::unique_ptr<Daemon>> create(Os& os, Config config, std::string runtime_dir,
                                                Helpers helpers, std::unique_ptr<State> state);
  Daemon(const Daemon&) = delete;
  Daemon& operator=(const Daemon&) = delete;
  ~Daemon() override;

  struct Shell {
    std::function<void()> alive;
    std::function<Status()> may_hand_over;  // error: why not
  };
  enum class Ending : std::uint8_t { drained, handed_over };
  // Serves until a signal says stop; calls `alive` when it begins, and then again each second as
  // long as all of it goes on. SIGTERM and SIGINT restore every client first. SIGUSR2 stops between
  // two steps: what is out stays out, and `this` must not be destroyed, because that closes what
  // the next daemon needs. When that may not be, SIGUSR2 means SIGTERM, or nothing if nobody is
  // there to tell.
  [[nodiscard]] Result<Ending> run(const Shell& shell);

  // -- AdminCommands
  [[nodiscard]] Result<Reclaimed> reclaim(Client& client, std::uint64_t pages,
                                          const std::atomic<bool>& stop) override;
  [[nodiscard]] Status restore(const std::vector<std::shared_ptr<Client>>& clients,
                               std::uint64_t hold_until_us, const std::atomic<bool>& stop) override;
  [[nodiscard]] Status drain(const std::atomic<bool>& stop) override;
  [[nodiscard]] Status resume() override;
  [[nodiscard]] Status set(const std::string& key, const std::string& value) override;
  [[nodiscard]] Config config() const override;
  void kick_evictor(const Client& client) override;
  [[nodiscard]] std::vector<std::shared_ptr<Client>> clients() const override {
    return registry_->all();
  }
  [[nodiscard]] std::vector<std::shared_ptr<Client>> find_clients(
      const std::string& pid_or_name) const override {
    return registry_->find(pid_or_name);
  }
  [[nodiscard]] std::vector<Announced> summon(const std::string* pid_or_name,
                                              const std::atomic<bool>& stop) override {
    return finder_->summon(pid_or_name, stop);
  }
  [[nodiscard]] nlohmann::json show_stats() override;
  [[nodiscard]] nlohmann::json show_clients() override;
  [[nodiscard]] std::uint64_t now_us() override { return os_.now_us(); }

  [[nodiscard]] State& state() { return *state_; }
  // nullptr: there is none.
  [[nodiscard]] DescriptorStore* descriptor_store() { return descriptor_store_.get(); }

 private:
  Daemon(Os& os, Config config, std::string runtime_dir, Helpers helpers,
         std::unique_ptr<State> state);
  [[nodiscard]] Status prepare();
  [[nodiscard]] Status make_pool();
  [[nodiscard]] Status make_store(const PoolConfig& config);
  [[nodiscard]] Status take_over_store(const PoolConfig& config);
  void serve_taken_over(int epoll);
  [[nodiscard]] bool threads_turned();
  void stop_threads();
  [[nodiscard]] Status start_threads();
  [[nodiscard]] Status open_sockets();
  [[nodiscard]] Result<UniqueFd> listen_on(const std::string& name, int type, unsigned mode);
  void apply_tunables();
  [[nodiscard]] std::uint64_t memory_total() const;  // of the machine, bytes
  void place(std::shared_ptr<Client> client);
  [[nodiscard]] FaultThread& reader_of(const Client& client);
  [[nodiscard]] EvictThread& evictor_of(const Client& client);
  [[nodiscard]] bool wait_for_progress(Client& client, const std::function<bool()>& busy,
                                       const std::atomic<bool>& stop);
  [[nodiscard]] Status fits(const std::vector<std::shared_ptr<Client>>& clients);
  void client_gone(Client& client);

  Os& os_;
  Config config_ FS_GUARDED_BY(config_mutex_);
  mutable RankedMutex<LockRank::leaf> config_mutex_;
  const std::string runtime_dir_;
  const std::uint64_t started_us_;
  Tunables tunables_;
  Handshake::Limits limits_;
  Finder::Limits finder_limits_;
  Vetting vetting_;
  Injector injector_;
  std::atomic<bool> draining_{false};
  UniqueFd lock_, client_listener_, admin_listener_;
  std::unique_ptr<State> state_;
  std::unique_ptr<Pool> pool_;
  std::unique_ptr<PageStore> store_;
  std::unique_ptr<DiskTier> disk_;  // nullptr: writeback is off
  BudgetBook budgets_;
  std::unique_ptr<DescriptorStore> descriptor_store_;  // nullptr: no service manager keeps any
  std::unique_ptr<Registry> registry_;
  Left left_;  // the clients until they are served, the file until it is disk_'s
  Access access_;
  std::unique_ptr<Handshake> handshake_;
  std::unique_ptr<Finder> finder_;
  std::unique_ptr<ThreadStopper> stopper_;
  std::vector<std::unique_ptr<EvictThread>> evict_threads_;
  std::unique_ptr<Carer> carer_;
  std::vector<std::unique_ptr<FaultThread>> fault_threads_;
  std::vector<std::uint64_t> turns_seen_;  // of all of these, when `alive` was called last
};

}  // namespace foldswap
