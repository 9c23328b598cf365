// Which pages of a parent that are out are a forked child's too, and where: one FORK of a set of
// events (address_space.h), page by page.
//
// Only what is registered in the child is the child's: neither DONTFORK ranges nor what was
// unmapped before the fork. Where the set moves or unmaps things, the child's mapping alone tells
// whether that was before the fork or after it.
//
// The child may be running: its fork() ended when the event was read (HAZARDS 52). While it changes
// its memory, PROBE says nothing. So its events are read along, to be applied when it is served,
// and PROBE is asked about the place where a page lies by now. As long as that does not help, the
// child has what its parent has here; only the places that the set changes are in doubt, and wait.
//
// Thread safety: the reader's alone, with no batch of the parent in flight. Errors: `never`, when
// nobody can tell what the child should find (it is killed then); never a guess.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <span>

#include "base/os.h"
#include "daemon/client/client.h"
#include "daemon/client/page_store.h"

namespace foldswap {

class ForkClone {
 public:
  // Reads what waits of a client's messages; false: nothing did.
  using ReadMore = std::function<bool(Client&)>;
  enum class Result : std::uint8_t {
    all,   // done
    more,  // goes on at `cursor`
    ask,   // likewise, when the child can be asked
    never,
  };

  // `fork`: its index in the parent's inbox. `cursor`: where a call before this one stopped.
  ForkClone(Os& os, PageStore& store, const ReadMore& read_more, Client& parent, Client& child,
            std::size_t fork, std::span<const Move> moves, std::uint64_t& cursor);
  // At most `most` pages.
  [[nodiscard]] Result run(std::uint64_t most);

 private:
  // What was at a place of the child's at the fork.
  enum class Then : std::uint8_t {
    there,    // registered, and is still
    nothing,  // nothing registered
    gone,     // what the child has unmapped since, whatever it was
    left,     // likewise, but it had forked before: a child of its own has it
    unknown,
  };
  enum class Verdict : std::uint8_t { share, skip, ask, never };

  [[nodiscard]] Then look(std::uint64_t page);
  [[nodiscard]] Verdict judge(std::uint64_t page, std::uint64_t& target);
  [[nodiscard]] std::optional<Verdict> judge_what_stays(std::uint64_t page, const Move& away,
                                                        std::uint64_t& target);
  [[nodiscard]] bool told(std::uint8_t event, std::uint64_t page) const;
  [[nodiscard]] bool has_forked() const;
  [[nodiscard]] bool events_lost() const;
  [[nodiscard]] bool in_doubt(std::uint64_t page) const;
  [[nodiscard]] bool discarded(std::uint64_t page, std::uint64_t target) const;

  Os& os_;
  PageStore& store_;
  const ReadMore& read_more_;
  Client& parent_;
  Client& child_;
  const std::size_t fork_;
  const std::span<const uffd_msg> inbox_;
  const std::span<const Move> moves_;
  std::uint64_t& cursor_;
  bool mute_ = false;  // the child cannot be asked any more in this call
  bool gone_ = false;  // nor in any other
};

}  // namespace foldswap
