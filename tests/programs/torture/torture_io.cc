// The kernel reads and writes pages on the program's behalf.
#include <fcntl.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>

#include "tests/programs/torture/torture_worker.h"

namespace testprog::torture {
namespace {

constexpr std::size_t kMost = 16;  // pages: what a pipe holds

bool certain(const PageShadow& page) {
  return page.readable() && page.is == Is::data;
}

}  // namespace

// Pages go from one place to another through a pipe, one vector each way.
void Worker::through_pipe() {
  Area& from = some_area();
  Area& to = some_area();
  const Span source = from.pick(random_, kMost, certain);
  const Span target = to.pick(random_, kMost, &PageShadow::writable);
  if (source.empty() || target.empty()) return;
  const std::size_t count = std::min(source.count, target.count);
  slot_->note("pipe", from.at(source.first), count,
              reinterpret_cast<std::uint64_t>(to.at(target.first)));
  std::array<int, 2> ends{};
  expect(pipe2(ends.data(), O_CLOEXEC), "pipe2");
  std::array<iovec, kMost> out{}, in{};
  for (std::size_t i = 0; i < count; ++i) {
    // Backwards, so that the pages of a vector are not simply one piece of memory.
    out[i] = {from.at(source.first + count - 1 - i), kPage};
    in[i] = {to.at(target.first + i), kPage};
  }
  const auto bytes = static_cast<ssize_t>(count * kPage);
  const std::vector<PageShadow> pages = from.copy_of({source.first, count});
  if (writev(ends[1], out.data(), static_cast<int>(count)) != bytes) {
    fail_call(*slot_, "writev", errno);
  }
  if (readv(ends[0], in.data(), static_cast<int>(count)) != bytes) {
    fail_call(*slot_, "readv", errno);
  }
  for (std::size_t i = 0; i < count; ++i) {
    to[target.first + i].key = pages[count - 1 - i].key;
    to[target.first + i].is = Is::data;
  }
  to.check_span({target.first, count}, *slot_);
  close(ends[0]);
  close(ends[1]);
}

void Worker::through_process_vm() {
  Area& area = some_area();
  const Span span = area.pick(random_, kMost, certain);
  if (span.empty()) return;
  slot_->note("process_vm_readv", area.at(span.first), span.count);
  std::array<std::byte, kMost * kPage> copy;
  const iovec local{copy.data(), span.count * kPage};
  const iovec remote{area.at(span.first), span.count * kPage};
  const ssize_t got = process_vm_readv(getpid(), &local, 1, &remote, 1, 0);
  if (got < 0 && (errno == EPERM || errno == ENOSYS)) return;
  if (got != static_cast<ssize_t>(span.count * kPage)) {
    fail_call(*slot_, "process_vm_readv", errno);
  }
  for (std::size_t i = 0; i < span.count; ++i) {
    const std::uint64_t key = area[span.first + i].key;
    if (holds(copy.data() + i * kPage, key)) continue;
    fail(*slot_, "process_vm_readv, expected " + name_key(key) + ": " +
                     describe(copy.data() + i * kPage, key));
  }
}

}  // namespace testprog::torture
