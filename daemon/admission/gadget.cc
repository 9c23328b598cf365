#include "daemon/admission/gadget.h"

#include <elf.h>

#include <algorithm>
#include <cstring>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace foldswap {
namespace {

constexpr std::uint32_t kNoteType = 1, kNoteVersion = 1;
constexpr std::string_view kNoteName("foldswap\0", 9);
constexpr std::size_t kMostHeaders = 64;
constexpr std::uint64_t kMostGadgetBytes = 4096;

// What the note holds after its name.
struct Words {
  std::uint32_t version;
  std::int32_t call, user, end;  // each as a distance from itself
};

using Bytes = std::span<const std::byte>;

template <typename T>
std::optional<T> read(Bytes file, std::uint64_t offset) {
  if (offset > file.size() || file.size() - offset < sizeof(T)) return std::nullopt;
  T value;
  std::memcpy(&value, file.data() + offset, sizeof(T));
  return value;
}

std::uint64_t padded(std::uint64_t bytes) {
  return (bytes + 3) / 4 * 4;
}

// Offset in the file of the words of our note; `segment` has notes.
std::optional<std::uint64_t> find_note(Bytes file, const Elf64_Phdr& segment) {
  std::uint64_t at = segment.p_offset;
  for (std::uint64_t left = segment.p_filesz; left >= sizeof(Elf64_Nhdr);) {
    const auto note = read<Elf64_Nhdr>(file, at);
    if (!note) return std::nullopt;
    const std::uint64_t name = at + sizeof(Elf64_Nhdr), words = name + padded(note->n_namesz);
    const std::uint64_t bytes = words + padded(note->n_descsz) - at;
    if (note->n_type == kNoteType && note->n_namesz == kNoteName.size() &&
        note->n_descsz == sizeof(Words) && name + kNoteName.size() <= file.size() &&
        std::memcmp(file.data() + name, kNoteName.data(), kNoteName.size()) == 0) {
      return words;
    }
    if (bytes > left) return std::nullopt;
    at += bytes;
    left -= bytes;
  }
  return std::nullopt;
}

// Of an address as the file counts them, in a part of it that is code.
std::optional<std::uint64_t> offset_of_code(const std::vector<Elf64_Phdr>& segments,
                                            std::uint64_t address) {
  for (const Elf64_Phdr& s : segments) {
    if (s.p_type == PT_LOAD && (s.p_flags & PF_X) != 0 && address >= s.p_vaddr &&
        address - s.p_vaddr < s.p_filesz) {
      return address - s.p_vaddr + s.p_offset;
    }
  }
  return std::nullopt;
}

}  // namespace

Result<Gadget> find_gadget(Bytes file) {
  const auto header = read<Elf64_Ehdr>(file, 0);
  if (!header || std::memcmp(header->e_ident, ELFMAG, SELFMAG) != 0 ||
      header->e_ident[EI_CLASS] != ELFCLASS64 || header->e_machine != EM_X86_64 ||
      header->e_phentsize != sizeof(Elf64_Phdr) || header->e_phnum > kMostHeaders) {
    return fail("it is no library for x86-64");
  }
  std::vector<Elf64_Phdr> segments;
  for (std::size_t i = 0; i < header->e_phnum; ++i) {
    const auto segment = read<Elf64_Phdr>(file, header->e_phoff + i * sizeof(Elf64_Phdr));
    if (!segment) return fail("its program headers are cut off");
    segments.push_back(*segment);
  }
  for (const Elf64_Phdr& segment : segments) {
    if (segment.p_type != PT_NOTE) continue;
    const auto note = find_note(file, segment);
    const auto words = note ? read<Words>(file, *note) : std::nullopt;
    if (!words) continue;
    if (words->version != kNoteVersion) {
      return fail("its libfoldswap.so is of version " + std::to_string(words->version) +
                  " of the note, this daemon knows " + std::to_string(kNoteVersion));
    }
    const std::uint64_t base = *note - segment.p_offset + segment.p_vaddr;
    const auto code = [&](std::int32_t distance, std::size_t place, std::uint64_t less) {
      const std::uint64_t address =
          base + place + static_cast<std::uint64_t>(std::int64_t{distance});
      const auto offset = offset_of_code(segments, address - less);
      return offset ? std::optional(*offset + less) : std::nullopt;
    };
    const auto call = code(words->call, offsetof(Words, call), 0);
    const auto user = code(words->user, offsetof(Words, user), 0);
    const auto end = code(words->end, offsetof(Words, end), 1);
    if (!call || !user || !end || *call >= *end || *user >= *end ||
        *end - std::min(*call, *user) > kMostGadgetBytes) {
      return fail("the note of its libfoldswap.so names no code");
    }
    return Gadget{*call, *user, *end};
  }
  return fail("its libfoldswap.so is of a version whose agent comes at start only");
}

}  // namespace foldswap
