// Talking to foldswapd from outside: one request, one reply, over RUNTIME_DIR/admin.sock
// (SOCK_STREAM). A request is one line of JSON with a "command"; the reply is one line,
// {"ok":true,"result":...} or
// {"ok":false,"exit":1|2,"error":"one sentence"}; then both sides close. The client waits for as
// long as the daemon keeps the connection: taking out or bringing back gigabytes takes its time.
//
// A daemon that is down is waited for, at most kKeeperWait, while RUNTIME_DIR/keeper.pid names a
// living process. Thread safety: functions without state.
#pragma once

#include <chrono>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>

#include "base/result.h"
#include "base/unique_fd.h"

namespace foldswap::cli {

using Json = nlohmann::ordered_json;  // keeps the daemon's order of fields

inline constexpr std::chrono::seconds kKeeperWait{5};
inline constexpr std::size_t kReplyBytesMax = std::size_t{64} << 20;

// What a command ends with (DESIGN 12).
enum ExitStatus : int { kDone = 0, kFailed = 1, kUsage = 2 };

struct Reply {
  int exit = kDone;   // kDone, or what the daemon asks for
  std::string error;  // when exit is not kDone
  Json result;        // when it is
};

// $FOLDSWAP_RUNTIME_DIR, or /run/foldswap.
[[nodiscard]] std::filesystem::path default_runtime_dir();

// Connects to RUNTIME_DIR/socket_name. Error: says that there is no daemon, and where.
[[nodiscard]] Result<UniqueFd> connect_daemon(const std::filesystem::path& runtime_dir,
                                              const char* socket_name, int socket_type,
                                              std::chrono::milliseconds keeper_wait = kKeeperWait);

// Error: no daemon, or one that did not answer as it should.
[[nodiscard]] Result<Reply> call_daemon(const std::filesystem::path& runtime_dir,
                                        const Json& request);

}  // namespace foldswap::cli
