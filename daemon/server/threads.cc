#include "daemon/server/threads.h"

#include <fcntl.h>
#include <pthread.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <csignal>
#include <cstring>
#include <string>
#include <utility>

#include "daemon/host/log.h"

namespace foldswap {
namespace {

constexpr std::uint64_t kIdleUs = 1'000'000;  // a kick or an event comes first

}  // namespace

FaultThread::FaultThread(Os& os, const Tunables& tunables, std::unique_ptr<FaultService> service,
                         Removed removed)
    : os_(os), tunables_(tunables), service_(std::move(service)), removed_(std::move(removed)) {}

void FaultThread::stop() {
  stop_ = true;
  const std::uint64_t one = 1;
  if (kick_.valid()) (void)!::write(kick_.get(), &one, sizeof(one));
  if (thread_.joinable()) thread_.join();
}

Status FaultThread::start() {
  epoll_.reset(::epoll_create1(EPOLL_CLOEXEC));
  kick_.reset(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!epoll_.valid() || !kick_.valid()) return fail_errno("epoll or eventfd failed");
  epoll_event event{};
  event.events = EPOLLIN;
  event.data.ptr = nullptr;
  if (::epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, kick_.get(), &event) != 0)
    return fail_errno("epoll_ctl failed");
  event.data.ptr = this;
  DiskReader* const reader = service_->reader();
  if (reader != nullptr && ::epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, reader->fd(), &event) != 0)
    return fail_errno("epoll_ctl failed for io_uring");
  thread_ = std::thread([this] { run(); });
  return {};
}

void FaultThread::add(std::shared_ptr<Client> client) {
  {
    const RankedLock lock(mutex_);
    new_.push_back(std::move(client));
  }
  kicked_ = true;
  const std::uint64_t one = 1;
  (void)!::write(kick_.get(), &one, sizeof(one));
}

void FaultThread::kick(Client& client) {
  if (client.kicked.exchange(true)) return;
  if (kicked_.exchange(true)) return;
  const std::uint64_t one = 1;
  (void)!::write(kick_.get(), &one, sizeof(one));
}

void FaultThread::take_new() {
  std::vector<std::shared_ptr<Client>> fresh;
  {
    const RankedLock lock(mutex_);
    fresh.swap(new_);
  }
  for (auto& client : fresh) {
    auto served = std::make_unique<Served>();
    served->client = std::move(client);
    served->ready = true;
    epoll_event event{};
    event.events = EPOLLIN;
    event.data.ptr = served.get();
    if (::epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, served->client->uffd.get(), &event) != 0) {
      served->client->kill(std::string("its userfaultfd cannot be waited for: ") +
                           std::strerror(errno));
    }
    served_.push_back(std::move(served));
  }
}

bool FaultThread::step_ready(std::uint64_t now_us) {
  bool worked = false;
  for (std::size_t i = 0; i < served_.size(); ++i) {
    Served& served = *served_[i];
    Client& client = *served.client;
    if (!served.ready && !client.kicked && (served.due_us == 0 || served.due_us > now_us)) continue;
    const StepResult result = service_->step(client);
    served.ready = result.again;
    served.due_us = result.retry_us == 0 ? 0 : os_.now_us() + result.retry_us;
    worked = worked || result.worked;
    if (client.reader_done) {
      (void)::epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, client.uffd.get(), nullptr);
      const auto keep = served.client;
      served_.erase(served_.begin() + static_cast<std::ptrdiff_t>(i--));
      removed_(*keep);
    }
  }
  return worked;
}

std::uint64_t FaultThread::next_due_us() const {
  std::uint64_t due = ~std::uint64_t{0};
  for (const auto& served : served_) {
    if (served->ready || served->client->kicked) return 0;
    if (served->due_us != 0) due = std::min(due, served->due_us);
  }
  return due;
}

