#include "daemon/admission/hello.h"

#include <sys/socket.h>

#include "daemon/state/page_map.h"

namespace foldswap {

std::string check_message(const wire::Hello& hello, const Arrived& arrived) {
  const auto [bytes, flags, descriptors, is_userfaultfd] = arrived;
  if (bytes == 0) return "the client closed its socket";
  if ((flags & MSG_TRUNC) != 0) return "oversized message";
  if (static_cast<std::size_t>(bytes) < sizeof(wire::MessageHeader)) return "short message";
  if (hello.header.magic != wire::kMagic) return "not a foldswap message (wrong magic)";
  if (hello.header.version != wire::kProtocolVersion) {
    return "protocol version " + std::to_string(hello.header.version) + ", this daemon speaks " +
           std::to_string(wire::kProtocolVersion);
  }
  if (static_cast<std::size_t>(bytes) != sizeof(hello) || hello.header.bytes != sizeof(hello)) {
    return "message of " + std::to_string(bytes) + " bytes where " + std::to_string(sizeof(hello)) +
           " are due";
  }
  if (hello.header.type != static_cast<std::uint32_t>(wire::MessageType::hello))
    return "message is no Hello";
  if ((flags & MSG_CTRUNC) != 0 || descriptors > 1) return "too many descriptors";
  switch (static_cast<wire::HelloKind>(hello.kind)) {
    case wire::HelloKind::register_client:
      if (descriptors == 0) return "no descriptor came with the registration";
      if (!is_userfaultfd) return "the descriptor is no userfaultfd";
      return {};
    case wire::HelloKind::child:
      return descriptors == 0 ? std::string() : std::string("unexpected descriptor");
    default:
      return "unknown kind of Hello " + std::to_string(hello.kind);
  }
}

Status check_ranges(const wire::Hello& hello) {
  if (hello.staging == 0 || hello.staging % wire::kExtentBytes != 0 ||
      hello.staging > kAddressEnd - wire::kStagingBytes) {
    return fail("staging lies outside the address space");
  }
  for (const wire::Range& own : hello.own) {
    if (own.start > kAddressEnd || own.bytes > kAddressEnd - own.start) {
      return fail("a range of the library lies outside the address space");
    }
  }
  return {};
}

void copy_name(char* to, const char* from) {
  std::size_t i = 0;
  for (; i + 1 < wire::kNameBytes && from[i] != 0; ++i) {
    const auto c = static_cast<unsigned char>(from[i]);
    to[i] = c >= 0x20 && c < 0x7f && c != '"' && c != '\\' ? from[i] : '_';
  }
  to[i] = 0;
}

}  // namespace foldswap
