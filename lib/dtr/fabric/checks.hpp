// The checks and small executions that every transport does in the same way.
#pragma once

#include <atomic>
#include <cstdint>

#include "dtr/fabric/transport.hpp"

namespace dtr::inline v0 {
namespace fabric {

/// What an operation needs the target to allow.
[[nodiscard]] constexpr Access needed_access(Opcode opcode) noexcept {
  switch (opcode) {
    case Opcode::put:
    case Opcode::put_notify:
      return Access::write;
    case Opcode::get:
      return Access::read;
    case Opcode::fetch_add:
    case Opcode::compare_swap:
      return Access::atomic;
    case Opcode::send:
    case Opcode::flush:
      return Access::none;
  }
  return Access::none;
}

/// The memory of a put, get or atomic: inside both regions, and allowed by the key?
[[nodiscard]] inline Errc check_memory(const WorkRequest& request, std::uint64_t bytes, Access needed) noexcept {
  if (request.local == nullptr || request.remote == nullptr) return Errc::not_registered;
  if (!request.local->contains(request.local_offset, bytes)) return Errc::out_of_range;
  const RemoteKey& key = request.remote->key;
  if (request.remote_offset > key.length || bytes > key.length - request.remote_offset) return Errc::out_of_range;
  return allows(key.access, needed) ? Errc::ok : Errc::permission_denied;
}

/// A send: is it one that the transport can carry?
[[nodiscard]] inline Errc check_message(const WorkRequest& request, std::uint64_t max_message) noexcept {
  if (request.value > WorkRequest::kMaxValue) return Errc::invalid_argument;
  if (request.length > max_message) return Errc::out_of_range;
  return request.payload == nullptr && request.length > 0 ? Errc::invalid_argument : Errc::ok;
}

/// Initiator's side: is the request well formed, inside both regions, and allowed by the key?
/// `device_atomics`: the transport can have them executed by the NIC that is a region's atomic home.
/// Returns ok, invalid_argument, not_registered, out_of_range, permission_denied, unsupported.
[[nodiscard]] inline Errc check_request(const WorkRequest& request, std::uint64_t max_message,
                                        bool device_atomics = false) noexcept {
  if (request.opcode == Opcode::flush) return Errc::ok;
  if (request.opcode == Opcode::send) return check_message(request, max_message);
  if (request.value > WorkRequest::kMaxValue) return Errc::invalid_argument;
  const std::uint64_t bytes = request.bytes();
  if (bytes == 0 && request.opcode == Opcode::put_notify) return Errc::ok;
  if (const Errc wrong = check_memory(request, bytes, needed_access(request.opcode)); wrong != Errc::ok) return wrong;
  if (request.is_atomic()) {
    const RemoteKey& key = request.remote->key;
    if ((key.address + request.remote_offset) % 8 != 0) return Errc::invalid_argument;
    const bool by_device = key.atomic_home == AtomicHome::device;
    if (by_device ? !device_atomics : key.kind == MemoryKind::cuda) return Errc::unsupported;
  }
  return Errc::ok;
}

/// It is fenced behind a request of its own Completion that has failed.
[[nodiscard]] inline bool is_in_vain(const WorkRequest& request) noexcept {
  return (request.flags & WorkRequest::kFence) != 0 && request.completion != nullptr &&
         !request.completion->status().ok();
}

/// An Errc as a peer sent it; what is no Errc is protocol_error.
[[nodiscard]] constexpr Errc errc_from_wire(std::int64_t code) noexcept {
  return code <= 0 && code >= static_cast<std::int64_t>(Errc::stale_handle) ? static_cast<Errc>(code)
                                                                            : Errc::protocol_error;
}

/// Executes an atomic on an aligned word of host memory with the CPU; returns the old value.
[[nodiscard]] inline std::uint64_t execute_atomic(Opcode opcode, std::byte* word, std::uint64_t operand,
                                                  std::uint64_t compare) noexcept {
  const std::atomic_ref<std::uint64_t> target(*reinterpret_cast<std::uint64_t*>(word));
  if (opcode == Opcode::fetch_add) return target.fetch_add(operand, std::memory_order_acq_rel);
  std::uint64_t expected = compare;
  target.compare_exchange_strong(expected, operand, std::memory_order_acq_rel);
  return expected;
}

}  // namespace fabric
}  // namespace dtr::inline v0
