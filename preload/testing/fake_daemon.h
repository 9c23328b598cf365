// A small foldswapd for the preload library's tests: speaks base/wire.h with a real userfaultfd,
// keeps evicted pages in a map, and answers faults, events and requests on a thread of its own.
// Needs root and /dev/userfaultfd. Thread safety: the test's thread drives; what the serving thread
// shares is under mutex_ or in the mailbox.
#pragma once

#include <linux/userfaultfd.h>

#include <array>
#include <atomic>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "base/mapping.h"
#include "base/unique_fd.h"
#include "base/wire.h"

namespace foldswap::preload_test {

using PageBytes = std::array<std::byte, wire::kPageBytes>;

struct ServedRequest {
  wire::RequestOp op;
  std::uint64_t start, bytes;
};

class FakeClient {
 public:
  FakeClient(UniqueFd socket, UniqueFd uffd, const wire::Hello& hello, Mapping mailbox,
             Mapping transfer);
  ~FakeClient();
  FakeClient(const FakeClient&) = delete;
  FakeClient& operator=(const FakeClient&) = delete;

  [[nodiscard]] const wire::Hello& hello() const { return hello_; }
  [[nodiscard]] wire::Mailbox& box() const { return *mailbox_.as<wire::Mailbox>(); }
  [[nodiscard]] const std::byte* transfer() const { return transfer_.data(); }
  // The lifeline has hung up.
  [[nodiscard]] bool agent_gone(int wait_ms) const;

  // Posts one run of pages at `start` (and its range to register) and waits until it is done.
  // `tweak` may change the command before it is posted. Moved pages are taken into the store.
  wire::Command evict(std::uint32_t half, std::uint64_t start, std::uint32_t pages);
  wire::Command evict(std::uint32_t half, const std::vector<wire::Run>& runs,
                      const std::vector<wire::Range>& regs, std::uint32_t epoch,
                      std::uint32_t threads);
  [[nodiscard]] std::size_t stored();
  [[nodiscard]] std::vector<ServedRequest> requests();
  [[nodiscard]] unsigned events(unsigned kind);
  // A duplicate of the userfaultfd of the latest child; not valid: there is none.
  [[nodiscard]] UniqueFd latest_child();
  // No request is answered from now on.
  void set_mode(wire::ClientMode mode);

  std::atomic<bool> refuse_requests{false};

 private:
  struct Space {  // the client, or a child of its
    UniqueFd uffd;
    std::map<std::uint64_t, PageBytes> store;
    std::vector<uffd_msg> parked;
    bool born_in_flight = false;  // forked while a command ran: gets what that command moved, too
  };
  void take(std::uint32_t half, const wire::Command& command);
  void serve(const std::stop_token& stop);
  void serve_space(Space& space, bool with_layout);
  void fault(Space& space, const uffd_msg& message);
  void event(Space& space, const uffd_msg& message);
  void serve_request();
  std::uint32_t answer(const wire::Request& request);
  bool lock_layout();
  void unlock_layout();
  static void bring_back(Space& space, std::uint64_t start, std::uint64_t bytes);

  UniqueFd socket_;
  wire::Hello hello_;
  Mapping mailbox_, transfer_;
  std::mutex mutex_;
  std::vector<std::unique_ptr<Space>> spaces_;  // [0]: the client
  std::vector<wire::Range> registered_;
  std::vector<ServedRequest> requests_;
  std::map<unsigned, unsigned> events_;
  bool in_flight_ = false;  // a command is posted: a missing page may be in the transfer area
  std::jthread thread_;
};

// What a child's agent said in its Hello, and its mailbox.
struct ChildHello {
  bool came = false;
  wire::Hello hello{};
  Mapping mailbox;
  [[nodiscard]] wire::Mailbox& box() const { return *mailbox.as<wire::Mailbox>(); }
};

class FakeDaemon {
 public:
  FakeDaemon();
  ~FakeDaemon();
  FakeDaemon(const FakeDaemon&) = delete;
  FakeDaemon& operator=(const FakeDaemon&) = delete;

  [[nodiscard]] const std::string& directory() const { return directory_; }
  // The whole handshake with the next client; null when none comes or it hangs up.
  [[nodiscard]] std::unique_ptr<FakeClient> accept();
  // The same with the agent of the latest child that `parent` forked: gets the userfaultfd that the
  // FORK event brought.
  [[nodiscard]] ChildHello accept_child(FakeClient& parent);
  // Dies over the next client's Hello, with its staging registered. Its userfaultfd stays open, and
  // nobody reads it.
  [[nodiscard]] UniqueFd die_over_hello();
  // Answers the next client with Refused, or with a Welcome of another version.
  void refuse(const char* reason);
  void speak_version(std::uint32_t version);

 private:
  [[nodiscard]] UniqueFd next() const;
  bool welcome(int socket, int mailbox, int transfer) const;
  UniqueFd lifeline_;  // of the latest child

  std::string directory_;
  UniqueFd listener_;
};

// Why these tests cannot run here; empty: they can.
[[nodiscard]] std::string missing_requirement();

}  // namespace foldswap::preload_test
