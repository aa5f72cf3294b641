// The names in a checkpoint folder, and nothing else about it.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace dtr::inline v0 {
namespace checkpoint {

inline constexpr std::string_view kManifestName = "manifest.json";
inline constexpr std::string_view kIndexName = "index.h5";
inline constexpr std::string_view kLockName = ".lock";

/// "step_000001000"; more digits where a step needs them.
[[nodiscard]] std::string step_name(std::uint64_t step);

/// The step of a name that step_name made; nothing for any other.
[[nodiscard]] std::optional<std::uint64_t> parse_step_name(std::string_view name);

/// "rank_00003.h5".
[[nodiscard]] std::string rank_file_name(int rank);
[[nodiscard]] std::optional<int> parse_rank_file_name(std::string_view name);

/// ".step_000001000.tmp-TAG" and ".trash-step_000001000-TAG": garbage by name, whatever is in them.
[[nodiscard]] std::string temporary_name(std::uint64_t step, std::string_view tag);
[[nodiscard]] std::string trash_name(std::uint64_t step, std::string_view tag);
[[nodiscard]] bool is_temporary_name(std::string_view name);
[[nodiscard]] bool is_trash_name(std::string_view name);

/// 16 hexadecimal digits.
[[nodiscard]] std::string to_hex(std::uint64_t value);
[[nodiscard]] std::optional<std::uint64_t> parse_hex(std::string_view text);

}  // namespace checkpoint
}  // namespace dtr::inline v0
