#include "daemon/server/daemon.h"

#include <sys/epoll.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <sys/un.h>

#include <algorithm>
#include <array>
#include <csignal>
#include <optional>
#include <string>
#include <utility>

#include "daemon/host/log.h"
#include "daemon/host/notify.h"
#include "daemon/host/pressure.h"
#include "daemon/host/runtime_dir.h"
#include "daemon/recovery/take_over.h"
#include "daemon/server/control.h"

namespace foldswap {
namespace {

enum Token : std::uint64_t {
  kTokenClients = 1ULL << 63,
  kTokenAdmin,
  kTokenVetted,
  kTokenInjected,
  kTokenSummoned,
  kTokenSignal,
};

Status watch(int epoll, int fd, std::uint64_t token) {
  epoll_event event{};
  event.events = EPOLLIN;
  event.data.u64 = token;
  if (::epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event) != 0) return fail_errno("epoll_ctl failed");
  return {};
}

}  // namespace

Daemon::Daemon(Os& os, Config config, std::string runtime_dir, Helpers helpers,
               std::unique_ptr<State> state)
    : os_(os),
      config_(std::move(config)),
      runtime_dir_(std::move(runtime_dir)),
      started_us_(os.now_us()),
      vetting_(std::move(helpers.vetting)),
      injector_(std::move(helpers.injector)),
      state_(std::move(state)),
      budgets_(os) {
  draining_ = state_->header().drained != 0;
}

Result<std::unique_ptr<Daemon>> Daemon::create(Os& os, Config config, std::string runtime_dir,
                                               Helpers helpers, std::unique_ptr<State> state) {
  auto access = Access::resolve(config);
  if (!access) return std::unexpected(access.error());
  std::unique_ptr<Daemon> daemon(new Daemon(os, std::move(config), std::move(runtime_dir),
                                            std::move(helpers), std::move(state)));
  daemon->access_ = std::move(*access);
  if (auto s = daemon->prepare(); !s) {
    // What was taken over must not be closed: the next one tries, and until then the clients wait.
    if (daemon->state_->header().incarnation > 1) (void)daemon.release();
    return std::unexpected(s.error());
  }
  return daemon;
}

Status Daemon::prepare() {
  auto lock = lock_runtime_dir(runtime_dir_);
  if (!lock) return std::unexpected(lock.error());
  lock_ = std::move(*lock);
  if (auto s = make_pool(); !s) return s;
  descriptor_store_ = DescriptorStore::make(*state_);
  registry_->keep_in(descriptor_store_.get());
  handshake_->keep_in(descriptor_store_.get());
  // Whoever takes over has these there already, and clients who wait.
  if (descriptor_store_ != nullptr && state_->header().incarnation == 1) {
    if (auto done = descriptor_store_->begin(); !done) log::warn("{}", done.error().text());
  }
  if (auto s = start_threads(); !s) return s;
  return open_sockets();
}

Daemon::~Daemon() {
  // Before the registry and the pool go.
  stop_threads();
  evict_threads_.clear();
  fault_threads_.clear();
  if (client_listener_.valid()) (void)::unlink((runtime_dir_ + "/client.sock").c_str());
  if (admin_listener_.valid()) (void)::unlink((runtime_dir_ + "/admin.sock").c_str());
}

// None of them is destroyed before all stand still: they kick each other.
void Daemon::stop_threads() {
  for (const auto& thread : evict_threads_) thread->stop();
  carer_.reset();
  if (disk_ != nullptr) disk_->stop();
  for (const auto& thread : fault_threads_) thread->stop();
  stopper_.reset();
}

// Every thread that clients wait for has begun something new since this was true last.
bool Daemon::threads_turned() {
  std::vector<std::uint64_t> turns;
  turns.reserve(fault_threads_.size() + evict_threads_.size());
  for (const auto& thread : fault_threads_) turns.push_back(thread->turns());
  for (const auto& thread : evict_threads_) turns.push_back(thread->turns());
  turns_seen_.resize(turns.size());
  if (!std::ranges::equal(turns, turns_seen_, std::ranges::not_equal_to())) return false;
  turns_seen_ = std::move(turns);
  return true;
}

