// What `foldswap stats` and `clients` show (DESIGN §12). Keys and units are fixed there.
// Thread safety: reads atomics and snapshots; any thread.
#pragma once

#include <nlohmann/json.hpp>

#include "base/os.h"
#include "daemon/registry.h"
#include "pool/pool.h"

namespace foldswap {

[[nodiscard]] nlohmann::json clients_json(const Registry& registry);
[[nodiscard]] nlohmann::json stats_json(Os& os, State& state, Registry& registry, Pool& pool,
                                        std::uint64_t started_us);

}  // namespace foldswap
