// `foldswap run` from outside: a copy of the real binary in a tree of its own, so that the library
// beside it is there or not as the test wants.
#include "cli/run.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <sstream>

#include "cli/testing/test_support.h"

namespace foldswap::cli {
namespace {

namespace fs = std::filesystem;

class Run : public testing::Test {
 protected:
  void SetUp() override {
    fs::create_directories(tree() / "bin");
    fs::create_directories(tree() / "lib");
    fs::create_directories(runtime());
    fs::copy_file(FOLDSWAP_BINARY, tree() / "bin/foldswap");
  }
  [[nodiscard]] fs::path tree() const { return dir_.path() / "tree"; }
  [[nodiscard]] fs::path runtime() const { return dir_.path() / "run"; }
  [[nodiscard]] fs::path library() const { return tree() / "lib/libfoldswap.so"; }
  void install_library() const { fs::copy_file(FOLDSWAP_TEST_PRELOAD, library()); }

  Finished run(std::vector<std::string> arguments,
               const std::vector<std::string>& environment = {}) const {
    std::vector<std::string> command{tree() / "bin/foldswap", "--runtime-dir", runtime(), "run"};
    command.insert(command.end(), arguments.begin(), arguments.end());
    return execute(command, environment);
  }

  TempDir dir_;
};

std::string variable(const Finished& finished, const std::string& name) {
  std::istringstream lines(finished.out);
  for (std::string line; std::getline(lines, line);) {
    if (line.starts_with(name + "=")) return line.substr(name.size() + 1);
  }
  return "(unset)";
}

std::ptrdiff_t lines_of(const std::string& text) {
  return std::ranges::count(text, '\n');
}

TEST_F(Run, HandsOverTheEnvironment) {
  install_library();
  FakeDaemon daemon(runtime(), always({}));
  const Finished done = run({"--name", "web", "--resident-max", "512M", "--group-max", "1G",
                             "--require", "--", "/usr/bin/env"});
  EXPECT_EQ(done.exit, 0) << done.err;
  EXPECT_EQ(done.err, "");
  EXPECT_EQ(variable(done, "LD_PRELOAD"), library().string());
  EXPECT_EQ(variable(done, "FOLDSWAP_RUNTIME_DIR"), runtime().string());
  EXPECT_EQ(variable(done, "FOLDSWAP_NAME"), "web");
  EXPECT_EQ(variable(done, "FOLDSWAP_RESIDENT_MAX"), "536870912");
  EXPECT_EQ(variable(done, "FOLDSWAP_GROUP_MAX"), "1073741824");
  EXPECT_NE(variable(done, "FOLDSWAP_GROUP").find('.'), std::string::npos);
  EXPECT_EQ(variable(done, "FOLDSWAP_REQUIRE"), "1");
}

TEST_F(Run, SetsNothingThatWasNotAskedFor) {
  install_library();
  FakeDaemon daemon(runtime(), always({}));
  const Finished done = run({"--", "/usr/bin/env"}, {"FOLDSWAP_NAME=mine"});
  EXPECT_EQ(done.exit, 0);
  EXPECT_EQ(variable(done, "FOLDSWAP_NAME"), "mine");
  for (const char* name :
       {"FOLDSWAP_RESIDENT_MAX", "FOLDSWAP_GROUP_MAX", "FOLDSWAP_GROUP", "FOLDSWAP_REQUIRE"}) {
    EXPECT_EQ(variable(done, name), "(unset)") << name;
  }
}

TEST(Preload, IsAppendedTo) {
  const std::string other = "/lib/other.so";
  EXPECT_EQ(appended_preload(nullptr, "/a.so"), "/a.so");
  EXPECT_EQ(appended_preload("", "/a.so"), "/a.so");
  EXPECT_EQ(appended_preload(other.c_str(), "/a.so"), other + ":/a.so");
  EXPECT_EQ(appended_preload("/a.so /b.so", "/b.so"), "/a.so /b.so");
  EXPECT_EQ(appended_preload("/b.so:/c.so", "/b.so"), "/b.so:/c.so");
  EXPECT_EQ(appended_preload("/bb.so", "/b.so"), "/bb.so:/b.so");
}

TEST(AsanOptions, AreKept) {
  EXPECT_EQ(with_asan_option(nullptr), "verify_asan_link_order=0");
  EXPECT_EQ(with_asan_option(""), "verify_asan_link_order=0");
  EXPECT_EQ(with_asan_option("detect_leaks=0"), "detect_leaks=0:verify_asan_link_order=0");
  EXPECT_EQ(with_asan_option("verify_asan_link_order=1"), "verify_asan_link_order=1");
}

TEST_F(Run, ArgumentsAreUntouched) {
  install_library();
  FakeDaemon daemon(runtime(), always({}));
  const std::vector<std::string> words{"--name", "", "-x", "--", "--help", "a b", "*", "[1,2]"};
  std::vector<std::string> command{"--", "/usr/bin/printf", "<%s>"};
  command.insert(command.end(), words.begin(), words.end());
  EXPECT_EQ(run(command).out, "<--name><><-x><--><--help><a b><*><[1,2]>");
  EXPECT_EQ(run({"printf", "<%s>", "--name", "--", "x"}).out, "<--name><--><x>");
}

TEST_F(Run, ExitStatusIsThatOfTheProgram) {
  install_library();
  FakeDaemon daemon(runtime(), always({}));
  EXPECT_EQ(run({"--", "sh", "-c", "exit 42"}).exit, 42);
  EXPECT_EQ(run({"--", "sh", "-c", "kill -KILL $$"}).exit, 128 + SIGKILL);
  EXPECT_EQ(run({"--", "no-such-program"}).exit, kNotFound);
  EXPECT_EQ(run({"--", "/etc/passwd"}).exit, kCannotInvoke);
  EXPECT_EQ(run({"--require", "--", "no-such-program"}).exit, kNotFound);
  const fs::path orphan = dir_.write("orphan", "#!/none/interpreter\n", 0755);
  EXPECT_EQ(run({"--", orphan}).exit, kNotFound);
}

TEST_F(Run, WithoutADaemonTheProgramRunsPlainly) {
  install_library();
  const Finished done = run({"--", "/usr/bin/env"});
  EXPECT_EQ(done.exit, 0);
  EXPECT_EQ(variable(done, "LD_PRELOAD"), "(unset)");
  EXPECT_NE(done.err.find("no daemon at"), std::string::npos);
  EXPECT_EQ(lines_of(done.err), 1);
  EXPECT_EQ(run({"--", "true"}, {"FOLDSWAP_QUIET=1"}).err, "");
}

TEST_F(Run, WithoutADaemonRequireRefuses) {
  install_library();
  const Finished done = run({"--require", "--", "echo", "ran"});
  EXPECT_EQ(done.exit, kCannotBeClient);
  EXPECT_EQ(done.out, "");
  EXPECT_NE(done.err.find("no daemon at"), std::string::npos);
  EXPECT_EQ(run({"--", "echo", "ran"}, {"FOLDSWAP_REQUIRE=1"}).exit, kCannotBeClient);
}

TEST_F(Run, WithoutALibrary) {
  FakeDaemon daemon(runtime(), always({}));
  const Finished done = run({"--", "echo", "ran"});
  EXPECT_EQ(done.exit, 0);
  EXPECT_EQ(done.out, "ran\n");
  EXPECT_NE(done.err.find("libfoldswap.so"), std::string::npos);
  EXPECT_EQ(run({"--require", "--", "echo", "ran"}).exit, kCannotBeClient);
}

TEST_F(Run, RequireRefusesProgramsThatCannotBePreloaded) {
  install_library();
  FakeDaemon daemon(runtime(), always({}));
  const fs::path setuid = dir_.path() / "setuid";
  fs::copy_file("/usr/bin/env", setuid);
  fs::permissions(setuid, fs::perms::set_uid, fs::perm_options::add);
  const Finished done = run({"--require", "--", setuid, "true"});
  EXPECT_EQ(done.exit, kCannotBeClient);
  EXPECT_NE(done.err.find("is setuid"), std::string::npos);
  EXPECT_EQ(lines_of(done.err), 1);
  const Finished anyway = run({"--", setuid, "echo", "ran"});
  EXPECT_EQ(anyway.exit, 0);
  EXPECT_EQ(anyway.out, "ran\n");
}

TEST_F(Run, ALibraryThatCannotBeNamedInPreload) {
  FakeDaemon daemon(runtime(), always({}));
  const fs::path spaced = dir_.path() / "with space";
  fs::create_directories(spaced / "bin");
  fs::create_directories(spaced / "lib");
  fs::copy_file(FOLDSWAP_BINARY, spaced / "bin/foldswap");
  fs::copy_file(FOLDSWAP_TEST_PRELOAD, spaced / "lib/libfoldswap.so");
  const Finished done = execute(
      {spaced / "bin/foldswap", "--runtime-dir", runtime(), "run", "--require", "--", "true"});
  EXPECT_EQ(done.exit, kCannotBeClient);
  EXPECT_NE(done.err.find("space or colon"), std::string::npos);
}

TEST_F(Run, Disabled) {
  install_library();
  const Finished done = run({"--", "/usr/bin/env"}, {"FOLDSWAP_DISABLE=1"});
  EXPECT_EQ(done.exit, 0);
  EXPECT_EQ(done.err, "");
  EXPECT_EQ(run({"--require", "--", "true"}, {"FOLDSWAP_DISABLE=1"}).exit, kCannotBeClient);
}

}  // namespace
}  // namespace foldswap::cli