Status Daemon::make_pool() {
  tunables_.incarnation = state_->header().incarnation;
  const Config config = this->config();
  PoolConfig pool_config;
  pool_config.geometry = {static_cast<std::uint32_t>(config.pool_frame_bytes),
                          static_cast<std::uint32_t>(config.pool_buddies)};
  pool_config.limit_bytes = config.pool_limit.resolve(memory_total());
  registry_ = std::make_unique<Registry>(os_, *state_);
  const bool left_behind = state_->header().files[kPoolMeta].get() >= 0;
  if (auto s = left_behind ? take_over_store(pool_config) : make_store(pool_config); !s) return s;
  registry_->set_placer([this](std::shared_ptr<Client> client) { place(std::move(client)); },
                        [this](Client& client) {
                          reader_of(client).kick(client);
                          kick_evictor(client);
                        });
  handshake_ = std::make_unique<Handshake>(os_, *registry_, vetting_, access_, tunables_, limits_,
                                           draining_, *state_);
  finder_ = std::make_unique<Finder>(
      os_, *registry_, injector_, access_, finder_limits_, runtime_dir_,
      [this](pid_t pid, std::uint64_t bytes) {
        return CgroupLimit::anonymous_room(os_, pid, bytes);
      },
      draining_);
  apply_tunables();
  if (config.writeback_dir.empty() && left_.file == nullptr) return {};
  const DiskTier::Settings settings{config.writeback_dir, config.writeback_encrypt};
  auto disk = left_.file != nullptr
                  ? DiskTier::go_on(os_, *state_, *store_, tunables_, settings, left_.file)
                  : DiskTier::create(os_, *state_, *store_, tunables_, settings);
  if (!disk) return std::unexpected(disk.error());
  disk_ = std::move(*disk);
  return {};
}

Status Daemon::make_store(const PoolConfig& config) {
  auto pool = Pool::create(os_, config);
  if (!pool) return std::unexpected(pool.error());
  pool_ = std::move(*pool);
  store_ = std::make_unique<PageStore>(*pool_);
  note_files(*state_, *pool_);
  return {};
}

// See take_over.h.
Status Daemon::take_over_store(const PoolConfig& config) {
  TakeOver take_over(os_, *state_);
  const auto make = [this](ClientParts parts) { return registry_->make_client(std::move(parts)); };
  if (auto s = take_over.all(make, config, left_); !s) return s;
  pool_ = std::move(left_.pool);
  store_ = std::make_unique<PageStore>(*pool_);
  store_->set_backing(left_.file.get());
  take_over.settle(left_.clients, *store_);
  return {};
}

void Daemon::serve_taken_over(int epoll) {
  if (state_->header().incarnation > 1)
    log::info("took over {} clients of a daemon that died", left_.clients.size());
  for (const auto& client : TakeOver::complete(left_.clients)) {
    client->stays = true;  // it may have been told something by the daemon before
    registry_->add(client);
    handshake_->watch_again(*client, epoll);
  }
  TakeOver(os_, *state_).wake(left_.clients);
  left_.clients.clear();
}

std::uint64_t Daemon::memory_total() const {
  const auto text = os_.read_file("/proc/meminfo");
  return text ? meminfo_bytes(*text, "MemTotal").value_or(0) : 0;
}

Status Daemon::start_threads() {
  const Config config = this->config();
  stopper_ = std::make_unique<ThreadStopper>(
      os_, [this](Client& client) { reader_of(client).kick(client); });
  for (std::uint64_t i = 0; i < config.evict_threads; ++i) {
    auto codec = PageCodec::make();
    if (!codec) return std::unexpected(codec.error());
    auto evictor =
        std::make_unique<Evictor>(os_, *state_, *store_, budgets_, tunables_, std::move(*codec),
                                  [this](Client& client) { reader_of(client).kick(client); });
    if (disk_ != nullptr) evictor->wait_for_room(disk_->traffic());
    evict_threads_.push_back(std::make_unique<EvictThread>(os_, std::move(evictor), budgets_));
  }
  for (std::uint64_t i = 0; i < config.fault_threads; ++i) {
    auto codec = PageCodec::make();
    if (!codec) return std::unexpected(codec.error());
    auto service = std::make_unique<FaultService>(
        os_, *state_, *store_, *registry_, tunables_, std::move(*codec),
        [this](Client& client) { stopper_->stop(registry_->by_id(client.id)); });
    if (disk_ != nullptr) {
      auto reader = disk_->make_reader();
      if (!reader) return std::unexpected(reader.error());
      service->read_from(std::move(*reader));
    }
    fault_threads_.push_back(std::make_unique<FaultThread>(
        os_, tunables_, std::move(service), [this](Client& client) { client_gone(client); }));
  }
  for (auto& thread : fault_threads_) {
    if (auto s = thread->start(); !s) return s;
  }
  for (auto& thread : evict_threads_) thread->start();
  if (disk_ != nullptr) disk_->start();
  auto codec = PageCodec::make();
  if (!codec) return std::unexpected(codec.error());
  carer_ =
      std::make_unique<Carer>(std::make_unique<PoolCare>(*store_, tunables_, std::move(*codec)));
  return {};
}

