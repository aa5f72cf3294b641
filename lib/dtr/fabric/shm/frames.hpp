// What travels in the rings. Bodies are copied out before they are looked at: the peer could change them meanwhile.
#pragma once

#include <cstdint>
#include <cstring>
#include <span>

#include "dtr/fabric/checks.hpp"
#include "dtr/fabric/work_request.hpp"
#include "dtr/memory/region_table.hpp"

namespace dtr::inline v0 {
namespace fabric::shm {

enum class FrameType : std::uint8_t {
  message = 1,  ///< payload
  notify,       ///< NotifyBody
  put,          ///< PutBody, then a piece of the data
  get,          ///< GetBody
  atomic,       ///< AtomicBody
  data,         ///< backward: DataBody, then a piece of the data
  result,       ///< backward: ResultBody
};

/// A place in the target's memory.
struct Place {
  std::uint32_t slot = 0;
  std::uint32_t generation = 0;
  std::uint64_t secret = 0;
  std::uint64_t offset = 0;

  [[nodiscard]] static Place of(const RemoteKey& key, std::uint64_t offset) noexcept {
    return {.slot = key.slot, .generation = key.generation, .secret = key.secret, .offset = offset};
  }
  [[nodiscard]] RegionTable::Request request(std::uint64_t bytes, Access access) const noexcept {
    return {
        .slot = slot, .generation = generation, .secret = secret, .offset = offset, .length = bytes, .access = access};
  }
};

struct NotifyBody {
  std::uint32_t value = 0;
};

struct PutBody {
  static constexpr std::uint32_t kLast = 1;    ///< answered when applied
  static constexpr std::uint32_t kNotify = 2;  ///< with the last piece: then notify the frame's port

  Place place{};
  std::uint32_t operation = 0;
  std::uint32_t flags = 0;
  std::uint32_t value = 0;
  std::uint32_t reserved = 0;
};

struct GetBody {
  Place place{};
  std::uint64_t length = 0;
  std::uint32_t operation = 0;
  std::uint32_t reserved = 0;
};

struct AtomicBody {
  Place place{};
  std::uint64_t operand = 0;
  std::uint64_t compare = 0;
  std::uint32_t operation = 0;
  Opcode opcode = Opcode::fetch_add;
  std::uint8_t reserved[3] = {};
};

struct DataBody {
  std::uint64_t offset = 0;  ///< from the start of what the get frame asked for
  std::uint32_t operation = 0;
  std::uint32_t reserved = 0;
};

struct ResultBody {
  std::uint64_t value = 0;  ///< old value of an atomic
  std::uint32_t operation = 0;
  std::int32_t code = 0;  ///< an Errc
};

static_assert(sizeof(PutBody) == 40 && sizeof(GetBody) == 40 && sizeof(AtomicBody) == 48 && sizeof(DataBody) == 16 &&
              sizeof(ResultBody) == 16);

/// Copies a frame's body and gives what follows it; false if the frame is too short.
template <class Body>
[[nodiscard]] bool read_body(std::span<const std::byte> frame, Body& body, std::span<const std::byte>* rest = nullptr) {
  if (frame.size() < sizeof body || (rest == nullptr && frame.size() != sizeof body)) return false;
  std::memcpy(&body, frame.data(), sizeof body);
  if (rest != nullptr) *rest = frame.subspan(sizeof body);
  return true;
}

}  // namespace fabric::shm
}  // namespace dtr::inline v0
