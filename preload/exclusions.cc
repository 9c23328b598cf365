#include "preload/exclusions.h"

#include <pthread.h>
#include <sys/uio.h>

#include <algorithm>
#include <cerrno>
#include <initializer_list>

#include "base/mutation.h"
#include "preload/request.h"
#include "preload/state.h"

namespace foldswap::preload {
namespace {

constexpr std::uint32_t kPages = 8'192, kWords = 4'096, kBuckets = 4'096;
constexpr std::uint64_t kStep = 8;  // mutexes are aligned to this
constexpr std::uint8_t kNoSlot = 0xff;
static_assert(wire::kExclusions < kNoSlot && kPages < 0xffff);

constexpr std::uint64_t kMutexBytes = sizeof(pthread_mutex_t);
constexpr std::uint64_t kWordBytes = sizeof(std::uint32_t);

struct Page {
  std::uint64_t address;
  std::uint64_t mutexes[kPage / kStep / 64];  // a bit for each place where one begins
  std::uint32_t words;
  std::uint16_t next;  // in its bucket, or among the free ones; 0: none, else index + 1
  std::uint8_t slot;   // in the mailbox
  bool reached_into;   // a mutex that begins on the page before ends here
};

// Where the kernel tells of the end of thread `tid`; 0: which is still being made.
struct Word {
  std::uint64_t address;
  std::uint32_t tid;
  bool used;
};

// In the library's own data, which is never evicted, and touched only as far as it is used.
struct Notes {
  std::uint32_t early_lock;  // (atomic) the lock while there is no Life; see move_notes_lock()
  std::uint32_t alive;       // pages with anything in them
  std::uint32_t used;        // of `page`
  std::uint16_t free;
  std::uint32_t words_used;
  std::uint32_t slots_used;
  std::uint32_t look_at;         // pages at which the list is gone through again
  std::uint64_t looked_over_ms;  // when it was
  std::uint32_t lost_mutexes;    // so many could not be noted
  bool lost_words;               // likewise, and nobody will say when they are over
  std::uint16_t bucket[kBuckets];
  std::uint64_t slot[wire::kExclusions];  // what a mailbox gets; 0: free
  Page page[kPages];
  Word word[kWords];
};
constinit Notes notes{};

constexpr std::uint64_t kLookAgainMs = 1'000;

constexpr std::uint32_t kMoved = ~0U;  // of early_lock: for ever

std::uint32_t& lock_word() {
  Life* const life = sys::load(library.alive);
  return life == nullptr ? notes.early_lock : life->notes_lock;
}

bool try_lock(std::uint32_t me) {
  std::uint32_t& word = lock_word();
  const std::uint32_t holder = sys::load(word);
  if (holder == 0) return sys::exchange_if(word, 0, me);
  // A vfork child that was killed half-way.
  return holder != kMoved && thread_is_over(holder) && sys::exchange_if(word, holder, me);
}

class Lock {
 public:
  Lock() { lock_notes(); }
  Lock(const Lock&) = delete;
  Lock& operator=(const Lock&) = delete;
  ~Lock() { unlock_notes(); }
};

std::uint16_t& bucket_of(std::uint64_t page) {
  return notes.bucket[(page / kPage * 0x9e3779b97f4a7c15ULL) >> 52];
}
static_assert(kBuckets == 1U << 12);

Page* find(std::uint64_t address) {
  for (std::uint16_t at = bucket_of(address); at != 0; at = notes.page[at - 1].next) {
    if (notes.page[at - 1].address == address) return &notes.page[at - 1];
  }
  return nullptr;
}

bool empty(const Page& page) {
  std::uint64_t any = page.words;
  for (const std::uint64_t bits : page.mutexes) any |= bits;
  return any == 0 && !page.reached_into;
}

// A place in the mailbox keeps its page as long as the page is listed, so that a reader, whenever
// it comes, misses nothing that was there before.
void take_slot(Page& page) {
  for (std::uint32_t i = 0; i < wire::kExclusions; ++i) {
    if (notes.slot[i] != 0) continue;
    notes.slot[i] = page.address;
    page.slot = static_cast<std::uint8_t>(i);
    if (i >= notes.slots_used) notes.slots_used = i + 1;
    return;
  }
}

bool too_many() {
  return notes.lost_mutexes != 0 || notes.lost_words || notes.alive > wire::kExclusions;
}

// Those that were too many have room now.
void fill_slots() {
  for (std::uint32_t i = 0; i < notes.used; ++i) {
    Page& page = notes.page[i];
    if (page.address != 0 && page.slot == kNoSlot) take_slot(page);
  }
}

void copy_to(wire::Mailbox& box) {
  if (!too_many()) {
    for (std::uint32_t i = 0; i < notes.slots_used; ++i) {
      sys::store(box.exclusions[i], notes.slot[i]);
    }
  }
  // Last: what it counts is there.
  sys::store(box.exclusion_count, too_many() ? wire::kExclusions + 1 : notes.slots_used);
}

void tell() {
  const LiveCall use;
  if (const Control* const control = live()) copy_to(*control->mailbox);
}

void drop_if_empty(Page& page) {
  if (!empty(page)) return;
  std::uint16_t* link = &bucket_of(page.address);
  while (&notes.page[*link - 1] != &page) link = &notes.page[*link - 1].next;
  *link = page.next;
  if (page.slot != kNoSlot) notes.slot[page.slot] = 0;
  const auto index = static_cast<std::uint16_t>(&page - notes.page);
  page = {};
  page.next = notes.free;
  notes.free = static_cast<std::uint16_t>(index + 1);
  const bool were_too_many = too_many();
  --notes.alive;
  if (were_too_many && !too_many()) {
    notes.look_at = wire::kExclusions;
    fill_slots();
  }
}

// The page at `address`, listed from here on; null: there is no room.
Page* obtain(std::uint64_t address) {
  if (Page* const known = find(address)) return known;
  std::uint16_t index = 0;
  if (notes.free != 0) {
    index = static_cast<std::uint16_t>(notes.free - 1);
    notes.free = notes.page[index].next;
  } else if (notes.used < kPages) {
    index = static_cast<std::uint16_t>(notes.used++);
  } else {
    return nullptr;
  }
  Page& page = notes.page[index];
  page = {};
  page.address = address;
  page.slot = kNoSlot;
  std::uint16_t& bucket = bucket_of(address);
  page.next = bucket;
  bucket = static_cast<std::uint16_t>(index + 1);
  ++notes.alive;
  take_slot(page);
  return &page;
}

std::uint64_t bit_of(std::uint64_t address, std::uint64_t (&bits)[kPage / kStep / 64],
                     std::uint64_t*& word) {
  const std::uint64_t place = address % kPage / kStep;
  word = &bits[place / 64];
  return std::uint64_t{1} << (place % 64);
}

// Whether a mutex that begins on this page ends on the next one.
bool reaches_out(const Page& page) {
  constexpr std::uint64_t kFirst = (kPage - kMutexBytes) / kStep + 1;
  for (std::uint64_t place = kFirst; place < kPage / kStep; ++place) {
    if ((page.mutexes[place / 64] >> (place % 64) & 1) != 0) return true;
  }
  return false;
}

void drop_mutex(Page& page, std::uint64_t address) {
  std::uint64_t* word = nullptr;
  const std::uint64_t bit = bit_of(address, page.mutexes, word);
  *word &= ~bit;
  if (page_floor(address + kMutexBytes - 1) != page.address) {
    if (Page* const second = find(page.address + kPage)) {
      second->reached_into = reaches_out(page);
      drop_if_empty(*second);
    }
  }
  drop_if_empty(page);
}

void drop_word(Word& word) {
  for (const std::uint64_t end : {word.address, word.address + kWordBytes - 1}) {
    Page* const page = find(page_floor(end));
    if (page == nullptr) continue;
    --page->words;
    drop_if_empty(*page);
  }
  word = {};
}

// Threads of this process, and others that share its memory.
bool thread_ended(std::uint32_t tid) {
  std::uint64_t head = 0, bytes = 0;
  return sys::call(SYS_get_robust_list, tid, &head, &bytes) == -ESRCH;
}

void drop_ended_threads() {
  for (std::uint32_t i = 0; i < notes.words_used; ++i) {
    Word& word = notes.word[i];
    if (word.used && word.tid != 0 && thread_ended(word.tid)) drop_word(word);
  }
  while (notes.words_used != 0 && !notes.word[notes.words_used - 1].used) --notes.words_used;
}

// glibc's kinds: the type in the low two bits, then these.
constexpr int kRobust = 16, kInherits = 32;
constexpr int kEveryKind = 3 | kRobust | kInherits | 64 | 128 | 256 | 512;

// Read in a way that neither crashes nor changes anything. What cannot be told counts as alive.
bool still_a_mutex(std::uint64_t address) {
  int kind = 0;
  const iovec to{&kind, sizeof(kind)};
  const iovec from{reinterpret_cast<void*>(address + offsetof(pthread_mutex_t, __data.__kind)),
                   sizeof(kind)};
  const long got = sys::call(SYS_process_vm_readv, sys::call(SYS_getpid), &to, 1, &from, 1, 0);
  if (got == -EFAULT) {  // unmapped, or only closed to everybody for a while (PROT_NONE)
    unsigned char unused = 0;
    return sys::call(SYS_mincore, page_floor(reinterpret_cast<std::uint64_t>(from.iov_base)), kPage,
                     &unused) != -ENOMEM;
  }
  if (got != static_cast<long>(sizeof(kind))) return true;
  return (kind & ~kEveryKind) == 0 && (kind & (kRobust | kInherits)) != 0;
}

template <typename Over>
void drop_mutexes(Over over) {
  for (std::uint32_t i = 0; i < notes.used; ++i) {
    Page& page = notes.page[i];
    const std::uint64_t start = page.address;
    if (start == 0) continue;
    for (std::uint64_t place = 0; place < kPage / kStep && page.address == start; ++place) {
      if ((page.mutexes[place / 64] >> (place % 64) & 1) == 0) continue;
      const std::uint64_t address = start + place * kStep;
      if (over(address)) drop_mutex(page, address);
    }
  }
}

std::uint64_t now_ms() {
  timespec now{};
  sys::call(SYS_clock_gettime, CLOCK_MONOTONIC, &now);
  return static_cast<std::uint64_t>(now.tv_sec) * 1000 +
         static_cast<std::uint64_t>(now.tv_nsec) / 1'000'000;
}

// Before another page is listed. While there are too many as it is, not at each.
void make_room() {
  if (notes.alive < wire::kExclusions) return;
  const std::uint64_t now = now_ms();
  if (notes.alive < notes.look_at && now - notes.looked_over_ms < kLookAgainMs) return;
  drop_ended_threads();
  drop_mutexes([](std::uint64_t address) { return !still_a_mutex(address); });
  notes.looked_over_ms = now;
  notes.look_at = notes.alive < wire::kExclusions ? wire::kExclusions : 2 * notes.alive;
}

}  // namespace

bool notes_in_use() {
  const std::uint32_t lock = sys::load(lock_word());
  return sys::load(notes.used) != 0 || sys::load(notes.words_used) != 0 ||
         (lock != 0 && lock != kMoved);
}

bool notes_matter() {
  if (sys::load(library.alive) == nullptr) {
    return sys::load(library.never) == 0 && !mutated(Mutation::h40_from_the_first_call);
  }
  return presence() != Presence::none;
}

void note_mutex(std::uint64_t address, bool again) {
  const Lock lock;
  if (Page* const known = find(page_floor(address)); known == nullptr) make_room();
  Page* const page = obtain(page_floor(address));
  if (page != nullptr) {
    std::uint64_t* word = nullptr;
    const std::uint64_t bit = bit_of(address, page->mutexes, word);
    if (again && (*word & bit) != 0) return;
    *word |= bit;
  } else if (!again) {
    ++notes.lost_mutexes;
  }
  const std::uint64_t last = page_floor(address + kMutexBytes - 1);
  if (last != page_floor(address)) {
    if (Page* const second = obtain(last)) second->reached_into = true;
  }
  tell();
}

void forget_mutex(std::uint64_t address) {
  const Lock lock;
  Page* const page = find(page_floor(address));
  std::uint64_t* word = nullptr;
  if (page != nullptr && (bit_of(address, page->mutexes, word) & *word) != 0) {
    drop_mutex(*page, address);
  } else if (notes.lost_mutexes != 0 && --notes.lost_mutexes == 0 && !too_many()) {
    fill_slots();
  }
  tell();
}

std::uint32_t note_word(std::uint64_t address) {
  const Lock lock;
  if (notes.words_used == kWords) drop_ended_threads();
  if (find(page_floor(address)) == nullptr) make_room();
  std::uint32_t note = 0;
  while (note < notes.words_used && notes.word[note].used) ++note;
  if (note == kWords) {
    notes.lost_words = true;
    tell();
    return kNoNote;
  }
  if (note == notes.words_used) ++notes.words_used;
  notes.word[note] = {.address = address, .tid = 0, .used = true};
  for (const std::uint64_t end : {address, address + kWordBytes - 1}) {
    if (Page* const page = obtain(page_floor(end))) {
      ++page->words;
    } else {
      notes.lost_words = true;
    }
  }
  tell();
  return note;
}

void word_owned_by(std::uint32_t note, std::uint32_t tid) {
  if (note == kNoNote) return;
  const Lock lock;
  notes.word[note].tid = tid;
}

void forget_word(std::uint32_t note) {
  if (note == kNoNote) return;
  const Lock lock;
  drop_word(notes.word[note]);
  tell();
}

void publish_exclusions(wire::Mailbox& box) {
  const Lock lock;
  copy_to(box);
}

void look_over_exclusions() {
  if (sys::load(notes.alive) <= wire::kExclusions ||
      !try_lock(static_cast<std::uint32_t>(sys::call(SYS_gettid)))) {
    return;
  }
  drop_ended_threads();
  drop_mutexes([](std::uint64_t address) {
    unsigned char unused = 0;
    return sys::call(SYS_mincore, page_floor(address), kPage, &unused) == -ENOMEM;
  });
  tell();
  unlock_notes();
}

void lock_notes() {
  const auto me = static_cast<std::uint32_t>(sys::call(SYS_gettid));
  sys::Backoff backoff;
  while (!try_lock(me)) backoff.next();
}

void unlock_notes() {
  sys::store(lock_word(), 0U);
}

void move_notes_lock(Life& life) {
  lock_notes();
  sys::store(life.notes_lock, static_cast<std::uint32_t>(sys::call(SYS_gettid)));
  sys::store(library.alive, &life);
  sys::store(notes.early_lock, kMoved);
  unlock_notes();
}

void drop_all_notes() {
  const std::uint32_t pages = notes.used, words = notes.words_used;
  for (std::uint32_t i = 0; i < std::min(pages + 1, kPages); ++i) notes.page[i] = {};
  for (std::uint32_t i = 0; i < std::min(words + 1, kWords); ++i) notes.word[i] = {};
  for (std::uint16_t& bucket : notes.bucket) bucket = 0;
  for (std::uint64_t& slot : notes.slot) slot = 0;
  notes.alive = notes.used = notes.words_used = notes.slots_used = 0;
  notes.free = 0;
  notes.lost_words = true;
  if (sys::load(library.alive) == nullptr) sys::store(notes.early_lock, 0U);
}

void notes_after_fork() {
  for (std::uint32_t i = 0; i < notes.words_used; ++i) {
    if (notes.word[i].used) drop_word(notes.word[i]);
  }
  notes.words_used = 0;
  unlock_notes();
}

}  // namespace foldswap::preload
