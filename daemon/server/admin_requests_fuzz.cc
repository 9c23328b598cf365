// libFuzzer target for the admin line: every text gets one line of JSON, with a result or with a
// reason and an exit status. A request that is refused changes no setting and no client's limit.
#include <fcntl.h>

#include <algorithm>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "base/testing/fuzz_input.h"
#include "daemon/server/admin_requests.h"
#include "daemon/testing/fake_os.h"

namespace foldswap {
namespace {

constexpr std::uint64_t kLimit = 4711;

// Three of them, called as their names are: a, b, and b once more. Making them takes longer than
// any request.
const std::vector<std::shared_ptr<Client>>& all_clients() {
  static FakeOs os;
  static const std::unique_ptr<State> state = State::create(os).value();
  static const auto made = [] {
    std::vector<std::shared_ptr<Client>> clients;
    for (const char* name : {"a", "b", "b"}) {
      ClientParts parts;
      parts.record = state->claim_record();
      parts.record->id = clients.size() + 1;
      parts.record->name[0] = *name;
      parts.map = PageMap::create(os).value();
      parts.uffd = UniqueFd(::open("/dev/null", O_RDWR | O_CLOEXEC));
      clients.push_back(std::make_shared<Client>(std::move(parts), os));
    }
    return clients;
  }();
  return made;
}

// A daemon that does what it is told, as far as it can.
class SomeClients final : public AdminCommands {
 public:
  Config settings;

  SomeClients() {
    for (const auto& client : all_clients()) client->record.resident_max_bytes = kLimit;
  }
  // Of one of them nothing can be taken, and of each only so much.
  Result<Reclaimed> reclaim(Client& client, std::uint64_t pages,
                            const std::atomic<bool>&) override {
    if (pages == 0) wrong("asked to take nothing out");
    if (client.id == 2) return fail("it is being restored");
    return Reclaimed{.pages = std::min<std::uint64_t>(pages, 10), .stalled = client.id == 3};
  }
  Status restore(const std::vector<std::shared_ptr<Client>>& clients, std::uint64_t hold_until_us,
                 const std::atomic<bool>&) override {
    if (clients.empty()) wrong("nobody is to be restored");
    if (hold_until_us < now_us_) wrong("held until before now");
    return {};
  }
  Status drain(const std::atomic<bool>&) override { return fail("too little memory"); }
  Status resume() override { return {}; }
  Status set(const std::string& key, const std::string& value) override {
    return set_runtime_key(settings, key, value);
  }
  [[nodiscard]] Config config() const override { return settings; }
  void kick_evictor(const Client&) override {}
  [[nodiscard]] std::vector<std::shared_ptr<Client>> clients() const override {
    return all_clients();
  }
  [[nodiscard]] std::vector<std::shared_ptr<Client>> find_clients(
      const std::string& who) const override {
    std::vector<std::shared_ptr<Client>> found;
    std::ranges::copy_if(all_clients(), std::back_inserter(found),
                         [&](const auto& client) { return client->name() == who; });
    return found;
  }
  std::vector<Announced> summon(const std::string*, const std::atomic<bool>&) override {
    return {};
  }
  nlohmann::json show_stats() override { return {{"clients", nlohmann::json::array()}}; }
  nlohmann::json show_clients() override { return nlohmann::json::array(); }
  std::uint64_t now_us() override { return now_us_ += 1'000'000; }

 private:
  std::uint64_t now_us_ = 0;
};

void check(const std::string& line) {
  SomeClients daemon;
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
  for (const auto& client : all_clients())
    if (client->record.resident_max_bytes != kLimit) wrong("refused, and limited: " + line);
}

}  // namespace
}  // namespace foldswap

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t bytes) {
  foldswap::FuzzInput input(data, bytes);
  foldswap::check(input.rest());
  return 0;
}
