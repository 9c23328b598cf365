#include "sim/scheduler.h"

#include <algorithm>
#include <utility>

#if defined(__SANITIZE_ADDRESS__)
#include <pthread.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace foldswap::sim {
namespace {

constexpr std::size_t kStackBytes = 512 * 1024;

}  // namespace

void Scheduler::spawn(Owner owner, std::string name, std::function<void()> body) {
  auto fiber = std::make_unique<Fiber>();
  fiber->owner = owner;
  fiber->number = ++spawned_;
  fiber->name = std::move(name);
  fiber->body = std::move(body);
  if (spare_stacks_.empty()) {
    fiber->stack = Mapping::anonymous(kStackBytes).value();
  } else {
    fiber->stack = std::move(spare_stacks_.back());
    spare_stacks_.pop_back();
  }
  (void)::getcontext(&fiber->context);
  fiber->context.uc_stack.ss_sp = fiber->stack.data();
  fiber->context.uc_stack.ss_size = kStackBytes;
  fiber->context.uc_link = nullptr;
  const auto address = reinterpret_cast<std::uint64_t>(this);
  ::makecontext(&fiber->context, reinterpret_cast<void (*)()>(enter), 2,
                static_cast<unsigned>(address >> 32), static_cast<unsigned>(address));
  fibers_.push_back(std::move(fiber));
}

void Scheduler::enter(unsigned high, unsigned low) {
  auto* const self = reinterpret_cast<Scheduler*>((std::uint64_t{high} << 32) | std::uint64_t{low});
  Fiber& fiber = *self->current_;
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, nullptr, nullptr);
#endif
  fiber.body();
  fiber.over = true;
  self->leave(fiber);
}

void Scheduler::run(Fiber& fiber) {
  current_ = &fiber;
  if (hook_) hook_(fiber.owner);
  const rank_check::Held ours = rank_check::exchange_held(fiber.held);
#if defined(__SANITIZE_ADDRESS__)
  void* fake = nullptr;
  __sanitizer_start_switch_fiber(&fake, fiber.stack.data(), kStackBytes);
#endif
  (void)::swapcontext(&outside_, &fiber.context);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(fake, nullptr, nullptr);
#endif
  fiber.held = rank_check::exchange_held(ours);
  current_ = nullptr;
  if (hook_) hook_(kDaemon);
}

void Scheduler::leave(Fiber& fiber) {
#if defined(__SANITIZE_ADDRESS__)
  void* fake = nullptr;
  // The stack outside is known from the switch that came here.
  static thread_local const void* bottom = nullptr;
  static thread_local std::size_t bytes = 0;
  if (bottom == nullptr) {
    pthread_attr_t attributes;
    void* start = nullptr;
    (void)::pthread_getattr_np(::pthread_self(), &attributes);
    (void)::pthread_attr_getstack(&attributes, &start, &bytes);
    (void)::pthread_attr_destroy(&attributes);
    bottom = start;
  }
  __sanitizer_start_switch_fiber(fiber.over ? nullptr : &fake, bottom, bytes);
#endif
  (void)::swapcontext(&fiber.context, &outside_);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(fake, nullptr, nullptr);
#endif
}

void Scheduler::drop(Owner owner) {
  for (const auto& fiber : fibers_) {
    if (fiber->owner == owner) fiber->over = true;
  }
  if (current_ != nullptr && current_->over) leave(*current_);
}

void Scheduler::yield() {
  Fiber& fiber = *current_;
  fiber.ready = nullptr;
  leave(fiber);
}

bool Scheduler::wait(Ready ready, std::uint64_t deadline_ns) {
  if (ready()) {
    yield();
    if (ready()) return true;
  }
  Fiber& fiber = *current_;
  fiber.ready = std::move(ready);
  fiber.deadline_ns = deadline_ns;
  fiber.timed_out = false;
  fiber.waits_since_turn = turns_;
  fiber.waits_since_ns = clock_ns_;
  leave(fiber);
  fiber.ready = nullptr;
  fiber.deadline_ns = kNever;
  return !fiber.timed_out;
}

void Scheduler::sweep() {
  std::erase_if(fibers_, [&](std::unique_ptr<Fiber>& fiber) {
    if (!fiber->over) return false;
    spare_stacks_.push_back(std::move(fiber->stack));
    return true;
  });
}

bool Scheduler::turn() {
  ++turns_;
  for (;;) {
    if (fibers_.empty()) return false;
    const std::size_t begin = random_.below(fibers_.size());
    std::uint64_t earliest = kNever;
    for (std::size_t i = 0; i < fibers_.size(); ++i) {
      Fiber& fiber = *fibers_[(begin + i) % fibers_.size()];
      if (fiber.over) continue;
      fiber.timed_out = false;
      if (fiber.ready && !fiber.ready()) {
        earliest = std::min(earliest, fiber.deadline_ns);
        if (fiber.deadline_ns > clock_ns_) continue;
        fiber.timed_out = true;
      }
      run(fiber);
      sweep();
      return true;
    }
    if (earliest == kNever) return false;
    clock_ns_ = std::max(clock_ns_, earliest);
  }
}

Scheduler::Waiting Scheduler::longest_wait(Owner but) const {
  Waiting longest;
  for (const auto& fiber : fibers_) {
    if (fiber->owner == but || !fiber->ready || fiber->deadline_ns != kNever) continue;
    const std::uint64_t turns = turns_ - fiber->waits_since_turn;
    if (turns <= longest.turns) continue;
    longest = {turns, clock_ns_ - fiber->waits_since_ns, fiber->name};
  }
  return longest;
}

}  // namespace foldswap::sim
