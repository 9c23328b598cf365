#include "daemon/host/log.h"

#include <spdlog/spdlog.h>

#include <exception>

namespace foldswap::log {
namespace {

spdlog::level::level_enum of(LogLevel level) {
  switch (level) {
    case LogLevel::trace:
      return spdlog::level::trace;
    case LogLevel::debug:
      return spdlog::level::debug;
    case LogLevel::info:
      return spdlog::level::info;
    case LogLevel::warn:
      return spdlog::level::warn;
    case LogLevel::error:
      break;
  }
  return spdlog::level::err;
}

}  // namespace

void set_level(LogLevel least) {
  spdlog::set_level(of(least));
}

void write(LogLevel level, fmt::string_view format, fmt::format_args args) {
  auto* const logger = spdlog::default_logger_raw();
  if (!logger->should_log(of(level))) return;
  try {
    fmt::memory_buffer line;
    fmt::vformat_to(fmt::appender(line), format, args);
    logger->log(of(level), spdlog::string_view_t(line.data(), line.size()));
  } catch (const std::exception&) {  // no memory: better half of it than a daemon that ends
    logger->log(of(level), spdlog::string_view_t(format.data(), format.size()));
  }
}

}  // namespace foldswap::log