Result<UniqueFd> Daemon::listen_on(const std::string& name, int type, unsigned mode) {
  const std::string path = runtime_dir_ + "/" + name;
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.size() >= sizeof(address.sun_path))
    return fail("the runtime directory's path is too long: " + runtime_dir_);
  std::ranges::copy(path, address.sun_path);
  UniqueFd socket(::socket(AF_UNIX, type | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!socket.valid()) return fail_errno("socket failed");
  (void)::unlink(path.c_str());  // ours by the lock: a predecessor's
  if (::bind(socket.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)) != 0) {
    return fail_errno("cannot bind " + path);
  }
  if (::chmod(path.c_str(), mode) != 0) return fail_errno("cannot set the mode of " + path);
  if (::listen(socket.get(), 512) != 0) return fail_errno("cannot listen on " + path);
  return socket;
}

Status Daemon::open_sockets() {
  // Who may connect is decided by credentials, not by the mode: the user list can name anybody.
  auto admin = listen_on("admin.sock", SOCK_STREAM, 0666);
  if (!admin) return std::unexpected(admin.error());
  admin_listener_ = std::move(*admin);
  auto clients = listen_on("client.sock", SOCK_SEQPACKET, 0666);
  if (!clients) return std::unexpected(clients.error());
  client_listener_ = std::move(*clients);
  return {};
}

void Daemon::place(std::shared_ptr<Client> client) {
  evictor_of(*client).add(client);
  reader_of(*client).add(std::move(client));
}

FaultThread& Daemon::reader_of(const Client& client) {
  return *fault_threads_[client.id % fault_threads_.size()];
}

EvictThread& Daemon::evictor_of(const Client& client) {
  return *evict_threads_[client.id % evict_threads_.size()];
}

void Daemon::kick_evictor(const Client& client) {
  evictor_of(client).kick();
}

void Daemon::client_gone(Client& client) {
  if (auto shared = registry_->by_id(client.id)) handshake_->retire(std::move(shared));
  registry_->remove(client);
  if (registry_->size() == 0) (void)pool_->trim(0);
}

