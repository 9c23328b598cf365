// One request, one reply: what is sent, and what becomes of every kind of answer.
#include "cli/admin_client.h"

#include <gtest/gtest.h>
#include <sys/socket.h>

#include <chrono>

#include "cli/testing/test_support.h"

namespace foldswap::cli {
namespace {

Result<Reply> ask_for(const std::string& answer) {
  const TempDir dir;
  FakeDaemon daemon(dir.path(), [&](const std::string&) { return answer; });
  return call_daemon(dir.path(), {{"command", "stats"}});
}

TEST(AdminClient, SendsTheRequestAndReturnsTheResult) {
  const TempDir dir;
  FakeDaemon daemon(dir.path(), always({{"b", 1}, {"a", 2}}));
  const auto reply = call_daemon(dir.path(), {{"command", "get"}, {"key", "pool.limit"}});
  ASSERT_TRUE(reply) << reply.error().text();
  EXPECT_EQ(reply->exit, kDone);
  EXPECT_EQ(reply->result.dump(), R"({"b":1,"a":2})");  // the daemon's order
  ASSERT_EQ(daemon.requests().size(), 1U);
  EXPECT_EQ(daemon.requests().front().dump(), R"({"command":"get","key":"pool.limit"})");
}

TEST(AdminClient, LongAnswers) {
  Json clients = Json::array();
  for (int i = 0; i < 20'000; ++i) clients.push_back({{"pid", i}, {"name", "some-program"}});
  const auto reply = ask_for(Json{{"ok", true}, {"result", clients}}.dump() + "\n");
  ASSERT_TRUE(reply) << reply.error().text();
  EXPECT_EQ(reply->result, clients);
}

TEST(AdminClient, RefusalsCarryTheirExitStatus) {
  const auto usage = ask_for(R"({"ok":false,"exit":2,"error":"unknown key 'x'"})"
                             "\n");
  ASSERT_TRUE(usage);
  EXPECT_EQ(usage->exit, kUsage);
  EXPECT_EQ(usage->error, "unknown key 'x'");
  const auto failed = ask_for(R"({"ok":false,"exit":1,"error":"no such client"})"
                              "\n");
  ASSERT_TRUE(failed);
  EXPECT_EQ(failed->exit, kFailed);
  // 0 would turn a refusal into success.
  const auto odd = ask_for(R"({"ok":false,"exit":0,"error":"odd"})"
                           "\n");
  ASSERT_TRUE(odd);
  EXPECT_EQ(odd->exit, kFailed);
}

TEST(AdminClient, AnswersThatAreNone) {
  for (const char* answer :
       {"", "\n", "hello\n", "[]\n", "{}\n", R"({"ok":1})", R"({"ok":false})", R"({"ok":true)"}) {
    EXPECT_FALSE(ask_for(answer)) << answer;
  }
}

TEST(AdminClient, AnAnswerMayEndWithTheConnection) {
  const auto reply = ask_for(R"({"ok":true,"result":{"n":1}})");
  ASSERT_TRUE(reply);
  EXPECT_EQ(reply->result["n"], 1);
}

TEST(AdminClient, NoDaemonIsAnErrorAtOnce) {
  const TempDir dir;
  const auto reply = call_daemon(dir.path(), {{"command", "stats"}});
  ASSERT_FALSE(reply);
  EXPECT_EQ(reply.error().code, ENOENT);
  EXPECT_NE(reply.error().text().find("no daemon at " + dir.path().string()), std::string::npos);
}

TEST(AdminClient, ASocketThatNobodyListensOnIsNoDaemon) {
  const TempDir dir;
  {
    FakeDaemon gone(dir.path(), always({}));
  }
  EXPECT_EQ(call_daemon(dir.path(), {{"command", "stats"}}).error().code, ECONNREFUSED);
}

TEST(AdminClient, AStaleKeeperFileIsNoKeeper) {
  const TempDir dir;
  for (const char* text : {"", "x", "0", "-1", "2147483647"}) {
    dir.write("keeper.pid", text);
    const auto start = std::chrono::steady_clock::now();
    EXPECT_FALSE(connect_daemon(dir.path(), "admin.sock", SOCK_STREAM));
    EXPECT_LT(std::chrono::steady_clock::now() - start, kKeeperWait) << text;
  }
}

TEST(AdminClient, WaitsForTheDaemonOfALivingKeeper) {
  const TempDir dir;
  dir.write("keeper.pid", std::to_string(::getpid()) + "\n");
  const auto never =
      connect_daemon(dir.path(), "admin.sock", SOCK_STREAM, std::chrono::milliseconds(60));
  EXPECT_FALSE(never);

  std::unique_ptr<FakeDaemon> daemon;
  std::thread later([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(100));
    daemon = std::make_unique<FakeDaemon>(dir.path(), always({{"up", true}}));
  });
  const auto reply = call_daemon(dir.path(), {{"command", "stats"}});
  later.join();
  ASSERT_TRUE(reply) << reply.error().text();
  EXPECT_EQ(reply->result["up"], true);
}

TEST(AdminClient, APathThatFitsNoSocketAddress) {
  const auto reply = call_daemon("/" + std::string(200, 'x'), {{"command", "stats"}});
  ASSERT_FALSE(reply);
  EXPECT_EQ(reply.error().code, ENAMETOOLONG);
}

TEST(AdminClient, ArgumentsThatAreNotUtf8AreSentAllTheSame) {
  const TempDir dir;
  FakeDaemon daemon(dir.path(), always({}));
  EXPECT_TRUE(call_daemon(dir.path(), {{"command", "limit"},
                                       {"client",
                                        "a\xff"
                                        "b\nc"}}));
  EXPECT_EQ(daemon.requests().front()["client"],
            "a\xEF\xBF\xBD"
            "b\nc");
}

}  // namespace
}  // namespace foldswap::cli
