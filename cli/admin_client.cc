#include "cli/admin_client.h"

#include <signal.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <array>
#include <charconv>
#include <cstdlib>
#include <thread>

#include "base/os.h"

namespace foldswap::cli {
namespace {

Result<sockaddr_un> socket_address(const std::filesystem::path& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  const std::string text = path.string();
  if (text.size() >= sizeof(address.sun_path)) {
    return fail_errno("no daemon at " + text, ENAMETOOLONG);
  }
  text.copy(address.sun_path, text.size());
  return address;
}

Result<UniqueFd> try_connect(const sockaddr_un& address, int socket_type) {
  const std::string where = std::string("no daemon at ") + address.sun_path;
  UniqueFd fd(::socket(AF_UNIX, socket_type | SOCK_CLOEXEC, 0));
  if (!fd.valid()) return fail_errno(where);
  // An interrupted connect on a UNIX socket has not queued anything: it can be called again.
  while (::connect(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)) != 0) {
    if (errno != EINTR) return fail_errno(where);
  }
  return fd;
}

bool keeper_lives(const std::filesystem::path& runtime_dir) {
  const auto text = real_os().read_file((runtime_dir / "keeper.pid").string());
  if (!text) return false;
  pid_t pid = 0;
  const auto [rest, code] = std::from_chars(text->data(), text->data() + text->size(), pid);
  if (code != std::errc{} || pid <= 0) return false;
  return ::kill(pid, 0) == 0 || errno == EPERM;
}

Status send_all(int fd, std::string_view bytes) {
  while (!bytes.empty()) {
    const ssize_t sent = ::send(fd, bytes.data(), bytes.size(), MSG_NOSIGNAL);
    if (sent < 0 && errno == EINTR) continue;
    if (sent < 0) return fail_errno("cannot send the command to the daemon");
    bytes.remove_prefix(static_cast<std::size_t>(sent));
  }
  return {};
}

// Up to the end of the line or of the connection.
Result<std::string> receive_line(int fd) {
  std::string line;
  std::array<char, std::size_t{16} * 1024> buffer{};
  while (line.size() < kReplyBytesMax) {
    const ssize_t got = ::recv(fd, buffer.data(), buffer.size(), 0);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return fail_errno("lost the daemon before it answered");
    const std::string_view piece(buffer.data(), static_cast<std::size_t>(got));
    const std::size_t newline = piece.find('\n');
    line += piece.substr(0, newline);
    if (newline != std::string_view::npos) return line;
    if (got == 0) {
      if (line.empty()) return fail("the daemon closed the connection without an answer");
      return line;
    }
  }
  return fail("the daemon's answer is too long");
}

Result<Reply> parse_reply(const std::string& line) {
  const auto not_understood = [] { return fail("the daemon's answer is not understood"); };
  Json json = Json::parse(line, nullptr, /*allow_exceptions=*/false);
  if (!json.is_object() || !json.contains("ok") || !json["ok"].is_boolean()) {
    return not_understood();
  }
  Reply reply;
  if (json["ok"].get<bool>()) {
    reply.result = json.contains("result") ? std::move(json["result"]) : Json::object();
    return reply;
  }
  if (!json.contains("error") || !json["error"].is_string()) return not_understood();
  reply.error = json["error"].get<std::string>();
  reply.exit = json.contains("exit") && json["exit"] == kUsage ? kUsage : kFailed;
  return reply;
}

}  // namespace

std::filesystem::path default_runtime_dir() {
  const char* dir = std::getenv("FOLDSWAP_RUNTIME_DIR");
  return dir != nullptr && *dir != '\0' ? dir : "/run/foldswap";
}

Result<UniqueFd> connect_daemon(const std::filesystem::path& runtime_dir, const char* socket_name,
                                int socket_type, std::chrono::milliseconds keeper_wait) {
  const auto address = socket_address(runtime_dir / socket_name);
  if (!address) return std::unexpected(address.error());
  const auto until = std::chrono::steady_clock::now() + keeper_wait;
  for (;;) {
    auto fd = try_connect(*address, socket_type);
    if (fd) return fd;
    const bool down = fd.error().code == ENOENT || fd.error().code == ECONNREFUSED;
    if (!down || std::chrono::steady_clock::now() >= until || !keeper_lives(runtime_dir)) return fd;
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  }
}

Result<Reply> call_daemon(const std::filesystem::path& runtime_dir, const Json& request) {
  const auto fd = connect_daemon(runtime_dir, "admin.sock", SOCK_STREAM);
  if (!fd) return std::unexpected(fd.error());
  // Arguments come from the command line and may hold any bytes; the daemon gets valid UTF-8.
  const std::string line = request.dump(-1, ' ', false, Json::error_handler_t::replace) + "\n";
  if (const auto sent = send_all(fd->get(), line); !sent) return std::unexpected(sent.error());
  const auto answer = receive_line(fd->get());
  if (!answer) return std::unexpected(answer.error());
  return parse_reply(*answer);
}

}  // namespace foldswap::cli
