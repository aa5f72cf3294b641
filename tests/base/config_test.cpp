#include "dtr/base/config.hpp"

#include <cctype>
#include <cstdlib>
#include <filesystem>
#include <random>

#include <gtest/gtest.h>

#include "dtr/base/file.hpp"
#include "dtr/base/log.hpp"
#include "support/test_support.hpp"

namespace dtr {
namespace {

using namespace std::chrono_literals;

class ConfigTest : public ::testing::Test {
 protected:
  /// Writes `toml` to FOLDER/t.toml and loads it with nothing else around.
  [[nodiscard]] Result<Config> load_toml(const std::string& toml, ConfigPairs environment = {},
                                         ConfigPairs overrides = {}) const {
    EXPECT_TRUE(replace_file(path(), toml));
    return Config::load({.file = path(), .overrides = std::move(overrides), .environment = std::move(environment)});
  }

  /// The Error's message with the folder cut from the file's name; "" if it loaded.
  [[nodiscard]] std::string toml_complaint(const std::string& toml) const { return complaint(load_toml(toml)); }

  [[nodiscard]] std::string complaint(const Result<Config>& loaded) const {
    if (loaded) return "";
    EXPECT_EQ(loaded.error().code, Errc::config_error);
    EXPECT_EQ(loaded.error().operation, "config");
    std::string message = loaded.error().message;
    const std::string prefix = folder_.path().string() + "/";
    if (const auto at = message.find(prefix); at != std::string::npos) message.erase(at, prefix.size());
    return message;
  }

  [[nodiscard]] std::string path() const { return folder_ / "t.toml"; }

