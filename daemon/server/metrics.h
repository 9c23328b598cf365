// What `foldswap stats` and `clients` show (DESIGN §12). Keys and units are fixed there.
// Thread safety: reads atomics and snapshots; any thread.
#pragma once

#include <nlohmann/json.hpp>

#include "base/os.h"
#include "daemon/admission/finder.h"
#include "daemon/client/page_store.h"
#include "daemon/client/registry.h"
#include "daemon/server/disk_tier.h"

namespace foldswap {

// `store`: of every client's pages. With pages on disk each client's page map is walked, because
// only the objects' records tell how many are there.
// After the clients come processes that may become some.
[[nodiscard]] nlohmann::json clients_json(const Registry& registry, PageStore& store,
                                          const std::vector<Announced>& announced);
// `disk`: nullptr when writeback is off.
[[nodiscard]] nlohmann::json stats_json(Os& os, State& state, Registry& registry, PageStore& store,
                                        const DiskTier* disk, std::uint64_t started_us,
                                        const std::vector<Announced>& announced);

}  // namespace foldswap
