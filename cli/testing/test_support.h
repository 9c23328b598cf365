// What the tests of the command line share: a scratch directory, a daemon that answers from a
// script, and running the real binary. Thread safety: a FakeDaemon is used by one test; its answers
// are given on its own thread.
#pragma once

#include <filesystem>
#include <functional>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "base/unique_fd.h"
#include "cli/admin_client.h"

namespace foldswap::cli {

class TempDir {
 public:
  TempDir();
  ~TempDir();
  TempDir(const TempDir&) = delete;
  TempDir& operator=(const TempDir&) = delete;

  [[nodiscard]] const std::filesystem::path& path() const { return path_; }
  // Writes the file, executable or not; returns its path.
  std::filesystem::path write(const std::string& name, const std::string& bytes,
                              unsigned mode = 0644) const;

 private:
  std::filesystem::path path_;
};

// Listens on DIR/admin.sock and on DIR/client.sock. `answer` turns one request line into what is
// sent back, as it is; the connection is closed after that.
class FakeDaemon {
 public:
  using Answer = std::function<std::string(const std::string& request)>;
  FakeDaemon(const std::filesystem::path& dir, Answer answer);
  ~FakeDaemon();
  FakeDaemon(const FakeDaemon&) = delete;
  FakeDaemon& operator=(const FakeDaemon&) = delete;

  // The requests so far, as JSON.
  [[nodiscard]] std::vector<Json> requests();

 private:
  void serve();

  const Answer answer_;
  UniqueFd admin_, client_;
  std::mutex mutex_;  // guards requests_
  std::vector<std::string> requests_;
  std::thread thread_;
};

// An answer that is always {"ok":true,"result":...}.
[[nodiscard]] FakeDaemon::Answer always(const Json& result);

struct Finished {
  int exit = -1;  // 128 + the signal when one ended it
  std::string out;
  std::string err;
};

// Runs the program with `environment` ("NAME=VALUE", "NAME" unsets) on top of a cleaned one of
// ours, to its end.
[[nodiscard]] Finished execute(const std::vector<std::string>& command,
                               const std::vector<std::string>& environment = {});
// The real foldswap binary with these arguments.
[[nodiscard]] Finished foldswap(std::vector<std::string> arguments,
                                const std::vector<std::string>& environment = {});

}  // namespace foldswap::cli
