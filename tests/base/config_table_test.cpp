// What holds for the table itself, and that its page is up to date.
#include <algorithm>
#include <cstdlib>
#include <set>

#include <gtest/gtest.h>

#include "dtr/base/config.hpp"
#include "dtr/base/detail/config_text.hpp"
#include "dtr/base/file.hpp"

namespace dtr {
namespace {

TEST(ConfigTableTest, KeysAndVariablesAreUniqueWithTheirAliases) {
  std::set<std::string> keys;
  std::set<std::string> variables;
  for (const auto& setting : settings()) {
    EXPECT_TRUE(keys.insert(std::string(setting.key)).second) << setting.key;
    EXPECT_TRUE(variables.insert(environment_name(setting)).second) << setting.key;
    EXPECT_TRUE(environment_name(setting).starts_with("DTR_")) << setting.key;
    for (const auto& alias : config::words(setting.key_aliases)) EXPECT_TRUE(keys.insert(alias).second) << alias;
    for (const auto& alias : config::words(setting.environment_aliases)) {
      EXPECT_TRUE(variables.insert(alias).second) << alias;
    }
  }
}

TEST(ConfigTableTest, EveryRowIsWhole) {
  for (const auto& setting : settings()) {
    SCOPED_TRACE(setting.key);
    EXPECT_TRUE(config::parse_value(setting, setting.initial).complaint.empty()) << "the default does not fit";
    EXPECT_EQ(config::parse_value(setting, setting.initial).text, setting.initial) << "write the default plainly";
    EXPECT_FALSE(setting.help.empty());
    EXPECT_EQ(setting.help.find('|'), std::string::npos) << "breaks the page's table";
    EXPECT_EQ(std::count(setting.key.begin(), setting.key.end(), '.'), 1) << "section.key";
    const bool number = setting.type == SettingType::integer || setting.type == SettingType::real;
    EXPECT_EQ(number, setting.minimum < setting.maximum);
    EXPECT_EQ(setting.type == SettingType::choice || setting.type == SettingType::list, !setting.choices.empty());
  }
}

TEST(ConfigTableTest, AKeyEndsInItsUnit) {
  for (const auto& setting : settings()) {
    const std::string unit(config::unit_name(setting.unit));
    EXPECT_TRUE(unit.empty() || setting.key.ends_with("_" + unit)) << setting.key;
  }
}

TEST(ConfigTableTest, RowsOfASectionStandTogether) {
  std::set<std::string> closed;
  std::string current;
  for (const auto& setting : settings()) {
    const std::string section(setting.key.substr(0, setting.key.find('.')));
    if (section == current) continue;
    EXPECT_TRUE(closed.insert(section).second) << setting.key;
    current = section;
  }
}

TEST(ConfigTableTest, DocsConfigurationIsTheTable) {
  const std::string path = std::string(DTR_SOURCE_DIR) + "/docs/configuration.md";
  const std::string begin = "<!-- settings: generated from lib/dtr/base/config_table.cpp -->\n";
  const std::string end = "<!-- settings: end -->\n";
  const std::string page = read_file(path).value();
  const auto first = page.find(begin);
  const auto last = page.find(end);
  ASSERT_TRUE(first != std::string::npos && last != std::string::npos && first < last) << path << " lost its markers";
  const std::string current =
      page.substr(0, first + begin.size()) + "\n" + Config::markdown() + "\n" + page.substr(last);
  if (std::getenv("DTR_TEST_UPDATE") != nullptr) {
    ASSERT_TRUE(replace_file(path, current));
    return;
  }
  EXPECT_EQ(page, current) << "run this test with DTR_TEST_UPDATE=1 and commit " << path;
}

}  // namespace
}  // namespace dtr
