#include "preload/rights.h"

#include <linux/capability.h>
#include <sys/prctl.h>

#include <iterator>

#include "preload/proc_text.h"

namespace foldswap::preload {
namespace {

// As /proc/TID/status has them. Lists of numbers are kept as a sum that no two lists share by
// chance.
struct Rights {
  std::uint32_t uid[3] = {}, gid[3] = {};  // real, effective, saved
  std::uint64_t groups = 0;
  std::uint64_t inheritable = 0, permitted = 0, effective = 0, bounding = 0, ambient = 0;
  std::uint64_t no_new_privs = 0, filtered = 0;
  bool read = false;
};

bool same(const char* a, const char* b) {
  for (; *a != '\0' && *a == *b; ++a, ++b) {
  }
  return *a == *b;
}

// The word before the colon, cut. False: the text is over.
template <std::size_t Room>
bool read_key(ProcText& text, char (&key)[Room]) {
  std::size_t length = 0;
  int c = text.get();
  for (; c != ':' && c != '\n' && c != ProcText::kEnd; c = text.get()) {
    if (length + 1 < Room) key[length++] = static_cast<char>(c);
  }
  key[length] = '\0';
  return c == ':';
}

void skip_line(ProcText& text) {
  for (int c = text.get(); c != '\n' && c != ProcText::kEnd;) c = text.get();
}

std::uint64_t read_number(ProcText& text, unsigned base) {
  int c = text.get();
  while (c == '\t' || c == ' ') c = text.get();
  const std::uint64_t value = text.rest_of_number(c, base);
  while (c != '\n' && c != ProcText::kEnd) c = text.get();
  return value;
}

// The fourth, for files, is left alone.
void read_ids(ProcText& text, std::uint32_t (&ids)[3]) {
  int c = text.get();
  for (std::uint32_t& id : ids) {
    while (c == '\t' || c == ' ') c = text.get();
    id = static_cast<std::uint32_t>(text.rest_of_number(c, 10));
  }
  while (c != '\n' && c != ProcText::kEnd) c = text.get();
}

bool same_ids(const std::uint32_t (&a)[3], const std::uint32_t (&b)[3]) {
  return a[0] == b[0] && a[1] == b[1] && a[2] == b[2];
}

void mix_line(ProcText& text, std::uint64_t& sum) {
  int c = 0;
  do {
    c = text.get();
    sum =
        (sum ^ static_cast<std::uint64_t>(static_cast<unsigned>(c))) * 0x100000001b3ULL;  // FNV-1a
  } while (c != '\n' && c != ProcText::kEnd);
}

Rights read_rights(const char* path) {
  Rights rights;
  ProcText text(path);
  char key[16];
  while (read_key(text, key)) {
    if (same(key, "Uid")) {
      read_ids(text, rights.uid);
    } else if (same(key, "Gid")) {
      read_ids(text, rights.gid);
    } else if (same(key, "Groups")) {
      mix_line(text, rights.groups);
    } else if (same(key, "CapInh")) {
      rights.inheritable = read_number(text, 16);
    } else if (same(key, "CapPrm")) {
      rights.permitted = read_number(text, 16);
    } else if (same(key, "CapEff")) {
      rights.effective = read_number(text, 16);
    } else if (same(key, "CapBnd")) {
      rights.bounding = read_number(text, 16);
    } else if (same(key, "CapAmb")) {
      rights.ambient = read_number(text, 16);
    } else if (same(key, "NoNewPrivs")) {
      rights.no_new_privs = read_number(text, 10);
    } else if (same(key, "Seccomp") || same(key, "Seccomp_filters")) {
      rights.filtered += read_number(text, 10);
      rights.read = true;
    } else {
      skip_line(text);
    }
  }
  return rights;
}

bool has_no_more(const Rights& mine, const Rights& leaders) {
  return mine.read && leaders.read && same_ids(mine.uid, leaders.uid) &&
         same_ids(mine.gid, leaders.gid) && mine.groups == leaders.groups &&
         (mine.inheritable & ~leaders.inheritable) == 0 &&
         (mine.permitted & ~leaders.permitted) == 0 && (mine.effective & ~leaders.effective) == 0 &&
         (mine.bounding & ~leaders.bounding) == 0 && (mine.ambient & ~leaders.ambient) == 0 &&
         mine.no_new_privs >= leaders.no_new_privs && mine.filtered >= leaders.filtered;
}

template <typename Drop>
void for_each_bit(std::uint64_t bits, Drop drop) {
  for (unsigned bit = 0; bit < 64; ++bit) {
    if ((bits >> bit & 1) != 0) drop(bit);
  }
}

void set_capabilities(std::uint64_t effective, std::uint64_t permitted, std::uint64_t inheritable) {
  __user_cap_header_struct header{_LINUX_CAPABILITY_VERSION_3, 0};
  __user_cap_data_struct data[2];
  for (unsigned i = 0; i < 2; ++i) {
    data[i] = {static_cast<std::uint32_t>(effective >> (32 * i)),
               static_cast<std::uint32_t>(permitted >> (32 * i)),
               static_cast<std::uint32_t>(inheritable >> (32 * i))};
  }
  sys::call(SYS_capset, &header, data);
}

}  // namespace

bool give_up_rights() {
  const Rights leaders = read_rights("/proc/self/status");
  const Rights mine = read_rights("/proc/thread-self/status");
  if (has_no_more(mine, leaders)) return true;
  if (!mine.read || !leaders.read) return false;
  // By a system call of its own; what the C library does is followed by itself. Groups before
  // users.
  if (!same_ids(mine.gid, leaders.gid))
    sys::call(SYS_setresgid, leaders.gid[0], leaders.gid[1], leaders.gid[2]);
  if (!same_ids(mine.uid, leaders.uid))
    sys::call(SYS_setresuid, leaders.uid[0], leaders.uid[1], leaders.uid[2]);
  if (leaders.no_new_privs != 0) sys::call(SYS_prctl, PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
  // The bounding set first: to change it takes a capability.
  for_each_bit(mine.bounding & ~leaders.bounding,
               [](unsigned bit) { sys::call(SYS_prctl, PR_CAPBSET_DROP, bit, 0, 0, 0); });
  for_each_bit(mine.ambient & ~leaders.ambient, [](unsigned bit) {
    sys::call(SYS_prctl, PR_CAP_AMBIENT, PR_CAP_AMBIENT_LOWER, bit, 0, 0);
  });
  const Rights now = read_rights("/proc/thread-self/status");  // another user has fewer
  set_capabilities(now.effective & leaders.effective, now.permitted & leaders.permitted,
                   now.inheritable & leaders.inheritable);
  return has_no_more(read_rights("/proc/thread-self/status"), leaders);
}

}  // namespace foldswap::preload
