#include "daemon/admission/injection.h"

#include <sys/auxv.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <csignal>
#include <cstring>
#include <ctime>

#include "daemon/host/call_restart.h"

namespace foldswap {
namespace {

constexpr long kRestartUnlessHandled = -514;  // ERESTARTNOHAND, of the kernel's own
constexpr unsigned long kOf64Bits = 0x33;     // code segment
constexpr unsigned long kTrapFlag = 0x100;
// A thread that does not stop is not held up by us: it runs, or waits for a CPU.
constexpr std::uint64_t kPatienceNs = 1'000'000'000;
constexpr std::uint64_t kSpinNs = 200'000;  // so long it is looked for without a pause
constexpr std::size_t kMostLooked = 32;
constexpr int kWaitedInCode = 1;  // fitness

std::uint64_t now_ns() {
  timespec ts{};
  ::clock_gettime(CLOCK_MONOTONIC, &ts);
  return static_cast<std::uint64_t>(ts.tv_sec) * 1'000'000'000 +
         static_cast<std::uint64_t>(ts.tv_nsec);
}

struct Place {
  std::uint64_t call, user, low, high;  // addresses in the process
};

bool is_restart_code(long value) {
  return value == -512 || value == -513 || value == kRestartUnlessHandled || value == -516;
}

// The lines of /proc/TID/status in which a thread may differ from its leader, and its agent must
// not.
bool same_rights(std::string_view a, std::string_view b) {
  return std::ranges::all_of(
      std::initializer_list<std::string_view>{"Uid", "Gid", "Groups", "CapInh", "CapPrm", "CapEff",
                                              "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp", "NSpid"},
      [&](std::string_view key) {
        // The last number of NSpid is its own; how many there are is what matters.
        if (key == "NSpid")
          return std::ranges::count(status_value(a, key), '\t') ==
                 std::ranges::count(status_value(b, key), '\t');
        return status_value(a, key) == status_value(b, key);
      });
}

struct Choice {
  pid_t tid = 0;
  int fitness = 99;
};

// State of a thread that may be stopped: runs or sleeps. Not stopped, traced, dead, or asleep where
// signals do not reach.
bool may_be_stopped(std::string_view status) {
  const std::string_view state = status_value(status, "State");
  return !state.empty() && (state[0] == 'R' || state[0] == 'S') &&
         status_value(status, "TracerPid") == "0";
}

Choice choose_thread(const Stranger& stranger, bool user_code, std::string& why) {
  auto threads = stranger.threads();
  // The leader first: it is most like what the agent should be.
  const auto leader = std::ranges::find(threads, stranger.pid());
  if (leader != threads.end()) std::iter_swap(threads.begin(), leader);
  if (threads.size() > kMostLooked) threads.resize(kMostLooked);
  std::string leaders;
  Choice best;
  why = "no thread of it is where it can be stopped";
  for (const pid_t tid : threads) {
    const std::string folder = "task/" + std::to_string(tid);
    const auto status = stranger.read(folder + "/status");
    const auto waits = stranger.read(folder + "/syscall");
    if (!status || !waits) continue;
    if (tid == stranger.pid()) leaders = *status;
    if (status_value(*status, "TracerPid") != "0") {
      why = "somebody else traces it";
      return {};
    }
    if (!may_be_stopped(*status) || !same_rights(leaders, *status)) continue;
    const auto waiting = parse_waiting(*waits);
    std::optional<int> fitness;
    if (waiting) {
      fitness = fitness_of_call(waiting->call);
    } else if (waits->starts_with("running") && user_code) {
      fitness = kWaitedInCode;
    }
    if (fitness && *fitness < best.fitness) best = {tid, *fitness};
  }
  return best;
}

// One traced thread, from SEIZE to DETACH.
class Traced {
 public:
  explicit Traced(pid_t tid) : tid_(tid) {}

