#include "tests/programs/torture/torture_worker.h"

#include <sys/mman.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <numeric>
#include <thread>

namespace testprog::torture {
namespace {
constexpr std::size_t kMostAreas = 7;
constexpr std::size_t kMostHeap = 3U << 20;
}  // namespace

std::byte* map_at(void* address, std::size_t pages, int more_flags) {
  void* memory = mmap(address, pages * kPage, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | more_flags, -1, 0);
  return memory == MAP_FAILED ? nullptr : static_cast<std::byte*>(memory);
}

Worker::Worker(const Settings& settings, Board& board, std::uint64_t owner)
    : settings_(settings),
      board_(&board),
      author_(owner),
      random_(settings.seed * 1'000'003 + owner),
      slot_(&claim_slot(owner, settings.seed * 1'000'003 + owner)),
      heap_(kMostHeap) {
  for (int n = 0; n < 3; ++n) add_area();
}

// How often each call is made. Most of the time is spent on reading and writing, or nothing would
// ever be faulted in.
const std::vector<Worker::Chance>& Worker::chances() {
  static const std::vector<Chance> table{
      {30, &Worker::look},
      {18, &Worker::rewrite},
      {12, &Worker::look_at_board},
      {3, &Worker::change_board},
      {6, &Worker::churn_heap},
      {1, &Worker::make_thread},
      {2, &Worker::add_area},
      {6, &Worker::discard},
      {4, &Worker::free_lazily},
      {2, &Worker::unmap},
      {4, &Worker::replace},
      {3, &Worker::fill_holes},
      {1, &Worker::rebuild},
      {4, &Worker::protect},
      {2, &Worker::lock},
      {4, &Worker::normalize},
      {4, &Worker::advise_harmlessly},
      {2, &Worker::advise_huge},
      {3, &Worker::populate},
      {2, &Worker::advise_fork},
      {3, &Worker::install_guards},
      {2, &Worker::remove_guards},
      {2, &Worker::check_refused},
      {4, &Worker::move_away},
      {3, &Worker::move_over},
      {4, &Worker::grow},
      {2, &Worker::shrink},
      {2, &Worker::dont_unmap},
      {5, &Worker::through_pipe},
      {2, &Worker::through_process_vm},
      {1, &Worker::fork_alone},
      {1, &Worker::spawn},
      {2, &Worker::wait_for_some},
  };
  return table;
}

void Worker::step() {
  static const unsigned total =
      std::accumulate(chances().begin(), chances().end(), 0U,
                      [](unsigned sum, const Chance& c) { return sum + c.weight; });
  std::uint64_t draw = random_.below(total);
  for (const Chance& chance : chances()) {
    if (draw < chance.weight) return (this->*chance.call)();
    draw -= chance.weight;
  }
}

void Worker::check_all() {
  slot_->note("check all");
  for (const Area& area : areas_) area.check_all(*slot_);
  heap_.check_all(*slot_);
}

void Worker::finish() {
  while (!children_.empty()) {
    wait_for(children_.back());
    children_.pop_back();
  }
  check_all();
  while (!areas_.empty()) drop_area(areas_.size() - 1);
}

void Worker::expect(long result, const char* call) {
  if (result == -1) fail_call(*slot_, call, errno);
}

std::size_t Worker::mapped_pages() const {
  std::size_t sum = 0;
  for (const Area& area : areas_) {
    for (std::size_t i = 0; i < area.size(); ++i) sum += area[i].mapped() ? 1U : 0U;
  }
  return sum;
}

Area& Worker::some_area() {
  if (areas_.empty()) add_area();
  return areas_[random_.below(areas_.size())];
}

void Worker::add_area() {
  while (areas_.size() >= kMostAreas ||
         (!areas_.empty() && mapped_pages() > settings_.pages * 3 / 4)) {
    drop_area(random_.below(areas_.size()));
  }
  const std::size_t pages = 16 + random_.below(settings_.pages / 3);
  slot_->note("mmap", std::uint64_t{0}, pages);
  std::byte* base = random_.below(3) == 0 ? map_aligned(pages * kPage) : map_at(nullptr, pages, 0);
  if (base == nullptr) fail_call(*slot_, "mmap", errno);
  Area& area = areas_.emplace_back(base, pages);
  area.map_new({0, pages});
  area.touch_piece(0, author_);
  const std::uint64_t sparse = random_.below(4);  // 0: leave holes
  for (std::size_t i = 1; i < pages; ++i) {
    if (sparse != 0 || random_.below(3) == 0) area.write(i, author_);
  }
}

void Worker::drop_area(std::size_t index) {
  std::swap(areas_[index], areas_.back());
  const Area& area = areas_.back();
  slot_->note("munmap", area.at(0), area.size());
  area.check_all(*slot_);
  area.each_span(&PageShadow::mapped, [&](Span span) {
    expect(munmap(area.at(span.first), span.count * kPage), "munmap");
  });
  areas_.pop_back();
}

void Worker::forget_empty() {
  std::erase_if(areas_, [](const Area& area) { return area.empty(); });
}

void Worker::rewrite() {
  Area& area = some_area();
  const Span span = area.pick(random_, 64, &PageShadow::writable);
  slot_->note("write", area.at(span.first), span.count);
  const bool check_first = random_.below(2) == 0;
  for (std::size_t i = span.first; i < span.end(); ++i) {
    if (check_first) area.check(i, *slot_);
    area.write(i, author_);
  }
}

// Here and there, or in sequence, so that read-ahead has something to do.
void Worker::look() {
  Area& area = some_area();
  if (random_.below(3) != 0) {
    slot_->note("read here and there", area.at(0), area.size());
    for (int n = 0; n < 24; ++n) area.check(random_.below(area.size()), *slot_);
    return;
  }
  const std::size_t first = random_.below(area.size());
  const Span span{first, std::min<std::size_t>(area.size() - first, 1 + random_.below(200))};
  slot_->note("read in sequence", area.at(span.first), span.count);
  area.check_span(span, *slot_);
}

void Worker::look_at_board() {
  slot_->note("read the board");
  for (int n = 0; n < 4; ++n) board_->read(random_, *slot_);
}

void Worker::change_board() {
  board_->change(random_, *slot_);
}

void Worker::churn_heap() {
  heap_.churn(random_, *slot_);
}

// A thread with a stack of its own comes, reads what this one owns, and goes.
void Worker::make_thread() {
  const std::size_t index = random_.below(std::max<std::size_t>(areas_.size(), 1));
  slot_->note("thread", std::uint64_t{0}, 0, index);
  std::thread helper([&] {
    std::array<std::byte, 8 * kPage> stack;
    const std::uint64_t key = make_key(author_.owner(), 1, Look::heap);
    for (std::size_t i = 0; i < 8; ++i) fill(stack.data() + i * kPage, key);
    if (index < areas_.size()) areas_[index].check_all(*slot_);
    for (std::size_t i = 0; i < 8; ++i) {
      if (!holds(stack.data() + i * kPage, key)) {
        fail(*slot_, "the stack of a thread: " + describe(stack.data() + i * kPage, key));
      }
    }
  });
  helper.join();
}

}  // namespace testprog::torture
