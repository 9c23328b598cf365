// Who may be a client and who may administer (access.* keys). Names are resolved once, at start.
// Thread safety: constant after construction.
#pragma once

#include <sys/socket.h>

#include <set>

#include "base/result.h"
#include "daemon/config/config.h"

namespace foldswap {

class Access {
 public:
  // Error: a user or group that does not exist, by name.
  static Result<Access> resolve(const Config& config);
  [[nodiscard]] bool may_be_client(const ucred& peer) const;
  [[nodiscard]] bool may_administer(const ucred& peer) const;

 private:
  bool everybody_ = false;
  std::set<uid_t> users_, admins_;
  std::set<gid_t> groups_;
};

}  // namespace foldswap
