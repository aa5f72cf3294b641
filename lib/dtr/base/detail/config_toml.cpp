#include "dtr/base/detail/config_toml.hpp"

#include <algorithm>

#include <toml++/toml.h>

#include "dtr/base/detail/config_text.hpp"
#include "dtr/base/file.hpp"

namespace dtr::inline v0 {
namespace config {

namespace {

/// The text that the environment would have for the same value; nothing for what no setting can be.
bool scalar_text(const toml::node& node, std::string& text) {
  if (const auto* string = node.as_string()) {
    text = string->get();
  } else if (const auto* integer = node.as_integer()) {
    text = std::to_string(integer->get());
  } else if (const auto* real = node.as_floating_point()) {
    text = number_text(real->get());
  } else if (const auto* boolean = node.as_boolean()) {
    text = boolean->get() ? "true" : "false";
  } else {
    return false;
  }
  return true;
}

bool array_text(const toml::array& array, std::string& text) {
  std::vector<std::string> parts;
  for (const auto& node : array) {
    std::string part;
    if (!scalar_text(node, part)) return false;
    parts.push_back(std::move(part));
  }
  text = join(parts, ",");
  return true;
}

void flatten(const toml::table& table, const std::string& prefix, std::vector<TomlEntry>& entries) {
  for (const auto& [key, node] : table) {
    TomlEntry entry{.key = prefix + std::string(key.str()), .line = static_cast<int>(key.source().begin.line)};
    if (const auto* inner = node.as_table(); inner != nullptr && !inner->empty()) {
      flatten(*inner, entry.key + ".", entries);
      continue;
    }
    const auto* array = node.as_array();
    if (array != nullptr ? !array_text(*array, entry.text) : !scalar_text(node, entry.text)) {
      entry.is_value = false;
      entry.is_empty_section = node.is_table();
      entry.text = node.is_table() ? "an empty section" : node.is_array() ? "an array of arrays or sections" : "a date";
    }
    entries.push_back(std::move(entry));
  }
}

}  // namespace

Result<std::vector<TomlEntry>> read_toml(const std::string& path) {
  const auto bytes = read_file(path);
  if (!bytes) return fail(Errc::config_error, bytes.error().message, "config");
  std::vector<TomlEntry> entries;
  try {
    flatten(toml::parse(*bytes, path), "", entries);
  } catch (const toml::parse_error& e) {
    return fail(Errc::config_error,
                path + ":" + std::to_string(e.source().begin.line) + ": TOML syntax: " + std::string(e.description()),
                "config");
  }
  std::stable_sort(entries.begin(), entries.end(),
                   [](const TomlEntry& a, const TomlEntry& b) { return a.line < b.line; });
  return entries;
}

}  // namespace config
}  // namespace dtr::inline v0
