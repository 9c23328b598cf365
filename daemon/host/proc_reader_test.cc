// Parsers of /proc, on real shapes and on nonsense.
#include "daemon/host/proc_reader.h"

#include <gtest/gtest.h>
#include <unistd.h>

namespace foldswap {
namespace {

std::string vma(const std::string& header, const std::string& flags, int anonymous_kib = 8) {
  return header +
         "\nSize:                132 kB\nRss:                  16 kB\nAnonymous:          " +
         std::to_string(anonymous_kib) + " kB\nVmFlags: " + flags + " \n";
}

TEST(ParseSmaps, TellsWhatMayBeManaged) {
  const std::string plain = "rd wr mr mw me ac sd";
  const auto vmas = parse_smaps(
      vma("55d0c0a00000-55d0c0c00000 rw-p 00000000 00:00 0                          [heap]", plain,
          2048) +
      vma("7f0000000000-7f0000200000 rw-p 00000000 00:00 0 ", plain + " um") +
      vma("7f0000200000-7f0000400000 rw-p 00000000 00:00 0 ", plain + " dc") +
      vma("7f0000400000-7f0000600000 rw-p 00000000 00:00 0 ", plain + " wf") +
      vma("7f0000600000-7f0000800000 rw-p 00000000 00:00 0 ", plain + " lo") +
      vma("7f0000800000-7f0000a00000 rw-p 00000000 00:00 0 ", plain + " gd") +
      vma("7f0000a00000-7f0000c00000 rw-s 00000000 00:01 1025                       /dev/zero "
          "(deleted)",
          plain) +
      vma("7f0000c00000-7f0000e00000 r--p 00000000 00:00 0 ", "rd mr mw me ac sd") +
      vma("7f0000e00000-7f0001000000 rw-p 00001000 fe:00 77                         /usr/lib/x.so",
          plain) +
      vma("7f0001000000-7f0001200000 rw-p 00000000 00:0f 31                         /anon_hugepage "
          "(deleted)",
          plain + " ht") +
      vma("7ffc00000000-7ffc00200000 rw-p 00000000 00:00 0                          [stack]",
          plain + " gd") +
      vma("7ffd00000000-7ffd00002000 r-xp 00000000 00:00 0                          [vdso]",
          "rd ex"));
  ASSERT_EQ(vmas.size(), 12U);
  EXPECT_TRUE(vmas[0].manageable);
  EXPECT_EQ(vmas[0].start, 0x55d0c0a00000U);
  EXPECT_EQ(vmas[0].end, 0x55d0c0c00000U);
  EXPECT_EQ(vmas[0].anonymous_bytes, 2048U * 1024);
  EXPECT_TRUE(vmas[1].manageable);
  EXPECT_TRUE(vmas[1].registered);
  for (std::size_t i = 2; i < vmas.size(); ++i) EXPECT_FALSE(vmas[i].manageable) << i;
}

TEST(ParseSmaps, SurvivesNonsense) {
  EXPECT_TRUE(parse_smaps("").empty());
  EXPECT_TRUE(parse_smaps("VmFlags: um\nAnonymous: x\n").empty());
  EXPECT_TRUE(parse_smaps("5-\n6\nffff\n12-34\n").empty());
  EXPECT_TRUE(parse_smaps(std::string(1000, 'f')).empty());
}

TEST(ReadVmas, ReadsItself) {
  const auto vmas = read_vmas(real_os(), ::getpid());
  ASSERT_TRUE(vmas);
  bool heap = false;
  // The frame, not a local: AddressSanitizer may keep those elsewhere.
  const auto here = reinterpret_cast<std::uint64_t>(__builtin_frame_address(0));
  bool stack = false;
  for (const auto& v : *vmas) {
    heap = heap || (v.manageable && v.anonymous_bytes > 0);
    if (here >= v.start && here < v.end) {
      stack = true;
      EXPECT_FALSE(v.manageable) << "the stack";
    }
  }
  EXPECT_TRUE(heap);
  EXPECT_TRUE(stack);
}

TEST(ParseStat, CountsFieldsFromTheLastParenthesis) {
  ThreadInfo thread;
  const std::string text =
      "123 (evil ) name) S 1 2 3 4 5 6 7 8 9 10 77 15 0 0 20 0 1 0 300 1000 200 "
      "18446744073709551615 "
      "1 1 0 0 0 0 0 0 0 0 0 0 17 1 0 0 0 0 0\n";
  ASSERT_TRUE(parse_stat(text, thread));
  EXPECT_EQ(thread.state, 'S');
  EXPECT_EQ(thread.user_ticks, 77U);
  EXPECT_EQ(thread.cpu, 1);
  EXPECT_FALSE(parse_stat("no parenthesis", thread));
  EXPECT_FALSE(parse_stat("1 (x)", thread));
}

TEST(ParseSyscall, OnlySleepElsewhereIsProof) {
  EXPECT_TRUE(
      parse_asleep_elsewhere("230 0x0 0x1 0x7ffe 0x7f 0x0 0x0 0x7ffe 0x7f\n"));  // clock_nanosleep
  EXPECT_FALSE(parse_asleep_elsewhere("running\n"));
  EXPECT_FALSE(parse_asleep_elsewhere("28 0x7f 0x1000 0x4 0 0 0 0x7ffe 0x7f\n"));  // madvise
  EXPECT_FALSE(
      parse_asleep_elsewhere("440 0x7f 0x1000 0x4 0 0 0 0x7ffe 0x7f\n"));  // process_madvise
  EXPECT_FALSE(parse_asleep_elsewhere("426 3 1 1 0 0 0 0x7ffe 0x7f\n"));   // io_uring_enter
  EXPECT_FALSE(parse_asleep_elsewhere("-1 0x7ffe 0x7f\n"));                // in a fault
  EXPECT_FALSE(parse_asleep_elsewhere(""));
}

}  // namespace
}  // namespace foldswap
