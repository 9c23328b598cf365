// Table: in what state pages were when something happened to them, counted over all runs of a
// session. It shows which meetings of a state and an event a session has seen, and holds against
// each other what cannot be: such a cell has a rule, and a count in it is a failure.
//
// The state is the daemon's word, its page map's, looked at just before the event; and for a page
// that the map knows nothing of, the process's own memory. Only pages of processes that are clients
// count, while the daemon is up. Thread safety: none.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>

namespace foldswap::sim {

enum class PageIs : std::uint8_t {
  present,  // not in the map, and in memory
  absent,   // neither
  same,     // same-filled
  pooled,   // its object is in a frame of the pool
  on_disk,
  out,     // on its way
  wanted,  // likewise, and the reader waits for it
  bad,     // its object was damaged
};
inline constexpr std::size_t kPageStates = 8;

enum class Happens : std::uint8_t {
  read,
  write,
  discard,
  unmap,
  remap_from,
  remap_to,  // what lies where an mremap goes
  fork,
  exit,
  death,       // of the daemon
  marked,      // the evictor finds it in memory, to mark it as on its way if it may
  unregister,  // by the daemon
};
inline constexpr std::size_t kEvents = 11;

using Table = std::array<std::array<std::uint64_t, kEvents>, kPageStates>;

// With the rules of the cells that cannot be.
[[nodiscard]] std::string print(const Table& table);
// Cells that should have a count and have none, or the other way round; empty: none.
[[nodiscard]] std::string wrong_cells(const Table& table);

}  // namespace foldswap::sim
