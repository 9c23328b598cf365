#include "daemon/server/control.h"

#include <poll.h>

#include <algorithm>
#include <utility>

#include "daemon/host/log.h"
#include "daemon/host/version.h"
#include "daemon/server/metrics.h"

namespace foldswap {
namespace {

using nlohmann::json;

constexpr std::size_t kMostSessions = 32, kMostRequestBytes = 64 * 1024;

// A request that cannot be carried out; `exit` is the command line's exit status.
struct Refusal {
  int exit;
  std::string error;
};

[[noreturn]] void refuse(int exit, std::string error) {
  throw Refusal{exit, std::move(error)};
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
  std::erase_if(found, [](const auto& c) { return c->gone(); });
  if (found.empty()) refuse(1, "there is no client '" + who + "'");
  return found;
}

bool read_request(int fd, std::string& line, const std::atomic<bool>& stop) {
  constexpr int kPatienceMs = 10'000, kLookMs = 100;
  pollfd ready{fd, POLLIN, 0};
  while (line.size() < kMostRequestBytes) {
    int came = 0;
    for (int ms = 0; came == 0 && ms < kPatienceMs && !stop; ms += kLookMs)
      came = ::poll(&ready, 1, kLookMs);
    if (came <= 0) return false;
    char part[4096];
    const ssize_t n = ::recv(fd, part, sizeof(part), 0);
    if (n <= 0) return false;
    line.append(part, static_cast<std::size_t>(n));
    if (const std::size_t end = line.find('\n'); end != std::string::npos) {
      line.resize(end);
      return true;
    }
  }
  return false;
}

void write_reply(int fd, const std::string& text) {
  std::size_t sent = 0;
  while (sent < text.size()) {
    const ssize_t n = ::send(fd, text.data() + sent, text.size() - sent, MSG_NOSIGNAL);
    if (n <= 0) return;
    sent += static_cast<std::size_t>(n);
  }
}

}  // namespace

Control::~Control() {
  stop_ = true;
  reap(true);
}

void Control::reap(bool all) {
  for (auto it = sessions_.begin(); it != sessions_.end();) {
    if (!all && !it->done) {
      ++it;
      continue;
    }
    it->thread.join();
    it = sessions_.erase(it);
  }
}

void Control::accept_one(int listener) {
  UniqueFd socket(::accept4(listener, nullptr, nullptr, SOCK_CLOEXEC));
  if (!socket.valid()) return;
  reap(false);
  ucred peer{};
  socklen_t bytes = sizeof(peer);
  std::string refused;
  if (::getsockopt(socket.get(), SOL_SOCKET, SO_PEERCRED, &peer, &bytes) != 0) return;
  if (!access_.may_administer(peer)) {
    refused = "user " + std::to_string(peer.uid) + " may not administer foldswap (access.admins)";
    std::uint64_t unsaid = 0;
    if (log_limit_.allow(daemon_.now_us(), unsaid)) {
      if (unsaid != 0) log::warn("admin socket: {} refusals were not told here", unsaid);
      log::warn("admin socket: {}", refused);
    }
  } else if (sessions_.size() >= kMostSessions) {
    refused = "too many administrators at once";
  }
  if (!refused.empty()) {
    write_reply(socket.get(), json{{"ok", false}, {"exit", 1}, {"error", refused}}.dump() + "\n");
    vetting_.dispose(std::move(socket));  // who knows what it holds (HAZARDS 8)
    return;
  }
  const timeval patience{10, 0};
  (void)::setsockopt(socket.get(), SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof(patience));
  Session& session = sessions_.emplace_back();
  session.thread = std::thread([this, &session, fd = std::move(socket)]() mutable {
    serve(std::move(fd));
    session.done = true;
  });
}

void Control::serve(UniqueFd socket) {
  std::string line;
  if (!read_request(socket.get(), line, stop_)) return;
  json answer;
  try {
    const json request = json::parse(line, nullptr, false);
    if (!request.is_object()) refuse(2, "the request is no JSON object");
    answer = run(request);
  } catch (const Refusal& refusal) {
    answer = {{"ok", false}, {"exit", refusal.exit}, {"error", refusal.error}};
  } catch (const json::exception& error) {
    answer = {{"ok", false}, {"exit", 2}, {"error", std::string("bad request: ") + error.what()}};
  }
  write_reply(socket.get(), answer.dump(-1, ' ', false, json::error_handler_t::replace) + "\n");
}

json Control::run(const json& request) {
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

json Control::get(const json& request) {
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

json Control::set(const json& request) {
  const auto done = daemon_.set(text_of(request, "key"), text_of(request, "value"));
  if (!done) refuse(2, done.error().text());
  return reply(json::object());
}

json Control::limit(const json& request) {
  if (!request.contains("bytes")) refuse(2, "'bytes' is missing");
  const std::uint64_t bytes =
      request["bytes"].is_null() ? wire::kNoLimit : request["bytes"].get<std::uint64_t>();
  if (!request.contains("client")) refuse(2, "'client' is missing");
  for (const auto& client : chosen(daemon_, request)) {
    client->record.resident_max_bytes = bytes;
    client->hold_until_us = 0;
    daemon_.kick_evictor(*client);
  }
  return reply(json::object());
}

json Control::reclaim(const json& request) {
  const auto clients = chosen(daemon_, request);
  const bool everything = !request.contains("bytes") || request["bytes"].is_null();
  std::uint64_t left = everything ? 0 : (request["bytes"].get<std::uint64_t>() + kPage - 1) / kPage;
  std::uint64_t taken = 0;
  bool complete = true;
  std::string why;
  const auto less = [&](const std::string& reason) {
    complete = false;
    why += (why.empty() ? "" : "; ") + reason;
  };
  for (const auto& client : clients) {
    if (!everything && left == 0) break;
    const auto pages = daemon_.reclaim(*client, everything ? ~std::uint64_t{0} : left, stop_);
    if (!pages) {
      if (clients.size() == 1) refuse(1, pages.error().text());
      less(pages.error().text());
      continue;
    }
    taken += pages->pages;
    left -= std::min(left, pages->pages);
    if (pages->stalled) less(client->label() + " does not let its pages go: it may be stopped");
  }
  if (!everything && left != 0 && complete) less("there is no more that can be taken out now");
  return reply({{"pages", taken}, {"complete", complete}, {"why", why}});
}

json Control::restore(const json& request) {
  const auto clients = chosen(daemon_, request);
  std::uint64_t hold_us = ~std::uint64_t{0};
  if (request.contains("hold_s") && !request["hold_s"].is_null()) {
    const double seconds = request["hold_s"].get<double>();
    if (!(seconds >= 0) || seconds > 1e9) refuse(2, "'hold_s' is out of range");
    hold_us = daemon_.now_us() + static_cast<std::uint64_t>(seconds * 1e6);
  }
  if (const auto done = daemon_.restore(clients, hold_us, stop_); !done)
    refuse(1, done.error().text());
  return reply(json::object());
}

}  // namespace foldswap
