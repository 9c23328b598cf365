#include "preload/settings.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>

#include <algorithm>

namespace foldswap::preload {
namespace {

bool is_on(const char* variable) {
  const char* const value = getenv(variable);
  return value != nullptr && value[0] != '\0' && strcmp(value, "0") != 0;
}

bool is_set(const char* value) {
  return value != nullptr && value[0] != '\0';
}

template <std::size_t Room>
void copy_text(char (&to)[Room], const char* from) {
  const std::size_t length = std::min(strlen(from), Room - 1);
  std::copy_n(from, length, to);
  to[length] = '\0';
}

bool read_size(const char* variable, std::uint64_t& bytes, Reason& reason) {
  const char* const value = getenv(variable);
  if (!is_set(value) || parse_size(value, bytes)) return true;
  (reason << variable << "=").quote(value) << " is not a size (write 512M, 2G or plain bytes)";
  return false;
}

void append_number(char* text, std::uint64_t value) {
  Reason number;
  number << value;
  // A group's name has room for two numbers and a point.
  // NOLINTNEXTLINE(clang-analyzer-security.insecureAPI.strcpy)
  strcat(text, number.text());
}

// Field 22 of /proc/self/stat: with the process id it names a process for good. 0: no /proc.
std::uint64_t start_time() {
  const long fd = sys::call(SYS_openat, AT_FDCWD, "/proc/self/stat", O_RDONLY | O_CLOEXEC);
  if (fd < 0) return 0;
  char text[1024];
  const long got = sys::call(SYS_read, fd, text, sizeof(text) - 1);
  sys::call(SYS_close, fd);
  if (got <= 0) return 0;
  text[got] = '\0';
  const char* at = strrchr(text, ')');  // the name may contain anything
  constexpr int kFieldsAfterName = 20;
  for (int field = 0; at != nullptr && field < kFieldsAfterName; ++field) {
    at = strchr(at + 1, ' ');
  }
  return at == nullptr ? 0 : strtoull(at + 1, nullptr, 10);
}

}  // namespace

bool parse_size(const char* text, std::uint64_t& bytes) {
  std::uint64_t value = 0;
  const char* at = text;
  for (; *at >= '0' && *at <= '9'; ++at) {
    if (__builtin_mul_overflow(value, 10ULL, &value) ||
        __builtin_add_overflow(value, static_cast<std::uint64_t>(*at - '0'), &value)) {
      return false;
    }
  }
  if (at == text) return false;
  unsigned shift = 0;
  const char* const units = "KMGT";
  const char unit = *at >= 'a' && *at <= 'z' ? static_cast<char>(*at - 'a' + 'A') : *at;
  if (const char* found = unit == '\0' ? nullptr : strchr(units, unit); found != nullptr) {
    shift = 10 * static_cast<unsigned>(found - units + 1);
    ++at;
    if (*at == 'i' && at[1] == 'B') ++at;
  }
  if (*at == 'B') ++at;
  constexpr std::uint64_t kMost = ~std::uint64_t{0} >> 1;
  if (*at != '\0' || value > (kMost >> shift)) return false;
  bytes = value << shift;
  return true;
}

void read_switches(Settings& settings) {
  settings.disabled = is_on("FOLDSWAP_DISABLE");
  settings.required = is_on("FOLDSWAP_REQUIRE");
  settings.quiet = is_on("FOLDSWAP_QUIET");
}

bool read_settings(Settings& settings, Reason& reason) {
  const char* directory = getenv("FOLDSWAP_RUNTIME_DIR");
  if (!is_set(directory)) directory = "/run/foldswap";
  constexpr char kSocket[] = "/client.sock";
  if (strlen(directory) + sizeof(kSocket) > sizeof(settings.socket_path)) {
    reason << "FOLDSWAP_RUNTIME_DIR is too long";
    return false;
  }
  copy_text(settings.socket_path, directory);
  // NOLINTNEXTLINE(clang-analyzer-security.insecureAPI.strcpy): looked at above
  strcat(settings.socket_path, kSocket);

  const char* name = getenv("FOLDSWAP_NAME");
  if (!is_set(name)) name = program_invocation_short_name;
  copy_text(settings.name, is_set(name) ? name : "?");
  if (const char* group = getenv("FOLDSWAP_GROUP"); is_set(group)) {
    copy_text(settings.group, group);
  }
  return read_size("FOLDSWAP_RESIDENT_MAX", settings.resident_max_bytes, reason) &&
         read_size("FOLDSWAP_GROUP_MAX", settings.group_max_bytes, reason);
}

void export_group(Settings& settings) {
  if (settings.group_max_bytes == wire::kNoLimit || settings.group[0] != '\0') return;
  append_number(settings.group, static_cast<std::uint64_t>(sys::call(SYS_getpid)));
  // NOLINTNEXTLINE(clang-analyzer-security.insecureAPI.strcpy): as in append_number
  strcat(settings.group, ".");
  append_number(settings.group, start_time());
  setenv("FOLDSWAP_GROUP", settings.group, 1);
}

}  // namespace foldswap::preload
