// What the registry does for those that nobody can serve. The rest of it is in the end-to-end
// tests.
#include "daemon/client/registry.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>

#include "daemon/testing/fake_os.h"

namespace foldswap {
namespace {

std::uint64_t notes_of(const State& state, int fd) {
  return static_cast<std::uint64_t>(std::ranges::count_if(
      state.header().doomed, [&](const NotedFd& note) { return note.get() == fd; }));
}

// The daemon died when it had read a FORK of a doomed child, before or after it had noted whose
// descriptor came with it.
TEST(Registry, ChildrenOfTheDoomedAreDoomedWhoeverDies) {
  FakeOs os;
  const auto state = State::create(os).value();
  StateHeader& header = state->header();
  const int noted = ::dup(0), read = ::dup(0);
  header.doomed[0].note(noted);
  header.doomed_messages[0].event = UFFD_EVENT_FORK;
  header.doomed_messages[0].arg.fork.ufd = static_cast<std::uint32_t>(noted);
  header.doomed_messages[1].event = UFFD_EVENT_FORK;
  header.doomed_messages[1].arg.fork.ufd = static_cast<std::uint32_t>(read);
  header.doomed_messages[2].event = UFFD_EVENT_PAGEFAULT;
  const Registry registry(os, *state);  // closes what it holds, and each once
  EXPECT_EQ(notes_of(*state, noted), 1U);
  EXPECT_EQ(notes_of(*state, read), 1U);
  for (const uffd_msg& message : header.doomed_messages) EXPECT_EQ(message.event, 0);
}

}  // namespace
}  // namespace foldswap
