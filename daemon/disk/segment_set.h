// SegmentSet: numbers of segments, as a bitmap that grows with the highest of them. Finds the
// lowest, the highest, and how far a run goes. Thread safety: none.
#pragma once

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

namespace foldswap {

class SegmentSet {
 public:
  void add(std::uint32_t segment) {
    const std::size_t word = segment / 64;
    if (word >= words_.size()) words_.resize(word + 1);
    count_ += contains(segment) ? 0 : 1;
    words_[word] |= bit(segment);
    lowest_word_ = std::min(lowest_word_, word);
  }
  void remove(std::uint32_t segment) {
    if (!contains(segment)) return;
    words_[segment / 64] &= ~bit(segment);
    --count_;
  }
  [[nodiscard]] bool contains(std::uint32_t segment) const {
    return segment / 64 < words_.size() && (words_[segment / 64] & bit(segment)) != 0;
  }
  [[nodiscard]] std::uint32_t count() const { return count_; }

  [[nodiscard]] std::optional<std::uint32_t> lowest() {
    while (lowest_word_ < words_.size() && words_[lowest_word_] == 0) ++lowest_word_;
    if (lowest_word_ == words_.size()) return std::nullopt;
    return number(lowest_word_, static_cast<unsigned>(std::countr_zero(words_[lowest_word_])));
  }
  // The lowest that is not below `least`.
  [[nodiscard]] std::optional<std::uint32_t> lowest_from(std::uint32_t least) {
    if (least == 0) return lowest();
    const std::size_t first = least / 64;
    for (std::size_t word = std::max(first, lowest_word_); word < words_.size(); ++word) {
      const std::uint64_t below = word == first ? bit(least) - 1 : 0;
      if (const std::uint64_t there = words_[word] & ~below)
        return number(word, static_cast<unsigned>(std::countr_zero(there)));
    }
    return std::nullopt;
  }
  // Gives up the words above it: the next one is near.
  [[nodiscard]] std::optional<std::uint32_t> highest() {
    while (!words_.empty() && words_.back() == 0) words_.pop_back();
    lowest_word_ = std::min(lowest_word_, words_.size());
    if (words_.empty()) return std::nullopt;
    return number(words_.size() - 1, static_cast<unsigned>(std::bit_width(words_.back())) - 1);
  }

 private:
  [[nodiscard]] static constexpr std::uint64_t bit(std::uint32_t segment) {
    return std::uint64_t{1} << (segment % 64);
  }
  [[nodiscard]] static constexpr std::uint32_t number(std::size_t word, unsigned in_word) {
    return static_cast<std::uint32_t>(word * 64 + in_word);
  }

  std::vector<std::uint64_t> words_;
  std::size_t lowest_word_ = 0;  // nothing is below it
  std::uint32_t count_ = 0;
};

}  // namespace foldswap
