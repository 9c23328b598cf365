// Result<T>: an error that the caller can act on, as a value (C++23 std::expected).
// An Error carries an errno value (0 when there is none) and one sentence that names what was
// wrong. Thread safety: plain values.
#pragma once

#include <cerrno>
#include <cstring>
#include <expected>
#include <string>
#include <utility>

namespace foldswap {

struct Error {
  int code = 0;         // an errno value, or 0
  std::string message;  // what was wrong, without trailing newline

  [[nodiscard]] std::string text() const {
    return code == 0 ? message : message + ": " + std::strerror(code);
  }
};

template <typename T>
using Result = std::expected<T, Error>;
using Status = std::expected<void, Error>;

[[nodiscard]] inline std::unexpected<Error> fail(std::string message) {
  return std::unexpected(Error{0, std::move(message)});
}
[[nodiscard]] inline std::unexpected<Error> fail_errno(std::string message, int code = errno) {
  return std::unexpected(Error{code, std::move(message)});
}

}  // namespace foldswap
