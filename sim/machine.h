// Machine: one simulated computer: the kernel, its processes, a disk, and the daemon's core on it,
// put together as daemon/server/daemon.cc does, each of its threads a fiber. The daemon may die at
// any turn, and at any call through the Os seam, its recovery included: whatever it held stays as
// it is, and the next one is made of its descriptors alone.
//
// Thread safety: none. One instance for the life of the (real) process: what a dead daemon has left
// is never freed.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "daemon/client/registry.h"
#include "daemon/disk/backing_file.h"
#include "daemon/disk/disk_traffic.h"
#include "daemon/evict/budget.h"
#include "daemon/evict/evictor.h"
#include "daemon/fault/disk_reader.h"
#include "daemon/fault/fault_service.h"
#include "daemon/recovery/take_over.h"
#include "daemon/state/state.h"
#include "daemon/testing/fake_disk.h"
#include "daemon/writeback/pool_care.h"
#include "daemon/writeback/writeback.h"
#include "sim/kernel.h"
#include "sim/process.h"
#include "sim/world.h"

namespace foldswap::sim {

// What is the same all through a run; chosen by the seed.
struct Settings {
  explicit Settings(Random& random);
  bool disk = false, keep_copies = false;
  std::uint64_t pool_bytes = 0;
  std::uint64_t resident_bytes = 0;  // budget of each process
  std::uint32_t readahead = 0;
  std::uint64_t quarantine_us = 0;
  unsigned codec = 0, cold_codec = 0;
  unsigned processes = 0, threads = 0;
  std::uint64_t turn_ns = 0;      // the clock's pace
  std::uint64_t preempt = 0;      // once in so many calls of the daemon another fiber goes on
  std::uint64_t crash = 0;        // once in so many turns the daemon dies
  std::uint64_t refuse = 0;       // once in so many times there is no memory
  std::uint64_t damage = 0;       // once in so many turns an object on disk is damaged
  std::uint64_t disk_errors = 0;  // once in so many times a read or write fails
};

class MachineOs final : public Os {
 public:
  MachineOs(World& world, Kernel& kernel, Processes& processes, const Settings& settings);

  FakeDisk disk;
  std::uint64_t io_ended = 0;  // how often something of the disk has
  std::uint64_t die_in = 0;    // calls, then the daemon dies; 0: it does not
  bool die_at_event = false;   // that, as soon as it has read an event
  void damage(std::uint64_t offset) { damaged_.insert(offset); }  // of the file, until written to
  std::function<void()> on_death;

  std::uint64_t now_ns() override;
  void sleep_us(std::uint64_t us) override;
  int uffd_api(int fd, std::uint64_t features) override;
  int uffd_register(int fd, std::uint64_t start, std::uint64_t bytes) override;
  int uffd_unregister(int fd, std::uint64_t start, std::uint64_t bytes) override;
  UffdProgress uffd_copy(int fd, std::uint64_t dst, const std::byte* src,
                         std::uint64_t bytes) override;
  UffdProgress uffd_zeropage(int fd, std::uint64_t dst, std::uint64_t bytes) override;
  int uffd_poison(int fd, std::uint64_t page) override;
  int uffd_wake(int fd, std::uint64_t start, std::uint64_t bytes) override;
  Probe uffd_probe(int fd, std::uint64_t page) override;
  int uffd_read(int fd, std::span<uffd_msg> messages) override;
  Result<UniqueFd> memory_file(const char* name, std::uint64_t bytes) override;
  int punch(int fd, std::uint64_t offset, std::uint64_t bytes) override;
  int allocate(int fd, std::uint64_t offset, std::uint64_t bytes) override;
  Result<UniqueFd> unnamed_file(const std::string& directory, bool direct) override;
  Result<FileSystemInfo> file_system(const std::string& path) override;
  Result<std::uint64_t> allocated_bytes(int fd) override;
  Result<std::unique_ptr<IoRing>> io_ring(int fd, std::span<std::byte> buffers,
                                          unsigned depth) override;
  Result<std::string> read_file(const std::string& path) override;
  Result<std::vector<std::string>> list_directory(const std::string& path) override;
  Result<std::string> read_link(const std::string& path) override;
  int pagemap_scan(int pagemap_fd, uapi::PmScanArg& arg) override;
  Result<UniqueFd> open_maps(const std::string& path) override;
  int query_mapping(int maps_fd, uapi::ProcmapQuery& query) override;
  int read_at(int fd, void* data, std::size_t bytes, std::uint64_t offset) override;
  int robust_list_head(pid_t tid, std::uint64_t& head) override;
  int pidfd_signal(int pidfd, int signal) override;
  void futex_wake(std::uint32_t* word) override;
  void futex_wait_any(std::span<const FutexWait> waits, std::uint64_t timeout_us) override;

