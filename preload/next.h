// The functions that ours stand in front of: the next definition of the same name, looked up once.
// Thread safety: any; two threads may look up the same name at once and find the same. Safe before
// the constructor has run and in fork children.
#pragma once

namespace foldswap::preload {

// The definition that a reference of this name would bind to if we were not there; null: there is
// none. It reads the tables that the loader itself reads: the C library's own function for that has
// moved between libraries and versions, and who needs it loads in fewer programs. No system call.
[[nodiscard]] void* find_next(const char* name);

template <typename Function>
class Next {
 public:
  explicit constexpr Next(const char* name) : name_(name) {}
  [[nodiscard]] Function* get() {
    auto* function = __atomic_load_n(&function_, __ATOMIC_RELAXED);
    if (function == nullptr) [[unlikely]] {
      function = reinterpret_cast<Function*>(find_next(name_));
      __atomic_store_n(&function_, function, __ATOMIC_RELAXED);
    }
    return function;
  }
  template <typename... Args>
  auto operator()(Args... args) {
    return get()(args...);
  }

 private:
  const char* name_;
  Function* function_ = nullptr;
};

}  // namespace foldswap::preload

// The symbols that programs see; everything else is hidden.
#define FOLDSWAP_EXPORT extern "C" __attribute__((visibility("default")))
