// What pages hold in the torture client. A key says everything about a page's bytes, and the bytes
// say their key: whatever turns up in the wrong place can be named. Key 0 is a page of zeros.
//
// Keys: owner (24 bits: a thread, a child or the board), serial (36 bits, counts the owner's
// writes), kind (4 bits). Thread safety: pure functions.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace testprog::torture {

inline constexpr std::uint64_t kOwnerBits = 24;
inline constexpr std::uint64_t kSerialBits = 36;

// How the bytes look to a codec: like small objects, incompressible, one word repeated, almost
// empty.
enum class Look : std::uint64_t { heap = 1, random = 2, same = 3, sparse = 4 };

[[nodiscard]] std::uint64_t make_key(std::uint64_t owner, std::uint64_t serial, Look look);
[[nodiscard]] Look draw_look(std::uint64_t draw);  // mostly heap

void fill(std::byte* page, std::uint64_t key);
[[nodiscard]] bool holds(const std::byte* page, std::uint64_t key);

// The page's own story: zeros, the contents of which key, a mixture.
[[nodiscard]] std::string describe(const std::byte* page, std::uint64_t expected);
[[nodiscard]] std::string name_key(std::uint64_t key);

}  // namespace testprog::torture
