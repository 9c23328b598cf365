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

// Looks them all up. The constructor does this, so that no call later waits for the loader's lock,
// which a forked child may inherit held, or touches tables that may be out.
template <typename... Function>
void find_all(Next<Function>&... next) {
  (static_cast<void>(next.get()), ...);
}
void find_all_of_cred();
void find_all_of_fork();
void find_all_of_memory();
void find_all_of_rights();
void find_all_of_thread();

}  // namespace foldswap::preload

// The symbols that programs see; everything else is hidden.
#define FOLDSWAP_EXPORT extern "C" __attribute__((visibility("default")))
