// libFuzzer target for what administrators write: a TOML file, and KEY=VALUE. What is refused
// leaves the configuration as it was, and says why in one line or more. What is taken can be shown,
// and what is shown is taken again and means the same.
#include <sys/mman.h>
#include <unistd.h>

#include <string>

#include "base/testing/fuzz_input.h"
#include "base/unique_fd.h"
#include "daemon/config/config.h"

namespace foldswap {
namespace {

void shows_itself(const Config& config) {
  Config again;
  for (const KeySpec& key : config_keys()) {
    const std::string text = key.show(config);
    if (const auto taken = set_key(again, key.name, text); !taken)
      wrong(std::string(key.name) + ": what it shows is refused: " + text);
    const auto got = get_key(config, key.name);
    if (!got || *got != text) wrong(std::string(key.name) + ": get says another text");
  }
  if (!(again == config)) wrong("what a configuration shows makes another one");
}

void assignments(FuzzInput& input) {
  Config config;
  while (!input.empty()) {
    std::string text = input.text(60);
    // Few texts are keys by chance.
    const auto keys = config_keys();
    if (const std::uint32_t chosen = input.byte(); chosen < keys.size())
      text = std::string(keys[chosen].name) + "=" + text;
    const Config before = config;
    if (const auto taken = set_assignment(config, text); !taken) {
      if (taken.error().text().empty()) wrong("refused without a reason: " + text);
      if (!(config == before)) wrong("refused, and changed: " + text);
    }
  }
  shows_itself(config);
}

void file(FuzzInput& input) {
  const std::string text = input.rest();
  const UniqueFd fd(::memfd_create("config", MFD_CLOEXEC));
  if (::write(fd.get(), text.data(), text.size()) != static_cast<ssize_t>(text.size()))
    wrong("cannot write");
  const auto config = load_config("/proc/self/fd/" + std::to_string(fd.get()));
  if (config) {
    shows_itself(*config);
  } else if (config.error().text().empty()) {
    wrong("refused without a reason");
  }
}

}  // namespace
}  // namespace foldswap

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t bytes) {
  foldswap::FuzzInput input(data, bytes);
  if (input.byte() % 2 == 0) {
    foldswap::assignments(input);
  } else {
    foldswap::file(input);
  }
  return 0;
}
