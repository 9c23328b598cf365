// Operations that change how memory is kept and not what is in it: locks, populating, ageing,
// guards, what a fork inherits. Each against pages in every state (space.h). --op=NAME, --seed,
// --flight_ms.
//   Not of the matrix: wipe_moved: wipe-on-fork memory that mremap takes to where something
//   ordinary has been; wipe_unseen: wipe-on-fork set between two of the daemon's looks at the
//   mappings; lock_again: mlockall while pages leave, again and again, for --ms; grow_locked.
#include <sys/mman.h>
#include <unistd.h>

#include <array>
#include <cerrno>

#include "base/uapi.h"
#include "tests/programs/space/space.h"

using namespace testprog;

namespace {

// What a lock promises: it is there, and stays there.
class Locking : public OnRegion {
 protected:
  void must_stay() {
    const std::size_t before = present_pages(start(), count);
    if (state == State::out || state == State::same) ask("evict");
    if (state == State::flight) sleep_ms(5);
    if (present_pages(start(), count) < before) wrong("a locked page was taken out");
  }
  void must_be_there() {
    if (present_pages(start(), count) != count) wrong("a locked page is not in memory");
    must_stay();
  }
  void unlocked() {
    verify();
    if (state == State::out) evict(region());
    verify();
  }
};

class Mlock : public Locking {
  void act() override { must(mlock(start(), bytes()), "mlock"); }
  void settle() override {
    must_be_there();
    verify();
    must_be_there();
    must(munlock(start(), bytes()), "munlock");
    unlocked();
  }
};

// What is out may stay out, but what comes in stays in.
class MlockOnfault : public Locking {
  void act() override { must(mlock2(start(), bytes(), MLOCK_ONFAULT), "mlock2"); }
  void settle() override {
    must_stay();
    for (std::size_t n = 0; n < 50; ++n) {
      const std::size_t i = first + random.below(count);
      region().check(i);
      if (present_pages(region().page(i), 1) != 1) wrong("a locked page went out");
    }
    must_stay();
    verify();
    must_be_there();
    must(munlock(start(), bytes()), "munlock");
    unlocked();
  }
};

// With MCL_FUTURE even what is mapped later is there at once.
class MlockAll : public Locking {
  void act() override {
    flags_ = MCL_CURRENT | MCL_FUTURE | (random.below(3) == 0 ? MCL_ONFAULT : 0);
    must(mlockall(flags_), "mlockall");
  }
  void settle() override {
    if ((flags_ & MCL_ONFAULT) == 0) must_be_there();
    region().check_all();
    must_be_there();
    Region later(map_bytes(64 * kPage), 64, random.next(), Kind::mixed);
    if ((flags_ & MCL_ONFAULT) == 0 && present_pages(later.base(), 64) != 64) {
      wrong("MCL_FUTURE: a new page is not in memory");
    }
    later.check_all();
    later.write_all();
    must_stay();
    later.check_all();
    must(munlockall(), "munlockall");
    later.check_all();
    must(munmap(later.base(), later.bytes()), "munmap");
    unlocked();
  }
  int flags_ = 0;
};

template <int advice>
class Advice : public OnRegion {
  void act() override { must(madvise(start(), bytes(), advice), "madvise"); }
  void settle() override {
    const bool populates = advice == MADV_POPULATE_READ || advice == MADV_POPULATE_WRITE;
    if (populates && state != State::flight && present_pages(start(), count) != count) {
      wrong("what was populated is not in memory");
    }
    verify();
  }
};

// A guard is a guard whatever comes and goes around it; what it hid is gone for good.
class Guard : public OnRegion {
  After::What shows() const override { return After::What::guard; }
  void act() override {
    if (madvise(start(), bytes(), foldswap::uapi::kMadvGuardInstall) == 0) return;
    if (errno == EINVAL) tell_skip("this kernel has no MADV_GUARD_INSTALL");
    broken("madvise(GUARD_INSTALL)");
  }
  void settle() override {
    // In order, so that read-ahead runs towards the guard; twice, the second time from the pool.
    for (int pass = 0; pass < 2; ++pass) {
      check_rest();
      must_fault_all();
      if (pass == 0 && state != State::flight) ask("evict");
    }
    // Part of it goes; then all.
    const std::size_t part = count / 2;
    remove_guard(first + part, count - part);
    for (std::size_t i = first; i < first + part; i += 1 + part / 8) must_fault(region().page(i));
    remove_guard(first, part);
    check_rest();
    verify();
  }
  void remove_guard(std::size_t from, std::size_t pages) {
    if (pages == 0) return;
    must(madvise(region().page(from), pages * kPage, foldswap::uapi::kMadvGuardRemove),
         "madvise(GUARD_REMOVE)");
    for (std::size_t i = from; i < from + pages; ++i) region().forget(i);
    check_zero(region().page(from));
    check_zero(region().page(from + pages - 1));
  }
};

// What a child gets of the choice; of the rest it gets everything.
template <int hide, int show>
class ForkAdvice : public OnRegion {
  void act() override { must(madvise(start(), bytes(), hide), "madvise"); }
  void settle() override {
    if (state == State::flight) sleep_ms(5);  // so that eviction has been over it
    hidden();
    if (state == State::out || state == State::same) ask("evict");
    hidden();
    must(madvise(start(), bytes(), show), "madvise");
    region().check_all();
    region().write_all();  // what is shared with a child stays in memory
    if (state == State::out || state == State::same) evict(region());
    in_child([this] { verify(); });
    verify();
  }
  void hidden() {
    in_child([this] {
      check_rest();
      for (std::size_t i = first; i < first + count; ++i) {
        if (hide == MADV_WIPEONFORK) check_zero(region().page(i));
      }
      if (hide == MADV_DONTFORK) must_fault_all();
    });
    region().check_all();
  }
};

constexpr std::array<Named, 10> kOperations{{
    {"mlock", make_operation<Mlock>},
    {"mlock_onfault", make_operation<MlockOnfault>},
    {"mlockall", make_operation<MlockAll>},
    {"populate_read", make_operation<Advice<MADV_POPULATE_READ>>},
    {"populate_write", make_operation<Advice<MADV_POPULATE_WRITE>>},
    {"cold", make_operation<Advice<MADV_COLD>>},
    {"pageout", make_operation<Advice<MADV_PAGEOUT>>},
    {"guard", make_operation<Guard>},
    {"wipeonfork", make_operation<ForkAdvice<MADV_WIPEONFORK, MADV_KEEPONFORK>>},
    {"dontfork", make_operation<ForkAdvice<MADV_DONTFORK, MADV_DOFORK>>},
}};

// The daemon knows the mappings from a look that may be a second old. What it evicts in that second
// of a mapping that has become wipe-on-fork must not reach a child.
void wipe_unseen(const Options&, std::uint64_t seed) {
  constexpr std::size_t kPages = 2048;
  Region region(map_aligned(kPages * kPage), kPages, seed, Kind::mixed);
  region.write_all();
  for (int round = 0; round < 3; ++round) {
    evict(region);  // the daemon has looked
    must(madvise(region.base(), region.bytes(), MADV_WIPEONFORK), "madvise");
    ask("limit 1M");
    for (int n = 0; n < 30 && present_pages(region.base(), kPages) == kPages; ++n) sleep_ms(10);
    in_child([&] {
      for (std::size_t i = 0; i < kPages; ++i) check_zero(region.page(i));
    });
    region.check_all();
    must(madvise(region.base(), region.bytes(), MADV_KEEPONFORK), "madvise");
    ask("limit none");
    region.write_all();
  }
}

// Likewise when such a mapping moves to where the daemon has just taken pages of an ordinary one.
void wipe_moved(const Options&, std::uint64_t seed) {
  constexpr std::size_t kPages = 2048, kBytes = kPages * kPage;
  ask("limit 1M");
  for (std::uint64_t round = 0; round < 8; ++round) {
    Region hidden(map_aligned(kBytes), kPages, seed + round, Kind::mixed);
    hidden.write_all();
    must(madvise(hidden.base(), kBytes, MADV_WIPEONFORK), "madvise");
    hidden.write_all();
    std::byte* const place = map_aligned(kBytes);
    Region ordinary(place, kPages, seed, Kind::mixed);
    ordinary.write_all();
    for (int n = 0; n < 300 && present_pages(place, kPages) > kPages / 2; ++n) sleep_ms(10);
    if (round % 2 == 0) must(munmap(place, kBytes), "munmap");
    if (mremap(hidden.base(), kBytes, kBytes, MREMAP_MAYMOVE | MREMAP_FIXED, place) != place) {
      broken("mremap");
    }
    hidden.moved_to(place);
    for (int n = 0; n < 30 && present_pages(place, kPages) == kPages; ++n) sleep_ms(10);
    in_child([&] {
      for (std::size_t i = 0; i < kPages; ++i) check_zero(hidden.page(i));
    });
    hidden.check_all();
    must(munmap(place, kBytes), "munmap");
  }
}

// What is locked is there, however the lock and an eviction meet.
void lock_again(const Options& options, std::uint64_t seed) {
  constexpr std::size_t kPages = 2048;
  Region region(map_aligned(kPages * kPage), kPages, seed, Kind::mixed);
  region.write_all();
  Random random(seed);
  evict(region);
  ask("churn");
  for (const Timed timed(options); !timed.over();) {
    must(mlockall(MCL_CURRENT), "mlockall");
    for (int n = 0; n < 3; ++n) {
      if (present_pages(region.base(), kPages) != kPages) wrong("a locked page is not in memory");
      sleep_ms(1);
    }
    must(munlockall(), "munlockall");
    for (int n = 0; n < 10; ++n) region.check(random.below(kPages));
    sleep_ms(static_cast<unsigned>(random.below(15)));
    made_progress();
  }
  ask("calm");
  region.check_all();
}

// Locked memory that grows and has to move for that, locked by mmap, which nobody is told of. With
// other memory registered, the growth must neither hang nor lose a byte.
void grow_locked(const Options&, std::uint64_t seed) {
  constexpr std::size_t kPages = 64;
  Region other(map_aligned(1024 * kPage), 1024, seed, Kind::mixed);
  other.write_all();
  evict(other);
  for (std::uint64_t round = 0; round < 40; ++round) {
    std::byte* const place = map_bytes(2 * kPages * kPage);
    must(mprotect(place, 2 * kPages * kPage, PROT_NONE), "mprotect");
    if (mmap(place, kPages * kPage, PROT_READ | PROT_WRITE,
             MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | (round % 2 == 0 ? MAP_LOCKED : 0), -1,
             0) != place) {
      broken("mmap");
    }
    Region region(place, kPages, seed + round, Kind::mixed);
    region.write_all();
    if (round % 2 == 1) must(mlock(place, kPages * kPage), "mlock");
    void* const moved = mremap(place, kPages * kPage, 2 * kPages * kPage, MREMAP_MAYMOVE);
    if (moved == MAP_FAILED) broken("mremap");
    region.moved_to(static_cast<std::byte*>(moved));
    region.check_all();
    for (std::size_t i = kPages; i < 2 * kPages; ++i) check_zero(region.page(i));
    if (present_pages(region.base(), 2 * kPages) != 2 * kPages) wrong("a locked page is not there");
    must(munmap(moved, 2 * kPages * kPage), "munmap");
    must(munmap(place + kPages * kPage, kPages * kPage), "munmap");
    made_progress();
  }
  other.check_all();
}

constexpr std::array<Work, 4> kWork{{{"wipe_unseen", wipe_unseen},
                                     {"wipe_moved", wipe_moved},
                                     {"lock_again", lock_again},
                                     {"grow_locked", grow_locked}}};

}  // namespace

int main(int argc, char** argv) {
  const Options options(argc, argv);
  for (const Work& work : kWork) {
    if (options.text("op", "") == work.name) return run_work(kWork, options);
  }
  return run_named(kOperations, options);
}
