// The system calls of the library's code in a simulated process: sim/shadow/preload/machine.h.
#include <fcntl.h>
#include <linux/futex.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "sim/process.h"

namespace foldswap::sim {
namespace {

Processes* g_processes = nullptr;
constexpr long kPagemapFd = 1'000, kMapsFd = 1'001;

Process& running() {
  return *g_processes->find(g_processes->world.scheduler.owner());
}

long ioctl_call(Process& process, unsigned long request, void* argument) {
  Kernel& kernel = g_processes->kernel;
  Space& space = process.space;
  switch (request) {
    case UFFDIO_REGISTER: {
      const auto& r = *static_cast<uffdio_register*>(argument);
      return kernel.register_range(space, r.range.start, r.range.len);
    }
    case UFFDIO_UNREGISTER: {
      const auto& r = *static_cast<uffdio_range*>(argument);
      return kernel.unregister_range(space, r.start, r.len);
    }
    case UFFDIO_CONTINUE: {
      const auto& r = *static_cast<uffdio_continue*>(argument);
      return kernel.probe(space, r.range.start, r.range.len);
    }
    case uapi::kProcmapQuery:
      return Kernel::query_mapping(space, *static_cast<uapi::ProcmapQuery*>(argument));
    case uapi::kUffdioMove: {
      auto& move = *static_cast<uapi::UffdMove*>(argument);
      return kernel.move(space, move.dst, move.src, move.len, move.move);
    }
    default:
      return -EINVAL;
  }
}

long madvise_call(Process& process, std::uint64_t start, std::uint64_t bytes, long advice) {
  if (advice == MADV_COLD) return 0;  // staging is not locked
  if (advice != uapi::kMadvDontneedLocked) return -EINVAL;
  Task agent;
  g_processes->kernel.discard(process.space, agent, start, bytes, {});
  return 0;
}

long mincore_call(const Process& process, std::uint64_t start, std::uint64_t bytes,
                  unsigned char* pages) {
  for (std::uint64_t i = 0; i < bytes / kPage; ++i) {
    pages[i] = Kernel::present(process.space, start + i * kPage) ? 1 : 0;
  }
  return 0;
}

long pread_call(const Process& process, std::uint64_t* words, std::uint64_t bytes,
                std::uint64_t offset) {
  for (std::uint64_t i = 0; i < bytes / 8; ++i) {
    words[i] = Kernel::pagemap_word(process.space, (offset / 8 + i) * kPage);
  }
  return static_cast<long>(bytes);
}

// A write that changes nothing, to a page that must be there (Executor::write_nothing).
long wake_op_call(Process& process, std::uint64_t page) {
  if (!Kernel::present(process.space, page)) return -EFAULT;
  Task agent;
  Frame* frame = nullptr;
  (void)g_processes->kernel.touch(process.space, agent, page, true, frame);
  return 0;
}

long futex_call(Process& process, const std::uint32_t* word, long op, std::uint32_t value,
                const timespec* timeout, std::uint64_t second) {
  World& world = g_processes->world;
  switch (op & ~FUTEX_PRIVATE_FLAG) {
    case FUTEX_WAIT: {
      const std::uint64_t ns = static_cast<std::uint64_t>(timeout->tv_sec) * 1'000'000'000 +
                               static_cast<std::uint64_t>(timeout->tv_nsec);
      const auto changed = [word, value] {
        return __atomic_load_n(word, __ATOMIC_SEQ_CST) != value;
      };
      if (changed()) return -EAGAIN;
      return world.scheduler.wait(changed, world.clock_ns + ns) ? 0 : -ETIMEDOUT;
    }
    case FUTEX_WAKE:
      return 0;  // who waits looks at the word
    case FUTEX_WAKE_OP:
      return wake_op_call(process, second);
    default:
      return -ENOSYS;
  }
}

}  // namespace

void serve_processes(Processes* processes) {
  g_processes = processes;
}

// Now and then somebody stops an agent, wherever it is (HAZARDS 38).
void client_pause() {
  World& world = g_processes->world;
  if (world.scheduler.name().starts_with("agent ") && world.random.once_in(1'200)) {
    ++world.counts.stopped_agents;
    world.trace("agent stopped", static_cast<std::uint64_t>(world.scheduler.owner()));
    world.scheduler.wait([] { return false; },
                         world.clock_ns + world.random.between(20, 400) * 1'000'000);
  }
  if (world.random.once_in(6)) world.scheduler.yield();
}

long client_call(long number, long a, long b, long c, long d, long e, long f) {
  (void)f;
  client_pause();
  World& world = g_processes->world;
  Process& process = running();
  const auto at = static_cast<std::uint64_t>(a);
  switch (number) {
    case SYS_ioctl:
      return ioctl_call(process, static_cast<unsigned long>(b), reinterpret_cast<void*>(c));
    case SYS_madvise:
      return madvise_call(process, at, static_cast<std::uint64_t>(b), c);
    case SYS_mincore:
      return mincore_call(process, at, static_cast<std::uint64_t>(b),
                          reinterpret_cast<unsigned char*>(c));
    case SYS_openat:
      return std::strstr(reinterpret_cast<const char*>(b), "/maps") != nullptr ? kMapsFd
                                                                               : kPagemapFd;
    case SYS_pread64:
      return pread_call(process, reinterpret_cast<std::uint64_t*>(b), static_cast<std::uint64_t>(c),
                        static_cast<std::uint64_t>(d));
    case SYS_futex:
      return futex_call(process, reinterpret_cast<const std::uint32_t*>(a), b,
                        static_cast<std::uint32_t>(c), reinterpret_cast<const timespec*>(d),
                        static_cast<std::uint64_t>(e));
    case SYS_sched_yield:
      world.scheduler.yield();
      return 0;
    case SYS_nanosleep: {
      const auto& time = *reinterpret_cast<const timespec*>(a);
      world.scheduler.wait([] { return false; },
                           world.clock_ns +
                               static_cast<std::uint64_t>(time.tv_sec) * 1'000'000'000 +
                               static_cast<std::uint64_t>(time.tv_nsec));
      return 0;
    }
    case SYS_gettid:
      return world.scheduler.number();  // only that no two fibers have the same one counts
    case SYS_waitid:
      return -ECHILD;
    case SYS_close:
    case SYS_rt_sigprocmask:
    case SYS_sched_setaffinity:
    case SYS_tkill:
      return 0;
    default:
      world.fail("the library makes a system call that the simulator does not know: " +
                 std::to_string(number));
      return -ENOSYS;
  }
}

// From staging, which is the simulated client's, or within our own memory.
void client_copy(void* to, const void* from, std::size_t bytes) {
  const auto address = reinterpret_cast<std::uint64_t>(from);
  if (address - kStaging >= wire::kStagingBytes) {
    std::memcpy(to, from, bytes);
    return;
  }
  const Space& space = running().space;
  for (std::size_t at = 0; at < bytes; at += kPage) {
    client_pause();
    const auto found = space.pages.find(address + at);
    if (found == space.pages.end() || found->second.frame == nullptr) {
      g_processes->world.fail("the agent copies a page of staging that is not there");
      return;
    }
    std::memcpy(static_cast<std::byte*>(to) + at, found->second.frame->bytes.data(), kPage);
  }
}

}  // namespace foldswap::sim
