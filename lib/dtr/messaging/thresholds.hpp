// Which way a message goes, by its size. Measured by `dtr_info --calibrate`, never at start.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "dtr/base/config.hpp"
#include "dtr/base/error.hpp"

namespace dtr::inline v0 {

enum class MessageWay : std::uint8_t {
  eager,  ///< one message of the fabric: copied at once, kept at the receiver if nobody has asked for it
  slots,  ///< in pieces through slots of the receiver: both sides copy at the same time
  read,   ///< the receiver copies from the sender's memory, once (shm)
};

/// "eager", "slots", "read".
[[nodiscard]] std::string_view to_string(MessageWay way) noexcept;

/// How messages go to the ranks that one transport reaches.
struct ThresholdRow {
  std::uint64_t up_to = 0;  ///< bytes of the largest message of this row; the last row of a transport has no end
  /// From memory that the receiver does not map; `read` is by process_vm_readv then, and slots where that cannot be.
  MessageWay way = MessageWay::slots;
  std::uint32_t piece = 65536;  ///< slots: bytes copied at a time, at most messages.slot_bytes
  /// The same from memory of Runtime::allocate, which the receiver maps (shm): slots or read.
  MessageWay mapped = MessageWay::read;
};

/// The row of a message of so many bytes; there is one at least.
[[nodiscard]] const ThresholdRow& row_for(const std::vector<ThresholdRow>& rows, std::uint64_t bytes) noexcept;

struct Thresholds {
  struct Table {
    std::string transport{};           ///< "shm", "tcp", "verbs", "loopback"
    std::vector<ThresholdRow> rows{};  ///< by growing up_to
  };
  std::vector<Table> tables{};
  std::string origin = "built in";  ///< or the file that they came from

  /// The row of a message; that of a transport without a table is built in.
  [[nodiscard]] const ThresholdRow& row(std::string_view transport, std::uint64_t bytes) const noexcept;
  [[nodiscard]] const std::vector<ThresholdRow>& rows(std::string_view transport) const noexcept;

  [[nodiscard]] static const Thresholds& built_in();

  /// Of messages.thresholds, or built in if that is empty. Errors: config_error naming file and line or row.
  [[nodiscard]] static Result<Thresholds> from(const Config& config);

  /// Reads the file: TOML, an array of rows for each transport. Errors: config_error.
  [[nodiscard]] static Result<Thresholds> load(const std::string& path);
  /// What load() reads.
  [[nodiscard]] std::string toml() const;
  /// Lines for people: "shm  up to 4096 bytes: eager".
  [[nodiscard]] std::string describe() const;
};

}  // namespace dtr::inline v0
