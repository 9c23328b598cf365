#include "daemon/server/admin_requests.h"

#include <algorithm>
#include <chrono>
#include <optional>
#include <thread>
#include <utility>
#include <vector>

#include "daemon/host/version.h"

namespace foldswap {
namespace {

using nlohmann::json;

// A request that cannot be carried out; `exit` is the command line's exit status.
struct Refusal {
  int exit;
  std::string error;
};

[[noreturn]] void refuse(int exit, std::string error) {
  throw Refusal{exit, std::move(error)};
}

std::string line_of(const json& answer) {
  return answer.dump(-1, ' ', false, json::error_handler_t::replace);
}

json reply(json result) {
  return {{"ok", true}, {"result", std::move(result)}};
}

std::string text_of(const json& request, const char* key) {
  if (!request.contains(key) || !request[key].is_string())
    refuse(2, std::string("'") + key + "' is missing or no text");
  return request[key].get<std::string>();
}

std::vector<std::shared_ptr<Client>> chosen(AdminCommands& daemon, const json& request) {
  if (!request.contains("client")) {
    auto all = daemon.clients();
    std::erase_if(all, [](const auto& c) { return c->gone(); });
    return all;
  }
  const std::string who = text_of(request, "client");
  auto found = daemon.find_clients(who);
  if (found.empty()) refuse(1, "there is no client '" + who + "'");
  return found;
}

std::string label_of(const Announced& process) {
  return process.name + " (pid " + std::to_string(process.pid) + ")";
}

// Waits for the end of those whose agent is just going. True: there was one.
bool await_leaving(AdminCommands& daemon, const std::vector<std::shared_ptr<Client>>& clients,
                   const std::atomic<bool>& stop) {
  constexpr std::uint64_t kMostUs = 5'000'000;
  const std::uint64_t until_us = daemon.now_us() + kMostUs;
  bool any = false;
  for (const auto& client : clients) {
    if (!client->leaving) continue;
    any = true;
    while (!client->gone() && daemon.now_us() < until_us && !stop)
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  return any;
}

// As chosen(), and processes that are no clients (yet, or any more) become some first. `left` gets
// sentences of those that do not.
std::vector<std::shared_ptr<Client>> summoned(AdminCommands& daemon, const json& request,
                                              const std::atomic<bool>& stop,
                                              std::vector<std::string>& left) {
  std::optional<std::string> who;
  if (request.contains("client")) who = text_of(request, "client");
  std::vector<std::shared_ptr<Client>> found;
  constexpr int kRounds = 3;
  for (int round = 0; round < kRounds; ++round) {
    left.clear();
    for (const Announced& process : daemon.summon(who ? &*who : nullptr, stop)) {
      const std::string reason =
          process.reason.empty() ? "its agent does not come" : process.reason;
      left.push_back(label_of(process) + " is not managed: " + reason);
    }
    found = who ? daemon.find_clients(*who) : chosen(daemon, request);
    if (!await_leaving(daemon, found, stop)) break;
  }
  if (who && found.empty())
    refuse(1, left.empty() ? "there is no client '" + *who + "'" : left.front());
  return found;
}

// Nothing: null, or not said.
std::optional<std::uint64_t> bytes_of(const json& request) {
  if (!request.contains("bytes") || request["bytes"].is_null()) return std::nullopt;
  if (!request["bytes"].is_number_unsigned()) refuse(2, "'bytes' is no number of bytes");
  return request["bytes"].get<std::uint64_t>();
}

}  // namespace

std::string AdminRequests::answer(const std::string& line) {
  try {
    const json request = json::parse(line, nullptr, false);
    if (!request.is_object()) refuse(2, "the request is no JSON object");
    return line_of(run(request));
  } catch (const Refusal& refused) {
    return refusal(refused.exit, refused.error);
  } catch (const json::exception& error) {
    return refusal(2, std::string("bad request: ") + error.what());
  }
}

std::string AdminRequests::refusal(int exit, const std::string& error) {
  return line_of({{"ok", false}, {"exit", exit}, {"error", error}});
}

json AdminRequests::run(const json& request) {
  const std::string command = text_of(request, "command");
  if (command == "stats") return reply(daemon_.show_stats());
  if (command == "clients") return reply(daemon_.show_clients());
  if (command == "version") return reply({{"version", kVersion}});
  if (command == "get") return get(request);
  if (command == "set") return set(request);
  if (command == "limit") return limit(request);
  if (command == "reclaim") return reclaim(request);
  if (command == "restore") return restore(request);
  if (command == "drain") {
    if (const auto done = daemon_.drain(stop_); !done) refuse(1, done.error().text());
    return reply(json::object());
  }
  if (command == "resume") {
    if (const auto done = daemon_.resume(); !done) refuse(1, done.error().text());
    return reply(json::object());
  }
  refuse(2, "unknown command '" + command + "'");
}

json AdminRequests::get(const json& request) {
  const Config config = daemon_.config();
  json values = json::object();
  if (request.contains("key")) {
    const std::string key = text_of(request, "key");
    const auto value = get_key(config, key);
    if (!value) refuse(2, value.error().text());
    values[key] = *value;
  } else {
    for (const KeySpec& spec : config_keys()) values[std::string(spec.name)] = spec.show(config);
  }
  return reply(std::move(values));
}

json AdminRequests::set(const json& request) {
  const auto done = daemon_.set(text_of(request, "key"), text_of(request, "value"));
  if (!done) refuse(2, done.error().text());
  return reply(json::object());
}

json AdminRequests::limit(const json& request) {
  if (!request.contains("bytes")) refuse(2, "'bytes' is missing");
  const std::uint64_t bytes = bytes_of(request).value_or(wire::kNoLimit);
  if (!request.contains("client")) refuse(2, "'client' is missing");
  std::vector<std::string> left;
  for (const auto& client : summoned(daemon_, request, stop_, left)) {
    client->stays = true;
    client->record.resident_max_bytes = bytes;
    client->hold_until_us = 0;
    daemon_.kick_evictor(*client);
  }
  return reply(json::object());
}

json AdminRequests::reclaim(const json& request) {
  std::vector<std::string> reasons;
  const auto clients = summoned(daemon_, request, stop_, reasons);
  const auto bytes = bytes_of(request);
  const bool everything = !bytes;
  std::uint64_t left = bytes.value_or(0) / kPage + (bytes.value_or(0) % kPage != 0 ? 1 : 0);
  std::uint64_t taken = 0;
  std::vector<std::pair<std::shared_ptr<Client>, std::string>> failed;
  for (const auto& client : clients) {
    if (!everything && left == 0) break;
    const auto pages = daemon_.reclaim(*client, everything ? ~std::uint64_t{0} : left, stop_);
    if (!pages) {
      failed.emplace_back(client, pages.error().text());
      continue;
    }
    taken += pages->pages;
    left -= std::min(left, pages->pages);
    if (pages->stalled)
      reasons.push_back(client->label() + " does not let its pages go: it may be stopped");
  }
  // A script's commands bear its name, and an agent goes a moment before its program. Of one that
  // has ended nothing can be missed.
  constexpr std::uint64_t kMomentUs = 500'000;
  const std::uint64_t until_us = daemon_.now_us() + kMomentUs;
  for (const auto& [client, reason] : failed) {
    while (client->state() == ClientState::agentless && daemon_.now_us() < until_us && !stop_) {
      daemon_.kick_evictor(*client);
      std::this_thread::sleep_for(std::chrono::milliseconds(2));
    }
    if (client->gone()) continue;
    if (clients.size() == 1) refuse(1, reason);
    reasons.push_back(reason);
  }
  if (!everything && left != 0 && reasons.empty())
    reasons.emplace_back("there is no more that can be taken out now");
  const bool complete = reasons.empty();
  constexpr std::size_t kMostReasons = 5;
  if (reasons.size() > kMostReasons) {
    const std::string more = "and " + std::to_string(reasons.size() - kMostReasons) + " more";
    reasons.resize(kMostReasons);
    reasons.push_back(more);
  }
  std::string why;
  for (const std::string& reason : reasons) why += (why.empty() ? "" : "; ") + reason;
  return reply({{"pages", taken}, {"complete", complete}, {"why", why}});
}

json AdminRequests::restore(const json& request) {
  const auto clients = chosen(daemon_, request);
  std::uint64_t hold_us = ~std::uint64_t{0};
  if (request.contains("hold_s") && !request["hold_s"].is_null()) {
    if (!request["hold_s"].is_number()) refuse(2, "'hold_s' is no number of seconds");
    const double seconds = request["hold_s"].get<double>();
    if (!(seconds >= 0) || seconds > 1e9) refuse(2, "'hold_s' is out of range: 0 to 1e9");
    hold_us = daemon_.now_us() + static_cast<std::uint64_t>(seconds * 1e6);
  }
  if (const auto done = daemon_.restore(clients, hold_us, stop_); !done)
    refuse(1, done.error().text());
  return reply(json::object());
}

}  // namespace foldswap
