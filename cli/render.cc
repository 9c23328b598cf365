#include "cli/render.h"

#include <fmt/format.h>

#include <algorithm>
#include <limits>
#include <string_view>

#include "base/size.h"
#include "base/wire.h"

namespace foldswap::cli {
namespace {

// Number `key` of `object`; 0 when there is none.
std::uint64_t count(const Json& object, const char* key) {
  if (!object.is_object() || !object.contains(key)) return 0;
  const Json& value = object[key];
  if (value.is_number_unsigned()) return value.get<std::uint64_t>();
  if (!value.is_number() || !(value.get<double>() > 0)) return 0;
  return static_cast<std::uint64_t>(std::min(value.get<double>(), 9e18));
}

double number(const Json& object, const char* key) {
  if (!object.is_object() || !object.contains(key) || !object[key].is_number()) return 0;
  return object[key].get<double>();
}

std::string text(const Json& object, const char* key) {
  if (!object.is_object() || !object.contains(key)) return "-";
  const Json& value = object[key];
  return printable(value.is_string() ? value.get<std::string>()
                                     : value.dump(-1, ' ', false, Json::error_handler_t::replace));
}

const Json& section(const Json& object, const char* key) {
  static const Json kNone = Json::object();
  return object.is_object() && object.contains(key) ? object[key] : kNone;
}

std::string size_of(const Json& object, const char* key) {
  return human_size(count(object, key));
}

std::string pages_of(const Json& object, const char* key) {
  const std::uint64_t pages = count(object, key);
  return fmt::format("{} pages ({})", pages, human_size(pages * wire::kPageBytes));
}

std::string ratio(std::uint64_t whole, std::uint64_t part) {
  if (whole == 0 || part == 0) return "-";
  return fmt::format("{:.2f} : 1", static_cast<double>(whole) / static_cast<double>(part));
}

// No budget is null, absent, or the wire's "no limit".
std::string budget(const Json& client) {
  const std::uint64_t bytes = count(client, "resident_max_bytes");
  const bool none = bytes == 0 || bytes > std::uint64_t{std::numeric_limits<std::int64_t>::max()};
  return none ? "none" : human_size(bytes);
}

std::string line(std::string_view label, const std::string& value) {
  return fmt::format("  {:<15}{}\n", label, value);
}

std::string render_daemon(const Json& stats) {
  const Json& daemon = section(stats, "daemon");
  return fmt::format("foldswapd {}, process {}, up {}, {} clients, {} of its own memory\n",
                     text(stats, "version"), count(daemon, "pid"),
                     human_duration(count(stats, "uptime_s")), count(daemon, "clients"),
                     size_of(daemon, "rss_bytes"));
}

std::string render_pool(const Json& pool) {
  const std::uint64_t stored = count(pool, "stored_pages") * wire::kPageBytes;
  const std::uint64_t frames = count(pool, "frame_bytes");
  return "\nPool\n" + line("holds", pages_of(pool, "stored_pages")) +
         line("in frames of",
              fmt::format("{} of at most {}", human_size(frames), size_of(pool, "limit_bytes"))) +
         line("ratio", fmt::format("{} (the codec alone {})", ratio(stored, frames),
                                   ratio(stored, count(pool, "compressed_bytes")))) +
         line("tables", size_of(pool, "metadata_bytes")) +
         line("same-filled", pages_of(pool, "same_filled_pages")) +
         line("incompressible", pages_of(pool, "incompressible_pages"));
}

// Only when there is a disk tier to speak of.
std::string render_writeback(const Json& writeback) {
  if (!writeback.is_object() || !writeback.contains("enabled") || writeback["enabled"] != true) {
    return "";
  }
  const std::string trouble = text(writeback, "trouble");
  return "\nDisk\n" + line("holds", pages_of(writeback, "pages")) +
         line("and still", pages_of(writeback, "kept_pages") + " that are in memory too") +
         line("file", fmt::format("{}, {} of it in use", size_of(writeback, "file_bytes"),
                                  size_of(writeback, "live_bytes"))) +
         line("written, read", fmt::format("{}, {}", size_of(writeback, "written_bytes"),
                                           size_of(writeback, "read_bytes"))) +
         line("errors", std::to_string(count(writeback, "errors"))) +
         (trouble.empty() || trouble == "-" ? "" : line("not writing", trouble));
}

std::string render_faults(const Json& faults) {
  const Json& latency = section(faults, "latency_us");
  const auto us = [&](const char* key) { return fmt::format("{:.0f}", number(latency, key)); };
  Table kinds({"all", "zero", "same-filled", "pool", "disk", "rescued", "read-ahead", "poisoned"});
  std::vector<std::string> row;
  for (const char* key :
       {"total", "zero", "same_filled", "pool", "disk", "rescued", "readahead_pages", "poisoned"}) {
    row.push_back(std::to_string(count(faults, key)));
  }
  kinds.add(std::move(row));
  return "\nFaults\n" + kinds.text("  ") +
         line("latency", fmt::format("{} us median, {} us 90 %, {} us 99 %, {} us at most",
                                     us("p50"), us("p90"), us("p99"), us("max")));
}

std::string render_evict(const Json& evict) {
  return "\nTaken out\n" + line("pages", pages_of(evict, "pages")) +
         line("still on disk", pages_of(evict, "unchanged") + " of them, unchanged") +
         line("left in place", fmt::format("{} pinned, {} shared, {} quarantined, {} aborted",
                                           count(evict, "pinned"), count(evict, "shared"),
                                           count(evict, "quarantined"), count(evict, "aborted")));
}

}  // namespace

Table::Table(std::vector<std::string> heading, std::size_t left_columns)
    : rows_{std::move(heading)}, left_columns_(left_columns) {}

void Table::add(std::vector<std::string> cells) {
  cells.resize(rows_.front().size());
  rows_.push_back(std::move(cells));
}

std::string Table::text(const std::string& indent) const {
  std::vector<std::size_t> widths(rows_.front().size());
  for (const auto& row : rows_) {
    for (std::size_t i = 0; i < row.size(); ++i) widths[i] = std::max(widths[i], row[i].size());
  }
  std::string all;
  for (const auto& row : rows_) {
    std::string out = indent;
    for (std::size_t i = 0; i < row.size(); ++i) {
      if (i != 0) out += "  ";
      out += i < left_columns_ ? fmt::format("{:<{}}", row[i], widths[i])
                               : fmt::format("{:>{}}", row[i], widths[i]);
    }
    out.erase(out.find_last_not_of(' ') + 1);
    all += out + "\n";
  }
  return all;
}

std::string render_clients(const Json& clients) {
  if (!clients.is_array() || clients.empty()) return "no clients\n";
  Table table({"NAME", "STATE", "PID", "UID", "RESIDENT", "BUDGET", "OUT", "POOL", "DISK",
               "SAME-FILLED", "FAULTS"},
              2);
  for (const Json& client : clients) {
    table.add({text(client, "name"), text(client, "state"), text(client, "pid"),
               text(client, "uid"), size_of(client, "resident_bytes"), budget(client),
               human_size(count(client, "evicted_pages") * wire::kPageBytes),
               human_size(count(client, "pool_pages") * wire::kPageBytes),
               human_size(count(client, "disk_pages") * wire::kPageBytes),
               human_size(count(client, "same_filled_pages") * wire::kPageBytes),
               text(client, "faults")});
  }
  std::string reasons;
  for (const Json& client : clients) {
    const std::string reason = text(client, "reason");
    if (reason.empty() || reason == "-") continue;
    reasons += text(client, "name") + " (pid " + text(client, "pid") +
               ") is not managed: " + reason + "\n";
  }
  return table.text("") + reasons;
}

std::string render_stats(const Json& stats) {
  return render_daemon(stats) + render_pool(section(stats, "pool")) +
         render_writeback(section(stats, "writeback")) + render_faults(section(stats, "faults")) +
         render_evict(section(stats, "evict")) + "\nClients\n" +
         render_clients(section(stats, "clients"));
}

std::string human_duration(std::uint64_t seconds) {
  const std::uint64_t minutes = seconds / 60, hours = minutes / 60, days = hours / 24;
  if (days != 0) return fmt::format("{} d {} h", days, hours % 24);
  if (hours != 0) return fmt::format("{} h {} min", hours, minutes % 60);
  if (minutes != 0) return fmt::format("{} min {} s", minutes, seconds % 60);
  return fmt::format("{} s", seconds);
}

std::string printable(std::string text) {
  std::ranges::replace_if(
      text,
      [](char c) {
        const auto byte = static_cast<unsigned char>(c);
        return byte < 0x20 || byte == 0x7f;
      },
      '?');
  // U+0080 to U+009F (0xC2 0x80..0x9F in UTF-8) are control characters to terminals as well.
  for (std::size_t i = 0; i + 1 < text.size(); ++i) {
    const auto next = static_cast<unsigned char>(text[i + 1]);
    if (static_cast<unsigned char>(text[i]) == 0xC2 && next < 0xA0) text.replace(i, 2, "?");
  }
  return text;
}

}  // namespace foldswap::cli
