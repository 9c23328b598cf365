// Operations that take mappings away, replace, move and protect them, each against pages in every
// state (space.h). --op=NAME, --seed, --flight_ms.
#include <malloc.h>
#include <sys/mman.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <optional>

#include "tests/programs/space/space.h"

using namespace testprog;

namespace {

constexpr std::size_t kPages = OnRegion::kPages;

class Dontneed : public OnRegion {
  After::What shows() const override { return After::What::zeros; }
  void act() override { must(madvise(start(), bytes(), MADV_DONTNEED), "madvise"); }
  void settle() override {
    forget();
    verify();
  }
};

// MADV_FREE leaves the old bytes or zeros; what is written afterwards stays for good.
class Free : public OnRegion {
  After::What shows() const override { return After::What::either; }
  void act() override { must(madvise(start(), bytes(), MADV_FREE), "madvise(FREE)"); }
  void settle() override {
    std::array<std::byte, kPage> copy;
    for (std::size_t i = first; i < first + count; ++i) {
      std::memcpy(copy.data(), region().page(i), kPage);
      if (!holds(copy.data(), 0, region().kind()) &&
          !holds(copy.data(), region().key(i), region().kind())) {
        wrong("MADV_FREE left something that is neither the old page nor zeros");
      }
      region().write(i);
    }
    if (state == State::out) evict(region());
    verify();
  }
};

class Munmap : public OnRegion {
  After::What shows() const override { return After::What::fault; }
  void act() override { must(munmap(start(), bytes()), "munmap"); }
  void settle() override {
    must_fault_all();
    check_rest();
    map_over(start(), count);
    forget();
    verify();
  }
};

class MapFixedAnonymous : public OnRegion {
  After::What shows() const override { return After::What::zeros; }
  void act() override { map_over(start(), count); }
  void settle() override {
    forget();
    verify();
    if (state != State::out) return;
    evict(region());
    map_over(start(), count);
    forget();
    verify();
  }
};

// A file over it, then anonymous memory over the file.
class MapFixedFile : public OnRegion {
  After::What shows() const override { return After::What::file; }
  void plan() override {
    OnRegion::plan();
    for (std::size_t i = first; i < first + count; ++i) after[i].key = i;
  }
  void act() override {
    static const int fd = make_file(kPages);
    const int flags = random.below(2) == 0 ? MAP_PRIVATE : MAP_SHARED;
    void* memory =
        mmap(start(), bytes(), PROT_READ, flags | MAP_FIXED, fd, static_cast<off_t>(first * kPage));
    if (memory == MAP_FAILED) broken("mmap of a file");
  }
  void settle() override {
    for (std::size_t i = first; i < first + count; ++i) check_file_page(region().page(i), i);
    check_rest();
    if (state == State::out) ask("evict");
    for (std::size_t i = first; i < first + count; ++i) check_file_page(region().page(i), i);
    map_over(start(), count);
    forget();
    verify();
  }
};

// mremap of whole regions. Old place: what is seen there while it goes; new place: the bytes.
class Remap : public OnRegion {
 public:
  void plan() override {
    OnRegion::plan();
    first = 0;
    count = kPages;
    expect(region(), shows());
  }

 protected:
  std::byte* remap(std::size_t pages, int flags, std::byte* target = nullptr) {
    void* moved = mremap(region().base(), region().bytes(), pages * kPage, flags, target);
    if (moved == MAP_FAILED) broken("mremap");
    return static_cast<std::byte*>(moved);
  }
  void settle_at(std::byte* place, std::size_t pages) {
    region().moved_to(place);
    region().resize(pages);
    verify();
    if (state == State::out) evict(region());
    verify();
  }
};

class GrowInPlace : public Remap {
  After::What shows() const override { return After::What::bytes; }
  void act() override { place_ = remap(2 * kPages, 0); }
  void settle() override {
    if (place_ != region().base()) wrong("mremap without MAYMOVE moved");
    settle_at(place_, 2 * kPages);
  }
  std::byte* place_ = nullptr;
};

class GrowWithMove : public Remap {
  After::What shows() const override { return After::What::fault; }
  void act() override {
    std::byte* wall = region().base() + region().bytes();
    void* built = mmap(wall, kPage, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
    if (built == MAP_FAILED) broken("mmap of a wall");
    place_ = remap(3 * kPages, MREMAP_MAYMOVE);
    must(munmap(wall, kPage), "munmap of a wall");
  }
  void settle() override {
    if (place_ == region().base()) wrong("mremap grew through a wall");
    must_fault_all();
    settle_at(place_, 3 * kPages);
  }
  std::byte* place_ = nullptr;
};

class Shrink : public Remap {
 public:
  void plan() override {
    Remap::plan();
    first = 1 + random.below(kPages - 2);
    count = kPages - first;
    expect(region(), After::What::fault);
  }

