// Which way a message goes is what the file says, and what the file says is what was written.
#include <fstream>

#include "messaging/ways.hpp"

namespace dtr {
namespace {

using namespace testing;
using ::testing::HasSubstr;

std::string file_with(const TemporaryFolder& folder, const std::string& text) {
  const auto path = (folder / "ways.toml").string();
  std::ofstream(path) << text;
  return path;
}

TEST(ThresholdsTest, WhatIsWrittenIsReadAgain) {
  const TemporaryFolder folder;
  Thresholds made;
  made.tables = {{.transport = "shm",
                  .rows = {{.up_to = 1000, .way = MessageWay::eager, .piece = 65536},
                           {.up_to = 200000, .way = MessageWay::slots, .piece = 16384},
                           {.up_to = 0, .way = MessageWay::slots, .piece = 65536}}}};
  made.tables[0].rows[2].up_to = Thresholds::built_in().rows("shm").back().up_to;  // no end
  const auto path = file_with(folder, made.toml());
  const auto loaded = Thresholds::load(path);
  DTR_ASSERT_OK(loaded);
  EXPECT_EQ(loaded->toml(), made.toml());
  EXPECT_EQ(loaded->origin, path);
  EXPECT_EQ(loaded->row("shm", 1000).way, MessageWay::eager);
  EXPECT_EQ(loaded->row("shm", 1001).piece, 16384U);
  EXPECT_EQ(loaded->row("shm", std::uint64_t{1} << 40).piece, 65536U);
  EXPECT_EQ(loaded->row("tcp", 100).way, Thresholds::built_in().row("tcp", 100).way)
      << "built in where it says nothing";
  EXPECT_THAT(loaded->describe(), HasSubstr(path));
  EXPECT_THAT(loaded->describe(), HasSubstr("built in"));
}

TEST(ThresholdsTest, AFileThatMakesNoSenseIsRefusedWithItsNameAndLine) {
  const TemporaryFolder folder;
  const char* const wrong[] = {
      "[[shm]\n",
      "[[infiniband]]\nway = \"slots\"\n",
      "shm = 3\n",
      "shm = [1]\n",
      "[[shm]]\nway = \"fast\"\n",
      "[[shm]]\nup_to = -1\nway = \"eager\"\n[[shm]]\n",
      "[[shm]]\nway = \"slots\"\nmapped = \"eager\"\n",
      "[[tcp]]\nway = \"read\"\n",
      "[[tcp]]\nmapped = \"slots\"\n",
      "[[shm]]\npiece = 0\n",
      "[[shm]]\npiece = 99999999999\n",
      "[[shm]]\nsize = 1\n",
      "[[shm]]\nway = \"eager\"\n",
      "[[shm]]\nup_to = 5000\n[[shm]]\nup_to = 4000\n",
      "[[shm]]\nup_to = 100\n[[shm]]\nup_to = 200\nway = \"eager\"\n[[shm]]\n",
  };
  for (const char* text : wrong) {
    const auto path = file_with(folder, text);
    const auto loaded = Thresholds::load(path);
    ASSERT_FALSE(loaded) << text;
    EXPECT_EQ(loaded.error().code, Errc::config_error) << text;
    EXPECT_THAT(loaded.error().message, HasSubstr(path)) << text;
  }
  EXPECT_EQ(Thresholds::load((folder / "absent.toml").string()).error().code, Errc::config_error);
}

TEST(ThresholdsTest, AMessengerGoesByTheFileThatTheConfigurationNames) {
  const TemporaryFolder folder;
  const auto path = file_with(folder,
                              "[[shm]]\nup_to = 100\nway = \"eager\"\n[[shm]]\nup_to = 20000\npiece = 1000\n"
                              "[[shm]]\npiece = 7000\n");
  run({.transport = "shm", .workers = 2, .servers = 0, .config = {{"messages.thresholds", path}}}, [&](Runtime& rt) {
    Messenger messenger(rt);
    EXPECT_EQ(messenger.thresholds().origin, path);
    for (const std::size_t size : {50U, 101U, 5000U, 20000U, 20001U, 300000U}) {
      Bytes data = rt.rank() == 0 ? data_of(size, size) : Bytes(size);
      const auto begun = rt.rank() == 0 ? messenger.send(1, 1, data, soon()) : messenger.recv(0, 1, data, soon());
      DTR_ASSERT_OK(begun);
      DTR_ASSERT_OK(messenger.wait(*begun));
      EXPECT_EQ(data, data_of(size, size));
    }
    value_or_throw(rt.allgather("between", {}, soon()));
    if (rt.rank() != 0) return;
    // 101 bytes are offered and not kept: the send waits for its recv.
    const Bytes data(101);
    const auto handle = value_or_throw(messenger.send(1, 2, data, 50ms));
    EXPECT_FALSE(messenger.wait(handle));
  });
}

}  // namespace
}  // namespace dtr
