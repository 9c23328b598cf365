// Injector: looks into processes that are no clients, and sends agents into them (stranger.h,
// injection.h), in a process of its own. Both may take for ever, and then that process is killed,
// which undoes everything, and another takes its place.
//
// Processes: daemon -> keeper of the worker (forked before any thread exists) -> worker, one job at
// a time. Thread safety: start() before threads; submit() and take() from the control thread.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "base/result.h"
#include "base/unique_fd.h"
#include "daemon/admission/injection.h"
#include "daemon/admission/stranger.h"

namespace foldswap {

struct InjectorJob {
  enum class Kind : std::uint32_t { look, send };
  Kind kind;
  std::int32_t pid;
  Identity identity;  // send: which program it must be
};

// What came of a job. Plain: it is sent from one process to another.
struct InjectorReport {
  enum class Found : std::uint32_t { nothing, library };
  InjectorJob job;  // look: with the identity that was found
  // look: whether our library is in it, who it is, and what it wishes
  Found found;
  std::uint32_t uid, gid;
  Wishes wishes;
  // send
  Sent sent;
  char reason[wire::kReasonBytes];
};

class Injector {
 public:
  static Result<Injector> start();
  Injector(Injector&& other) noexcept;
  Injector& operator=(Injector&&) = delete;
  Injector(const Injector&) = delete;
  Injector& operator=(const Injector&) = delete;
  ~Injector();

  // False: there are too many jobs already.
  [[nodiscard]] bool submit(const InjectorJob& job);
  // Readable when a report waits.
  [[nodiscard]] int result_fd() const { return results_.get(); }
  [[nodiscard]] std::optional<InjectorReport> take();
  // It has been killed, as nobody but an administrator can do: no agent is sent any more by this
  // daemon.
  [[nodiscard]] bool ended() const { return ended_; }

  static constexpr std::size_t kMostWaiting = 32;

 private:
  Injector() = default;
  UniqueFd jobs_, results_;
  std::size_t waiting_ = 0;
  bool ended_ = false;
  int keeper_pid_ = -1;
};

}  // namespace foldswap