 private:
  After::What shows() const override { return After::What::fault; }
  void act() override { place_ = remap(first, random.below(2) == 0 ? MREMAP_MAYMOVE : 0); }
  void settle() override {
    if (place_ != region().base()) wrong("mremap moved to shrink");
    must_fault_all();
    settle_at(place_, first);
  }
  std::byte* place_ = nullptr;
};

// Onto memory that has pages of its own in the same state; seen from the target.
class MoveOnto : public Operation {
 public:
  void plan() override {
    source_.emplace(make_region({.pages = kPages}));
    target_.emplace(make_region({.pages = kPages + 200}));
    at_ = random.below(200);
    regions = {&*target_, &*source_};
    expect(*target_, After::What::bytes);
    for (std::size_t i = 0; i < kPages; ++i) after[at_ + i].key = source_->key(i);
  }
  void act() override {
    void* moved = mremap(source_->base(), source_->bytes(), source_->bytes(),
                         MREMAP_MAYMOVE | MREMAP_FIXED, target_->page(at_));
    if (moved != target_->page(at_)) broken("mremap(FIXED)");
  }
  void settle() override {
    std::byte* old = source_->base();
    must_fault(old);
    must_fault(old + source_->bytes() - kPage);
    source_->moved_to(target_->page(at_));
    check();
    map_over(old, kPages);
    for (std::size_t i = 0; i < kPages; ++i) check_zero(old + i * kPage);
    must(munmap(old, source_->bytes()), "munmap");
    for (std::size_t i = 0; i < kPages; i += 3) source_->write(i);
    if (state == State::out) evict(*target_);
    check();
  }

 private:
  void check() {
    source_->check_all();
    for (std::size_t i = 0; i < target_->pages(); ++i) {
      if (i < at_ || i >= at_ + kPages) target_->check(i);
    }
  }
  std::optional<Region> source_, target_;
  std::size_t at_ = 0;
};

// The old range stays mapped, and reads as zeros.
class Dontunmap : public Remap {
  After::What shows() const override { return After::What::zeros; }
  void act() override { place_ = remap(kPages, MREMAP_MAYMOVE | MREMAP_DONTUNMAP); }
  void settle() override {
    std::byte* old = region().base();
    Region left(old, kPages, random.next(), Kind::mixed);
    if (random.below(2) == 0) left.check_all();
    left.write_all();
    settle_at(place_, kPages);
    if (state == State::out) evict(left);
    left.check_all();
    must(munmap(old, kPages * kPage), "munmap");
  }
  std::byte* place_ = nullptr;
};

// glibc's malloc grows and shrinks chunks that it has mapped by an mremap of its own. The first
// page has malloc's header, so the region begins at the second.
class Realloc : public Operation {
 public:
  void plan() override {
    mallopt(M_MMAP_THRESHOLD, 256 * 1024);
    block_ = std::malloc(bytes_of(kPages));
    if (block_ == nullptr) broken("malloc");
    region_.emplace(inside(), kPages, random.next(),
                    state == State::same ? Kind::same : Kind::mixed);
    region_->write_all();
    regions = {&*region_};
  }
  void act() override {
    pages_ = 128 + random.below(3 * kPages);
    block_ = std::realloc(block_, bytes_of(pages_));
    if (block_ == nullptr) broken("realloc");
  }
  void settle() override {
    region_->moved_to(inside());
    // What realloc adds holds anything.
    const std::size_t kept = std::min(region_->pages(), pages_);
    for (std::size_t i = 0; i < kept; ++i) region_->check(i);
    region_->resize(pages_);
    for (std::size_t i = kept; i < pages_; ++i) region_->write(i);
    if (state == State::out) evict(*region_);
    region_->check_all();
    std::free(block_);
    regions.clear();
  }

