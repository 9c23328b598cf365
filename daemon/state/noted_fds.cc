#include "daemon/state/noted_fds.h"

#include "daemon/state/events.h"

namespace foldswap {

bool is_nobodys(const ClientRecord& record) {
  return record.life == Life::ending || record.fds.uffd.get() < 0;
}

void for_noted(const ClientRecord& record, const std::function<void(const NotedFd&)>& visit) {
  const ClientFds& f = record.fds;
  for (const NotedFd* note :
       {&f.pidfd, &f.uffd, &f.map, &f.pagemap, &f.lifeline, &f.transfer, &f.mailbox}) {
    if (note->get() >= 0) visit(*note);
  }
}

void for_noted(const State& state, const VisitNote& visit) {
  const auto each = [&](const auto& notes) {
    for (const NotedFd& note : notes) {
      if (note.get() >= 0) visit(note, nullptr);
    }
  };
  each(state.header().files);
  for (const ClientRecord* const record : state.records()) {
    if (!is_nobodys(*record)) for_noted(*record, [&](const NotedFd& note) { visit(note, record); });
  }
  each(state.header().doomed);
}

std::set<int> noted_fds(const State& state) {
  std::set<int> noted{state.fd()};
  const auto add = [&](int fd) {
    if (fd >= 0) noted.insert(fd);
  };
  for_noted(state, [&](const NotedFd& note, const ClientRecord*) { add(note.get()); });
  for (const uffd_msg& message : state.header().doomed_messages) {
    if (message.event == UFFD_EVENT_FORK) add(static_cast<int>(message.arg.fork.ufd));
  }
  for (ClientRecord* const record : state.records()) {
    if (is_nobodys(*record)) continue;
    for (const uffd_msg& message : all_messages(*record)) {
      if (holds_child(message)) add(static_cast<int>(message.arg.fork.ufd));
    }
  }
  return noted;
}

}  // namespace foldswap
