#include "preload/exclusions.h"

#include "preload/state.h"

namespace foldswap::preload {
namespace {

class Lock {
 public:
  Lock() {
    sys::Backoff backoff;
    while (!sys::exchange_if(library.exclusions.lock, 0, 1)) backoff.next();
  }
  Lock(const Lock&) = delete;
  Lock& operator=(const Lock&) = delete;
  ~Lock() { sys::store(library.exclusions.lock, 0U); }
};

bool listed(const Exclusions& list, std::uint64_t page) {
  for (std::uint32_t i = 0; i < list.count && i < wire::kExclusions; ++i) {
    if (list.page[i] == page) return true;
  }
  return false;
}

void copy_list(const Exclusions& list, wire::Mailbox& box) {
  for (std::uint32_t i = 0; i < list.count && i < wire::kExclusions; ++i) {
    sys::store(box.exclusions[i], list.page[i]);
  }
  sys::store(box.exclusion_count, list.count);  // last: what it counts is there
}

}  // namespace

void exclude_page(std::uint64_t page) {
  const Lock lock;
  Exclusions& list = library.exclusions;
  if (listed(list, page) || list.count > wire::kExclusions) return;
  if (list.count < wire::kExclusions) list.page[list.count] = page;
  ++list.count;
  if (Control* const control = live()) copy_list(list, *control->mailbox);
}

void publish_exclusions(wire::Mailbox& box) {
  const Lock lock;
  copy_list(library.exclusions, box);
}

}  // namespace foldswap::preload
