// What a channel remembers of requests that were refused, so that it can say later what was wrong with them. A Status
// has no room for that, and most users look at it long after the request is gone.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <string>

#include "dtr/fabric/work_request.hpp"
#include "dtr/memory/region.hpp"

namespace dtr::inline v0 {
namespace fabric {

/// The last few refusals of a channel. Any thread. Costs nothing while requests are good.
class Refusals {
 public:
  /// What came of a request, as a Status that explain() knows in detail. `again` and ok are kept as they are.
  /// Its `cause` is an errno or 0 before. request.local and remote have to be alive still.
  [[nodiscard]] Status remember(const WorkRequest& request, Status status, std::uint64_t max_message) noexcept;

  /// The request, what is wrong with it, and what to do; "" if nothing is remembered of this status.
  [[nodiscard]] std::string explain(const Status& status) const;

 private:
  /// Values, not pointers: the regions may be gone by the time somebody asks.
  struct Refusal {
    std::int32_t number = 0;  ///< 0 = unused
    Status status{};
    Opcode opcode = Opcode::put;
    bool has_local = false;
    bool has_remote = false;
    bool has_payload = false;
    std::uint32_t value = 0;
    std::uint64_t bytes = 0;
    std::uint64_t local_offset = 0;
    std::uint64_t local_length = 0;
    std::uint64_t remote_offset = 0;
    std::uint64_t max_message = 0;
    MemoryKind local_kind = MemoryKind::host;
    RemoteKey key{};
  };
  static constexpr std::size_t kKept = 16;
  static constexpr std::int32_t kFirst = 1024;  ///< smaller ones are the transports' own causes

  [[nodiscard]] static std::string describe(const Refusal& refusal);
  [[nodiscard]] static std::string cause(const Refusal& refusal);

  mutable std::mutex mutex_;
  std::int32_t last_ = kFirst;
  std::array<Refusal, kKept> refusals_{};
};

/// "put", "fetch_add"...
[[nodiscard]] const char* to_string(Opcode opcode) noexcept;

/// What a code means for a request of which nothing more is known.
[[nodiscard]] std::string words_for(Errc code);

}  // namespace fabric
}  // namespace dtr::inline v0
