// The table of settings as people read it.
#include "dtr/base/config.hpp"
#include "dtr/base/detail/config_text.hpp"

namespace dtr::inline v0 {

namespace {

std::string value_words(const Setting& setting) {
  std::string range = config::range_text(setting);
  switch (setting.type) {
    case SettingType::boolean:
      return range;
    case SettingType::integer:
      return "integer, " + range;
    case SettingType::real:
      return "number, " + range;
    case SettingType::text:
      return "text";
    case SettingType::choice:
      return "one of " + range;
    case SettingType::list:
      return "list of " + range;
  }
  return "";
}

std::string code(std::string_view text) { return text.empty() ? "" : "`" + std::string(text) + "`"; }

std::string aliases(std::string_view names) {
  std::string words;
  for (const auto& name : config::words(names)) words += "<br>" + code(name);
  return words;
}

}  // namespace

std::string Config::markdown() {
  std::string page;
  std::string section;
  for (const auto& setting : settings()) {
    const auto dot = setting.key.find('.');
    if (setting.key.substr(0, dot) != section) {
      section = setting.key.substr(0, dot);
      page += (page.empty() ? "" : "\n") + ("### [" + section + "]\n\n");
      page += "| key | variable | value | default | meaning |\n|---|---|---|---|---|\n";
    }
    page += "| " + code(setting.key.substr(dot + 1)) + aliases(setting.key_aliases) + " | " +
            code(environment_name(setting)) + aliases(setting.environment_aliases) + " | " + value_words(setting) +
            " | " + code(setting.initial) + " | " + std::string(setting.help) + " |\n";
  }
  return page;
}

}  // namespace dtr::inline v0
