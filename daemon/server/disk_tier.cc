#include "daemon/server/disk_tier.h"

#include <poll.h>
#include <pthread.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <array>
#include <span>

#include "daemon/host/log.h"

namespace foldswap {

Result<std::unique_ptr<DiskTier>> DiskTier::create(Os& os, State& state, PageStore& store,
                                                   const Tunables& tunables,
                                                   const Settings& settings) {
  auto file = BackingFile::create(os, state, settings.directory,
                                  {tunables.writeback_max, tunables.writeback_free_min});
  if (!file) return std::unexpected(file.error());
  return go_on(os, state, store, tunables, settings, *file);
}

Result<std::unique_ptr<DiskTier>> DiskTier::go_on(Os& os, State& state, PageStore& store,
                                                  const Tunables& tunables,
                                                  const Settings& settings,
                                                  std::unique_ptr<BackingFile>& file) {
  std::unique_ptr<DiskTier> tier(new DiskTier(os, state, store));
  file->set_limits({tunables.writeback_max, tunables.writeback_free_min});
  if (auto made = tier->make_seal(settings.encrypt); !made) return std::unexpected(made.error());
  tier->wake_ = UniqueFd(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!tier->wake_.valid()) return fail_errno("eventfd failed");
  tier->traffic_.want_room = [fd = tier->wake_.get()] {
    const std::uint64_t one = 1;
    (void)!::write(fd, &one, sizeof(one));
  };
  auto writeback =
      Writeback::create(os, state, store, *file, *tier->seal_, tier->traffic_, tunables);
  if (!writeback) return std::unexpected(writeback.error());
  tier->file_ = std::move(file);
  tier->writeback_ = std::move(*writeback);
  store.set_backing(tier->file_.get());
  log::info("cold pages may move to {} ({})", settings.directory, tier->cipher());
  return tier;
}

// The key is made once and stays in the state file: whatever is in the backing file can be read for
// as long as that lives, and by nobody later.
Status DiskTier::make_seal(bool encrypt) {
  WritebackState& kept = state_.header().writeback;
  if (kept.has_key == 0) {
    Seal::random_key(kept.key);
    kept.has_key = 1;
  }
  const Seal::Kind kind = encrypt ? Seal::best_encryption() : Seal::Kind::checksum;
  auto seal = Seal::make(kind, kept.key);
  if (!seal) return std::unexpected(seal.error());
  seal_ = std::move(*seal);
  return {};
}

DiskTier::~DiskTier() {
  stop();
  writeback_.reset();
  store_.set_backing(nullptr);
}

Result<std::unique_ptr<DiskReader>> DiskTier::make_reader() {
  return DiskReader::create(os_, store_, *file_, *seal_, traffic_, state_.counters());
}

void DiskTier::start() {
  thread_ = std::thread([this] { run(); });
}

void DiskTier::stop() {
  stop_ = true;
  if (wake_.valid()) traffic_.want_room();
  if (thread_.joinable()) thread_.join();
}

void DiskTier::run() {
  ::pthread_setname_np(::pthread_self(), "fs-write");
  while (!stop_) {
    const std::uint64_t us = writeback_->step();
    if (us == 0) continue;
    std::array<pollfd, 2> waits{pollfd{writeback_->fd(), POLLIN, 0},
                                pollfd{wake_.get(), POLLIN, 0}};
    const timespec timeout{static_cast<time_t>(us / 1'000'000),
                           static_cast<long>(us % 1'000'000) * 1'000};
    if (::ppoll(waits.data(), waits.size(), &timeout, nullptr) <= 0) continue;
    std::uint64_t count = 0;
    if ((waits[1].revents & POLLIN) != 0) (void)!::read(wake_.get(), &count, sizeof(count));
  }
}

}  // namespace foldswap
