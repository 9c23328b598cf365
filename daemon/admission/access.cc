#include "daemon/admission/access.h"

#include <grp.h>
#include <pwd.h>
#include <unistd.h>

#include <charconv>
#include <string>
#include <vector>

namespace foldswap {
namespace {

Result<unsigned> resolve_user(const std::string& name) {
  unsigned id = 0;
  const auto [rest, ec] = std::from_chars(name.data(), name.data() + name.size(), id);
  if (ec == std::errc{} && rest == name.data() + name.size()) return id;
  const passwd* entry = ::getpwnam(name.c_str());
  if (entry == nullptr) return fail("there is no user '" + name + "'");
  return entry->pw_uid;
}

Result<unsigned> resolve_group(const std::string& name) {
  unsigned id = 0;
  const auto [rest, ec] = std::from_chars(name.data(), name.data() + name.size(), id);
  if (ec == std::errc{} && rest == name.data() + name.size()) return id;
  const group* entry = ::getgrnam(name.c_str());
  if (entry == nullptr) return fail("there is no group '" + name + "'");
  return entry->gr_gid;
}

// Supplementary groups of a user, as the user database has them.
bool in_group(uid_t uid, const std::set<gid_t>& groups) {
  const passwd* entry = ::getpwuid(uid);
  if (entry == nullptr) return false;
  int count = 128;
  std::vector<gid_t> list(static_cast<std::size_t>(count));
  if (::getgrouplist(entry->pw_name, entry->pw_gid, list.data(), &count) < 0) return false;
  for (int i = 0; i < count; ++i) {
    if (groups.contains(list[static_cast<std::size_t>(i)])) return true;
  }
  return false;
}

}  // namespace

Result<Access> Access::resolve(const Config& config) {
  Access access;
  for (const std::string& name : config.access_users) {
    if (name == "*") {
      access.everybody_ = true;
      continue;
    }
    const auto id = resolve_user(name);
    if (!id) return fail("access.users: " + id.error().message);
    access.users_.insert(*id);
  }
  for (const std::string& name : config.access_groups) {
    const auto id = resolve_group(name);
    if (!id) return fail("access.groups: " + id.error().message);
    access.groups_.insert(*id);
  }
  for (const std::string& name : config.access_admins) {
    const auto id = resolve_user(name);
    if (!id) return fail("access.admins: " + id.error().message);
    access.admins_.insert(*id);
  }
  return access;
}

bool Access::may_be_client(const ucred& peer) const {
  if (everybody_ || peer.uid == 0 || users_.contains(peer.uid) || groups_.contains(peer.gid))
    return true;
  return !groups_.empty() && in_group(peer.uid, groups_);
}

bool Access::may_administer(const ucred& peer) const {
  return peer.uid == 0 || peer.uid == ::geteuid() || admins_.contains(peer.uid);
}

}  // namespace foldswap