  testing::TemporaryFolder folder_;
};

Result<Config> load_environment(ConfigPairs environment) {
  return Config::load({.environment = std::move(environment)});
}

Result<Config> load_code(ConfigPairs overrides) {
  return Config::load({.overrides = std::move(overrides), .environment = ConfigPairs{}});
}

std::string environment_complaint(ConfigPairs environment) {
  const auto loaded = load_environment(std::move(environment));
  return loaded ? "" : loaded.error().message;
}

std::string code_complaint(ConfigPairs overrides) {
  const auto loaded = load_code(std::move(overrides));
  return loaded ? "" : loaded.error().message;
}

TEST_F(ConfigTest, WithNothingSetEverythingIsAtItsDefault) {
  const auto config = load_environment({}).value();
  EXPECT_EQ(config.text("log.level"), "warn");
  EXPECT_TRUE(config.list("transport.allow").empty());
  EXPECT_EQ(config.integer("progress.spin_us"), -1);
  EXPECT_EQ(config.duration("timeout.operation_ms"), 30s);
  EXPECT_EQ(config.duration("transfer.timeout_s"), 30s);
  EXPECT_DOUBLE_EQ(config.real("metrics.interval_s"), 10.0);
  for (const auto& row : config.describe()) {
    EXPECT_EQ(row.origin, "default") << row.key;
    EXPECT_FALSE(config.is_set(row.key)) << row.key;
  }
}

TEST_F(ConfigTest, CodeBeatsEnvironmentBeatsFileBeatsDefault) {
  const std::string toml = "[pushpull]\nslots = 3\n[shm]\ncma = 'off'\n[tcp]\nport = 7\n";
  const auto config =
      load_toml(toml, {{"DTR_PUSHPULL_SLOTS", "4"}, {"DTR_TCP_PORT", "8"}}, {{"tcp.port", "9"}}).value();
  EXPECT_EQ(config.text("shm.cma"), "off");
  EXPECT_EQ(config.origin("shm.cma"), "file " + path() + ":4");
  EXPECT_EQ(config.integer("pushpull.slots"), 4);
  EXPECT_EQ(config.origin("pushpull.slots"), "environment DTR_PUSHPULL_SLOTS");
  EXPECT_EQ(config.integer("tcp.port"), 9);
  EXPECT_EQ(config.origin("tcp.port"), "code");
  EXPECT_EQ(config.origin("log.level"), "default");
  EXPECT_TRUE(config.is_set("shm.cma"));
}

TEST_F(ConfigTest, TheFileMayBeNamedByTheEnvironmentOrByCodeWhichWins) {
  ASSERT_TRUE(replace_file(folder_ / "env.toml", "[tcp]\nport = 1\n"));
  ASSERT_TRUE(replace_file(folder_ / "code.toml", "[tcp]\nport = 2\n"));
  const ConfigPairs environment{{"DTR_CONFIG", folder_ / "env.toml"}};
  EXPECT_EQ(Config::load({.environment = environment}).value().integer("tcp.port"), 1);
  EXPECT_EQ(Config::load({.file = folder_ / "code.toml", .environment = environment}).value().integer("tcp.port"), 2);
}

TEST_F(ConfigTest, TheProcessEnvironmentIsReadUnlessAnotherIsGiven) {
  ASSERT_EQ(::setenv("DTR_PUSHPULL_SLOTS", "5", 1), 0);
  const auto config = Config::load();
  const auto isolated = load_environment({});
  ::unsetenv("DTR_PUSHPULL_SLOTS");
  EXPECT_EQ(config.value().integer("pushpull.slots"), 5);
  EXPECT_EQ(isolated.value().integer("pushpull.slots"), 2);
}

TEST_F(ConfigTest, EveryTypeIsReadFromToml) {
  const auto config = load_toml(R"(
transport.allow = ["shm", "tcp"]
[metrics]
interval_s = 2.5
file = "m.prom"
[transfer]
timeout_s = 7
[progress]
affinity = "0-1"
mode = "inline"
[fabric]
hold_bytes = "1GiB"
eager_bytes = 8_192
)")
                          .value();
  EXPECT_EQ(config.list("transport.allow"), (std::vector<std::string>{"shm", "tcp"}));
  EXPECT_EQ(config.duration("metrics.interval_s"), 2500ms);
  EXPECT_EQ(config.text("metrics.file"), "m.prom");
  EXPECT_DOUBLE_EQ(config.real("transfer.timeout_s"), 7.0);
  EXPECT_EQ(config.text("progress.affinity"), "0-1");
  EXPECT_EQ(config.text("progress.mode"), "inline");
  EXPECT_EQ(config.integer("fabric.hold_bytes"), std::int64_t{1} << 30);
  EXPECT_EQ(config.integer("fabric.eager_bytes"), 8192);
  EXPECT_EQ(config.origin("transport.allow"), "file " + path() + ":2");
}

TEST_F(ConfigTest, NumbersTakeSuffixesOfTheirUnit) {
  const auto ms = [](const std::string& text) {
    return load_code({{"timeout.operation_ms", text}}).value().integer("timeout.operation_ms");
  };
  EXPECT_EQ(ms("5s"), 5000);
  EXPECT_EQ(ms("200ms"), 200);
  EXPECT_EQ(ms(" 3 min "), 180'000);
  EXPECT_EQ(ms("2h"), 7'200'000);
  EXPECT_EQ(ms("4000us"), 4);
  EXPECT_EQ(ms("+17"), 17);
  const auto bytes = [](const std::string& text) {
    return load_code({{"fabric.hold_bytes", text}}).value().integer("fabric.hold_bytes");
  };
  EXPECT_EQ(bytes("64KiB"), 65'536);
  EXPECT_EQ(bytes("1MiB"), 1 << 20);
  EXPECT_EQ(bytes("3 MB"), 3'000'000);
  EXPECT_EQ(bytes("2048B"), 2048);
  const auto config = load_code({{"metrics.interval_s", "250ms"}, {"progress.spin_us", "1ms"}}).value();
  EXPECT_EQ(config.duration("metrics.interval_s"), 250ms);
  EXPECT_EQ(config.duration("progress.spin_us"), 1ms);
}

TEST_F(ConfigTest, ListsComeFromCommaSeparatedTextWithoutDoubles) {
  const auto config = load_environment({{"DTR_TRANSPORT", "tcp, shm,tcp"}}).value();
  EXPECT_EQ(config.list("transport.allow"), (std::vector<std::string>{"tcp", "shm"}));
  EXPECT_TRUE(load_environment({{"DTR_TRANSPORT", ""}}).value().list("transport.allow").empty());
}

TEST_F(ConfigTest, AFileWithACoordinatorSectionLoads) {
  const auto config = load_toml(R"([coordinator]
address = "0.0.0.0:50051"
heartbeat_interval_ms = 500
heartbeat_timeout_ms = 20000

[storage]
backend = "s3"
bucket = "my-bucket"
region = "eu-west-1"

[checkpoint]
interval_steps = 100
keep_last_n = 3
compression = "gzip"

[dataset]
default_shard_size = 10000
prefetch_shards = 4
)")
                          .value();
  EXPECT_EQ(config.duration("runtime.heartbeat_interval_ms"), 500ms);
  EXPECT_EQ(config.duration("runtime.heartbeat_timeout_ms"), 20s);
  EXPECT_EQ(config.text("storage.backend"), "s3");
  EXPECT_EQ(config.text("checkpoint.compression"), "gzip");
  EXPECT_EQ(config.integer("dataset.prefetch_shards"), 4);
  EXPECT_EQ(config.integer("coordinator.heartbeat_interval_ms"), 500) << "an alias reads the same row";
}

TEST_F(ConfigTest, AForeignVariableIsAnAliasAndOursWins) {
  EXPECT_EQ(load_environment({{"MC_TRANSFER_TIMEOUT", "3"}}).value().duration("transfer.timeout_s"), 3s);
  const auto both = load_environment({{"DTR_TRANSFER_TIMEOUT", "4"}, {"MC_TRANSFER_TIMEOUT", "3"}}).value();
  EXPECT_EQ(both.duration("transfer.timeout_s"), 4s);
  EXPECT_EQ(both.origin("transfer.timeout_s"), "environment DTR_TRANSFER_TIMEOUT");
  EXPECT_EQ(environment_complaint({{"MC_TRANSFER_TIMEOUT", "soon"}}),
            "environment MC_TRANSFER_TIMEOUT: transfer.timeout_s = 'soon' is no number, plain or with one of "
            "ns, us, ms, s, min, h");
}

TEST_F(ConfigTest, UnknownKeysInTheFileNameLineAndNearestKey) {
  EXPECT_EQ(toml_complaint("# comment\n[log]\nlevl = 'info'\n"),
            "t.toml:3: unknown key 'log.levl'; the nearest is 'log.level'");
  EXPECT_EQ(toml_complaint("[pushpul]\nslots = 2\n"),
            "t.toml:2: unknown key 'pushpul.slots'; the nearest is 'pushpull.slots'");
  EXPECT_EQ(toml_complaint("heartbeat_timeout_ms = 5\n"),
            "t.toml:1: unknown key 'heartbeat_timeout_ms'; the nearest is 'runtime.heartbeat_timeout_ms'");
  EXPECT_EQ(toml_complaint("[tcp]\nslots = 1\n"), "t.toml:2: unknown key 'tcp.slots'; the nearest is 'pushpull.slots'");
  EXPECT_EQ(toml_complaint("[tpc]\n"), "t.toml:1: unknown section [tpc]; the nearest is [tcp]");
  EXPECT_EQ(toml_complaint("log.level.deep = 1\n"),
            "t.toml:1: unknown key 'log.level.deep'; the nearest is 'log.level'");
}

TEST_F(ConfigTest, TheFirstWrongLineIsReported) {
  EXPECT_EQ(toml_complaint("[tcp]\nzzz = 1\n[aaa]\nb = 2\n").rfind("t.toml:2: ", 0), 0U);
}

TEST_F(ConfigTest, AnEmptyKnownSectionIsFine) {
  EXPECT_EQ(toml_complaint("[tcp]\n[coordinator]\n"), "");
  EXPECT_EQ(toml_complaint(""), "");
}

TEST_F(ConfigTest, UnknownVariablesNameTheNearest) {
  EXPECT_EQ(environment_complaint({{"DTR_LGO", "info"}}),
            "environment: unknown variable DTR_LGO; the nearest is DTR_LOG");
  EXPECT_EQ(environment_complaint({{"DTR_LOG_LEVEL", "info"}}),
            "environment: unknown variable DTR_LOG_LEVEL; the nearest is DTR_LOG");
  EXPECT_EQ(environment_complaint({{"DTR_CONFG", "x"}}),
            "environment: unknown variable DTR_CONFG; the nearest is DTR_CONFIG");
}

TEST_F(ConfigTest, VariablesOfTestsBuildAndOthersPass) {
  EXPECT_EQ(environment_complaint({{"DTR_TEST_TIME_SCALE", "4"},
                                   {"DTR_WITH_CUDA", "ON"},
                                   {"DTR_BUILD_TESTS", "ON"},
                                   {"PATH", "/bin"},
                                   {"dtr_log", "x"}}),
            "");
}

TEST_F(ConfigTest, UnknownKeysInCodeNameTheNearest) {
  EXPECT_EQ(code_complaint({{"progress.spinus", "3"}}),
            "code: unknown key 'progress.spinus'; the nearest is 'progress.spin_us'");
}

TEST_F(ConfigTest, ValuesOutOfRangeNameKeyValueRangeAndPlace) {
  EXPECT_EQ(toml_complaint("[pushpull]\nslots = 65\n"),
            "t.toml:2: pushpull.slots = '65' is out of range, which is 1 to 64");
  EXPECT_EQ(environment_complaint({{"DTR_TIMEOUT_MS", "0"}}),
            "environment DTR_TIMEOUT_MS: timeout.operation_ms = '0' is out of range, which is 1 to 86400000 ms");
  EXPECT_EQ(code_complaint({{"tcp.port", "65536"}}), "code: tcp.port = '65536' is out of range, which is 0 to 65535");
  EXPECT_EQ(code_complaint({{"metrics.interval_s", "0"}}),
            "code: metrics.interval_s = '0' is out of range, which is 0.01 to 86400 s");
  EXPECT_EQ(code_complaint({{"metrics.interval_s", "nan"}}),
            "code: metrics.interval_s = 'nan' is out of range, which is 0.01 to 86400 s");
  EXPECT_EQ(code_complaint({{"progress.spin_us", "-2"}}),
            "code: progress.spin_us = '-2' is out of range, which is -1 to 10000000 us");
}

TEST_F(ConfigTest, BothEndsOfARangeBelongToIt) {
  for (const auto& setting : settings()) {
    if (setting.type != SettingType::integer) continue;
    for (const double end : {setting.minimum, setting.maximum}) {
      const auto text = std::to_string(static_cast<std::int64_t>(end));
      // Both ends together may break an order between two rows; that one row is fine is what is asked here.
      EXPECT_EQ(code_complaint({{std::string(setting.key), text}}).find("out of range"), std::string::npos)
          << setting.key << " = " << text;
    }
    const auto beyond = std::to_string(static_cast<std::int64_t>(setting.maximum) + 1);
    EXPECT_NE(code_complaint({{std::string(setting.key), beyond}}).find("out of range"), std::string::npos)
        << setting.key << " = " << beyond;
  }
}

TEST_F(ConfigTest, ValuesOfTheWrongTypeAreNamed) {
  EXPECT_EQ(toml_complaint("[pushpull]\nslots = 'two'\n"), "t.toml:2: pushpull.slots = 'two' is no integer");
  EXPECT_EQ(toml_complaint("[pushpull]\nslots = 2.5\n"), "t.toml:2: pushpull.slots = '2.5' is no integer");
  EXPECT_EQ(toml_complaint("[pushpull]\nslots = true\n"), "t.toml:2: pushpull.slots = 'true' is no integer");
  EXPECT_EQ(toml_complaint("[tcp]\nport = 2020-01-01\n"), "t.toml:2: 'tcp.port' is a date, not a value");
  EXPECT_EQ(toml_complaint("[log.level]\n"), "t.toml:1: 'log.level' is an empty section, not a value");
  EXPECT_EQ(toml_complaint("[[tcp.port]]\nx = 1\n"),
            "t.toml:1: 'tcp.port' is an array of arrays or sections, not a value");
  EXPECT_EQ(code_complaint({{"pushpull.slots", ""}}), "code: pushpull.slots = '' is no integer");
  EXPECT_EQ(code_complaint({{"pushpull.slots", "2ms"}}), "code: pushpull.slots = '2ms' is no integer");
  EXPECT_EQ(code_complaint({{"pushpull.slots", "99999999999999999999"}}),
            "code: pushpull.slots = '99999999999999999999' is too large");
  EXPECT_EQ(code_complaint({{"timeout.operation_ms", "5 sec"}}),
            "code: timeout.operation_ms = '5 sec' is no integer, plain or with one of ns, us, ms, s, min, h");
  EXPECT_EQ(code_complaint({{"timeout.operation_ms", "1500us"}}),
            "code: timeout.operation_ms = '1500us' is no whole number of ms");
  EXPECT_EQ(code_complaint({{"fabric.hold_bytes", "9000000000TiB"}}),
            "code: fabric.hold_bytes = '9000000000TiB' is too large");
  EXPECT_EQ(code_complaint({{"fabric.hold_bytes", "4K"}}),
            "code: fabric.hold_bytes = '4K' is no integer, plain or with one of B, kB, MB, GB, TB, KiB, MiB, GiB, TiB");
}

TEST_F(ConfigTest, WordsThatAreNoChoiceNameTheNearest) {
  EXPECT_EQ(environment_complaint({{"DTR_LOG", "inof"}}),
            "environment DTR_LOG: log.level = 'inof' is none of trace, debug, info, warn, error, off; "
            "the nearest is 'info'");
  EXPECT_EQ(environment_complaint({{"DTR_TRANSPORT", "shm,tpc"}}),
            "environment DTR_TRANSPORT: transport.allow = 'shm,tpc': 'tpc' is none of shm, tcp, verbs; "
            "the nearest is 'tcp'");
  EXPECT_EQ(toml_complaint("[transport]\nallow = ['rdma']\n").rfind("t.toml:2: transport.allow = 'rdma': 'rdma' is", 0),
            0U);
}

TEST_F(ConfigTest, RulesBeyondTheRangeAreChecked) {
  EXPECT_EQ(code_complaint({{"shm.ring_bytes", "5000"}}), "code: shm.ring_bytes = '5000': it has to be a power of two");
  EXPECT_EQ(code_complaint({{"progress.affinity", "0,x"}}),
            "code: progress.affinity = '0,x': 'x' in CPU list '0,x' is no CPU number from 0 to 1023");
  EXPECT_EQ(code_complaint({{"memory.pool_bytes", "2GiB"}, {"memory.pool_max_bytes", "1GiB"}}),
            "memory.pool_bytes = 2147483648 (code) exceeds memory.pool_max_bytes = 1073741824 (code)");
  EXPECT_EQ(environment_complaint({{"DTR_RUNTIME_HEARTBEAT_INTERVAL_MS", "1min"}}),
            "runtime.heartbeat_interval_ms = 60000 (environment DTR_RUNTIME_HEARTBEAT_INTERVAL_MS) exceeds half of "
            "runtime.heartbeat_timeout_ms = 30000 (default)");
}

TEST_F(ConfigTest, OneSettingUnderTwoNamesInAFileIsAnError) {
  EXPECT_EQ(toml_complaint("[runtime]\nheartbeat_timeout_ms = 1000\n[coordinator]\nheartbeat_timeout_ms = 2000\n"),
            "t.toml:4: 'coordinator.heartbeat_timeout_ms' is the same setting as 'runtime.heartbeat_timeout_ms' in "
            "line 2");
}

TEST_F(ConfigTest, SyntaxErrorsNameFileAndLine) {
  EXPECT_EQ(toml_complaint("[tcp]\nport = \n").rfind("t.toml:2: TOML syntax: ", 0), 0U);
  EXPECT_EQ(toml_complaint("[tcp]\nport = 1\nport = 2\n").rfind("t.toml:3: TOML syntax: ", 0), 0U);
  EXPECT_EQ(toml_complaint("[tcp\n").rfind("t.toml:1: TOML syntax: ", 0), 0U);
  EXPECT_EQ(toml_complaint("a = \"\xff\"").rfind("t.toml:1: TOML syntax: ", 0), 0U);
  EXPECT_EQ(toml_complaint(std::string(100'000, '[')).rfind("t.toml:1: TOML syntax: ", 0), 0U);
}

TEST_F(ConfigTest, ADamagedFileLoadsOrIsAnErrorWithItsLine) {
  const std::string good =
      "[log]\nlevel = 'info'\n[transport]\nallow = ['shm', \"tcp\"]\n[metrics]\ninterval_s = 2.5e0\n"
      "[fabric]\nhold_bytes = \"1GiB\"\n[coordinator]\nheartbeat_timeout_ms = 0x7d0\n";
  ASSERT_EQ(toml_complaint(good), "");
  std::mt19937 random(5);
  int loaded = 0;
  for (int i = 0; i < 500; ++i) {
    std::string bad = good;
    for (unsigned n = random() % 3 + 1; n > 0; --n) {
      const std::size_t at = random() % bad.size();
      switch (random() % 3) {
        case 0:
          bad[at] = static_cast<char>(random());
          break;
        case 1:
          bad.erase(at, random() % 20);
          break;
        default:
          bad.insert(at, 1, "[]{}=.,'\"\\\n#0-"[random() % 14]);
      }
      if (bad.empty()) bad = " ";
    }
    const std::string words = toml_complaint(bad);
    if (words.empty()) {
      ++loaded;
      continue;
    }
    const bool has_line = words.rfind("t.toml:", 0) == 0 && words.size() > 8 && std::isdigit(words[7]) != 0;
    const bool is_pair = words.find(" exceeds ") != std::string::npos;
    EXPECT_TRUE(has_line || is_pair) << words;
  }
  EXPECT_GT(loaded, 0);
  EXPECT_LT(loaded, 500);
}

TEST_F(ConfigTest, AMissingFileIsNamed) {
  EXPECT_EQ(complaint(Config::load({.file = path(), .environment = ConfigPairs{}})),
            "open t.toml: No such file or directory");
  EXPECT_EQ(complaint(load_environment({{"DTR_CONFIG", path()}})), "open t.toml: No such file or directory");
}

TEST_F(ConfigTest, AskingForWhatTheTableDoesNotHaveThrows) {
  const Config config;
  const auto message = [](const auto& call) -> std::string {
    try {
      static_cast<void>(call());
    } catch (const Exception& e) {
      return e.what();
    }
    return "";
  };
  EXPECT_EQ(message([&] { return config.integer("log.levl"); }),
            "config: internal: the table has no setting 'log.levl' of the type asked for");
  EXPECT_NE(message([&] { return config.integer("log.level"); }), "");
  EXPECT_NE(message([&] { return config.boolean("tcp.port"); }), "");
  EXPECT_NE(message([&] { return config.list("tcp.port"); }), "");
  EXPECT_NE(message([&] { return config.real("tcp.port"); }), "");
  EXPECT_NE(message([&] { return config.text("tcp.port"); }), "");
  EXPECT_EQ(message([&] { return config.duration("tcp.port"); }), "config: internal: setting 'tcp.port' is no time");
}

TEST_F(ConfigTest, DescribeGivesEveryRowWithValueUnitAndOrigin) {
  const auto rows = load_code({{"fabric.eager_bytes", "8KiB"}}).value().describe();
  ASSERT_EQ(rows.size(), settings().size());
  for (const auto& row : rows) {
    EXPECT_FALSE(row.help.empty()) << row.key;
    if (row.key != "fabric.eager_bytes") continue;
    EXPECT_EQ(row.value, "8192");
    EXPECT_EQ(row.unit, "bytes");
    EXPECT_EQ(row.origin, "code");
    EXPECT_EQ(row.environment, "DTR_FABRIC_EAGER_BYTES");
  }
}

TEST_F(ConfigTest, TheLogIsSetUpFromItsSettings) {
  const auto config = load_code({{"log.level", "debug"}, {"log.file", folder_ / "log.{rank}"}}).value();
  ASSERT_TRUE(configure_log(config, 4));
  EXPECT_TRUE(log_enabled(LogLevel::debug));
  EXPECT_FALSE(log_enabled(LogLevel::trace));
  EXPECT_TRUE(std::filesystem::exists(folder_ / "log.4"));
  ASSERT_TRUE(configure_log(LogOptions{}));
}

}  // namespace
}  // namespace dtr
