// A TOML file as flat key and text pairs with their lines.
#pragma once

#include <string>
#include <vector>

#include "dtr/base/error.hpp"

namespace dtr::inline v0 {
namespace config {

struct TomlEntry {
  std::string key{};  ///< "section.key"
  std::string text{};
  int line = 0;
  bool is_value = true;  ///< false: something that no setting can be; `text` says what
  bool is_empty_section = false;
};

/// In the order of the lines; empty sections appear as entries that are no value. Errors: config_error naming file
/// and line.
[[nodiscard]] Result<std::vector<TomlEntry>> read_toml(const std::string& path);

}  // namespace config
}  // namespace dtr::inline v0
