// AdminCommands: what administrators may ask of the daemon, as the admin socket (control.h) sees
// it. An interface, so that control.h and daemon.h need not know each other. Thread safety: any
// thread; reclaim, restore and drain wait for clients, and give up when `stop` is set. Errors are
// sentences for administrators.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "base/result.h"
#include "daemon/admission/finder.h"
#include "daemon/client/client.h"
#include "daemon/config/config.h"

namespace foldswap {

struct Reclaimed {
  std::uint64_t pages = 0;
  bool stalled = false;  // its agent does not answer (stopped, or hostile): less than asked for
};

class AdminCommands {
 public:
  virtual ~AdminCommands() = default;

  [[nodiscard]] virtual Result<Reclaimed> reclaim(Client& client, std::uint64_t pages,
                                                  const std::atomic<bool>& stop) = 0;
  [[nodiscard]] virtual Status restore(const std::vector<std::shared_ptr<Client>>& clients,
                                       std::uint64_t hold_until_us,
                                       const std::atomic<bool>& stop) = 0;
  // Nothing moves when what is out does not fit into memory.
  [[nodiscard]] virtual Status drain(const std::atomic<bool>& stop) = 0;
  // Error: names the clients that could not be taken up again.
  [[nodiscard]] virtual Status resume() = 0;
  [[nodiscard]] virtual Status set(const std::string& key, const std::string& value) = 0;
  [[nodiscard]] virtual Config config() const = 0;
  virtual void kick_evictor(const Client& client) = 0;

  // All that there are, and those whose pid or name it is.
  [[nodiscard]] virtual std::vector<std::shared_ptr<Client>> clients() const = 0;
  [[nodiscard]] virtual std::vector<std::shared_ptr<Client>> find_clients(
      const std::string& pid_or_name) const = 0;
  // Has processes that are no clients yet become some: those whose pid or name it is (nullptr:
  // all). Answers those that are not clients when it has waited long enough.
  [[nodiscard]] virtual std::vector<Announced> summon(const std::string* pid_or_name,
                                                      const std::atomic<bool>& stop) = 0;
  // As metrics.h tells them.
  [[nodiscard]] virtual nlohmann::json show_stats() = 0;
  [[nodiscard]] virtual nlohmann::json show_clients() = 0;
  [[nodiscard]] virtual std::uint64_t now_us() = 0;
};

}  // namespace foldswap
