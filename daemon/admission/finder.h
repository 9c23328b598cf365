// Finder: finds the processes that want to be clients, and sends agents to those of which something
// should leave (DESIGN §4). It looks: nobody has to announce himself, and a daemon that starts
// finds all that run already. What it knows of a process it has from its own looks at /proc and
// from the injector (injector.h), which alone opens what may never answer.
//
// An agent is sent when the process has more than the least of its budgets leaves (its own, its
// group's, its cgroup's), or when an administrator asks for something that needs one. From then on
// it is a client like any other.
//
// Thread safety: step() and on_reports() from the control thread; summon() and announced() from
// any. Bounded: kMostKnown processes, and of them kMostOfOneUser that are ours of one user.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "base/mutex.h"
#include "daemon/admission/access.h"
#include "daemon/admission/injector.h"
#include "daemon/client/registry.h"

namespace foldswap {

// A process that is no client yet, as administrators see it.
struct Announced {
  pid_t pid = 0;
  std::string name;
  std::uint32_t uid = 0;
  bool refused = false;
  std::string reason;  // why its agent has not come, or cannot; empty: nothing was wanted of it
  std::uint64_t resident_max_bytes = wire::kNoLimit, resident_bytes = 0;
};

class Finder {
 public:
  struct Limits {
    // A process that has less is left alone, if no budget of its own is below that.
    std::atomic<std::uint64_t> min_size{16ULL << 20};
  };
  // What its memory cgroup leaves to a process that has so many bytes; wire::kNoLimit: no limit.
  using Room = std::function<std::uint64_t(pid_t pid, std::uint64_t rss_bytes)>;

  Finder(Os& os, const Registry& registry, Injector& injector, const Access& access,
         const Limits& limits, const std::string& runtime_dir, Room room,
         const std::atomic<bool>& draining);

  // Now and then, and when wake_fd() is readable.
  void step(std::uint64_t now_us);
  // The injector's result_fd() is readable.
  void on_reports(std::uint64_t now_us);
  [[nodiscard]] int wake_fd() const { return wake_.get(); }
  // Until the next step() should come.
  [[nodiscard]] std::uint64_t pause_us(std::uint64_t now_us) const;

  [[nodiscard]] std::vector<Announced> announced() const;
  // Has agents come to the processes whose pid or name it is (nullptr: to all), and waits until
  // they are clients, or it is known why not. Answers those that are not.
  [[nodiscard]] std::vector<Announced> summon(const std::string* pid_or_name,
                                              const std::atomic<bool>& stop);

  static constexpr std::size_t kMostKnown = 100'000, kMostOfOneUser = 4'096;

 private:
  enum class Stage : std::uint8_t {
    fresh,      // nobody knows yet what it is
    looking,    // the injector looks
    other,      // nothing of ours
    announced,  // it may be a client when that is worth it
    sending,    // the injector is sending an agent
    arriving,   // the agent has begun, and has not registered yet
    refused,    // it cannot be one
  };
  struct Process {
    Stage stage = Stage::fresh;
    Identity identity;
    Announced row;
    std::string group;
    std::uint64_t group_max_bytes = wire::kNoLimit;
    bool seen = false, ordered = false;
    std::uint64_t code_pages = 0;  // of its program; 0: not known yet
    std::uint64_t born_us = 0;     // seen first
    std::uint64_t look_at_us = 0;  // whether it is still the same program
    std::uint64_t sample_at_us = 0, sample_every_us = 0;
    std::uint64_t retry_at_us = 0, until_us = 0;  // not before; arriving: not after
    unsigned tries = 0;
  };
  // What the control thread and those that wait for it tell each other.
  struct Order {
    std::string who;  // a pid or a name
    bool all = false;
  };

  void scan(std::uint64_t now_us);
  void look_again(pid_t pid, Process& process, std::uint64_t now_us);
  static void begin_anew(Process& process, std::uint64_t now_us);
  void sample(pid_t pid, Process& process, std::uint64_t now_us);
  void learn(const InjectorReport& report, Process& process);
  void learn_of_agent(const InjectorReport& report, Process& process, std::uint64_t now_us);
  void send(pid_t pid, Process& process, std::uint64_t now_us);
  void put_off(Process& process, std::string reason, std::uint64_t now_us);
  void take_orders();
  void publish();
  [[nodiscard]] static bool fits(const Order& order, const Announced& row);
  [[nodiscard]] std::uint64_t budget_of(pid_t pid, const Process& process) const;
  void forget_clients();
  [[nodiscard]] static bool is_ours(Stage stage);

  Os& os_;
  const Registry& registry_;
  Injector& injector_;
  const Access& access_;
  const Limits& limits_;
  const std::string runtime_dir_;
  const Room room_;
  const std::atomic<bool>& draining_;
  UniqueFd wake_;
  std::map<pid_t, Process> processes_;
  std::map<std::string, std::uint64_t> group_bytes_;  // of all that share one, clients among them
  std::uint64_t scan_at_us_ = 0, next_us_ = 0;
  bool look_at_all_ = false;
  bool changed_ = true;  // what publish() tells
  std::uint64_t orders_seen_ = 0;

  mutable RankedMutex<LockRank::leaf> mutex_;
  std::vector<Announced> rows_ FS_GUARDED_BY(mutex_);
  std::vector<Order> orders_ FS_GUARDED_BY(mutex_);
  bool busy_ FS_GUARDED_BY(mutex_) = false;  // of some process more will be known soon
  std::uint64_t orders_taken_ FS_GUARDED_BY(mutex_) = 0, orders_made_ FS_GUARDED_BY(mutex_) = 0;
};

}  // namespace foldswap
