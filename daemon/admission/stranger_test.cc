#include "daemon/admission/stranger.h"

#include <elf.h>
#include <gtest/gtest.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstring>
#include <fstream>
#include <initializer_list>
#include <iterator>
#include <string>
#include <vector>

#include "daemon/admission/gadget.h"
#include "daemon/admission/injection.h"

namespace foldswap {
namespace {

using namespace std::string_literals;

TEST(Wishes, AreThoseOfTheEnvironment) {
  const Wishes wishes = parse_wishes(
      "PATH=/"
      "bin\0FOLDSWAP_NAME=web\0FOLDSWAP_RESIDENT_MAX=64M\0FOLDSWAP_GROUP=7.9\0FOLDSWAP_GROUP_MAX="
      "1G\0"
      "FOLDSWAP_RUNTIME_DIR=/tmp/x\0"s,
      "nginx");
  EXPECT_STREQ(wishes.name, "web");
  EXPECT_STREQ(wishes.group, "7.9");
  EXPECT_STREQ(wishes.runtime_dir, "/tmp/x");
  EXPECT_EQ(wishes.resident_max_bytes, 64ULL << 20);
  EXPECT_EQ(wishes.group_max_bytes, 1ULL << 30);
  EXPECT_FALSE(wishes.disabled);
}

TEST(Wishes, NothingIsWishedForByOthers) {
  const Wishes wishes =
      parse_wishes("XFOLDSWAP_NAME=a\0FOLDSWAP_NAME\0FOLDSWAP_NAME=\0FOLDSWAP_DISABLE=0\0"s, "cat");
  EXPECT_STREQ(wishes.name, "cat");
  EXPECT_EQ(wishes.resident_max_bytes, wire::kNoLimit);
  EXPECT_FALSE(wishes.disabled);
  EXPECT_TRUE(parse_wishes("FOLDSWAP_DISABLE=1", "cat").disabled);
}

TEST(Wishes, WhatIsTooLongOrBadIsCutOrIgnored) {
  const std::string much(500, 'a');
  const Wishes wishes = parse_wishes("FOLDSWAP_NAME=" + much + "\0FOLDSWAP_RUNTIME_DIR="s + much +
                                         "\0FOLDSWAP_RESIDENT_MAX=much\0FOLDSWAP_GROUP=\x1b[31m"s,
                                     "x");
  EXPECT_EQ(std::strlen(wishes.name), wire::kNameBytes - 1);
  EXPECT_EQ(std::strlen(wishes.runtime_dir), sizeof(wishes.runtime_dir) - 1);
  EXPECT_EQ(wishes.resident_max_bytes, wire::kNoLimit);
  EXPECT_EQ(std::string(wishes.group).find('\x1b'), std::string::npos);
}

constexpr const char* kMaps =
    "55d0c0000000-55d0c0001000 r--p 00000000 fe:00 11                         /usr/bin/my program\n"
    "7f0000000000-7f0000002000 r--p 00000000 fe:00 4711                       /opt/a "
    "b/libfoldswap.so (deleted)\n"
    "7f0000002000-7f0000013000 r-xp 00002000 fe:00 4711                       /opt/a "
    "b/libfoldswap.so (deleted)\n"
    "7f0000013000-7f0000016000 r--p 00013000 fe:00 4711                       /opt/a "
    "b/libfoldswap.so (deleted)\n"
    "7f0000016000-7f0000018000 rw-p 00016000 fe:00 4711                       /opt/a "
    "b/libfoldswap.so (deleted)\n"
    "7ffc00000000-7ffc00021000 rw-p 00000000 00:00 0                          [stack]\n";

TEST(FindLibrary, IsWhereItsCodeIs) {
  const auto found = find_library(kMaps);
  ASSERT_TRUE(found);
  EXPECT_EQ(found->start, 0x7f0000002000U);
  EXPECT_EQ(found->end, 0x7f0000013000U);
  EXPECT_EQ(found->offset, 0x2000U);
  EXPECT_EQ(found->inode, 4711U);
  EXPECT_EQ(found->device, "fe:00");
  EXPECT_EQ(found->first_range, "7f0000000000-7f0000002000");
  EXPECT_EQ(found->path, "/opt/a b/libfoldswap.so");
}

TEST(FindLibrary, OthersAreNotIt) {
  EXPECT_FALSE(find_library(""));
  EXPECT_FALSE(
      find_library("7f0000002000-7f0000013000 r-xp 00002000 fe:00 4711 /x/libfoldswap.so.1\n"));
  // Code that anybody may write to, or without the beginning of its file.
  EXPECT_FALSE(
      find_library("7f0000000000-7f0000002000 r--p 00000000 fe:00 4711 /x/libfoldswap.so\n"
                   "7f0000002000-7f0000013000 rwxp 00002000 fe:00 4711 /x/libfoldswap.so\n"));
  EXPECT_FALSE(
      find_library("7f0000002000-7f0000013000 r-xp 00002000 fe:00 4711 /x/libfoldswap.so\n"));
  EXPECT_FALSE(
      find_library("7f0000000000-7f0000002000 r--p 00000000 fe:00 4711 /x/libfoldswap.so\n"
                   "7f0000002000-7f0000013000 r-xp 00002000 fe:00 4712 /y/libfoldswap.so\n"));
}

TEST(ParseIdentity, NamesMayHoldAnything) {
  const auto identity = parse_identity(
      "12 (a) R 1 (b) S 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 777 20 21 22 4096 24 25\n");
  ASSERT_TRUE(identity);
  EXPECT_EQ(identity->start_ticks, 777U);
  EXPECT_EQ(identity->code_start, 4096U);
  EXPECT_FALSE(parse_identity(""));
  EXPECT_FALSE(parse_identity("12 (a) R 1 2 3"));
}

TEST(ParseWaiting, SaysWhichCall) {
  const auto waiting =
      parse_waiting("202 0x7f 0x0 0x7 0x7f 0x0 0x0 0x7ffd1c2aeb00 0x7f98e5d5927f\n");
  ASSERT_TRUE(waiting);
  EXPECT_EQ(waiting->call, 202);
  EXPECT_EQ(waiting->pc, 0x7f98e5d5927fU);
  EXPECT_EQ(parse_waiting("-1 0x7ffd 0x55\n")->call, -1);
  EXPECT_FALSE(parse_waiting("running\n"));
  EXPECT_FALSE(parse_waiting(""));
}

TEST(FitnessOfCall, CallsThatMayBeHalfDoneAreNotTouched) {
  for (const long call : std::initializer_list<long>{
           SYS_close, SYS_connect, SYS_write, SYS_fallocate, SYS_vfork, SYS_execve, SYS_ioctl, -1})
    EXPECT_FALSE(fitness_of_call(call)) << call;
  EXPECT_LT(*fitness_of_call(SYS_futex), *fitness_of_call(SYS_epoll_wait));
}

std::vector<std::byte> library_bytes() {
  std::ifstream file(FOLDSWAP_LIBRARY, std::ios::binary);
  const std::string text{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
  const auto* const data = reinterpret_cast<const std::byte*>(text.data());
  return {data, data + text.size()};
}

TEST(FindGadget, IsInTheLibrary) {
  const auto bytes = library_bytes();
  ASSERT_FALSE(bytes.empty());
  const auto gadget = find_gadget(bytes);
  ASSERT_TRUE(gadget) << gadget.error().text();
  // Each entry begins with a store to the slot: movq %rcx, ...(%rip).
  for (const std::uint64_t entry : {gadget->call, gadget->user}) {
    EXPECT_EQ(bytes.at(entry), std::byte{0x48});
    EXPECT_EQ(bytes.at(entry + 1), std::byte{0x89});
    EXPECT_LT(entry, gadget->end);
  }
}

TEST(FindGadget, OtherFilesHaveNone) {
  EXPECT_FALSE(find_gadget({}));
  std::ifstream file("/proc/self/exe", std::ios::binary);
  const std::string text{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
  const auto gadget = find_gadget({reinterpret_cast<const std::byte*>(text.data()), text.size()});
  ASSERT_FALSE(gadget);
  EXPECT_NE(gadget.error().text().find("at start only"), std::string::npos);
}

// Cut off anywhere, and with any byte of its headers changed: an answer, and no entry outside of
// the file.
TEST(FindGadget, DamagedFilesAreRefusedOrStayInside) {
  const auto whole = library_bytes();
  for (std::size_t size = 0; size < 2048; size += 7)
    (void)find_gadget(std::span(whole).first(size));
  for (std::size_t at = 0; at < 1024; ++at) {
    for (const int change : {0x01, 0x80, 0xff}) {
      auto bytes = whole;
      bytes[at] ^= static_cast<std::byte>(change);
      const auto gadget = find_gadget(bytes);
      if (gadget) {
        EXPECT_LE(gadget->end - std::min(gadget->call, gadget->user), 4096U) << at;
      }
    }
  }
}

TEST(Stranger, IsThisProcess) {
  const auto self = Stranger::open(::getpid());
  ASSERT_TRUE(self);
  const auto identity = self->identity();
  ASSERT_TRUE(identity);
  EXPECT_NE(identity->start_ticks, 0U);
  EXPECT_FALSE(self->library());
  EXPECT_FALSE(self->threads().empty());
  EXPECT_FALSE(Stranger::open(0x3fffffff));
}

}  // namespace
}  // namespace foldswap
