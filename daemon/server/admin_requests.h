// AdminRequests: what the admin socket is sent, as text: a request of one line of JSON, and its
// reply, which is one line, too: {"ok":true,"result":...} or {"ok":false,"exit":1|2,"error":"..."},
// `exit` being the command line's exit status (2: the request itself was wrong). Knows no socket.
// Thread safety: answer() from any thread, several at a time. Errors: every text gets a reply, and
// no exception escapes.
#pragma once

#include <atomic>
#include <nlohmann/json.hpp>
#include <string>

#include "daemon/server/admin_commands.h"

namespace foldswap {

class AdminRequests {
 public:
  // `stop` ends what waits for clients. Both outlive this.
  AdminRequests(AdminCommands& daemon, const std::atomic<bool>& stop)
      : daemon_(daemon), stop_(stop) {}
  [[nodiscard]] std::string answer(const std::string& line);
  // The reply to whoever is refused before he has asked.
  [[nodiscard]] static std::string refusal(int exit, const std::string& error);

 private:
  [[nodiscard]] nlohmann::json run(const nlohmann::json& request);
  [[nodiscard]] nlohmann::json get(const nlohmann::json& request);
  [[nodiscard]] nlohmann::json set(const nlohmann::json& request);
  [[nodiscard]] nlohmann::json limit(const nlohmann::json& request);
  [[nodiscard]] nlohmann::json reclaim(const nlohmann::json& request);
  [[nodiscard]] nlohmann::json restore(const nlohmann::json& request);

  AdminCommands& daemon_;
  const std::atomic<bool>& stop_;
};

}  // namespace foldswap
