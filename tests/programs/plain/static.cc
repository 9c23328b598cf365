// A statically linked program: LD_PRELOAD does nothing for it, so `foldswap run --require` must
// refuse it.
#include <unistd.h>

#include <string_view>

int main() {
  constexpr std::string_view kText = "static program ran\n";
  return write(STDOUT_FILENO, kText.data(), kText.size()) == static_cast<ssize_t>(kText.size()) ? 0
                                                                                                : 1;
}
