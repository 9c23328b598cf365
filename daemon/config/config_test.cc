// The table of keys, the TOML loader, and configs/foldswap.toml against the table.
#include "daemon/config/config.h"

#include <gtest/gtest.h>
#include <sys/stat.h>

#include <algorithm>
#include <array>
#include <fstream>
#include <map>
#include <sstream>

namespace foldswap {
namespace {

namespace fs = std::filesystem;

class TempDir {
 public:
  TempDir() {
    std::string pattern = (fs::temp_directory_path() / "foldswap-config-XXXXXX").string();
    path_ = ::mkdtemp(pattern.data());
  }
  ~TempDir() {
    std::error_code ignored;
    fs::remove_all(path_, ignored);
  }
  TempDir(const TempDir&) = delete;
  TempDir& operator=(const TempDir&) = delete;

  fs::path write(const std::string& name, const std::string& text) const {
    const fs::path file = path_ / name;
    fs::create_directories(file.parent_path());
    std::ofstream(file, std::ios::binary) << text;
    return file;
  }
  [[nodiscard]] const fs::path& path() const { return path_; }

 private:
  fs::path path_;
};

// The message of the error that `toml` gives, or "" when there is none.
std::string error_of(const std::string& toml) {
  const TempDir dir;
  const auto config = load_config(dir.write("c.toml", toml));
  return config ? "" : config.error().message;
}

// ---- the table ----------------------------------------------------------------------------------

TEST(ConfigTable, NamesAreUniqueAndEveryDefaultReadsBack) {
  std::map<std::string_view, int> seen;
  for (const KeySpec& spec : config_keys()) {
    EXPECT_EQ(++seen[spec.name], 1) << spec.name;
    EXPECT_NE(spec.name.find('.'), std::string_view::npos) << spec.name;
    EXPECT_TRUE(spec.sentence.ends_with('.')) << spec.name;
    Config config;
    ASSERT_TRUE(spec.parse(config, default_text(spec))) << spec.name;
    EXPECT_EQ(config, Config{}) << spec.name;
  }
}

TEST(ConfigTable, DocumentedDefaults) {
  const std::map<std::string, std::string> expected{{"pool.limit", "40%"},
                                                    {"pool.codec", "zstd:1"},
                                                    {"fault.threads", "1"},
                                                    {"fault.spin_us", "20"},
                                                    {"fault.readahead_max", "64"},
                                                    {"evict.threads", "1"},
                                                    {"evict.quarantine_s", "30"},
                                                    {"access.users", "*"},
                                                    {"access.groups", ""},
                                                    {"access.admins", ""},
                                                    {"quota.clients_per_user", "256"},
                                                    {"log.level", "info"}};
  for (const auto& [key, text] : expected) EXPECT_EQ(get_key(Config{}, key).value_or("?"), text);
}

TEST(ConfigTable, RuntimeKeysAreThoseThatTakeEffectAtOnce) {
  std::vector<std::string_view> runtime;
  for (const KeySpec& spec : config_keys()) {
    if (spec.runtime) runtime.push_back(spec.name);
  }
  EXPECT_EQ(runtime,
            (std::vector<std::string_view>{
                "pool.limit", "pool.codec", "pool.waste_max", "pool.cold_codec", "writeback.max",
                "writeback.budget_per_day", "writeback.free_min", "fault.spin_us",
                "fault.readahead_max", "evict.quarantine_s", "policy.mem_available_low",
                "policy.psi", "client.min_size", "quota.clients_per_user", "log.level"}));
}

struct Value {
  const char* key;
  const char* text;
  const char* shown;  // nullptr: as `text`
};

TEST(ConfigSet, GoodValuesAreShownAsTheyCanBeReadAgain) {
  constexpr std::array<Value, 24> kGood{{
      {"pool.limit", "1%", nullptr},
      {"pool.limit", "100%", nullptr},
      {"pool.limit", "2048M", "2G"},
      {"pool.limit", "4097", nullptr},
      {"pool.frame", "4096", "4K"},
      {"pool.frame", "256K", nullptr},
      {"pool.buddies", "2", nullptr},
      {"pool.waste_max", "15", nullptr},
      {"pool.cold_codec", "zstd:9", nullptr},
      {"pool.codec", "raw", nullptr},
      {"pool.codec", "lz4", nullptr},
      {"pool.codec", "zstd:19", nullptr},
      {"fault.threads", "16", nullptr},
      {"fault.spin_us", "0", nullptr},
      {"fault.readahead_max", "1", nullptr},
      {"evict.threads", "16", nullptr},
      {"evict.quarantine_s", "0", nullptr},
      {"access.users", "alice,1000", nullptr},
      {"access.users", "", nullptr},
      {"access.groups", "staff", nullptr},
      {"access.admins", "0,ops-team", nullptr},
      {"quota.clients_per_user", "1024", nullptr},
      {"log.level", "trace", nullptr},
      {"log.level", "error", nullptr},
  }};
  for (const Value& value : kGood) {
    Config config;
    const auto done = set_key(config, value.key, value.text);
    ASSERT_TRUE(done) << value.key << " " << value.text << ": " << done.error().message;
    const std::string shown = value.shown != nullptr ? value.shown : value.text;
    EXPECT_EQ(get_key(config, value.key).value_or("?"), shown);
    Config again;
    ASSERT_TRUE(set_key(again, value.key, shown));
    EXPECT_EQ(again, config);
  }
}

TEST(ConfigSet, BadValuesNameTheKeyAndChangeNothing) {
  constexpr std::array<Value, 44> kBad{{
      {"pool.limit", "", nullptr},
      {"pool.limit", "%", nullptr},
      {"pool.limit", "0%", nullptr},
      {"pool.limit", "101%", nullptr},
      {"pool.limit", "40 %", nullptr},
      {"pool.limit", "4.5%", nullptr},
      {"pool.limit", "-1", nullptr},
      {"pool.limit", "0", nullptr},
      {"pool.limit", "12Q", nullptr},
      {"pool.limit", "99999999999G", nullptr},
      {"pool.frame", "2K", nullptr},
      {"pool.frame", "512K", nullptr},
      {"pool.frame", "5000", nullptr},
      {"pool.frame", "40%", nullptr},
      {"pool.waste_max", "0", nullptr},
      {"pool.waste_max", "101", nullptr},
      {"pool.cold_codec", "raw", nullptr},
      {"pool.cold_codec", "zstd:20", nullptr},
      {"pool.buddies", "0", nullptr},
      {"pool.buddies", "4096", nullptr},
      {"pool.codec", "zstd", nullptr},
      {"pool.codec", "zstd:", nullptr},
      {"pool.codec", "zstd:0", nullptr},
      {"pool.codec", "zstd:20", nullptr},
      {"pool.codec", "zstd:1x", nullptr},
      {"pool.codec", "LZ4", nullptr},
      {"fault.threads", "0", nullptr},
      {"fault.threads", "17", nullptr},
      {"fault.threads", "+1", nullptr},
      {"fault.threads", "1 ", nullptr},
      {"fault.spin_us", "1001", nullptr},
      {"fault.spin_us", "1.5", nullptr},
      {"fault.readahead_max", "0", nullptr},
      {"fault.readahead_max", "65", nullptr},
      {"evict.threads", "", nullptr},
      {"evict.quarantine_s", "3601", nullptr},
      {"access.users", "alice,,bob", nullptr},
      {"access.users", ",", nullptr},
      {"access.users", "a b", nullptr},
      {"access.groups", "*", nullptr},
      {"access.admins", "*", nullptr},
      {"quota.clients_per_user", "0", nullptr},
      {"log.level", "INFO", nullptr},
      {"log.level", "99999999999999999999", nullptr},
  }};
  for (const Value& value : kBad) {
    Config config;
    const auto done = set_key(config, value.key, value.text);
    ASSERT_FALSE(done) << value.key << " " << value.text;
    EXPECT_TRUE(done.error().message.starts_with(std::string(value.key) + ": "))
        << done.error().message;
    EXPECT_EQ(done.error().message.find('\n'), std::string::npos);
    EXPECT_EQ(config, Config{}) << value.key << " " << value.text;
  }
}

TEST(ConfigSet, UnknownKeysAreNamed) {
  Config config;
  EXPECT_EQ(set_key(config, "pool.size", "1").error().message, "unknown key 'pool.size'");
  EXPECT_EQ(get_key(config, "pool").error().message, "unknown key 'pool'");
  EXPECT_EQ(set_runtime_key(config, "", "1").error().message, "unknown key ''");
}

TEST(ConfigSet, RuntimeRefusesWhatNeedsARestart) {
  Config config;
  EXPECT_TRUE(set_runtime_key(config, "fault.spin_us", "5"));
  EXPECT_EQ(config.fault_spin_us, 5U);
  const auto refused = set_runtime_key(config, "fault.threads", "2");
  ASSERT_FALSE(refused);
  EXPECT_TRUE(refused.error().message.starts_with("fault.threads: "));
  EXPECT_EQ(config.fault_threads, 1U);
}

TEST(ConfigSet, AssignmentSplitsAtTheFirstEqualsSign) {
  Config config;
  EXPECT_TRUE(set_assignment(config, "access.users="));
  EXPECT_TRUE(config.access_users.empty());
  EXPECT_TRUE(set_assignment(config, "pool.limit=64M"));
  EXPECT_EQ(config.pool_limit.resolve(1), 64ULL << 20);
  EXPECT_FALSE(set_assignment(config, "pool.limit"));
  EXPECT_EQ(set_assignment(config, "=1").error().message, "unknown key ''");
  EXPECT_FALSE(set_assignment(config, "log.level=a=b"));
}

TEST(ConfigSet, ShareOfMemory) {
  EXPECT_EQ(Config{}.pool_limit.resolve(1000), 400U);
  EXPECT_EQ((MemoryLimit{.bytes = 7, .percent = 0}.resolve(1000)), 7U);
}

// ---- files
// ---------------------------------------------------------------------------------------

TEST(ConfigFile, EveryKindOfValue) {
  const TempDir dir;
  const auto config = load_config(dir.write("c.toml", R"(
pool.limit = 1048576
pool.frame = "4K"
fault.threads = 0x2
[evict]
quarantine_s = 5
[access]
users = ["alice", 1000]
groups = []
[log]
level = 'debug'
)"));
  ASSERT_TRUE(config) << config.error().message;
  EXPECT_EQ(config->pool_limit, (MemoryLimit{.bytes = 1 << 20, .percent = 0}));
  EXPECT_EQ(config->pool_frame_bytes, 4096U);
  EXPECT_EQ(config->fault_threads, 2U);
  EXPECT_EQ(config->evict_quarantine_s, 5U);
  EXPECT_EQ(config->access_users, (std::vector<std::string>{"alice", "1000"}));
  EXPECT_TRUE(config->access_groups.empty());
  EXPECT_EQ(config->log_level, LogLevel::debug);
}

TEST(ConfigFile, EmptyIsAllDefaults) {
  EXPECT_EQ(error_of(""), "");
}

TEST(ConfigFile, UnknownKeysAndSections) {
  EXPECT_NE(error_of("[pool]\n\nsize = 1\n").find("c.toml:3: unknown key 'pool.size'"),
            std::string::npos);
  EXPECT_NE(error_of("[swap]\nsize = 1\n").find("c.toml:1: unknown key 'swap'"), std::string::npos);
  EXPECT_NE(error_of("limit = '1G'\n").find(":1: unknown key 'limit'"), std::string::npos);
  EXPECT_NE(error_of("po = 1\n").find(":1: unknown key 'po'"), std::string::npos);
  EXPECT_NE(error_of("pool = 3\n").find(":1: 'pool' is a section"), std::string::npos);
  EXPECT_NE(error_of("[[pool]]\nlimit = '1G'\n").find(":1: 'pool' is a section"),
            std::string::npos);
}

TEST(ConfigFile, WrongTypes) {
  constexpr std::array<std::pair<const char*, const char*>, 14> kWrong{{
      {"fault.threads = \"2\"", "fault.threads"},
      {"fault.threads = 2.0", "fault.threads"},
      {"fault.threads = true", "fault.threads"},
      {"fault.threads = [2]", "fault.threads"},
      {"fault.threads.x = 2", "fault.threads"},
      {"pool.limit = 0.4", "pool.limit"},
      {"pool.limit = ['40%']", "pool.limit"},
      {"pool.codec = 1", "pool.codec"},
      {"log.level = false", "log.level"},
      {"access.users = \"alice\"", "access.users"},
      {"access.users = [1.5]", "access.users"},
      {"access.users = [\"\"]", "access.users"},
      {"access.users = [\"a,b\"]", "access.users"},
      {"access.users = [[\"a\"]]", "access.users"},
  }};
  for (const auto& [line, key] : kWrong) {
    EXPECT_NE(error_of("\n" + std::string(line) + "\n").find(std::string(":2: ") + key + ": "),
              std::string::npos)
        << line << " -> " << error_of("\n" + std::string(line) + "\n");
  }
}

TEST(ConfigFile, BadValues) {
  EXPECT_NE(error_of("[fault]\nthreads = 17\n").find(":2: fault.threads: '17'"), std::string::npos);
  EXPECT_NE(error_of("[fault]\nspin_us = -1\n").find(":2: fault.spin_us: '-1'"), std::string::npos);
  EXPECT_NE(error_of("[pool]\nlimit = '2X'\n").find(":2: pool.limit: '2X'"), std::string::npos);
  EXPECT_NE(error_of("[access]\nadmins = [-4, \"a b\"]\n").find(":2: access.admins: 'a b'"),
            std::string::npos);
}

TEST(ConfigFile, AllFaultsAreReported) {
  const std::string errors = error_of("[fault]\nthreads = 0\nspin = 3\n[log]\nlevel = 'loud'\n");
  EXPECT_NE(errors.find(":2: fault.threads"), std::string::npos);
  EXPECT_NE(errors.find(":3: unknown key 'fault.spin'"), std::string::npos);
  EXPECT_NE(errors.find(":5: log.level"), std::string::npos);
  EXPECT_EQ(std::ranges::count(errors, '\n'), 2);
}

TEST(ConfigFile, SyntaxErrorsHaveALine) {
  EXPECT_NE(error_of("[pool]\nlimit = \n").find("c.toml:2: "), std::string::npos);
  EXPECT_NE(error_of("[pool\n").find("c.toml:1: "), std::string::npos);
  EXPECT_NE(error_of("[fault]\nthreads = 1\nthreads = 2\n").find("c.toml:3: "), std::string::npos);
  EXPECT_NE(error_of("[log]\nlevel = \"\xff\xfe\"\n").find("c.toml:2: "), std::string::npos);
  EXPECT_NE(error_of(std::string("[log]\n\0\n", 8)).find("c.toml:2: "), std::string::npos);
}

TEST(ConfigFile, MissingAndUnreadable) {
  const TempDir dir;
  const auto missing = load_config(dir.path() / "none.toml");
  ASSERT_FALSE(missing);
  EXPECT_NE(missing.error().message.find("none.toml"), std::string::npos);
  EXPECT_NE(missing.error().message.find("No such file"), std::string::npos);

  const auto directory = load_config(dir.path());
  ASSERT_FALSE(directory);
  EXPECT_NE(directory.error().message.find("directory"), std::string::npos);
}

TEST(ConfigFile, DropInsInOrderOfNames) {
  const TempDir dir;
  const fs::path file = dir.write("foldswap.toml", "[fault]\nspin_us = 1\nthreads = 3\n");
  dir.write("foldswap.toml.d/20-b.toml", "[fault]\nspin_us = 3\n");
  dir.write("foldswap.toml.d/10-a.toml", "[fault]\nspin_us = 2\nreadahead_max = 8\n");
  dir.write("foldswap.toml.d/30-c.toml.bak", "not toml");
  const auto config = load_config(file);
  ASSERT_TRUE(config) << config.error().message;
  EXPECT_EQ(config->fault_spin_us, 3U);
  EXPECT_EQ(config->fault_threads, 3U);
  EXPECT_EQ(config->fault_readahead_max_pages, 8U);

  dir.write("foldswap.toml.d/15-x.toml", "\n\n[pool]\nlimt = '1G'\n");
  const auto bad = load_config(file);
  ASSERT_FALSE(bad);
  EXPECT_NE(bad.error().message.find("15-x.toml:4: unknown key 'pool.limt'"), std::string::npos);
}

TEST(ConfigFile, UnreadableDropIns) {
  const TempDir dir;
  const fs::path file = dir.write("foldswap.toml", "");
  dir.write("foldswap.toml.d", "a file where a directory should be");
  EXPECT_FALSE(load_config(file));
}

// ---- configs/foldswap.toml
// -----------------------------------------------------------------------

struct Example {
  std::string value;
  std::string comment;  // the comment lines right above, joined
};

// Reads the example: sections, "# comment" lines, and "#key = value" lines.
std::map<std::string, Example> read_example(std::string& uncommented) {
  std::ifstream in(FOLDSWAP_EXAMPLE_CONFIG);
  std::map<std::string, Example> keys;
  std::string section, comment;
  for (std::string line; std::getline(in, line);) {
    if (line.starts_with('[')) section = line.substr(1, line.find(']') - 1) + ".";
    const std::size_t equals = line.find(" = ");
    if (line.starts_with("# ")) {
      comment += (comment.empty() ? "" : " ") + line.substr(2);
    } else if (line.starts_with('#') && equals != std::string::npos) {
      keys[section + line.substr(1, equals - 1)] = {line.substr(equals + 3), comment};
      line.erase(0, 1);
    } else {
      comment.clear();
    }
    uncommented += line + "\n";
  }
  return keys;
}

TEST(ConfigExample, ListsEveryKeyWithItsDefaultAndSentence) {
  std::string uncommented;
  const auto example = read_example(uncommented);
  ASSERT_FALSE(example.empty());
  for (const KeySpec& spec : config_keys()) {
    const auto found = example.find(std::string(spec.name));
    ASSERT_NE(found, example.end()) << spec.name << " is not in configs/foldswap.toml";
    EXPECT_EQ(found->second.value, toml_text(spec, default_text(spec))) << spec.name;
    EXPECT_EQ(found->second.comment,
              std::string(spec.sentence) + (spec.runtime ? " [runtime]" : ""));
  }
  for (const auto& [name, unused] : example) {
    EXPECT_TRUE(find_key(name)) << name << " is in configs/foldswap.toml and is no key";
  }
}

TEST(ConfigExample, ParsesToTheDefaultsCommentedOrNot) {
  const auto commented = load_config(FOLDSWAP_EXAMPLE_CONFIG);
  ASSERT_TRUE(commented) << commented.error().message;
  EXPECT_EQ(*commented, Config{});

  std::string text;
  read_example(text);
  const TempDir dir;
  const auto config = load_config(dir.write("c.toml", text));
  ASSERT_TRUE(config) << config.error().message;
  EXPECT_EQ(*config, Config{});
}

}  // namespace
}  // namespace foldswap
