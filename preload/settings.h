// What the environment asks of the library (DESIGN §12). Thread safety: for the constructor, which
// is alone.
#pragma once

#include <cstdint>

#include "base/wire.h"
#include "preload/reason.h"

namespace foldswap::preload {

struct Settings {
  bool disabled = false, required = false, quiet = false;
  char socket_path[108] = {};
  char name[wire::kNameBytes] = {};
  char group[wire::kNameBytes] = {};
  std::uint64_t resident_max_bytes = wire::kNoLimit;
  std::uint64_t group_max_bytes = wire::kNoLimit;
};

// FOLDSWAP_DISABLE, FOLDSWAP_REQUIRE, FOLDSWAP_QUIET: set, not empty and not "0".
void read_switches(Settings& settings);

// Everything else. False: a value is bad, and `reason` names it.
[[nodiscard]] bool read_settings(Settings& settings, Reason& reason);

// Has children share the group that a FOLDSWAP_GROUP_MAX without a FOLDSWAP_GROUP asks for.
void export_group(Settings& settings);

// "512M", "2G", plain bytes; powers of 1024; as base/size.h, whose strings need libstdc++.
[[nodiscard]] bool parse_size(const char* text, std::uint64_t& bytes);

}  // namespace foldswap::preload
