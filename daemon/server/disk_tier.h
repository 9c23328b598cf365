// DiskTier: everything that is only there when writeback.dir is set, put together: the backing
// file, its seal, the writer with its thread, and a reader for each fault thread. Made before the
// threads that evict and fault, and destroyed after them.
//
// Thread safety: create(), start() and destruction on the main thread; the rest on any.
// Errors: create() says what is wrong with the directory or this machine.
#pragma once

#include <memory>
#include <string>
#include <thread>

#include "daemon/disk/disk_traffic.h"
#include "daemon/fault/disk_reader.h"
#include "daemon/writeback/writeback.h"

namespace foldswap {

class DiskTier {
 public:
  struct Settings {
    std::string directory;
    bool encrypt = true;
  };
  // `tunables` already hold what may change later (writeback_max and so on). From here `store`
  // knows of the file.
  [[nodiscard]] static Result<std::unique_ptr<DiskTier>> create(Os& os, State& state,
                                                                PageStore& store,
                                                                const Tunables& tunables,
                                                                const Settings& settings);
  // Likewise, with the file of a daemon that died. Error: it is still the caller's.
  [[nodiscard]] static Result<std::unique_ptr<DiskTier>> go_on(Os& os, State& state,
                                                               PageStore& store,
                                                               const Tunables& tunables,
                                                               const Settings& settings,
                                                               std::unique_ptr<BackingFile>& file);
  ~DiskTier();
  DiskTier(const DiskTier&) = delete;
  DiskTier& operator=(const DiskTier&) = delete;

  [[nodiscard]] Result<std::unique_ptr<DiskReader>> make_reader();
  void start();
  // No more writes from here. Before the threads that read end.
  void stop();

  [[nodiscard]] const BackingFile& file() const { return *file_; }
  [[nodiscard]] DiskTraffic& traffic() { return traffic_; }
  [[nodiscard]] const char* cipher() const { return seal_->name(); }
  // Why nothing is written though something should be; empty: all is well.
  [[nodiscard]] std::string trouble() const { return writeback_->report(); }

 private:
  DiskTier(Os& os, State& state, PageStore& store) : os_(os), state_(state), store_(store) {}
  [[nodiscard]] Status make_seal(bool encrypt);
  void run();

  Os& os_;
  State& state_;
  PageStore& store_;
  DiskTraffic traffic_;
  UniqueFd wake_;
  std::unique_ptr<BackingFile> file_;
  std::unique_ptr<Seal> seal_;
  std::unique_ptr<Writeback> writeback_;
  std::atomic<bool> stop_{false};
  std::thread thread_;
};

}  // namespace foldswap
