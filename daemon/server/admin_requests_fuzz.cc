// libFuzzer target for the admin line: every text gets one line of JSON, with a result or with a
// reason and an exit status, and nothing but `set` with a good value changes a setting.
#include <nlohmann/json.hpp>
#include <string>

#include "base/testing/fuzz_input.h"
#include "daemon/server/admin_requests.h"

namespace foldswap {
namespace {

// A daemon without clients that does what it is told.
class NoClients final : public AdminCommands {
 public:
  Config settings;

  Result<Reclaimed> reclaim(Client&, std::uint64_t, const std::atomic<bool>&) override {
    wrong("there is no client");
  }
  Status restore(const std::vector<std::shared_ptr<Client>>& clients, std::uint64_t,
                 const std::atomic<bool>&) override {
    if (!clients.empty()) wrong("there is no client");
    return {};
  }
  Status drain(const std::atomic<bool>&) override { return fail("too little memory"); }
  Status resume() override { return {}; }
  Status set(const std::string& key, const std::string& value) override {
    return set_runtime_key(settings, key, value);
  }
  [[nodiscard]] Config config() const override { return settings; }
  void kick_evictor(const Client&) override { wrong("there is no client"); }
  [[nodiscard]] std::vector<std::shared_ptr<Client>> clients() const override { return {}; }
  [[nodiscard]] std::vector<std::shared_ptr<Client>> find_clients(
      const std::string&) const override {
    return {};
  }
  nlohmann::json show_stats() override { return {{"clients", nlohmann::json::array()}}; }
  nlohmann::json show_clients() override { return nlohmann::json::array(); }
  std::uint64_t now_us() override { return 1; }
};

void check(const std::string& line) {
  NoClients daemon;
  const std::atomic<bool> stop{false};
  const std::string text = AdminRequests(daemon, stop).answer(line);
  const auto reply = nlohmann::json::parse(text, nullptr, false);
  if (!reply.is_object() || text.find('\n') != std::string::npos) wrong("no line of JSON: " + text);
  if (!reply.contains("ok") || !reply["ok"].is_boolean()) wrong("neither good nor bad: " + text);
  if (reply["ok"] == true) {
    if (!reply.contains("result")) wrong("no result: " + text);
    return;
  }
  if (!reply.contains("error") || !reply["error"].is_string() || reply["error"] == "")
    wrong("no reason: " + text);
  if (!reply.contains("exit") || (reply["exit"] != 1 && reply["exit"] != 2))
    wrong("no exit status: " + text);
  if (!(daemon.settings == Config{})) wrong("refused, and changed: " + line);
}

}  // namespace
}  // namespace foldswap

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t bytes) {
  foldswap::FuzzInput input(data, bytes);
  foldswap::check(input.rest());
  return 0;
}
