// Where programs and the library are found, and which programs cannot be preloaded into.
#include "cli/program.h"

#include <elf.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>

#include "cli/testing/test_support.h"

namespace foldswap::cli {
namespace {

#if defined(__x86_64__)
constexpr Elf64_Half kMachine = EM_X86_64, kForeign = EM_AARCH64;
#else
constexpr Elf64_Half kMachine = EM_AARCH64, kForeign = EM_X86_64;
#endif

// A program header table of one segment; as much of an ELF file as the loader's choice depends on.
std::string elf(Elf64_Word segment, Elf64_Half machine = kMachine) {
  Elf64_Ehdr header{};
  std::memcpy(header.e_ident, ELFMAG, SELFMAG);
  header.e_ident[EI_CLASS] = ELFCLASS64;
  header.e_machine = machine;
  header.e_phoff = sizeof(header);
  header.e_phentsize = sizeof(Elf64_Phdr);
  header.e_phnum = 1;
  Elf64_Phdr program{};
  program.p_type = segment;
  std::string bytes(sizeof(header) + sizeof(program), '\0');
  std::memcpy(bytes.data(), &header, sizeof(header));
  std::memcpy(bytes.data() + sizeof(header), &program, sizeof(program));
  return bytes;
}

std::string why(const std::string& file) {
  return why_not_preloadable(file).value_or("");
}

TEST(Preloadable, DynamicProgramsAre) {
  const TempDir dir;
  EXPECT_EQ(why(dir.write("dynamic", elf(PT_INTERP), 0755)), "");
  EXPECT_EQ(why("/bin/sh"), "");
}

TEST(Preloadable, StaticProgramsAreNot) {
  const TempDir dir;
  const std::string file = dir.write("static", elf(PT_LOAD), 0755);
  EXPECT_EQ(why(file), file + " is statically linked");
}

TEST(Preloadable, OtherMachinesAreNot) {
  const TempDir dir;
  EXPECT_NE(why(dir.write("foreign", elf(PT_INTERP, kForeign), 0755)).find("machine"),
            std::string::npos);
  std::string narrow = elf(PT_INTERP);
  narrow[EI_CLASS] = ELFCLASS32;
  EXPECT_NE(why(dir.write("narrow", narrow, 0755)).find("machine"), std::string::npos);
}

TEST(Preloadable, ScriptsAreWhatTheirInterpreterIs) {
  const TempDir dir;
  const std::string program = dir.write("static", elf(PT_LOAD), 0755);
  const std::string script = dir.write("script", "#! " + program + " -x\n", 04755);
  EXPECT_EQ(why(script), program + " is statically linked");
  EXPECT_EQ(why(dir.write("shell", "#!/bin/sh\n", 04755)), "");
  EXPECT_EQ(why(dir.write("twice", "#!" + script + "\n", 0755)), program + " is statically linked");
  const std::string loop = (dir.path() / "loop").string();
  EXPECT_EQ(why(dir.write("loop", "#!" + loop + "\n", 0755)), "");
}

TEST(Preloadable, ChangingCredentialsTurnsPreloadingOff) {
  const TempDir dir;
  const std::string setuid = dir.write("u", elf(PT_INTERP), 04755);
  EXPECT_EQ(why(setuid), setuid + " is setuid");
  const std::string setgid = dir.write("g", elf(PT_INTERP), 02755);
  EXPECT_EQ(why(setgid), setgid + " is setgid");
  EXPECT_EQ(why(dir.write("locking", elf(PT_INTERP), 02745)), "");
}

TEST(Preloadable, OddFilesAreLeftToExec) {
  const TempDir dir;
  for (const std::string& bytes : {std::string(), std::string("#!"), std::string("#!\n"),
                                   std::string("#! \t "), std::string("text")}) {
    EXPECT_EQ(why(dir.write("odd", bytes, 0755)), "");
  }
  EXPECT_NE(why(dir.write("cut", elf(PT_INTERP).substr(0, 20), 0755)).find("truncated"),
            std::string::npos);
  EXPECT_NE(why(dir.write("headless", elf(PT_INTERP).substr(0, 70), 0755)), "");
  EXPECT_EQ(why((dir.path() / "none").string()), "");
}

class FindProgram : public testing::Test {
 protected:
  void SetUp() override {
    const char* path = std::getenv("PATH");
    if (path != nullptr) path_ = path;
  }
  void TearDown() override { ::setenv("PATH", path_.c_str(), 1); }
  void look_in(const std::string& path) { ::setenv("PATH", path.c_str(), 1); }
  TempDir dir_;

 private:
  std::string path_;
};

TEST_F(FindProgram, TakesTheFirstThatCanBeExecuted) {
  dir_.write("a/tool", "no", 0644);
  dir_.write("b/tool/file", "a directory is no program", 0644);
  const std::string good = dir_.write("c/tool", "yes", 0755);
  const std::string base = dir_.path();
  look_in(base + "/none:" + base + "/a:" + base + "/b:" + base + "/c");
  EXPECT_EQ(find_program("tool").value_or("?"), good);
  EXPECT_EQ(find_program(good).value_or("?"), good);
  look_in(base + "/a:" + base + "/none");
  EXPECT_EQ(find_program("tool").error().code, EACCES);
}

TEST_F(FindProgram, NotFound) {
  look_in(dir_.path());
  EXPECT_EQ(find_program("tool").error().code, ENOENT);
  EXPECT_EQ(find_program("").error().code, ENOENT);
  EXPECT_EQ(find_program("/none/tool").error().code, ENOENT);
  EXPECT_EQ(find_program(dir_.path()).error().code, EACCES);
  look_in("");
  EXPECT_EQ(find_program("no-such-tool").error().code, ENOENT);
}

TEST(FindLibrary, InTheBuildTreeAndInstalled) {
  const TempDir dir;
  EXPECT_FALSE(find_library(dir.path() / "none" / "bin"));
  for (const std::string place : {"bin/", "lib/", "lib/foldswap/"}) {
    const std::string base = "of-" + std::to_string(place.size()) + place.substr(0, 3) + "/";
    const auto file = dir.write(base + place + "libfoldswap.so", "library");
    EXPECT_EQ(find_library(dir.path() / base / "bin").value_or("?").lexically_normal(), file);
  }
}

}  // namespace
}  // namespace foldswap::cli