Result<Daemon::Ending> Daemon::run(const Shell& shell) {
  constexpr std::uint64_t kAliveUs = 1'000'000;
  sigset_t signals;
  sigemptyset(&signals);
  for (const int signal : {SIGTERM, SIGINT, SIGUSR2}) sigaddset(&signals, signal);
  UniqueFd signal_fd(::signalfd(-1, &signals, SFD_CLOEXEC | SFD_NONBLOCK));
  UniqueFd epoll(::epoll_create1(EPOLL_CLOEXEC));
  if (!signal_fd.valid() || !epoll.valid()) return fail_errno("signalfd or epoll failed");
  for (const auto& [fd, token] :
       std::initializer_list<std::pair<int, std::uint64_t>>{{client_listener_.get(), kTokenClients},
                                                            {admin_listener_.get(), kTokenAdmin},
                                                            {vetting_.result_fd(), kTokenVetted},
                                                            {injector_.result_fd(), kTokenInjected},
                                                            {finder_->wake_fd(), kTokenSummoned},
                                                            {signal_fd.get(), kTokenSignal}}) {
    if (auto s = watch(epoll.get(), fd, token); !s) return std::unexpected(s.error());
  }
  serve_taken_over(epoll.get());
  std::optional<Control> control(std::in_place, *this, access_, vetting_);
  shell.alive();
  log::info("ready on {}", runtime_dir_);
  std::uint64_t alive_us = os_.now_us();
  std::thread draining;
  std::atomic<bool> drained{false}, never{false};
  bool settling = false, storing = true, handing_over = false;
  const auto cannot_stop = [](const std::string& why) {
    log::warn("cannot stop yet: {}", why);
    (void)notify_now(manager_socket().get(), "STATUS=cannot stop yet: " + why);
  };
  // Everything goes back into the clients first (DESIGN §10); while memory does not suffice, it
  // waits.
  const auto drain_all = [&] {
    for (auto done = drain(never); !done; done = drain(never)) {
      cannot_stop(done.error().text());
      os_.sleep_us(1'000'000);
    }
  };
  const auto begin_draining = [&] {
    if (draining.joinable()) return;
    log::info("stopping: bringing everything back first");
    draining = std::thread([&] {
      drain_all();
      drained = true;
    });
  };
  // Nobody else has the userfaultfds of doomed children: when they are closed these read zeros.
  bool told_of_doomed = false;
  const auto may_stop = [&] {
    if (!drained) return false;
    const std::size_t doomed = registry_->doomed_count();
    if (doomed != 0 && !std::exchange(told_of_doomed, true))
      cannot_stop(std::to_string(doomed) + " forked children that had no room still run");
    return doomed == 0;
  };
  while (!may_stop() && !handing_over) {
    std::array<epoll_event, 64> events{};
    const std::uint64_t finder_ms = (finder_->pause_us(os_.now_us()) + 999) / 1000;
    const int longest_ms = settling ? 1 : draining.joinable() || storing ? 50 : 500;
    const int timeout_ms =
        std::min(longest_ms, static_cast<int>(std::min(finder_ms, std::uint64_t{500})));
    const int n = ::epoll_wait(epoll.get(), events.data(), events.size(), timeout_ms);
    for (int i = 0; i < n; ++i) {
      const epoll_event& event = events[static_cast<std::size_t>(i)];
      switch (event.data.u64) {
        case kTokenClients:
          handshake_->accept_one(client_listener_.get(), epoll.get());
          break;
        case kTokenAdmin:
          control->accept_one(admin_listener_.get());
          break;
        case kTokenVetted:
          handshake_->on_vetted();
          break;
        case kTokenInjected:
          finder_->on_reports(os_.now_us());
          if (injector_.ended()) {
            log::error(
                "the injector has ended: no program becomes a client until the daemon is "
                "restarted");
            (void)::epoll_ctl(epoll.get(), EPOLL_CTL_DEL, injector_.result_fd(), nullptr);
          }
          break;
        case kTokenSummoned:
          break;  // step() below
        case kTokenSignal: {
          signalfd_siginfo info{};
          (void)!::read(signal_fd.get(), &info, sizeof(info));
          if (info.ssi_signo != SIGUSR2) {
            if (!handing_over) begin_draining();
          } else if (draining.joinable()) {
            log::warn("no hand-over while everything is brought back");
          } else if (const auto may = shell.may_hand_over()) {
            handing_over = true;
          } else {
            log::warn("cannot hand over: {}", may.error().text());
            if (manager_listens()) begin_draining();
          }
          break;
        }
        default:
          handshake_->on_socket(event.data.u64, event.events);
          break;
      }
    }
    finder_->step(os_.now_us());
    handshake_->expire(os_.now_us());
    settling = handshake_->settle();
    storing = descriptor_store_ != nullptr && !descriptor_store_->sync(os_.now_us());
    registry_->reap_doomed();
    if (os_.now_us() - alive_us >= kAliveUs && threads_turned()) {
      alive_us = os_.now_us();
      shell.alive();
    }
  }
  control.reset();  // its commands end while the clients are still served
  if (draining.joinable()) draining.join();
  if (!handing_over) {
    drain_all();  // there may have been a `resume`, or an agent of a forked child, since
    log::info("stopped");
    return Ending::drained;
  }
  stop_threads();
  log::info("handing over {} clients", registry_->size());
  return Ending::handed_over;
}

}  // namespace foldswap
