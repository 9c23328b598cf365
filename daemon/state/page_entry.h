// One page-map entry: a 64-bit word that says where a page of a client is.
//
//   bits 0..2   PageState
//   bits 3..4   heat: set on fault-in, decayed by the eviction clock; meaningful in `none` only
//   bit  5      wanted: the reader waits for (or has claimed) a page that is OUT
//   bits 6..63  payload: pattern (same), object id (same_record, object), transfer slot and batch
//   (out)
//
// State table (who may do it; every transition is one compare-and-swap: HAZARDS 18)
//   none -> out                     evictor, before the command is posted
//   out  -> same | same_record | object   evictor, when the page has left the client and nobody
//   wants it out  -> none                    evictor: it did not move; reader: rescued, or its
//   mapping is gone out  -> out+wanted              reader only: a fault waits for it, and from now
//   on only the reader (or, when
//                                   address-space events wait, the evictor) may change it
//   same | same_record | object -> none   reader: copied back, or its mapping is gone
//   same_record | object -> bad     reader: the checksum does not hold; the page is poisoned
//   bad -> none                     reader: its mapping is gone
// DISK is no state here: an object's record says whether it lies in a frame or in a segment (DESIGN
// §7).
#pragma once

#include <cstdint>
#include <optional>

namespace foldswap {

enum class PageState : std::uint8_t {
  none = 0,         // not ours, or resident
  same = 1,         // repeats one word that fits the payload
  same_record = 2,  // repeats one word that does not: kept in an object record, no frame space
  object = 3,       // in the pool
  out = 4,          // on its way: in staging or in the transfer area
  bad = 5,          // its object failed verification
};

class Entry {
 public:
  constexpr Entry() = default;
  constexpr explicit Entry(std::uint64_t raw) : raw_(raw) {}

  // Empty when the pattern does not survive 58 bits of sign-extended payload.
  static constexpr std::optional<Entry> same(std::uint64_t pattern) {
    const auto payload = (pattern << kPayloadShift) >> kPayloadShift;
    const Entry e = make(PageState::same, payload);
    if (e.pattern() != pattern) return std::nullopt;
    return e;
  }
  static constexpr Entry same_record(std::uint64_t id) { return make(PageState::same_record, id); }
  static constexpr Entry object(std::uint64_t id) { return make(PageState::object, id); }
  // `batch` tells one use of a transfer slot from the next.
  static constexpr Entry out(std::uint32_t half, std::uint32_t slot, std::uint64_t batch) {
    return make(PageState::out, (batch << 10) | (half << 9) | slot);
  }
  static constexpr Entry bad() { return make(PageState::bad, 0); }
  static constexpr Entry none(unsigned heat = 0) {
    return Entry((std::uint64_t{heat} & 3) << kHeatShift);
  }

  [[nodiscard]] constexpr std::uint64_t raw() const { return raw_; }
  [[nodiscard]] constexpr PageState state() const { return static_cast<PageState>(raw_ & 7); }
  [[nodiscard]] constexpr unsigned heat() const { return (raw_ >> kHeatShift) & 3; }
  [[nodiscard]] constexpr bool wanted() const { return (raw_ & kWanted) != 0; }
  [[nodiscard]] constexpr Entry with_wanted() const { return Entry(raw_ | kWanted); }
  [[nodiscard]] constexpr Entry without_wanted() const { return Entry(raw_ & ~kWanted); }
  [[nodiscard]] constexpr std::uint64_t object_id() const { return raw_ >> kPayloadShift; }
  [[nodiscard]] constexpr std::uint64_t pattern() const {
    return static_cast<std::uint64_t>(static_cast<std::int64_t>(raw_) >> kPayloadShift);
  }
  [[nodiscard]] constexpr std::uint32_t half() const { return (raw_ >> (kPayloadShift + 9)) & 1; }
  [[nodiscard]] constexpr std::uint32_t slot() const { return (raw_ >> kPayloadShift) & 511; }
  [[nodiscard]] constexpr bool has_record() const {
    return state() == PageState::object || state() == PageState::same_record;
  }
  // Evicted for good: counted in evicted_pages.
  [[nodiscard]] constexpr bool evicted() const {
    return state() == PageState::same || has_record();
  }
  constexpr bool operator==(const Entry&) const = default;

 private:
  static constexpr unsigned kHeatShift = 3, kPayloadShift = 6;
  static constexpr std::uint64_t kWanted = 1U << 5;
  static constexpr Entry make(PageState state, std::uint64_t payload) {
    return Entry((payload << kPayloadShift) | static_cast<std::uint64_t>(state));
  }
  std::uint64_t raw_ = 0;
};
static_assert(sizeof(Entry) == 8);

}  // namespace foldswap
