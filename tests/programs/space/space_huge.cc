// Pages that the kernel keeps together or shares by itself: huge pages and KSM, against pages in
// every state (space.h). --op=NAME, --seed, --flight_ms. The test sets the machine up and puts it
// back.
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "base/uapi.h"
#include "tests/programs/space/space.h"

using namespace testprog;

namespace {

constexpr std::size_t kHugePages = 1024;  // two huge pages

// A number after `name` in a file of /proc/self; 0 when there is none.
std::uint64_t number_in(const char* path, const char* name) {
  std::FILE* file = std::fopen(path, "r");
  if (file == nullptr) return 0;
  std::array<char, 256> line;
  std::uint64_t value = 0;
  while (std::fgets(line.data(), line.size(), file) != nullptr) {
    if (std::strncmp(line.data(), name, std::strlen(name)) != 0) continue;
    value = std::strtoull(line.data() + std::strlen(name), nullptr, 10);
    break;
  }
  std::fclose(file);
  return value;
}

bool has_huge_pages() {
  return number_in("/proc/self/smaps_rollup", "AnonHugePages:") > 0;
}

// `advice`: what makes the region's pages huge; 0: the machine's setting does.
class Huge : public OnRegion {
 public:
  void plan() override {
    plan_shape({.pages = kHugePages, .aligned = true, .advice = advice()});
    static const bool some = advice() == MADV_NOHUGEPAGE || has_huge_pages();
    if (!some) tell_skip("this machine gives out no huge pages");
  }

 protected:
  [[nodiscard]] virtual int advice() const { return MADV_HUGEPAGE; }
  // Takes out a part that ends inside a huge page, then the rest; bytes right all along.
  void verify_in_parts() {
    verify();
    if (state == State::flight) return;
    region().write_all();
    ask("evict 1200000");
    region().check_random(random, 200);
    ask("evict 600000");
    verify();
    if (state == State::out) evict(region());
    region().check_all();
  }
};

template <int set>
class HugeDiscard : public Huge {
  int advice() const override { return set; }
  After::What shows() const override { return After::What::zeros; }
  void act() override { must(madvise(start(), bytes(), MADV_DONTNEED), "madvise"); }
  void settle() override {
    forget();
    verify_in_parts();
  }
};

// By an odd number of pages, so that no huge page stays one.
template <int set>
class HugeRemap : public Huge {
  int advice() const override { return set; }
  void plan() override {
    Huge::plan();
    first = 0;
    count = kHugePages;
    expect(region(), After::What::fault);
    space_ = map_bytes((kHugePages + 8) * kPage);
    target_ = space_ + random.below(8) * kPage;
  }
  void act() override {
    void* moved = mremap(region().base(), region().bytes(), region().bytes(),
                         MREMAP_MAYMOVE | MREMAP_FIXED, target_);
    if (moved != target_) broken("mremap");
  }
  void settle() override {
    must_fault_all();
    region().moved_to(target_);
    verify_in_parts();
    must(munmap(space_, (kHugePages + 8) * kPage), "munmap");
    regions.clear();
  }
  std::byte* space_ = nullptr;
  std::byte* target_ = nullptr;
};

// Advice that makes small pages huge, or the other way, and changes no byte. The kernel may refuse.
template <int first_advice, int given>
class HugeAdvice : public Huge {
  int advice() const override { return first_advice; }
  void act() override {
    if (madvise(start(), bytes(), given) == 0) return;
    const bool refused = errno == EINVAL || errno == EAGAIN || errno == EBUSY || errno == ENOMEM;
    if (given != foldswap::uapi::kMadvCollapse || !refused) broken("madvise");
  }
  void settle() override {
    verify_in_parts();
    if (madvise(region().base(), region().bytes(), foldswap::uapi::kMadvCollapse) == 0) {
      verify_in_parts();
    }
  }
};

// Two regions with the same contents; the kernel merges them while they come and go.
class Mergeable : public OnRegion {
  void plan() override {
    const std::uint64_t twins = random.next();
    plan_shape({.pages = kPages, .seed = twins});
    twin_.emplace(make_region({.pages = kPages, .seed = twins}));
    regions = {&region(), &*twin_};
  }
  void act() override {
    for (const Region* one : regions) {
      must(madvise(one->base(), one->bytes(), MADV_MERGEABLE), "madvise(MERGEABLE)");
    }
  }
  void settle() override {
    check_both();
    if (state == State::out) {
      await_merge();
      ask("evict");  // what is merged stays in
      check_both();
    }
    for (std::size_t i = 0; i < kPages; i += 1 + random.below(6)) region().write(i);
    check_both();
    must(madvise(region().base(), region().bytes(), MADV_UNMERGEABLE), "madvise(UNMERGEABLE)");
    must(madvise(twin_->base(), twin_->bytes(), MADV_UNMERGEABLE), "madvise(UNMERGEABLE)");
    check_both();
    if (state == State::out) {
      for (const Region* one : regions) evict(*one);
    }
    check_both();
  }
  void check_both() {
    region().check_all();
    twin_->check_all();
  }
  static void await_merge() {
    for (int n = 0; n < 1500; ++n) {
      if (number_in("/proc/self/ksm_merging_pages", "") > 100) return;
      sleep_ms(10);
      made_progress();
    }
    tell_skip("KSM merges nothing on this machine");
  }
  std::optional<Region> twin_;
};

constexpr std::array<Named, 8> kOperations{{
    {"huge_discard", make_operation<HugeDiscard<MADV_HUGEPAGE>>},
    {"huge_mremap", make_operation<HugeRemap<MADV_HUGEPAGE>>},
    {"hugepage", make_operation<HugeAdvice<MADV_NOHUGEPAGE, MADV_HUGEPAGE>>},
    {"nohugepage", make_operation<HugeAdvice<MADV_HUGEPAGE, MADV_NOHUGEPAGE>>},
    {"collapse", make_operation<HugeAdvice<MADV_NOHUGEPAGE, foldswap::uapi::kMadvCollapse>>},
    {"always_discard", make_operation<HugeDiscard<0>>},
    {"always_mremap", make_operation<HugeRemap<0>>},
    {"mergeable", make_operation<Mergeable>},
}};

}  // namespace

int main(int argc, char** argv) {
  return run_named(kOperations, Options(argc, argv));
}
