#include "cli/testing/test_support.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>

#include <array>
#include <cstdlib>
#include <fstream>
#include <sstream>

namespace foldswap::cli {
namespace {

UniqueFd listen_on(const std::filesystem::path& path, int type) {
  UniqueFd fd(::socket(AF_UNIX, type | SOCK_CLOEXEC, 0));
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  path.string().copy(address.sun_path, sizeof(address.sun_path) - 1);
  EXPECT_EQ(::bind(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)), 0);
  EXPECT_EQ(::listen(fd.get(), 8), 0);
  return fd;
}

std::string read_line(int fd) {
  std::string line;
  for (char c = 0; ::recv(fd, &c, 1, 0) == 1 && c != '\n';) line += c;
  return line;
}

std::string contents(const std::filesystem::path& file) {
  std::stringstream text;
  text << std::ifstream(file, std::ios::binary).rdbuf();
  return text.str();
}

// In the child: never returns.
[[noreturn]] void become(const std::vector<std::string>& command,
                         const std::vector<std::string>& environment, const std::string& out,
                         const std::string& err) {
  ::dup2(::open("/dev/null", O_RDONLY), STDIN_FILENO);
  ::dup2(::open(out.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600), STDOUT_FILENO);
  ::dup2(::open(err.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600), STDERR_FILENO);
  for (const char* name : {"LD_PRELOAD", "FOLDSWAP_RUNTIME_DIR", "FOLDSWAP_NAME", "FOLDSWAP_QUIET",
                           "FOLDSWAP_REQUIRE", "FOLDSWAP_DISABLE", "FOLDSWAP_GROUP"}) {
    ::unsetenv(name);
  }
  for (const std::string& variable : environment) {
    const std::size_t equals = variable.find('=');
    if (equals == std::string::npos) {
      ::unsetenv(variable.c_str());
    } else {
      ::setenv(variable.substr(0, equals).c_str(), variable.c_str() + equals + 1, 1);
    }
  }
  std::vector<std::string> words = command;
  std::vector<char*> arguments;
  arguments.reserve(words.size() + 1);
  for (std::string& word : words) arguments.push_back(word.data());
  arguments.push_back(nullptr);
  ::execv(arguments.front(), arguments.data());
  ::_exit(99);
}

}  // namespace

TempDir::TempDir() {
  std::string pattern = (std::filesystem::temp_directory_path() / "foldswap-cli-XXXXXX").string();
  path_ = ::mkdtemp(pattern.data());
}

TempDir::~TempDir() {
  std::error_code ignored;
  std::filesystem::remove_all(path_, ignored);
}

std::filesystem::path TempDir::write(const std::string& name, const std::string& bytes,
                                     unsigned mode) const {
  const std::filesystem::path file = path_ / name;
  std::filesystem::create_directories(file.parent_path());
  std::ofstream(file, std::ios::binary) << bytes;
  EXPECT_EQ(::chmod(file.c_str(), mode), 0);
  return file;
}

FakeDaemon::FakeDaemon(const std::filesystem::path& dir, Answer answer)
    : answer_(std::move(answer)),
      admin_(listen_on(dir / "admin.sock", SOCK_STREAM)),
      client_(listen_on(dir / "client.sock", SOCK_SEQPACKET)),
      thread_([this] { serve(); }) {}

FakeDaemon::~FakeDaemon() {
  ::shutdown(admin_.get(), SHUT_RDWR);  // ends accept
  thread_.join();
}

void FakeDaemon::serve() {
  for (;;) {
    const UniqueFd peer(::accept4(admin_.get(), nullptr, nullptr, SOCK_CLOEXEC));
    if (!peer.valid()) return;
    const std::string request = read_line(peer.get());
    {
      const std::lock_guard lock(mutex_);
      requests_.push_back(request);
    }
    const std::string answer = answer_(request);
    for (std::size_t sent = 0; sent < answer.size();) {
      const ssize_t n =
          ::send(peer.get(), answer.data() + sent, answer.size() - sent, MSG_NOSIGNAL);
      if (n <= 0) break;
      sent += static_cast<std::size_t>(n);
    }
  }
}

std::vector<Json> FakeDaemon::requests() {
  const std::lock_guard lock(mutex_);
  std::vector<Json> all;
  for (const std::string& request : requests_) all.push_back(Json::parse(request));
  return all;
}

FakeDaemon::Answer always(const Json& result) {
  const std::string line = Json{{"ok", true}, {"result", result}}.dump() + "\n";
  return [line](const std::string&) { return line; };
}

Finished execute(const std::vector<std::string>& command,
                 const std::vector<std::string>& environment) {
  const TempDir dir;
  const std::string out = dir.path() / "out", err = dir.path() / "err";
  const pid_t child = ::fork();
  if (child == 0) become(command, environment, out, err);
  int status = 0;
  EXPECT_EQ(::waitpid(child, &status, 0), child);
  const int exit = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  return {exit, contents(out), contents(err)};
}

Finished foldswap(std::vector<std::string> arguments, const std::vector<std::string>& environment) {
  arguments.insert(arguments.begin(), FOLDSWAP_BINARY);
  return execute(arguments, environment);
}

}  // namespace foldswap::cli
