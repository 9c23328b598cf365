// Vetting: throwaway helper processes receive what strangers send (HAZARDS 8). A descriptor may be
// anything, even a FUSE file whose close() never returns, not even for SIGKILL. So the daemon
// itself never receives on a client's socket: a helper does, looks whether it got exactly one
// well-formed Hello and, for a registration, exactly one userfaultfd, and passes only that on.
//
// Processes: daemon -> zygote (forked before any thread exists; single-threaded; forks helpers) ->
// helpers. A helper that saw a bad descriptor reports first and dies then; one that hangs is
// written off and replaced (at most kMostLost of them). Thread safety: start() before threads;
// submit() and take() from the control thread.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "base/result.h"
#include "base/unique_fd.h"
#include "base/wire.h"

namespace foldswap {

struct VettedHello {
  std::uint64_t token = 0;  // of the submission
  bool accepted = false;
  std::string reason;  // when not accepted
  wire::Hello hello{};
  UniqueFd uffd;  // kind register only
};

class Vetting {
 public:
  static Result<Vetting> start();
  Vetting(const Vetting&) = delete;
  Vetting& operator=(const Vetting&) = delete;
  Vetting(Vetting&&) noexcept;
  Vetting& operator=(Vetting&&) noexcept;
  ~Vetting();

  // Has a helper receive the next message on `client_socket`. Error: the helpers are all busy.
  [[nodiscard]] Status submit(std::uint64_t token, int client_socket);
  // Closes a socket that a stranger may have put descriptors into: a helper does it, after we have
  // let go of it. One that no helper can take now is kept until one can. Any thread.
  void dispose(UniqueFd client_socket);
  // Now and then: what was kept.
  void retry_disposals();
  // Readable when a result waits.
  [[nodiscard]] int result_fd() const { return results_.get(); }
  [[nodiscard]] std::optional<VettedHello> take();

 private:
  struct Kept;
  Vetting();
  [[nodiscard]] bool hand_over(UniqueFd& client_socket);
  UniqueFd jobs_, results_;
  std::unique_ptr<Kept> kept_;  // not moved with us while another thread disposes
  int zygote_pid_ = -1;
};

}  // namespace foldswap
