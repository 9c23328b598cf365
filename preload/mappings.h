// What is mapped where, asked of the kernel one mapping at a time: PROCMAP_QUERY (Linux 6.11), or
// the text of /proc where that is not known. Neither allocates nor touches libc's state. Thread
// safety: one thread's; the agent's. Errors: without /proc nothing can be told (Answer::unknown).
#pragma once

#include <cstdint>

namespace foldswap::preload {

struct MappingInfo {
  std::uint64_t start = 0, end = 0;
  bool ordinary = false;  // private, of no file, of 4 KiB pages
};

class Mappings {
 public:
  enum class Answer { found, none, unknown };

  Mappings();
  Mappings(const Mappings&) = delete;
  Mappings& operator=(const Mappings&) = delete;
  ~Mappings();

  // The mapping that holds `address`, or the next one above it.
  [[nodiscard]] Answer at_or_after(std::uint64_t address, MappingInfo& info) const;

 private:
  long fd_;
};

}  // namespace foldswap::preload
