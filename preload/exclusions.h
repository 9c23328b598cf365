// Pages that must not be evicted because the kernel itself writes to a word in them, and gives up
// where it finds the page missing (HAZARDS 9, 40): robust mutexes and those with priority
// inheritance, and the words that CLONE_CHILD_CLEARTID names. What lies where is noted here, from
// the first call on; a client's mailbox holds a copy of the pages.
//
// A note ends with what it protects: a mutex that is destroyed takes its own back. When the list
// would become too long for the mailbox it is gone through: notes of threads that have ended, of
// memory that is unmapped, and of mutexes that are no mutexes any more are dropped. While more
// pages are left than a mailbox has room for, nothing of this process is evicted.
//
// Thread safety: any thread, from the first constructor on; the agent calls publish_exclusions()
// and look_over_exclusions() only. Callers have asynchronous signals blocked, and none waits for an
// announcement or a request meanwhile. Errors: when the table is full nothing of this process is
// evicted any more.
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/wire.h"
#include "preload/state.h"

namespace foldswap::preload {

// Whether anything has been noted in this process.
[[nodiscard]] bool notes_in_use();
// Whether notes of this process can matter: it is a client, or may become one.
[[nodiscard]] bool notes_matter();

// A mutex of the kinds above lies at `address`, or does no longer. `again`: it was noted a moment
// ago, and may have been taken for none since.
void note_mutex(std::uint64_t address, bool again);
void forget_mutex(std::uint64_t address);

// A thread about to be made will have its end told at `address`. The answer stands for the note;
// once the thread is there, word_owned_by() says which it is, and from then on the note ends with
// it.
inline constexpr std::uint32_t kNoNote = ~0U;
[[nodiscard]] std::uint32_t note_word(std::uint64_t address);
void word_owned_by(std::uint32_t note, std::uint32_t tid);
void forget_word(std::uint32_t note);

// Every page of the list, into `box`.
void publish_exclusions(wire::Mailbox& box);

// The agent's, now and then: while there are too many pages, drops what system calls alone can tell
// to be over. Waits for nobody.
void look_over_exclusions();

// Around fork(): nobody else changes the notes. forked(): in the child, whose other threads and
// their words are no more.
void lock_notes();
void unlock_notes();
// Makes `life` the process's (Library::alive), whose word is the lock from here on.
void move_notes_lock(Life& life);
void notes_after_fork();
// In a forked child, when the notes may be half made: they are empty from here on, and as nobody
// knows any more what was noted, nothing of this process is evicted.
void drop_all_notes();

}  // namespace foldswap::preload
