// The real binary: what each command sends, prints and ends with.
#include <gtest/gtest.h>

#include "cli/testing/test_support.h"

namespace foldswap::cli {
namespace {

class CommandLine : public testing::Test {
 protected:
  // The one request that these arguments lead to, when the daemon answers `result`.
  Json request_of(std::vector<std::string> arguments, const Json& result = Json::object()) {
    const TempDir dir;
    FakeDaemon daemon(dir.path(), always(result));
    arguments.insert(arguments.begin(), {"--runtime-dir", dir.path()});
    done_ = foldswap(arguments);
    const auto requests = daemon.requests();
    EXPECT_EQ(requests.size(), 1U) << done_.err;
    return requests.empty() ? Json() : requests.front();
  }
  // The same with an answer of any form.
  Finished with_answer(const std::string& line, std::vector<std::string> arguments) {
    const TempDir dir;
    FakeDaemon daemon(dir.path(), [&](const std::string&) { return line + "\n"; });
    return foldswap(std::move(arguments), {"FOLDSWAP_RUNTIME_DIR=" + dir.path().string()});
  }

  Finished done_;
};

TEST_F(CommandLine, Requests) {
  const std::vector<std::pair<std::vector<std::string>, const char*>> expected{
      {{"stats"}, R"({"command":"stats"})"},
      {{"clients", "--json"}, R"({"command":"clients"})"},
      {{"get"}, R"({"command":"get"})"},
      {{"get", "pool.limit"}, R"({"command":"get","key":"pool.limit"})"},
      {{"set", "pool.limit", "20%"}, R"({"command":"set","key":"pool.limit","value":"20%"})"},
      {{"limit", "--client", "web", "512M"},
       R"({"command":"limit","client":"web","bytes":536870912})"},
      {{"limit", "--client", "7", "none"}, R"({"command":"limit","client":"7","bytes":null})"},
      {{"limit", "none", "--client", "run"}, R"({"command":"limit","client":"run","bytes":null})"},
      {{"restore", "--all"}, R"({"command":"restore"})"},
      {{"restore", "--client", "web", "--hold", "2.5"},
       R"({"command":"restore","client":"web","hold_s":2.5})"},
      {{"drain"}, R"({"command":"drain"})"},
      {{"resume"}, R"({"command":"resume"})"},
      {{"version"}, R"({"command":"version"})"},
  };
  for (const auto& [arguments, request] : expected) {
    EXPECT_EQ(request_of(arguments), Json::parse(request));
    EXPECT_EQ(done_.exit, kDone) << request;
    EXPECT_EQ(done_.err, "") << request;
  }
}

TEST_F(CommandLine, ReclaimPrintsOneNumber) {
  const Json all{{"pages", 1234}, {"complete", true}};
  EXPECT_EQ(request_of({"reclaim", "--all"}, all), Json::parse(R"({"command":"reclaim"})"));
  EXPECT_EQ(done_.out, "1234\n");
  EXPECT_EQ(done_.exit, kDone);
  EXPECT_EQ(request_of({"reclaim", "--all", "--everything"}, all),
            Json::parse(R"({"command":"reclaim"})"));
  EXPECT_EQ(request_of({"reclaim", "--client", "web", "--bytes", "2M"},
                       {{"pages", 5}, {"complete", false}}),
            Json::parse(R"({"command":"reclaim","client":"web","bytes":2097152})"));
  EXPECT_EQ(done_.out, "5\n");
  EXPECT_EQ(done_.exit, kFailed);
  request_of({"reclaim", "--all"}, {{"pages", 5}, {"complete", false}, {"why", "web is stopped"}});
  EXPECT_EQ(done_.out, "5\n");
  EXPECT_EQ(done_.err, "foldswap: less than asked for: web is stopped\n");
  EXPECT_EQ(done_.exit, kFailed);
}

TEST_F(CommandLine, GetShowsValues) {
  request_of({"get", "pool.limit"}, {{"pool.limit", "40%"}});
  EXPECT_EQ(done_.out, "40%\n");
  request_of({"get"}, {{"pool.limit", "40%"}, {"log.level", "info"}});
  EXPECT_EQ(done_.out, "pool.limit = 40%\nlog.level = info\n");
}

TEST_F(CommandLine, JsonIsTheDaemonsOwn) {
  const Json result{{"schema", 1}, {"clients", Json::array()}};
  request_of({"stats", "--json"}, result);
  EXPECT_EQ(Json::parse(done_.out), result);
  request_of({"clients", "--json"}, Json::array());
  EXPECT_EQ(Json::parse(done_.out), Json::array());
  request_of({"clients"}, Json::array());
  EXPECT_EQ(done_.out, "no clients\n");
}

TEST_F(CommandLine, RefusalsAreTheExitStatus) {
  const Finished usage = with_answer(R"({"ok":false,"exit":2,"error":"unknown key 'pool.x'"})",
                                     {"set", "pool.x", "1"});
  EXPECT_EQ(usage.exit, kUsage);
  EXPECT_EQ(usage.err, "foldswap: unknown key 'pool.x'\n");
  const Finished failed =
      with_answer(R"({"ok":false,"exit":1,"error":"too little memory"})", {"drain"});
  EXPECT_EQ(failed.exit, kFailed);
  EXPECT_EQ(failed.err, "foldswap: too little memory\n");
  EXPECT_EQ(with_answer("nonsense", {"stats"}).exit, kFailed);
  EXPECT_EQ(with_answer(R"({"ok":true,"result":{}})", {"reclaim", "--all"}).exit, kFailed);
}

TEST_F(CommandLine, WithoutADaemon) {
  const TempDir dir;
  for (const char* command : {"stats", "clients", "get", "drain", "resume"}) {
    const Finished done = foldswap({"--runtime-dir", dir.path(), command});
    EXPECT_EQ(done.exit, kFailed) << command;
    EXPECT_NE(done.err.find("no daemon at"), std::string::npos);
    EXPECT_EQ(done.out, "");
  }
  const Finished version = foldswap({"--runtime-dir", dir.path(), "version"});
  EXPECT_EQ(version.exit, kDone);
  EXPECT_TRUE(version.out.starts_with("foldswap "));
}

TEST_F(CommandLine, BadUsageNamesTheCulprit) {
  const std::vector<std::pair<std::vector<std::string>, const char*>> bad{
      {{}, "subcommand"},
      {{"frobnicate"}, "frobnicate"},
      {{"--frob", "stats"}, "--frob"},
      {{"stats", "--frob"}, "--frob"},
      {{"stats", "extra"}, "extra"},
      {{"--runtime-dir"}, "--runtime-dir"},
      {{"set", "pool.limit"}, "VALUE"},
      {{"limit", "512M"}, "--client"},
      {{"limit", "--client", "x", "12Q"}, "12Q"},
      {{"limit", "--client", "x", "--frob"}, "--frob"},
      {{"reclaim"}, "--all"},
      {{"reclaim", "--all", "--client", "x"}, "--all"},
      {{"reclaim", "--all", "--bytes", "some"}, "'some'"},
      {{"reclaim", "--all", "--bytes", "1M", "--everything"}, "--everything"},
      {{"reclaim", "--frob"}, "--frob"},
      {{"restore", "--all", "--hold", "long"}, "--hold"},
      {{"restore", "--all", "--hold", "-1"}, "--hold"},
      {{"restore", "--all", "--hold", "nan"}, "--hold"},
      {{"check-config"}, "FILE"},
      {{"get", "--", "x"}, "--"},
      {{"run"}, "program"},
      {{"run", "--"}, "program"},
      {{"run", "--frob", "--", "true"}, "--frob"},
      {{"run", "--resident-max", "12Q", "--", "true"}, "12Q"},
      {{"run", "--group-max", "", "--", "true"}, "--group-max"},
      {{"run", "--name", "", "--", "true"}, "--name"},
      {{"run", "--name", std::string(64, 'x'), "--", "true"}, "--name"},
  };
  for (const auto& [arguments, culprit] : bad) {
    const Finished done = foldswap(arguments);
    EXPECT_EQ(done.exit, kUsage) << culprit;
    EXPECT_NE(done.err.find(culprit), std::string::npos) << culprit << " is not in " << done.err;
    EXPECT_EQ(std::ranges::count(done.err, '\n'), 1) << done.err;
    EXPECT_EQ(done.out, "");
  }
}

TEST_F(CommandLine, Help) {
  const Finished done = foldswap({"--help"});
  EXPECT_EQ(done.exit, kDone);
  EXPECT_EQ(done.err, "");
  for (const char* command : {"run", "stats", "clients", "get", "set", "limit", "reclaim",
                              "restore", "drain", "resume", "check-config", "version"}) {
    EXPECT_NE(done.out.find(std::string("\n  ") + command + " "), std::string::npos) << command;
    EXPECT_EQ(foldswap({command, "--help"}).exit, kDone) << command;
  }
}

TEST_F(CommandLine, CheckConfig) {
  EXPECT_EQ(foldswap({"check-config", FOLDSWAP_EXAMPLE_CONFIG}).exit, kDone);
  const TempDir dir;
  const auto file = dir.write("c.toml", "[pool]\nlimt = \"1G\"\n[log]\nlevel = \"loud\"\n");
  const Finished bad = foldswap({"check-config", file});
  EXPECT_EQ(bad.exit, kFailed);
  EXPECT_NE(bad.err.find("c.toml:2: unknown key 'pool.limt'"), std::string::npos) << bad.err;
  EXPECT_NE(bad.err.find("c.toml:4: log.level"), std::string::npos) << bad.err;
  const Finished missing = foldswap({"check-config", (dir.path() / "none.toml").string()});
  EXPECT_EQ(missing.exit, kFailed);
  EXPECT_NE(missing.err.find("none.toml"), std::string::npos);
}

TEST_F(CommandLine, AFullDiskIsAFailure) {
  const Finished done = execute({"/bin/sh", "-c",
                                 std::string("exec ") + FOLDSWAP_BINARY + " check-config " +
                                     FOLDSWAP_EXAMPLE_CONFIG + " >/dev/full"});
  EXPECT_EQ(done.exit, kFailed);
  EXPECT_NE(done.err.find("standard output"), std::string::npos);
}

}  // namespace
}  // namespace foldswap::cli
