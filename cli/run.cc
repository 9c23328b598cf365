#include "cli/run.h"

#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string_view>

#include "base/os.h"
#include "base/result.h"
#include "cli/admin_client.h"
#include "cli/program.h"

namespace foldswap::cli {
namespace {

bool is_one(const char* variable) {
  const char* value = std::getenv(variable);
  return value != nullptr && std::strcmp(value, "1") == 0;
}

void say(const std::string& line) {
  std::fprintf(stderr, "foldswap: %s\n", line.c_str());
}

// The library to preload, or why there is no point in it.
Result<std::string> usable_library(const RunOptions& options) {
  std::error_code error;
  const auto self = std::filesystem::read_symlink("/proc/self/exe", error);
  if (error) return fail("cannot find libfoldswap.so: " + error.message());
  const auto library = find_library(self.parent_path());
  if (!library) return std::unexpected(library.error());
  std::string path = library->lexically_normal().string();
  // The dynamic loader separates the elements of LD_PRELOAD by these and knows no quoting.
  if (path.find_first_of(" :") != std::string::npos) {
    return fail("'" + path + "' cannot be preloaded: its path has a space or colon");
  }
  // A connection that says nothing and goes away is nobody to the daemon.
  const auto daemon = connect_daemon(options.runtime_dir, "client.sock", SOCK_SEQPACKET);
  if (!daemon) return fail(daemon.error().text());
  return path;
}

// Names this process and all that it becomes by exec; no other process ever had both.
std::string group_token() {
  std::string start = "0";
  if (const auto stat = real_os().read_file("/proc/self/stat")) {
    // The command's name, in parentheses, may hold anything: count fields after its end.
    std::string_view rest = std::string_view(*stat).substr(stat->rfind(')') + 1);
    for (int field = 3; field < 22; ++field) rest = rest.substr(rest.find(' ', 1));
    start = rest.substr(1, rest.find(' ', 1) - 1);
  }
  return std::to_string(::getpid()) + "." + start;
}

void set(const char* variable, const std::string& value) {
  ::setenv(variable, value.c_str(), /*overwrite=*/1);
}

void set_environment(const RunOptions& options, bool require) {
  if (options.runtime_dir_given) {
    // Absolute: the program's children may look for it from another directory.
    set("FOLDSWAP_RUNTIME_DIR",
        std::filesystem::absolute(options.runtime_dir).lexically_normal().string());
  }
  if (options.name) set("FOLDSWAP_NAME", *options.name);
  if (options.resident_max_bytes) {
    set("FOLDSWAP_RESIDENT_MAX", std::to_string(*options.resident_max_bytes));
  }
  if (options.group_max_bytes) {
    set("FOLDSWAP_GROUP_MAX", std::to_string(*options.group_max_bytes));
    set("FOLDSWAP_GROUP", group_token());
  }
  if (require) set("FOLDSWAP_REQUIRE", "1");
}

// Returns only when that failed.
int execute(const std::string& program, const std::vector<std::string>& command) {
  std::vector<std::string> words = command;
  std::vector<char*> arguments;
  arguments.reserve(words.size() + 1);
  for (std::string& word : words) arguments.push_back(word.data());
  arguments.push_back(nullptr);
  std::fflush(nullptr);
  ::execvp(program.c_str(), arguments.data());
  const int error = errno;
  say("cannot run '" + command.front() + "': " + std::strerror(error));
  return error == ENOENT ? kNotFound : kCannotInvoke;
}

}  // namespace

std::string appended_preload(const char* current, const std::string& library) {
  std::string list = current != nullptr ? current : "";
  for (std::size_t at = 0; at < list.size();) {
    const std::size_t end = std::min(list.find_first_of(" :", at), list.size());
    if (std::string_view(list).substr(at, end - at) == library) return list;
    at = end + 1;
  }
  if (!list.empty()) list += ':';
  return list + library;
}

std::string with_asan_option(const char* current) {
  const std::string ours = "verify_asan_link_order=0";
  std::string list = current != nullptr ? current : "";
  if (list.find("verify_asan_link_order") != std::string::npos) return list;
  return list.empty() ? ours : list + ":" + ours;
}

int run(const RunOptions& options) {
  const auto program = find_program(options.command.front());
  if (!program) {
    say(program.error().text());
    return program.error().code == ENOENT ? kNotFound : kCannotInvoke;
  }
  const bool require = options.require || is_one("FOLDSWAP_REQUIRE");
  const bool quiet = is_one("FOLDSWAP_QUIET");
  set_environment(options, require);

  std::optional<std::string> obstacle;
  if (is_one("FOLDSWAP_DISABLE")) {
    if (!require) return execute(*program, options.command);  // as asked for, so nothing to say
    obstacle = "FOLDSWAP_DISABLE=1 is set";
  } else if (const auto library = usable_library(options)) {
    // Set even where it does nothing: the children of a static program may be dynamic.
    set("LD_PRELOAD", appended_preload(std::getenv("LD_PRELOAD"), *library));
    // The program, or a child of it, may be built with gcc's AddressSanitizer: that refuses to be
    // behind another library.
    set("ASAN_OPTIONS", with_asan_option(std::getenv("ASAN_OPTIONS")));
    obstacle = why_not_preloadable(*program);
  } else {
    obstacle = library.error().message;
  }
  if (obstacle && require) {
    say(*obstacle + "; not run, because of --require");
    return kCannotBeClient;
  }
  if (obstacle && !quiet) say(*obstacle + "; running without foldswap");
  return execute(*program, options.command);
}

}  // namespace foldswap::cli
