// What foldswapd says to its administrator: spdlog's default logger, which main() sets up, behind a
// header that does not bring in all of spdlog. Format strings are those of fmt, checked when
// compiled. Thread safety: any thread. Errors: none; where there is no memory for a line, its
// format string is said instead.
#pragma once

#include <fmt/core.h>

#include "daemon/host/log_level.h"

namespace foldswap::log {

void set_level(LogLevel least);
// Does nothing where the level is not wanted.
void write(LogLevel level, fmt::string_view format, fmt::format_args args);

template <typename... Args>
void debug(fmt::format_string<Args...> format, Args&&... args) {
  write(LogLevel::debug, format, fmt::make_format_args(args...));
}
template <typename... Args>
void info(fmt::format_string<Args...> format, Args&&... args) {
  write(LogLevel::info, format, fmt::make_format_args(args...));
}
template <typename... Args>
void warn(fmt::format_string<Args...> format, Args&&... args) {
  write(LogLevel::warn, format, fmt::make_format_args(args...));
}
template <typename... Args>
void error(fmt::format_string<Args...> format, Args&&... args) {
  write(LogLevel::error, format, fmt::make_format_args(args...));
}

}  // namespace foldswap::log
