#include "dtr/fabric/refusals.hpp"

#include <limits>

#include "dtr/base/error.hpp"
#include "dtr/fabric/checks.hpp"

namespace dtr::inline v0 {
namespace fabric {

namespace {

std::string range(std::uint64_t offset, std::uint64_t bytes, std::uint64_t length) {
  return std::to_string(bytes) + " bytes at offset " + std::to_string(offset) + " of a region of " +
         std::to_string(length) + " bytes";
}

const char* name_of(Access access) noexcept {
  switch (access) {
    case Access::read:
      return "read";
    case Access::write:
      return "write";
    case Access::read_write:
      return "read and write";
    case Access::atomic:
      return "atomic";
    case Access::all:
      return "everything";
    case Access::none:
      break;
  }
  return "nothing";
}

}  // namespace

const char* to_string(Opcode opcode) noexcept {
  switch (opcode) {
    case Opcode::put:
      return "put";
    case Opcode::get:
      return "get";
    case Opcode::put_notify:
      return "put_notify";
    case Opcode::send:
      return "send";
    case Opcode::fetch_add:
      return "fetch_add";
    case Opcode::compare_swap:
      return "compare_swap";
    case Opcode::flush:
      return "flush";
  }
  return "request";
}

std::string words_for(Errc code) {
  switch (code) {
    case Errc::timed_out:
      return "not finished before the deadline";
    case Errc::cancelled:
      return "ended by this process, or fenced behind a request that failed";
    case Errc::closed:
      return "the channel to the peer was closed by this process";
    case Errc::forked:
      return "this process is a child of fork, in which libdtr does not work: make a Runtime after the fork";
    case Errc::resource_exhausted:
      return "no memory for requests that wait for room";
    case Errc::revoked:
      return "the peer took the region back";
    case Errc::not_registered:
      return "no such region at one of the two sides";
    case Errc::again:
      return "no room now; make progress and post it again";
    case Errc::unreachable:
      return "no connection came about";
    default:
      return {};
  }
}

Status Refusals::remember(const WorkRequest& request, Status status, std::uint64_t max_message) noexcept {
  if (status.ok() || status.code == Errc::again) return status;
  Refusal refusal;
  refusal.status = status;
  refusal.opcode = request.opcode;
  refusal.value = request.value;
  refusal.bytes = request.bytes();
  refusal.local_offset = request.local_offset;
  refusal.remote_offset = request.remote_offset;
  refusal.max_message = max_message;
  refusal.has_payload = request.opcode != Opcode::send || request.payload != nullptr;
  if (request.opcode != Opcode::send && request.local != nullptr) {
    refusal.has_local = true;
    refusal.local_length = request.local->length();
    refusal.local_kind = request.local->options().kind;
  }
  if (request.remote != nullptr) {
    refusal.has_remote = true;
    refusal.key = request.remote->key;
  }
  const std::lock_guard lock(mutex_);
  last_ = last_ == std::numeric_limits<std::int32_t>::max() ? kFirst : last_ + 1;
  refusal.number = last_;
  refusals_[static_cast<std::size_t>(last_) % kKept] = refusal;
  status.cause = -last_;
  return status;
}

std::string Refusals::explain(const Status& status) const {
  if (status.cause > -kFirst) return {};
  const std::lock_guard lock(mutex_);
  const Refusal& refusal = refusals_[static_cast<std::size_t>(-std::int64_t{status.cause}) % kKept];
  if (refusal.number != -status.cause || refusal.status.code != status.code) return {};
  return describe(refusal);
}

std::string Refusals::describe(const Refusal& refusal) {
  std::string text = to_string(refusal.opcode);
  if (refusal.opcode != Opcode::flush) text += " of " + std::to_string(refusal.bytes) + " bytes";
  if (refusal.has_remote) text += " at offset " + std::to_string(refusal.remote_offset) + " of the peer's region";
  text += ": " + cause(refusal);
  if (refusal.status.cause > 0) text += " (" + errno_error(refusal.status.cause, "copy").message + ")";
  return text;
}

/// Follows check_request: what this side would find is said of this side, the rest is the peer's word.
std::string Refusals::cause(const Refusal& refusal) {
  const RemoteKey& key = refusal.key;
  switch (refusal.status.code) {
    case Errc::invalid_argument:
      if (refusal.value > WorkRequest::kMaxValue) {
        return "the value " + std::to_string(refusal.value) + " has more than 24 bits";
      }
      if (!refusal.has_payload) return "the payload is null";
      return "the word at address " + std::to_string(key.address + refusal.remote_offset) +
             " of the peer is not aligned to 8 bytes";
    case Errc::not_registered:
      if (!refusal.has_local) {
        return "it names no local region: register the memory (Fabric::register_memory) or take it from "
               "Runtime::allocate";
      }
      if (!refusal.has_remote) return "it names no region of the peer: Fabric::import makes one of the peer's key";
      return "the peer has no region with this key (slot " + std::to_string(key.slot) +
             "): it unregistered it, or the key is of another process; ask it for the present key";
    case Errc::revoked:
      return "the peer took the region back (slot " + std::to_string(key.slot) + "); ask it for the present key";
    case Errc::out_of_range:
      if (refusal.opcode == Opcode::send) {
        return "a message has at most " + std::to_string(refusal.max_message) +
               " bytes (fabric.eager_bytes, over tcp also tcp.eager_bytes); larger data goes by put_notify";
      }
      if (refusal.has_local && (refusal.local_offset > refusal.local_length ||
                                refusal.bytes > refusal.local_length - refusal.local_offset)) {
        return "the local side leaves its region: " + range(refusal.local_offset, refusal.bytes, refusal.local_length);
      }
      if (refusal.remote_offset > key.length || refusal.bytes > key.length - refusal.remote_offset) {
        return "it leaves the peer's region: " + range(refusal.remote_offset, refusal.bytes, key.length);
      }
      return "memory of the region cannot be reached: " + range(refusal.remote_offset, refusal.bytes, key.length);
    case Errc::permission_denied:
      return std::string("the peer's region allows ") + name_of(key.access) + ", and this needs " +
             name_of(needed_access(refusal.opcode)) + ": RegionOptions::access at its registration";
    case Errc::unsupported:
      if (refusal.local_kind == MemoryKind::cuda || key.kind == MemoryKind::cuda) {
        return "this path does not move memory of kind cuda";
      }
      return "atomics on the peer's region belong to a NIC (AtomicHome::device), and this path executes them by CPU";
    default:
      break;
  }
  const std::string words = words_for(refusal.status.code);
  return words.empty() ? std::string(dtr::to_string(refusal.status.code)) : words;
}

}  // namespace fabric
}  // namespace dtr::inline v0
