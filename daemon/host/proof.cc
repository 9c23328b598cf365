#include "daemon/host/proof.h"

#include <cerrno>

#include "base/mutation.h"
#include "base/wire.h"

namespace foldswap {

bool page_there(Os& os, int pagemap_fd, std::uint64_t page) {
  constexpr std::uint64_t kPresent = 1ULL << 63, kSwapped = 1ULL << 62, kGuard = 1ULL << 58;
  std::uint64_t word = 0;
  const int n = os.read_at(pagemap_fd, &word, sizeof(word), page / wire::kPageBytes * sizeof(word));
  return n != sizeof(word) || (word & (kPresent | kSwapped | kGuard)) != 0;
}

Proof prove_address_space(Os& os, int uffd, int pagemap_fd, std::uint64_t staging) {
  // Any of the second half; which one is not worth guessing.
  if (mutated(Mutation::prove_address_space)) return Proof::proved;
  const std::uint64_t page =
      staging + wire::kHalfBytes + os.now_ns() / 64 % wire::kHalfPages * wire::kPageBytes;
  if (page_there(os, pagemap_fd, page)) return Proof::refuted;
  if (os.uffd_register(uffd, staging, wire::kStagingBytes) != 0) return Proof::refuted;
  const auto progress = os.uffd_zeropage(uffd, page, wire::kPageBytes);
  if (progress.error == EAGAIN) return Proof::later;
  if (progress.done != wire::kPageBytes) return Proof::refuted;
  return page_there(os, pagemap_fd, page) ? Proof::proved : Proof::refuted;
}

}  // namespace foldswap
