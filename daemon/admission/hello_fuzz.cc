// libFuzzer target for the one message that a stranger sends. What passes is what the protocol
// says; what is refused has a reason; ranges that pass lie in the address space; a name is fit for
// a log.
#include <cstring>
#include <string>

#include "base/testing/fuzz_input.h"
#include "daemon/admission/hello.h"
#include "daemon/state/page_map.h"

namespace foldswap {
namespace {

void check(FuzzInput& input) {
  Arrived arrived;
  const std::uint32_t bits = input.byte();
  arrived.bytes = (bits & 1) != 0
                      ? static_cast<ssize_t>(sizeof(wire::Hello))
                      : static_cast<ssize_t>(input.number(2) % (sizeof(wire::Hello) + 1));
  arrived.flags = static_cast<int>(input.byte());
  arrived.descriptors = input.byte() % 5;
  arrived.is_userfaultfd = arrived.descriptors != 0 && (bits & 2) != 0;
  wire::Hello hello{};
  std::string raw = input.rest();
  raw.resize(sizeof(hello));
  std::memcpy(&hello, raw.data(), static_cast<std::size_t>(arrived.bytes));
  if ((bits & 4) != 0) {
    hello.header = {wire::kMagic, wire::kProtocolVersion,
                    static_cast<std::uint32_t>(wire::MessageType::hello), sizeof(hello)};
  }
  const std::string reason = check_message(hello, arrived);
  const bool registers = hello.kind == static_cast<std::uint32_t>(wire::HelloKind::register_client);
  if (reason.empty()) {
    if (arrived.bytes != sizeof(hello) || hello.header.magic != wire::kMagic ||
        hello.header.version != wire::kProtocolVersion || hello.header.bytes != sizeof(hello))
      wrong("passed with a wrong header");
    if (registers ? arrived.descriptors != 1 || !arrived.is_userfaultfd : arrived.descriptors != 0)
      wrong("passed with wrong descriptors");
    if (!registers && hello.kind != static_cast<std::uint32_t>(wire::HelloKind::child))
      wrong("passed with an unknown kind");
  } else if (reason.size() >= wire::kReasonBytes) {
    wrong("the reason does not fit: " + reason);
  }
  if (check_ranges(hello)) {
    if (hello.staging == 0 || hello.staging % wire::kExtentBytes != 0 ||
        hello.staging + wire::kStagingBytes > kAddressEnd || hello.staging > kAddressEnd)
      wrong("staging passed");
    for (const wire::Range& own : hello.own) {
      if (own.start + own.bytes < own.start || own.start + own.bytes > kAddressEnd)
        wrong("a range passed");
    }
  }
  // With what lies behind them, so that reading too far shows.
  std::string from(hello.name, wire::kNameBytes), to(wire::kNameBytes, 'x');
  copy_name(to.data(), from.data());
  const std::size_t length = to.find('\0');
  if (length == std::string::npos) wrong("a name without an end");
  for (const char c : to.substr(0, length)) {
    if (c < 0x20 || c > 0x7e || c == '"' || c == '\\') wrong("a name that is not fit for a log");
  }
}

}  // namespace
}  // namespace foldswap

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t bytes) {
  foldswap::FuzzInput input(data, bytes);
  foldswap::check(input);
  return 0;
}