// True when a descriptor became readable.
bool FaultThread::wait(std::uint64_t timeout_us) {
  std::array<epoll_event, 64> events{};
  const timespec timeout{static_cast<time_t>(timeout_us / 1'000'000),
                         static_cast<long>(timeout_us % 1'000'000) * 1'000};
  const int n = ::epoll_pwait2(epoll_.get(), events.data(), events.size(), &timeout, nullptr);
  bool any = false;
  for (int i = 0; i < n; ++i) {
    const epoll_event& event = events[static_cast<std::size_t>(i)];
    if (event.data.ptr == nullptr) {
      std::uint64_t count = 0;
      (void)!::read(kick_.get(), &count, sizeof(count));
      kicked_ = false;
      continue;
    }
    if (event.data.ptr == this) continue;  // disk reads: taken in run()
    auto* served = static_cast<Served*>(event.data.ptr);
    if ((event.events & EPOLLERR) != 0) {
      // A userfaultfd polls as an error when somebody made it blocking (HAZARDS 8): made right
      // again.
      const int flags = ::fcntl(served->client->uffd.get(), F_GETFL);
      (void)::fcntl(served->client->uffd.get(), F_SETFL, flags | O_NONBLOCK);
    }
    served->ready = true;
    any = true;
  }
  return any;
}

void FaultThread::run() {
  ::pthread_setname_np(::pthread_self(), "fs-fault");
  std::uint64_t worked_at_us = 0;
  while (!stop_) {
    turns_.fetch_add(1, std::memory_order_relaxed);
    take_new();
    if (DiskReader* const reader = service_->reader()) (void)reader->reap();
    const std::uint64_t now_us = os_.now_us();
    if (step_ready(now_us)) worked_at_us = os_.now_us();
    const std::uint64_t due = next_due_us();
    const std::uint64_t after = os_.now_us();
    std::uint64_t timeout = due == 0                   ? 0
                            : due == ~std::uint64_t{0} ? kIdleUs
                            : due > after              ? due - after
                                                       : 0;
    // A sleeping reader costs the next fault 10 us more than a polling one (KERNEL.md).
    if (after - worked_at_us < tunables_.spin_us.load(std::memory_order_relaxed)) timeout = 0;
    (void)wait(std::min(timeout, kIdleUs));
  }
}

EvictThread::EvictThread(Os& os, std::unique_ptr<Evictor> evictor, BudgetBook& budgets)
    : os_(os), evictor_(std::move(evictor)), budgets_(budgets) {}

void EvictThread::stop() {
  stop_ = true;
  kick();
  if (thread_.joinable()) thread_.join();
}

void EvictThread::start() {
  thread_ = std::thread([this] { run(); });
}

void EvictThread::add(std::shared_ptr<Client> client) {
  {
    const RankedLock lock(mutex_);
    new_.push_back(std::move(client));
  }
  kick();
}

void EvictThread::kick() {
  add_word(kick_word_);
  os_.futex_wake(&kick_word_);
}

void EvictThread::run() {
  ::pthread_setname_np(::pthread_self(), "fs-evict");
  std::vector<FutexWait> waits;
  while (!stop_) {
    turns_.fetch_add(1, std::memory_order_relaxed);
    waits.clear();
    waits.push_back({&kick_word_, load_word(kick_word_)});
    {
      const RankedLock lock(mutex_);
      for (auto& client : new_) clients_.push_back(std::move(client));
      new_.clear();
    }
    std::uint64_t delay = kIdleUs;
    for (const auto& client : clients_) {
      // The value comes before the look: what is posted in between ends the wait at once.
      if (client->mailbox != nullptr && waits.size() < 128) {
        waits.push_back({&client->mailbox->to_daemon, load_word(client->mailbox->to_daemon)});
      } else if (client->mailbox != nullptr) {
        delay = std::min<std::uint64_t>(delay, 2'000);  // beyond what one futex_waitv can watch
      }
      delay = std::min(delay, evictor_->step(*client));
    }
    std::erase_if(clients_, [&](const auto& client) {
      if (!client->reader_done) return false;
      evictor_->forget(*client);
      budgets_.forget(*client);
      return true;
    });
    if (delay != 0 && !stop_) os_.futex_wait_any(waits, delay);
  }
}

}  // namespace foldswap