 private:
  // Before and after each call: another fiber may go on, or the daemon die. `most_locks`: with more
  // than that held nobody else may run.
  void pause(unsigned most_locks = 0);
  UffdProgress fill(const char* what, int fd, std::uint64_t dst, const std::byte* src,
                    std::uint64_t bytes);
  void trace_fill(const char* what, const Space* space, std::uint64_t page,
                  const UffdProgress& result);
  [[nodiscard]] bool refuses();
  [[nodiscard]] int io_result(FakeIo& io);
  void end_writes(std::uint64_t offset, std::uint64_t bytes);

  World& world_;
  Kernel& kernel_;
  Processes& processes_;
  const Settings& settings_;
  std::set<std::uint64_t> failed_reads_;  // offsets: the next read there works
  std::set<std::uint64_t> damaged_;       // bytes that every read finds changed
};

class Machine {
 public:
  explicit Machine(World& world);
  // So many turns, then everything is brought to rest and looked at. What was wrong is
  // World::failure. `brisk`: they count from the moment when a program is served, and the daemon
  // dies at least once in them.
  void run(std::uint64_t turns, bool brisk);
  [[nodiscard]] std::string describe() const;
  // From here World::counts.table is filled.
  void count_events();

 private:
  struct Served {
    std::shared_ptr<Client> client;
    bool ready = true;
    std::uint64_t due_us = 0;
  };
  struct Daemon {
    std::unique_ptr<State> state;
    Tunables tunables;
    std::unique_ptr<Registry> registry;
    std::unique_ptr<Pool> pool;
    std::unique_ptr<PageStore> store;
    std::unique_ptr<BackingFile> file;
    std::unique_ptr<Seal> seal;
    DiskTraffic traffic;
    bool room_wanted = false;
    std::unique_ptr<Writeback> writeback;
    std::unique_ptr<BudgetBook> budgets;
    std::unique_ptr<FaultService> faults;
    std::unique_ptr<Evictor> evictor;
    std::unique_ptr<PoolCare> care;
    std::vector<std::shared_ptr<Client>> new_for_reader, new_for_evictor;
    std::vector<Served> served;
    std::vector<std::shared_ptr<Client>> watched;
    std::uint32_t evictor_kick = 0;
    bool up = false;
  };

  // -- the daemon, as daemon.cc, threads.cc, disk_tier.cc
  void start_daemon();
  void boot(Daemon& d);
  [[nodiscard]] Status make_store(Daemon& d);
  [[nodiscard]] Status take_over_store(Daemon& d, Left& left);
  [[nodiscard]] Status make_disk(Daemon& d);
  [[nodiscard]] Status make_threads(Daemon& d);
  void run_reader(Daemon& d);
  void run_evictor(Daemon& d);
  void run_writer(Daemon& d);
  void run_carer(Daemon& d);
  void run_control(Daemon& d);
  void die();
  void bury();
  void close_unnoted();
  [[nodiscard]] bool doomed(const Space& space);

  // -- what the handshake does
  void serve_wish(Daemon& d, Process& process);
  void register_process(Daemon& d, Process& process);
  void attach_child(Daemon& d, Process& process);
  [[nodiscard]] bool agent_parts(Process& process, std::uint64_t client_id, AgentParts& parts);
  // -- what administrators do
  void order_something(Daemon& d);

  void turn();
  void warm_up();
  void force_death(std::uint64_t at, std::uint64_t now, std::uint64_t last);
  bool rest(const char* what, std::uint64_t most_turns, const std::function<bool()>& done);
  void look_for_hangs();
  void damage_something();
  [[nodiscard]] std::shared_ptr<Client> client_of(const Space& space);
  [[nodiscard]] PageIs state_of(const Client& client, const Space& space, std::uint64_t page) const;
  void count_event(Happens event, const Space& space, std::uint64_t start, std::uint64_t end);
  void look_for_lost_pages();
  void watch();
  void check_leftovers();
  void sum_up();

  World& world_;
  Random damage_;  // chance of its own: what runs without damage do does not hang on it
  Settings settings_;
  Kernel kernel_;
  Processes processes_;
  MachineOs os_;
  PoolConfig pool_config_;
  std::set<int> baseline_;  // descriptors that are not the daemon's
  int state_fd_ = -1;
  const State* state_ = nullptr;  // the latest
  Daemon* daemon_ = nullptr;
  bool dead_ = false;
  std::map<std::uint64_t, std::uint64_t> watched_;  // by client: the entry when last looked at
};

}  // namespace foldswap::sim
