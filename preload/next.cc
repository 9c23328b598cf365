#include "preload/next.h"

#include <elf.h>
#include <link.h>

#include <cstddef>
#include <cstdint>

#include "preload/state.h"

namespace foldswap::preload {
namespace {

bool same(const char* a, const char* b) {
  for (; *a != '\0' && *a == *b; ++a, ++b) {
  }
  return *a == *b;
}

std::uint32_t gnu_hash(const char* name) {
  std::uint32_t hash = 5381;
  for (; *name != '\0'; ++name) hash = hash * 33 + static_cast<unsigned char>(*name);
  return hash;
}

std::uint32_t old_hash(const char* name) {
  std::uint32_t hash = 0;
  for (; *name != '\0'; ++name) {
    hash = (hash << 4) + static_cast<unsigned char>(*name);
    const std::uint32_t high = hash & 0xf0000000U;
    hash = (hash ^ (high >> 24)) & ~high;
  }
  return hash;
}

// The tables of one loaded object by which the loader itself finds symbols.
class Symbols {
 public:
  Symbols(std::uint64_t base, const ElfW(Dyn) * dynamic) : base_(base) {
    for (; dynamic->d_tag != DT_NULL; ++dynamic) {
      switch (dynamic->d_tag) {
        case DT_SYMTAB:
          table_ = at<ElfW(Sym)>(dynamic->d_un.d_ptr);
          break;
        case DT_STRTAB:
          names_ = at<char>(dynamic->d_un.d_ptr);
          break;
        case DT_VERSYM:
          versions_ = at<std::uint16_t>(dynamic->d_un.d_ptr);
          break;
        case DT_GNU_HASH:
          gnu_ = at<std::uint32_t>(dynamic->d_un.d_ptr);
          break;
        case DT_HASH:
          old_ = at<std::uint32_t>(dynamic->d_un.d_ptr);
          break;
        default:
          break;
      }
    }
  }

  // What a reference without a version binds to; null: it defines no such function.
  [[nodiscard]] void* find(const char* name) const {
    if (table_ == nullptr || names_ == nullptr) return nullptr;
    const ElfW(Sym)* const symbol = gnu_ != nullptr ? find_gnu(name) : find_old(name);
    if (symbol == nullptr) return nullptr;
    void* const address = reinterpret_cast<void*>(base_ + symbol->st_value);
    if (ELF64_ST_TYPE(symbol->st_info) != STT_GNU_IFUNC) return address;
    return reinterpret_cast<void* (*)()>(address)();
  }

 private:
  // glibc has put addresses in place of offsets, musl has not.
  template <typename T>
  [[nodiscard]] const T* at(std::uint64_t value) const {
    return reinterpret_cast<const T*>(value < base_ ? base_ + value : value);
  }

  [[nodiscard]] bool fits(std::uint32_t index, const char* name) const {
    constexpr std::uint16_t kHidden = 0x8000;  // not the version that is bound to by default
    const ElfW(Sym)& symbol = table_[index];
    return symbol.st_shndx != SHN_UNDEF && symbol.st_value != 0 &&
           same(names_ + symbol.st_name, name) &&
           (versions_ == nullptr || (versions_[index] & kHidden) == 0);
  }

  [[nodiscard]] const ElfW(Sym) * find_gnu(const char* name) const {
    const std::uint32_t buckets = gnu_[0], first = gnu_[1], words = gnu_[2];
    if (buckets == 0) return nullptr;
    const std::uint32_t* const bucket =
        gnu_ + 4 + 2 * std::size_t{words};  // the filter has words of 64 bits
    const std::uint32_t* const chain = bucket + buckets;
    const std::uint32_t hash = gnu_hash(name);
    std::uint32_t index = bucket[hash % buckets];
    if (index < first) return nullptr;
    for (;; ++index) {
      const std::uint32_t here = chain[index - first];
      if ((here | 1) == (hash | 1) && fits(index, name)) return &table_[index];
      if ((here & 1) != 0) return nullptr;
    }
  }

  [[nodiscard]] const ElfW(Sym) * find_old(const char* name) const {
    if (old_ == nullptr || old_[0] == 0) return nullptr;
    const std::uint32_t* const bucket = old_ + 2;
    const std::uint32_t* const chain = bucket + old_[0];
    for (std::uint32_t index = bucket[old_hash(name) % old_[0]]; index != 0; index = chain[index]) {
      if (fits(index, name)) return &table_[index];
    }
    return nullptr;
  }

  const std::uint64_t base_;
  const ElfW(Sym) * table_ = nullptr;
  const char* names_ = nullptr;
  const std::uint16_t* versions_ = nullptr;
  const std::uint32_t *gnu_ = nullptr, *old_ = nullptr;
};

struct Search {
  const char* name;
  bool behind_us = false;
  void* found = nullptr;
};

int look_into(dl_phdr_info* info, std::size_t, void* argument) {
  auto& search = *static_cast<Search*>(argument);
  const auto ours = reinterpret_cast<std::uint64_t>(&library);
  const ElfW(Dyn)* dynamic = nullptr;
  bool us = false;
  for (int i = 0; i < info->dlpi_phnum; ++i) {
    const ElfW(Phdr)& header = info->dlpi_phdr[i];
    const std::uint64_t start = info->dlpi_addr + header.p_vaddr;
    if (header.p_type == PT_DYNAMIC) dynamic = reinterpret_cast<const ElfW(Dyn)*>(start);
    us = us || (header.p_type == PT_LOAD && ours >= start && ours < start + header.p_memsz);
  }
  if (us) {
    search.behind_us = true;
  } else if (search.behind_us && dynamic != nullptr) {
    search.found = Symbols(info->dlpi_addr, dynamic).find(search.name);
  }
  return search.found != nullptr ? 1 : 0;
}

}  // namespace

void* find_next(const char* name) {
  Search search{.name = name};
  dl_iterate_phdr(look_into, &search);
  return search.found;
}

}  // namespace foldswap::preload
