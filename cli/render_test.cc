// What people see of the daemon's answers.
#include "cli/render.h"

#include <gtest/gtest.h>

namespace foldswap::cli {
namespace {

Json sample() {
  return Json::parse(R"({"schema":1,"version":"0.1.0","uptime_s":7500,
    "daemon":{"pid":77,"rss_bytes":10485760,"clients":1,"restarts":0},
    "pool":{"stored_pages":25600,"same_filled_pages":12,"incompressible_pages":3,
            "compressed_bytes":12582912,"frame_bytes":13107200,"metadata_bytes":614400,
            "limit_bytes":1073741824},
    "writeback":{"enabled":false},
    "faults":{"total":11,"zero":1,"same_filled":2,"pool":5,"disk":0,"rescued":3,
              "readahead_pages":640,"poisoned":0,
              "latency_us":{"p50":23.4,"p90":40,"p99":90.6,"max":1200}},
    "evict":{"pages":25700,"pinned":4,"shared":5,"quarantined":6,"aborted":7},
    "clients":[{"pid":123,"name":"web","uid":1000,"state":"active","resident_max_bytes":536870912,
      "resident_bytes":268435456,"evicted_pages":25612,"pool_pages":25600,"disk_pages":0,
      "same_filled_pages":12,"faults":11}]})");
}

TEST(RenderStats, ShowsThePicture) {
  const std::string text = render_stats(sample());
  for (const char* part :
       {"foldswapd 0.1.0, process 77, up 2 h 5 min, 1 clients, 10.0 MiB of its own",
        "25600 pages (100.0 MiB)", "12.5 MiB of at most 1.0 GiB",
        "8.00 : 1 (the codec alone 8.33 : 1)", "600.0 KiB", "23 us median", "91 us 99 %",
        "1200 us at most", "4 pinned, 5 shared, 6 quarantined, 7 aborted", "640", "web",
        "512.0 MiB", "256.0 MiB"}) {
    EXPECT_NE(text.find(part), std::string::npos) << part << " is not in\n" << text;
  }
  EXPECT_EQ(text.find("Disk\n"), std::string::npos);
}

TEST(RenderStats, TheDiskTierAppearsWithIt) {
  Json stats = sample();
  stats["writeback"] = Json::parse(R"({"enabled":true,"file_bytes":2097152,"live_bytes":1048576,
    "pages":512,"written_bytes":4096,"read_bytes":0,"errors":9})");
  const std::string text = render_stats(stats);
  EXPECT_NE(text.find("\nDisk\n"), std::string::npos);
  EXPECT_NE(text.find("2.0 MiB, 1.0 MiB of it in use"), std::string::npos);
  EXPECT_EQ(text.find("not writing"), std::string::npos);
  stats["writeback"]["trouble"] = "the disk is full";
  EXPECT_NE(render_stats(stats).find("the disk is full"), std::string::npos);
}

TEST(RenderStats, MissingAndOddFieldsAreNoReasonToFail) {
  for (const char* text : {"{}", "[]", "null", "3", R"({"pool":3,"faults":[],"clients":{}})",
                           R"({"pool":{"stored_pages":-1,"frame_bytes":"x","limit_bytes":1e99}})",
                           R"({"clients":[3,{},{"pid":null,"name":7}]})"}) {
    EXPECT_NE(render_stats(Json::parse(text)), "") << text;
  }
}

TEST(RenderClients, ColumnsLineUp) {
  Json clients = sample()["clients"];
  Json other = clients[0];
  other["name"] = "a-rather-long-name";
  other["resident_max_bytes"] = nullptr;
  clients.push_back(other);
  const std::string text = render_clients(clients);
  const std::size_t first = text.find('\n'), second = text.find('\n', first + 1);
  EXPECT_EQ(text.find("FAULTS"), first - 6);
  EXPECT_EQ(second - first - 1, first);  // rows are as wide as their heading
  EXPECT_NE(text.find(" none "), std::string::npos);
  EXPECT_EQ(render_clients(Json::array()), "no clients\n");
}

TEST(RenderClients, SaysWhyAProgramIsNotManaged) {
  Json client = sample()["clients"][0];
  client["reason"] = "";
  EXPECT_EQ(render_clients(Json::array({client})).find("not managed"), std::string::npos);
  client["state"] = "refused";
  client["reason"] = "a seccomp filter is in force";
  EXPECT_NE(render_clients(Json::array({client}))
                .find("\nweb (pid 123) is not managed: a seccomp filter is in force\n"),
            std::string::npos);
}

TEST(RenderClients, NoBudgetInAllItsForms) {
  Json client = sample()["clients"][0];
  for (const Json& none : {Json(nullptr), Json(~std::uint64_t{0}), Json(0)}) {
    client["resident_max_bytes"] = none;
    EXPECT_NE(render_clients(Json::array({client})).find(" none "), std::string::npos);
  }
}

TEST(RenderClients, NamesCannotDriveTheTerminal) {
  Json clients = sample()["clients"];
  clients[0]["name"] =
      "x\x1b[2Jy\nz\xC2\x9B"
      "1m";
  const std::string text = render_clients(clients);
  EXPECT_NE(text.find("x?[2Jy?z?1m"), std::string::npos) << text;
  EXPECT_EQ(std::ranges::count(text, '\n'), 2);
}

TEST(HumanDuration, TwoUnitsAtMost) {
  EXPECT_EQ(human_duration(0), "0 s");
  EXPECT_EQ(human_duration(61), "1 min 1 s");
  EXPECT_EQ(human_duration(3 * 3600 + 120), "3 h 2 min");
  EXPECT_EQ(human_duration(50 * 3600), "2 d 2 h");
}

}  // namespace
}  // namespace foldswap::cli