 private:
  static std::size_t bytes_of(std::size_t pages) { return (pages + 2) * kPage; }
  std::byte* inside() {
    const auto address = reinterpret_cast<std::uintptr_t>(block_);
    return reinterpret_cast<std::byte*>((address + kPage) / kPage * kPage);
  }
  void* block_ = nullptr;
  std::size_t pages_ = 0;
  std::optional<Region> region_;
};

class Mprotect : public OnRegion {
  After::What shows() const override { return After::What::fault; }
  void act() override { must(mprotect(start(), bytes(), PROT_NONE), "mprotect(NONE)"); }
  void settle() override {
    must_fault_all();
    check_rest();
    if (state == State::out) ask("evict");
    must_fault_all();
    must(mprotect(start(), bytes(), PROT_READ), "mprotect(READ)");
    if (random.below(2) == 0) region().check_random(random, 100);
    for (std::size_t i = first; i < first + count; i += 1 + count / 16) {
      if (try_write(region().page(i))) wrong("a read-only page was written");
    }
    region().check_all();
    if (state == State::out) ask("evict");
    region().check_random(random, 100);
    must(mprotect(start(), bytes(), PROT_READ | PROT_WRITE), "mprotect(WRITE)");
    verify();
  }
};

// The heap's end goes back and forth; what comes back is zeros.
class Brk : public Operation {
 public:
  void plan() override {
    keep_malloc_away();
    const auto end = reinterpret_cast<std::uintptr_t>(sbrk(0));
    pad_ = (kPage - end % kPage) % kPage;
    void* base = sbrk(static_cast<intptr_t>(pad_ + kPages * kPage));
    if (base == reinterpret_cast<void*>(-1)) broken("sbrk");
    region_.emplace(static_cast<std::byte*>(base) + pad_, kPages, random.next(),
                    state == State::same ? Kind::same : Kind::mixed);
    region_->write_all();
    choose(*region_);
    count = kPages - first;
    expect(*region_, After::What::fault);
    regions = {&*region_};
  }
  void act() override { must(brk(region_->page(first)), "brk"); }
  void settle() override {
    must_fault(region_->page(first));
    for (std::size_t i = 0; i < first; ++i) region_->check(i);
    must(brk(region_->base() + region_->bytes()), "brk");
    for (std::size_t i = first; i < kPages; ++i) region_->forget(i);
    region_->check_all();
    for (std::size_t i = 0; i < kPages; i += 2) region_->write(i);
    region_->check_all();
    must(brk(region_->base() - pad_), "brk");
    regions.clear();
  }

 private:
  // malloc has enough of the heap to never ask for more while the heap's end is ours.
  static void keep_malloc_away() {
    static bool done = false;
    if (done) return;
    done = true;
    mallopt(M_TRIM_THRESHOLD, 1 << 30);
    std::array<void*, 32> blocks;
    for (void*& block : blocks) block = std::malloc(100'000);
    for (void* block : blocks) std::free(block);
  }
  std::optional<Region> region_;
  std::size_t pad_ = 0;
};

constexpr std::array<Named, 13> kOperations{{
    {"dontneed", make_operation<Dontneed>},
    {"free", make_operation<Free>},
    {"munmap", make_operation<Munmap>},
    {"map_fixed_anonymous", make_operation<MapFixedAnonymous>},
    {"map_fixed_file", make_operation<MapFixedFile>},
    {"mremap_grow_in_place", make_operation<GrowInPlace>},
    {"mremap_grow_with_move", make_operation<GrowWithMove>},
    {"mremap_shrink", make_operation<Shrink>},
    {"mremap_onto", make_operation<MoveOnto>},
    {"mremap_dontunmap", make_operation<Dontunmap>},
    {"realloc", make_operation<Realloc>},
    {"mprotect", make_operation<Mprotect>},
    {"brk", make_operation<Brk>},
}};

}  // namespace

int main(int argc, char** argv) {
  return run_named(kOperations, Options(argc, argv));
}
