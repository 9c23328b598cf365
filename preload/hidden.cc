#include "preload/hidden.h"

#include "base/mutation.h"

namespace foldswap::preload {
namespace {

template <typename Better>
void improve(std::uint64_t& value, std::uint64_t candidate, Better better) {
  std::uint64_t seen = sys::load(value);
  while (better(candidate, seen) && !sys::exchange_if(value, seen, candidate)) {
    seen = sys::load(value);
  }
}

}  // namespace

void note_hidden(std::uint64_t start, std::uint64_t bytes) {
  improve(library.hidden_from, page_floor(start), [](auto a, auto b) { return a < b; });
  improve(library.hidden_to, page_ceil(start + bytes), [](auto a, auto b) { return a > b; });
}

void follow_hidden(Control* control, std::uint64_t from, std::uint64_t old_bytes, std::uint64_t to,
                   std::uint64_t new_bytes) {
  if (from >= sys::load(library.hidden_to) || from + old_bytes <= sys::load(library.hidden_from)) {
    return;
  }
  note_hidden(to, new_bytes);
  if (control != nullptr && !mutated(Mutation::h12_follow_moves)) look_anew(*control);
}

void look_anew(Control& control) {
  // In this order: the daemon reads them the other way round.
  sys::add(control.mailbox->advised, 1);
  sys::add(control.mailbox->threads_created, 1);
}

}  // namespace foldswap::preload