  // False: errno says why not.
  [[nodiscard]] bool seize() const {
    return ::ptrace(PTRACE_SEIZE, tid_, nullptr, PTRACE_O_TRACESYSGOOD) == 0 &&
           ::ptrace(PTRACE_INTERRUPT, tid_, nullptr, nullptr) == 0;
  }
  // Waits for the next stop. False: it has ended.
  [[nodiscard]] bool wait() {
    const std::uint64_t until = now_ns() + kPatienceNs;
    for (;;) {
      const pid_t got = ::waitpid(tid_, &status_, __WALL | WNOHANG);
      if (got == tid_) return WIFSTOPPED(status_);
      if (got < 0) return false;
      if (now_ns() > until) ::_exit(kLate);  // only that lets go of a thread that does not stop
      if (now_ns() + kPatienceNs - kSpinNs > until) ::usleep(50);
    }
  }
  [[nodiscard]] bool go_to_next_call() const {
    return ::ptrace(PTRACE_SYSCALL, tid_, nullptr, nullptr) == 0;
  }
  // Eight bytes of its code. They are there, because it is at them; should they not be, this
  // process waits, and is killed.
  // Whether it is between beginning and commit of a restartable sequence (rseq(2)). What tells is
  // in its memory, which it uses itself all the time; should that not be there, this process waits,
  // and is killed.
  [[nodiscard]] bool in_critical_section(std::uint64_t rip) const {
    struct {
      std::uint64_t pointer;
      std::uint32_t size, signature, flags, pad;
    } registered{};
    constexpr int kGetRseqConfiguration = 0x420f;
    constexpr std::uint64_t kCsOffset = 8;
    if (::ptrace(static_cast<__ptrace_request>(kGetRseqConfiguration), tid_, sizeof(registered),
                 &registered) <= 0)
      return errno != EINVAL && errno != EIO;  // a kernel without it, or an error
    if (registered.pointer == 0) return false;
    std::uint64_t section = 0;
    if (!peek(registered.pointer + kCsOffset, section)) return true;
    if (section == 0) return false;
    // version and flags; then where it starts, and how long it is
    std::uint64_t start = 0, length = 0;
    return !peek(section + 8, start) || !peek(section + 16, length) || rip - start < length;
  }
  // Our own interruption, and nothing else.
  [[nodiscard]] bool interrupted() const {
    return status_ >> 16 == PTRACE_EVENT_STOP && WSTOPSIG(status_) == SIGTRAP;
  }
  [[nodiscard]] bool at_call() const { return WSTOPSIG(status_) == (SIGTRAP | 0x80); }
  [[nodiscard]] bool get(user_regs_struct& regs) const {
    return ::ptrace(PTRACE_GETREGS, tid_, nullptr, &regs) == 0;
  }
  [[nodiscard]] bool set(const user_regs_struct& regs) const {
    return ::ptrace(PTRACE_SETREGS, tid_, nullptr, &regs) == 0;
  }
  [[nodiscard]] bool get_mask(std::uint64_t& mask) const {
    return ::ptrace(PTRACE_GETSIGMASK, tid_, sizeof(mask), &mask) == 0;
  }
  [[nodiscard]] bool peek(std::uint64_t address, std::uint64_t& word) const {
    errno = 0;
    word = static_cast<std::uint64_t>(::ptrace(PTRACE_PEEKDATA, tid_, address, nullptr));
    return errno == 0;
  }
  void set_mask(std::uint64_t mask) const {
    (void)::ptrace(PTRACE_SETSIGMASK, tid_, sizeof(mask), &mask);
  }
  // With the signal that it was about to get, if any; a call that our interruption has ended is
  // made again. One that has died meanwhile is reaped.
  void let_go() {
    let_call_restart(tid_, status_);
    const int signal = status_ >> 16 != 0 || at_call() ? 0 : WSTOPSIG(status_);
    if (::ptrace(PTRACE_DETACH, tid_, nullptr, static_cast<long>(signal)) != 0) (void)wait();
  }

