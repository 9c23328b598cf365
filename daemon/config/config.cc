#include "daemon/config/config.h"

#include <algorithm>
#include <array>
#include <bit>
#include <charconv>
#include <memory>
#include <utility>

#include "base/size.h"

namespace foldswap {
namespace {

constexpr std::array<std::string_view, 5> kLogLevels{"trace", "debug", "info", "warn", "error"};

std::string quoted(std::string_view text) {
  return "'" + std::string(text) + "'";
}

// Digits and nothing else; nothing when they are not, or do not fit.
std::optional<std::uint64_t> whole_number(std::string_view text) {
  std::uint64_t value = 0;
  const char* end = std::to_address(text.end());
  const auto [rest, code] = std::from_chars(std::to_address(text.begin()), end, value);
  if (code != std::errc{} || rest != end) return std::nullopt;
  return value;
}

// ---- one parser and one printer for each kind of value -----------------------------------------

template <auto kField, std::uint64_t kLeast, std::uint64_t kMost>
Status parse_number(Config& config, std::string_view text) {
  const auto value = whole_number(text);
  if (!value || *value < kLeast || *value > kMost) {
    return fail(quoted(text) + " is not a whole number from " + std::to_string(kLeast) + " to " +
                std::to_string(kMost));
  }
  config.*kField = *value;
  return {};
}

template <auto kField>
std::string show_number(const Config& config) {
  return std::to_string(config.*kField);
}

// The shortest form that parse_size reads back exactly.
std::string size_text(std::uint64_t bytes) {
  if (bytes != 0 && bytes % kGiB == 0) return std::to_string(bytes / kGiB) + "G";
  if (bytes != 0 && bytes % kMiB == 0) return std::to_string(bytes / kMiB) + "M";
  if (bytes != 0 && bytes % kKiB == 0) return std::to_string(bytes / kKiB) + "K";
  return std::to_string(bytes);
}

// A size, or a share of MemTotal. `zero`: what is wrong with none at all; nothing: it means "off".
template <auto kField>
Status parse_memory(Config& config, std::string_view text, const char* zero) {
  if (text.ends_with('%')) {
    const auto percent = whole_number(text.substr(0, text.size() - 1));
    if (!percent || *percent < 1 || *percent > 100) {
      return fail(quoted(text) + " is not a share of memory from 1% to 100%");
    }
    config.*kField = {.bytes = 0, .percent = *percent};
    return {};
  }
  const auto bytes = parse_size(text);
  if (!bytes) return fail(quoted(text) + " is neither a size (512M, 2G, bytes) nor a share (40%)");
  if (*bytes == 0 && zero != nullptr) return fail(zero);
  config.*kField = {.bytes = *bytes, .percent = 0};
  return {};
}

template <auto kField>
std::string show_memory(const Config& config) {
  const MemoryLimit& limit = config.*kField;
  return limit.percent != 0 ? std::to_string(limit.percent) + "%" : size_text(limit.bytes);
}

Status parse_pool_limit(Config& config, std::string_view text) {
  return parse_memory<&Config::pool_limit>(config, text, "a pool of no bytes can hold nothing");
}

Status parse_available_low(Config& config, std::string_view text) {
  return parse_memory<&Config::policy_mem_available_low>(config, text, nullptr);
}

template <auto kField, std::uint64_t kLeast>
Status parse_bytes(Config& config, std::string_view text) {
  const auto bytes = parse_size(text);
  if (!bytes) return std::unexpected(bytes.error());
  if (*bytes < kLeast) return fail(quoted(text) + " is less than " + size_text(kLeast));
  config.*kField = *bytes;
  return {};
}

template <auto kField>
std::string show_bytes(const Config& config) {
  return size_text(config.*kField);
}

Status parse_writeback_dir(Config& config, std::string_view text) {
  if (!text.empty() && !text.starts_with('/'))
    return fail(quoted(text) + " is not the absolute path of a directory");
  if (text.find('\0') != std::string_view::npos) return fail("no path has a NUL in it");
  config.writeback_dir = text;
  return {};
}

std::string show_writeback_dir(const Config& config) {
  return config.writeback_dir;
}

Status parse_encrypt(Config& config, std::string_view text) {
  if (text != "true" && text != "false") return fail(quoted(text) + " is neither true nor false");
  config.writeback_encrypt = text == "true";
  return {};
}

std::string show_encrypt(const Config& config) {
  return config.writeback_encrypt ? "true" : "false";
}

Status parse_pool_frame(Config& config, std::string_view text) {
  const auto bytes = parse_size(text);
  if (!bytes) return std::unexpected(bytes.error());
  if (*bytes < kFrameBytesMin || *bytes > kFrameBytesMax || !std::has_single_bit(*bytes)) {
    return fail(quoted(text) + " is not a power of two from " + size_text(kFrameBytesMin) + " to " +
                size_text(kFrameBytesMax));
  }
  config.pool_frame_bytes = *bytes;
  return {};
}

std::string show_pool_frame(const Config& config) {
  return size_text(config.pool_frame_bytes);
}

bool is_packing_codec(std::string_view text) {
  constexpr std::string_view kZstd = "zstd:";
  if (!text.starts_with(kZstd)) return text == "lz4";
  const auto level = whole_number(text.substr(kZstd.size()));
  return level && *level >= 1 && *level <= 19;
}

Status parse_pool_codec(Config& config, std::string_view text) {
  if (text != "raw" && !is_packing_codec(text)) {
    return fail(quoted(text) + " is not a codec (raw, lz4, zstd:1 to zstd:19)");
  }
  config.pool_codec = text;
  return {};
}

Status parse_cold_codec(Config& config, std::string_view text) {
  if (text != "none" && !is_packing_codec(text)) {
    return fail(quoted(text) + " is not a codec for cold pages (none, lz4, zstd:1 to zstd:19)");
  }
  config.pool_cold_codec = text;
  return {};
}

std::string show_cold_codec(const Config& config) {
  return config.pool_cold_codec;
}

std::string show_pool_codec(const Config& config) {
  return config.pool_codec;
}

// What getpwnam and getgrnam could know, or a number. Whether it exists is asked when somebody
// connects: accounts come and go, and a name service may not be up yet when the daemon starts.
bool is_account(std::string_view name) {
  constexpr std::string_view kNotIn = ",:/ \"'\\";
  const auto bad = [&](char c) {
    const auto byte = static_cast<unsigned char>(c);
    return byte < 0x20 || byte == 0x7f || kNotIn.find(c) != std::string_view::npos;
  };
  return !name.empty() && name.size() <= 256 && std::ranges::none_of(name, bad) && name != "*";
}

enum class Wildcard : bool { refused, allowed };

template <auto kField, Wildcard kWildcard>
Status parse_accounts(Config& config, std::string_view text) {
  std::vector<std::string> names;
  for (std::size_t at = 0; !text.empty() && at <= text.size();) {
    const std::size_t comma = std::min(text.find(',', at), text.size());
    const std::string_view name = text.substr(at, comma - at);
    at = comma + 1;
    if (name == "*" && kWildcard == Wildcard::refused) {
      return fail("'*' (everybody) is for access.users only");
    }
    if (!is_account(name) && name != "*") return fail(quoted(name) + " is not a name or number");
    names.emplace_back(name);
  }
  config.*kField = std::move(names);
  return {};
}

template <auto kField>
std::string show_accounts(const Config& config) {
  std::string text;
  for (const std::string& name : config.*kField) {
    if (!text.empty()) text += ',';
    text += name;
  }
  return text;
}

Status parse_log_level(Config& config, std::string_view text) {
  const auto* const found = std::ranges::find(kLogLevels, text);
  if (found == kLogLevels.end()) {
    return fail(quoted(text) + " is not a level (trace, debug, info, warn, error)");
  }
  config.log_level = static_cast<LogLevel>(found - kLogLevels.begin());
  return {};
}

std::string show_log_level(const Config& config) {
  return std::string(log_level_name(config.log_level));
}

template <auto kField, std::uint64_t kLeast, std::uint64_t kMost>
constexpr KeySpec number(std::string_view name, bool runtime, std::string_view sentence) {
  return {name,
          KeyType::integer,
          runtime,
          sentence,
          parse_number<kField, kLeast, kMost>,
          show_number<kField>};
}

template <auto kField, Wildcard kWildcard>
constexpr KeySpec accounts(std::string_view name, std::string_view sentence) {
  return {name,
          KeyType::list,
          false,
          sentence,
          parse_accounts<kField, kWildcard>,
          show_accounts<kField>};
}

// ---- the table ---------------------------------------------------------------------------------

constexpr bool kRuntime = true;
constexpr bool kAtStart = false;

constexpr std::array kKeys{
    KeySpec{"pool.limit", KeyType::size_or_percent, kRuntime,
            "Most memory that compressed pages may take: a size, or a share of MemTotal.",
            parse_pool_limit, show_memory<&Config::pool_limit>},
    KeySpec{"pool.frame", KeyType::size, kAtStart,
            "Size of a pool frame, the unit of memory that compressed pages share: a power of two "
            "from 4K to 256K.",
            parse_pool_frame, show_pool_frame},
    number<&Config::pool_buddies, 1, kBuddiesMax>(
        "pool.buddies", kAtStart,
        "Most objects that share one frame: with a frame of 4K, 3 is classic z3fold and 2 is "
        "zbud."),
    KeySpec{"pool.codec", KeyType::text, kRuntime,
            "How pages that are evicted from now on are compressed: raw, lz4, or zstd:LEVEL with a "
            "level from 1 to 19.",
            parse_pool_codec, show_pool_codec},
    number<&Config::pool_waste_max, 1, 100>(
        "pool.waste_max", kRuntime,
        "Percent of the frames' room that may lie unused, from 1 to 100: above that, pages move to "
        "fuller frames in the background."),
    KeySpec{
        "pool.cold_codec", KeyType::text, kRuntime,
        "How pages that stay out for long are compressed again in the background: none, lz4, or "
        "zstd:LEVEL with a level from 1 to 19.",
        parse_cold_codec, show_cold_codec},
    KeySpec{"writeback.dir", KeyType::text, kAtStart,
            "Directory on a disk that cold pages may move to, still compressed, when the pool or "
            "the machine's memory runs short; empty is none.",
            parse_writeback_dir, show_writeback_dir},
    KeySpec{"writeback.max", KeyType::size, kRuntime,
            "Most that the file in writeback.dir may take of the disk: 16M or more.",
            parse_bytes<&Config::writeback_max_bytes, 16 * kMiB>,
            show_bytes<&Config::writeback_max_bytes>},
    KeySpec{"writeback.encrypt", KeyType::boolean, kAtStart,
            "Whether what is written there is encrypted, under a key that is made at every start "
            "and kept in memory only; false leaves a checksum.",
            parse_encrypt, show_encrypt},
    KeySpec{"writeback.budget_per_day", KeyType::size, kRuntime,
            "Most bytes that are written there in any 24 hours, for flash that wears out; 0 is no "
            "limit. Counted anew when foldswapd is stopped and started, not when it is restarted.",
            parse_bytes<&Config::writeback_budget_per_day, 0>,
            show_bytes<&Config::writeback_budget_per_day>},
    KeySpec{"writeback.free_min", KeyType::size, kRuntime,
            "Room that the file never takes of the disk's last free bytes.",
            parse_bytes<&Config::writeback_free_min_bytes, 0>,
            show_bytes<&Config::writeback_free_min_bytes>},
    number<&Config::fault_threads, 1, 16>("fault.threads", kAtStart,
                                          "Threads that give pages back, from 1 to 16."),
    number<&Config::fault_spin_us, 0, 1000>(
        "fault.spin_us", kRuntime,
        "Microseconds that a fault thread looks for the next fault before it sleeps, from 0 to "
        "1000."),
    number<&Config::fault_readahead_max_pages, 1, 64>(
        "fault.readahead_max", kRuntime,
        "Most pages that one sequential fault brings back, from 1 (no read-ahead) to 64."),
    number<&Config::evict_threads, 1, 16>("evict.threads", kAtStart,
                                          "Threads that take pages out, from 1 to 16."),
    number<&Config::evict_quarantine_s, 0, 3600>(
        "evict.quarantine_s", kRuntime,
        "Seconds for which a range that the program discarded is not evicted, from 0 to 3600."),
    KeySpec{"policy.mem_available_low", KeyType::size_or_percent, kRuntime,
            "Available memory of the machine below which cold pages move to the disk although the "
            "pool has room: a size, or a share of MemTotal; 0 is never.",
            parse_available_low, show_memory<&Config::policy_mem_available_low>},
    number<&Config::policy_psi_ms, 0, 1000>(
        "policy.psi", kRuntime,
        "Milliseconds of a second that tasks lose waiting for memory (PSI) from which on it is "
        "the same, from 0 (never) to 1000."),
    accounts<&Config::access_users, Wildcard::allowed>(
        "access.users", "Users whose programs may be clients, by name or number; * is everybody."),
    accounts<&Config::access_groups, Wildcard::refused>(
        "access.groups", "Groups whose members' programs may be clients as well."),
    accounts<&Config::access_admins, Wildcard::refused>(
        "access.admins",
        "Users who may give commands to the daemon, besides root and the user it runs as."),
    KeySpec{"client.min_size", KeyType::size, kRuntime,
            "Memory that a program has before anything is done to it: below that only for a budget "
            "below it, or on command; a size.",
            parse_bytes<&Config::client_min_size_bytes, 0>,
            show_bytes<&Config::client_min_size_bytes>},
    number<&Config::quota_clients_per_user, 1, 1024>(
        "quota.clients_per_user", kRuntime,
        "Most clients that one user may have at a time, from 1 to 1024."),
    KeySpec{"log.level", KeyType::text, kRuntime,
            "What is logged: trace, debug, info, warn or error.", parse_log_level, show_log_level},
};

Status set_spec(const KeySpec& spec, Config& config, std::string_view value_text) {
  auto done = spec.parse(config, value_text);
  if (!done) done.error().message = std::string(spec.name) + ": " + done.error().message;
  return done;
}

}  // namespace

std::span<const KeySpec> config_keys() {
  return kKeys;
}

Result<const KeySpec*> find_key(std::string_view key) {
  const auto* const found = std::ranges::find(kKeys, key, &KeySpec::name);
  if (found == kKeys.end()) return fail("unknown key " + quoted(key));
  return found;
}

std::string default_text(const KeySpec& spec) {
  return spec.show(Config{});
}

std::string toml_text(const KeySpec& spec, std::string_view value_text) {
  const auto string = [](std::string_view text) { return '"' + std::string(text) + '"'; };
  if (spec.type == KeyType::integer || spec.type == KeyType::boolean)
    return std::string(value_text);
  if (spec.type != KeyType::list) return string(value_text);
  std::string array = "[";
  for (std::size_t at = 0; !value_text.empty() && at <= value_text.size();) {
    const std::size_t comma = std::min(value_text.find(',', at), value_text.size());
    if (at != 0) array += ", ";
    array += string(value_text.substr(at, comma - at));
    at = comma + 1;
  }
  return array + "]";
}

Status set_key(Config& config, std::string_view key, std::string_view value_text) {
  const auto spec = find_key(key);
  if (!spec) return std::unexpected(spec.error());
  return set_spec(**spec, config, value_text);
}

Status set_runtime_key(Config& config, std::string_view key, std::string_view value_text) {
  const auto spec = find_key(key);
  if (!spec) return std::unexpected(spec.error());
  if (!(*spec)->runtime) {
    return fail(std::string(key) +
                ": cannot be changed while the daemon runs; put it into the "
                "configuration file and restart");
  }
  return set_spec(**spec, config, value_text);
}

Status set_assignment(Config& config, std::string_view assignment) {
  const std::size_t equals = assignment.find('=');
  if (equals == std::string_view::npos) {
    return fail(quoted(assignment) + " is not of the form KEY=VALUE");
  }
  return set_key(config, assignment.substr(0, equals), assignment.substr(equals + 1));
}

Result<std::string> get_key(const Config& config, std::string_view key) {
  const auto spec = find_key(key);
  if (!spec) return std::unexpected(spec.error());
  return (*spec)->show(config);
}

std::string_view log_level_name(LogLevel level) {
  return kLogLevels[static_cast<std::size_t>(level)];
}

}  // namespace foldswap
