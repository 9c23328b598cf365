// Mutations: tests of the tests. Each name stands at the one place where a hazard is handled, and
// takes that handling out; tests/mutations.py builds each in turn and demands that a named test
// fails. The simulator is built so that one can be chosen at run time (FOLDSWAP_RUNTIME_MUTATIONS).
// In every other build mutated() is constant false and nothing of this is left. Thread safety:
// constants; the choice at run time is made before anything else runs.
#pragma once

namespace foldswap {

enum class Mutation {
  none,
  h01_order_of_moves,       // moves are applied as they arrive
  h01_fork_before_frees,    // a REMOVE is applied although a FORK is kept
  h01_fork_order,           // a child gets what was discarded between an earlier fork and its own
  h02_probe_unregister,     // nobody looks for a change under way after UNREGISTER
  h03_register_in_hold,     // the agent moves without REGISTER in the same lock hold
  h04_copy_in_hold,         // the agent lets go of the lock before it has copied out
  h05_stop_threads,         // a starved fault is left to its fate
  h06_keep_child,           // the descriptor of a fork is closed
  h07_hup_is_no_death,      // a lifeline that hangs up ends the client
  h09_robust_mutexes,       // robust mutexes are evicted
  h10_single_pages,         // a window that fails is not tried page by page
  h10_wake,                 // a fault whose mapping is gone is not woken
  h12_release_first,        // advice without an event is given before pages are brought back
  h12_guards,               // windows run over guards
  h12_fresh_mappings,       // a plan may rest on mappings seen before such advice
  h12_follow_moves,         // memory that children must not see moves unnoticed
  h13_unify_first,          // mremap over what is registered in part
  entry_before_checksum,    // an entry is published, and then its object's checksum written
  free_before_copy,         // an object is freed, and then its page copied in
  inbox_before_applied,     // an event is taken out of the inbox, and then applied
  staging_before_publish,   // a batch gives its slots up, and then its entries are published
  h16_quarantine,           // what is being discarded may be evicted
  h21_locked_staging,       // evict although staging is locked
  move_untold,              // what MOVE does not own up to counts as not moved
  zero_under_lock,          // new pages are filled without the layout lock
  h21_announce,             // mlockall in the middle of a move
  h37_innermost_handlers,   // our fork handlers come after those of constructors before ours
  h40_from_the_first_call,  // what constructors before ours make is not noted
  advice_without_end,       // advice over what was never registered reads all of it in
  layout_epoch,             // the agent does not compare epochs
  fork_references,          // a fork's pages are shared without a reference
  fork_serialised,          // forks of several threads at once
  fork_running_child,       // a child that already changes its memory gets none of the pages out
  renew_shared,             // what a fork had shared stays busy for ever
  renew_only_ones_own,      // what a relative still has is written to, and so copied
  prove_address_space,      // whoever offers an agent is believed
  inheriting_mutexes,       // mutexes with priority inheritance are evicted
  memory_of_a_dead_leader,  // a process whose main thread has ended seems empty
  h30_closed_ranges,        // REGISTER covers pages that are out
  h30_drop_stale,           // entries whose mapping has gone stay
  h31_mapping_in_hold,      // nobody looks what is mapped before REGISTER
  h31_unregister_others,    // a page that cannot be filled is woken, and faults again
  h38_staging_stays,        // commands of a stopped agent are revoked, and can still move
  h38_take_over,            // nobody helps where an agent is stopped
  h38_bounded_hold,         // faults are held back although no results arrive
  kept_without_looking,     // what is kept on disk of a page is taken for what it holds now
  h32_mapping_limit,        // slices of sparse memory are registered without counting mappings
  sparse_scan,              // a sparse mapping is looked at slice by slice
  h39_unregister,           // a fault starved by threads that others trace is left to its fate
  stop_restarts_calls,      // system calls of threads that were stopped end with EINTR
};

#if defined(FOLDSWAP_MUTATIONS)
}  // namespace foldswap
#include "active_mutation.h"  // made by tests/mutations.py: kActiveMutation
namespace foldswap {
#elif !defined(FOLDSWAP_RUNTIME_MUTATIONS)
inline constexpr Mutation kActiveMutation = Mutation::none;
#endif

#if defined(FOLDSWAP_RUNTIME_MUTATIONS) && !defined(FOLDSWAP_MUTATIONS)
inline Mutation active_mutation = Mutation::none;

[[nodiscard]] inline bool mutated(Mutation mutation) {
  return active_mutation == mutation;
}
#else
[[nodiscard]] constexpr bool mutated(Mutation mutation) {
  return kActiveMutation == mutation;
}
#endif

}  // namespace foldswap