 private:
  const pid_t tid_;
  int status_ = 0;
};

// What it goes on with: `before` as it was, but a call that has given up because of us is made
// again, unless a signal handler runs.
user_regs_struct resumed(const user_regs_struct& before) {
  user_regs_struct regs = before;
  const auto call = static_cast<long>(before.orig_rax);
  if (call >= 0 && static_cast<long>(before.rax) == -EINTR && restartable(call))
    regs.rax = static_cast<unsigned long>(kRestartUnlessHandled);
  return regs;
}

// Registers with which it runs the gadget, and goes on by itself afterwards. False: not from here.
bool enter_gadget(const user_regs_struct& resume, const Place& place, user_regs_struct& regs) {
  regs = resume;
  const auto call = static_cast<long>(resume.orig_rax);
  if (call >= 0) {
    const bool again = is_restart_code(static_cast<long>(resume.rax));
    constexpr unsigned long kCallBytes = 2;  // of the instruction
    regs.rcx = again ? resume.rip - kCallBytes : resume.rip;
    regs.r11 = again ? resume.orig_rax : resume.rax;
    regs.rip = place.call;
  } else {
    if (resume.gs_base != 0) return false;
    regs.gs_base = resume.rip;
    regs.rip = place.user;
  }
  regs.orig_rax = ~0UL;
  return true;
}

std::string clone_failed(long error) {
  const char* hint = error == -EAGAIN ? " (RLIMIT_NPROC or pids.max of its cgroup)" : "";
  return std::string("it may not have another thread: ") + std::strerror(static_cast<int>(-error)) +
         hint;
}

// From here the thread is stopped, by us.
SentAnswer run_gadget(Traced& thread, const Place& place) {
  user_regs_struct before{};
  if (!thread.get(before)) return {Sent::gone, "it has ended"};
  const bool in_code = static_cast<long>(before.orig_rax) < 0;
  if (before.cs != kOf64Bits || (before.eflags & kTrapFlag) != 0 ||
      (before.rip >= place.low && before.rip < place.high)) {
    thread.let_go();
    return {Sent::not_now, "its thread is where it cannot be stopped"};
  }
  // The kernel would forget a critical section of restartable sequences whose program counter is
  // moved.
  if (in_code && thread.in_critical_section(before.rip)) {
    thread.let_go();
    return {Sent::not_now, "its thread is in a critical section"};
  }
  const user_regs_struct resume = resumed(before);
  user_regs_struct regs{};
  std::uint64_t mask = 0;
  if (!enter_gadget(resume, place, regs) || !thread.get_mask(mask) || !thread.set(regs)) {
    (void)thread.set(resume);
    thread.let_go();
    return {Sent::not_now, "its thread uses gs"};
  }
  constexpr int kMaskDone = 2, kCloneDone = 4;  // system call stops: two for each call
  for (int stops = 0;;) {
    if (!thread.go_to_next_call() || !thread.wait()) return {Sent::gone, "it has ended"};
    user_regs_struct now{};
    if (!thread.get(now)) return {Sent::gone, "it has ended"};
    if (thread.at_call()) {
      if (now.rip < place.low || now.rip > place.high) {
        thread.let_go();  // it is through, and has done nothing
        return {Sent::not_now,
                "an agent has just come, or it is in a call for which it must be alone"};
      }
      if (++stops < kCloneDone) continue;
    }
    // Done; or a signal, or a stop for others: all as it was, and another time.
    if (stops >= kMaskDone) thread.set_mask(mask);
    (void)thread.set(resume);
    thread.let_go();
    if (stops < kCloneDone) return {Sent::not_now, "its thread got a signal"};
    const auto tid = static_cast<long>(now.rax);
    if (tid > 0) return {Sent::sent, ""};
    return {tid == -513 || tid == -EAGAIN || tid == -ENOMEM ? Sent::not_now : Sent::refused,
            clone_failed(tid)};
  }
}

}  // namespace

std::optional<Waiting> parse_waiting(std::string_view text) {
  // "NUMBER ARGUMENTS... SP PC", "-1 SP PC", or "running".
  Waiting waiting{};
  const auto number = std::from_chars(text.data(), text.data() + text.size(), waiting.call);
  if (number.ec != std::errc{}) return std::nullopt;
  while (text.ends_with('\n')) text.remove_suffix(1);
  const std::size_t last = text.rfind(" 0x");
  if (last == std::string_view::npos) return std::nullopt;
  const auto pc =
      std::from_chars(text.data() + last + 3, text.data() + text.size(), waiting.pc, 16);
  if (pc.ec != std::errc{}) return std::nullopt;
  return waiting;
}

// Calls that the kernel makes again by itself come first, then a thread in its own code, then those
// that it has to be told to make again (call_restart.h). Nothing else: it may have been done in
// part.
std::optional<int> fitness_of_call(long call) {
  constexpr int kBest = 0, kLast = 2;
  switch (call) {
    case SYS_read:
    case SYS_recvfrom:
    case SYS_recvmsg:
    case SYS_accept:
    case SYS_accept4:
    case SYS_wait4:
    case SYS_waitid:
    case SYS_futex:
    case SYS_nanosleep:
    case SYS_clock_nanosleep:
    case SYS_poll:
    case SYS_ppoll:
    case SYS_select:
    case SYS_pselect6:
    case SYS_pause:
    case SYS_rt_sigsuspend:
    case SYS_restart_syscall:  // one of these, which has been interrupted before
      return kBest;
    case SYS_write:
    case SYS_writev:
    case SYS_sendto:
    case SYS_sendmsg:
    case SYS_sendmmsg:
    case SYS_fallocate:
      return std::nullopt;
    default:
      return restartable(call) ? std::optional(kLast) : std::nullopt;
  }
}

namespace {

// What cannot be opened or read may be there again; but what is forbidden, or not what it should
// be, stays so.
Sent failed_for_now(const Error& error) {
  return error.code == 0 || error.code == EPERM || error.code == EACCES ? Sent::refused
                                                                        : Sent::not_now;
}

// A vfork child, until it executes its program: whose agent would it be?
bool shares_memory_with_parent(pid_t pid, std::string_view status) {
  constexpr int kVm = 1;  // KCMP_VM
  pid_t parent = 0;
  const std::string_view text = status_value(status, "PPid");
  (void)std::from_chars(text.data(), text.data() + text.size(), parent);
  return parent > 0 && ::syscall(SYS_kcmp, pid, parent, kVm, 0, 0) == 0;
}

}  // namespace

SentAnswer send_agent(const Stranger& stranger, const Identity& identity) {
  const auto now = stranger.identity();
  if (!now || *now != identity) return {Sent::gone, "it has ended, or is another program"};
  const auto library = stranger.library();
  if (!library) return {failed_for_now(library.error()), library.error().text()};
  const auto gadget = stranger.gadget(*library);
  if (!gadget) return {failed_for_now(gadget.error()), gadget.error().text()};
  const auto status = stranger.read("status");
  if (!status) return {Sent::gone, "it has ended"};
  if (status_value(*status, "Seccomp") != "0")
    return {Sent::refused, "a seccomp filter is in force"};
  if (shares_memory_with_parent(stranger.pid(), *status))
    return {Sent::not_now, "it shares its memory with its parent"};
  constexpr unsigned long kFsGsBase = 2;  // HWCAP2: instructions that the gadget uses
  std::string why;
  const Choice choice = choose_thread(stranger, (::getauxval(AT_HWCAP2) & kFsGsBase) != 0, why);
  if (choice.tid == 0) return {Sent::not_now, why};
  const auto address = [&](std::uint64_t offset) {
    return library->start + (offset - library->offset);
  };
  const Place place{address(gadget->call), address(gadget->user),
                    address(std::min(gadget->call, gadget->user)), address(gadget->end)};
  Traced thread(choice.tid);
  if (!thread.seize()) {
    const int error = errno;
    if (error == ESRCH) return {Sent::not_now, "its thread has ended"};
    return {Sent::refused, std::string("it may not be traced: ") + std::strerror(error)};
  }
  if (!thread.wait()) return {Sent::gone, "it has ended"};
  if (!thread.interrupted()) {
    thread.let_go();
    return {Sent::not_now, "its thread got a signal"};
  }
  // What is looked at from here on holds: it stands still, and only it could execute another
  // program. (Another thread could, but then this one would be gone.)
  const auto same = stranger.identity();
  if (!same || *same != identity || !stranger.still_mapped(*library)) {
    thread.let_go();
    return {Sent::gone, "it is another program"};
  }
  return run_gadget(thread, place);
}

}  // namespace foldswap
