// Sends agents into a process, as the daemon's injector does: send_agent PID TIMES [PAUSE-US]
// Says how often it was done, how often it was not the moment, and what else was answered:
//   sent N, not now N, others N: REASON
// Exit status 0; 1 when the process cannot be looked at; 3 when a thread of it did not stop in
// time.
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <string>

#include "daemon/admission/injection.h"

using namespace foldswap;

namespace {

struct Tally {
  long sent = 0, not_now = 0, others = 0;
  std::string reason = "-";
};

}  // namespace

int main(int argc, char** argv) {
  if (argc < 3) return 2;
  const auto stranger = Stranger::open(std::atoi(argv[1]));
  if (!stranger) return 1;
  const auto identity = stranger->identity();
  if (!identity) return 1;
  const long times = std::atol(argv[2]);
  const long pause_us = argc > 3 ? std::atol(argv[3]) : 0;
  Tally tally;
  for (long i = 0; i < times; ++i) {
    const SentAnswer answer = send_agent(*stranger, *identity);
    switch (answer.outcome) {
      case Sent::sent:
        ++tally.sent;
        break;
      case Sent::not_now:
        ++tally.not_now;
        tally.reason = answer.reason;
        break;
      default:
        ++tally.others;
        tally.reason = answer.reason;
    }
    if (pause_us != 0) ::usleep(static_cast<useconds_t>(pause_us));
  }
  std::printf("sent %ld, not now %ld, others %ld: %s\n", tally.sent, tally.not_now, tally.others,
              tally.reason.c_str());
  return 0;
}
