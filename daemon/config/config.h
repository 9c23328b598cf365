// Config: what an administrator can set, and the one table of keys that everything goes through:
// loading TOML, `foldswapd --set KEY=VALUE`, `foldswap get` and `set`, `foldswap check-config`, and
// the test that holds configs/foldswap.toml against it. A key is added by one row in config.cc and
// one field here.
//
// Value text: every value has one form as plain text, which parse() reads and show() writes: "64K",
// "40%", "30", "zstd:1"; lists are separated by commas ("alice,1000"; the empty text is the empty
// list). Defaults: the member initialisers of Config, nowhere else. Units: at the end of each
// field's name. Thread safety: plain values; the table is constant. Errors: one line per fault,
// each naming the key, and file and line where it came from a file.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "daemon/host/log_level.h"
#include "pool/geometry.h"

namespace foldswap {

inline constexpr const char* kDefaultConfigFile = "/etc/foldswap/foldswap.toml";

// An amount of memory: plain bytes, or a share of MemTotal.
struct MemoryLimit {
  std::uint64_t bytes = 0;    // when percent is 0
  std::uint64_t percent = 0;  // of MemTotal; 0: `bytes` counts

  [[nodiscard]] std::uint64_t resolve(std::uint64_t mem_total_bytes) const {
    return percent == 0 ? bytes : mem_total_bytes / 100 * percent;
  }
  friend bool operator==(const MemoryLimit&, const MemoryLimit&) = default;
};

struct Config {
  MemoryLimit pool_limit{.bytes = 0, .percent = 40};
  std::uint64_t pool_frame_bytes = PoolGeometry{}.frame_bytes;
  std::uint64_t pool_buddies = PoolGeometry{}.buddies;
  std::string pool_codec = "zstd:1";     // raw | lz4 | zstd:LEVEL, already checked
  std::uint64_t pool_waste_max = 3;      // percent
  std::string pool_cold_codec = "none";  // none | lz4 | zstd:LEVEL, already checked

  std::string writeback_dir;  // absolute; empty: no writeback
  std::uint64_t writeback_max_bytes = 16ULL << 30;
  bool writeback_encrypt = true;
  std::uint64_t writeback_budget_per_day = 0;  // bytes; 0: no budget
  std::uint64_t writeback_free_min_bytes = 1ULL << 30;

  std::uint64_t fault_threads = 1;
  std::uint64_t fault_spin_us = 20;
  std::uint64_t fault_readahead_max_pages = 64;

  std::uint64_t evict_threads = 1;
  std::uint64_t evict_quarantine_s = 30;

  MemoryLimit policy_mem_available_low{.bytes = 0, .percent = 5};
  std::uint64_t policy_psi_ms = 150;  // of each second; 0: not looked at

  std::vector<std::string> access_users{"*"};  // names or numeric ids; "*": everybody
  std::vector<std::string> access_groups;
  std::vector<std::string> access_admins;

  std::uint64_t client_min_size_bytes = 16ULL << 20;

  std::uint64_t quota_clients_per_user = 256;

  LogLevel log_level = LogLevel::info;

  friend bool operator==(const Config&, const Config&) = default;
};

enum class KeyType : std::uint8_t {
  integer,          // TOML integer
  size,             // TOML string with a unit, or integer bytes
  size_or_percent,  // likewise, or a string "NN%"
  text,             // TOML string
  boolean,          // TOML boolean
  list,             // TOML array of strings and integers
};

struct KeySpec {
  std::string_view name;  // "section.key"
  KeyType type;
  bool runtime;               // can be changed while the daemon runs
  std::string_view sentence;  // what it does, for people
  // Checks `text` and stores it. The error says what is wrong with the value; callers add the key.
  Status (*parse)(Config&, std::string_view text);
  std::string (*show)(const Config&);
};

// All keys, in the order of configs/foldswap.toml.
[[nodiscard]] std::span<const KeySpec> config_keys();
// Error: names the unknown key.
[[nodiscard]] Result<const KeySpec*> find_key(std::string_view key);
[[nodiscard]] std::string default_text(const KeySpec& spec);
// The value as it is written in a TOML file: "40%" in quotes, 20, ["*"].
[[nodiscard]] std::string toml_text(const KeySpec& spec, std::string_view value_text);

// On error the config is unchanged.
[[nodiscard]] Status set_key(Config& config, std::string_view key, std::string_view value_text);
// The same for `foldswap set`: refuses keys that only a new start can change.
[[nodiscard]] Status set_runtime_key(Config& config, std::string_view key,
                                     std::string_view value_text);
// "KEY=VALUE", the form of `foldswapd --set`.
[[nodiscard]] Status set_assignment(Config& config, std::string_view assignment);
[[nodiscard]] Result<std::string> get_key(const Config& config, std::string_view key);

// Reads `file`, or the default file when none is given, then the drop-ins FILE.d/*.toml beside it
// in the order of their names; later ones win. A missing default file is fine, a missing `file` is
// an error; so is anything that cannot be read or understood. Every fault found is a line of the
// error's message.
[[nodiscard]] Result<Config> load_config(const std::optional<std::filesystem::path>& file);

std::string_view log_level_name(LogLevel level);

}  // namespace foldswap
