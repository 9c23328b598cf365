// Stores of many bytes: a point before, and one in the middle. Linked with --wrap.
#include <cerrno>
#include <cstddef>

#include "tests/crash/points.h"

using foldswap::crash::come_to;
using foldswap::crash::Kind;

extern "C" {

void* __real_memcpy(void* to, const void* from, std::size_t bytes);
void* __real_memmove(void* to, const void* from, std::size_t bytes);
void* __real_memset(void* to, int value, std::size_t bytes);

void* __wrap_memmove(void* to, const void* from, std::size_t bytes) {
  if (bytes == 0 || !foldswap::crash::shared(to, bytes)) return __real_memmove(to, from, bytes);
  const auto site = FOLDSWAP_CRASH_SITE;
  come_to(site, Kind::store);
  auto* const target = static_cast<char*>(to);
  const auto* const source = static_cast<const char*>(from);
  const std::size_t half = bytes / 2;
  if (target <= source) {
    __real_memmove(target, source, half);
    come_to(site, Kind::half);
    __real_memmove(target + half, source + half, bytes - half);
  } else {
    __real_memmove(target + half, source + half, bytes - half);
    come_to(site, Kind::half);
    __real_memmove(target, source, half);
  }
  return to;
}

void* __wrap_memcpy(void* to, const void* from, std::size_t bytes) {
  if (bytes == 0 || !foldswap::crash::shared(to, bytes)) return __real_memcpy(to, from, bytes);
  const auto site = FOLDSWAP_CRASH_SITE;
  come_to(site, Kind::store);
  const std::size_t half = bytes / 2;
  __real_memcpy(to, from, half);
  come_to(site, Kind::half);
  __real_memcpy(static_cast<char*>(to) + half, static_cast<const char*>(from) + half, bytes - half);
  return to;
}

void* __wrap_memset(void* to, int value, std::size_t bytes) {
  if (bytes == 0 || !foldswap::crash::shared(to, bytes)) return __real_memset(to, value, bytes);
  const auto site = FOLDSWAP_CRASH_SITE;
  come_to(site, Kind::store);
  const std::size_t half = bytes / 2;
  __real_memset(to, value, half);
  come_to(site, Kind::half);
  __real_memset(static_cast<char*>(to) + half, value, bytes - half);
  return to;
}

}  // extern "C"
