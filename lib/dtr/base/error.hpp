// Errors as values: what failed, towards whom, on which path, and why.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>
#include <string_view>

#include <tl/expected.hpp>

namespace dtr::inline v0 {

/// Causes. The values are fixed: they cross the wire and are returned as integers by C-style callers.
enum class Errc : std::int16_t {
  ok = 0,
  invalid_argument = -1,     ///< the call itself is wrong; nothing was started
  out_of_range = -2,         ///< offset and length leave the memory they name
  not_registered = -3,       ///< the memory is not (or no longer) registered
  overlap = -4,              ///< the memory overlaps a registered region
  permission_denied = -5,    ///< the region does not allow this access
  not_found = -6,            ///< no such rank, step, dataset, key, file
  already_exists = -7,       ///< the name is taken by something different
  unsupported = -8,          ///< this build, machine or transport cannot do it
  resource_exhausted = -9,   ///< a limit was reached; the message says which and how to raise it
  busy = -10,                ///< still in use at the deadline
  again = -11,               ///< no room now; make progress and call again
  timed_out = -12,           ///< the deadline passed; the operation may not be quiesced yet
  cancelled = -13,           ///< ended by the caller
  peer_failed = -14,         ///< the peer died or was declared failed; final for this Runtime
  peer_left = -15,           ///< the peer finalized
  fenced = -16,              ///< this process was declared failed by the peer and is shut out
  unreachable = -17,         ///< no transport reaches the peer
  handshake_rejected = -18,  ///< wrong token, protocol version, byte order or build
  protocol_error = -19,      ///< the peer sent something malformed
  would_deadlock = -20,      ///< a blocking wait on a progress thread or inside a callback
  forked = -21,              ///< called in a child of fork
  revoked = -22,             ///< the target took the region back
  io_error = -23,            ///< a file or socket call failed; the message has errno in words
  no_space = -24,            ///< disk full or over quota
  corrupt = -25,             ///< a checksum or a self-check does not match
  truncated = -26,           ///< a file or message ends too early
  config_error = -27,        ///< unknown key or value out of range
  mpi_error = -28,           ///< an MPI call failed
  device_error = -29,        ///< NIC or GPU error
  internal = -30,            ///< a bug in libdtr
  closed = -31,              ///< the object was closed
  stale_handle = -32,        ///< the handle's operation is over and its slot reused
};

/// The stable name of a code, for example "peer_failed".
[[nodiscard]] std::string_view to_string(Errc code) noexcept;

/// One failure. Fields that do not apply stay at their defaults.
struct Error {
  Errc code = Errc::internal;
  std::string message{};    ///< the cause in words: errno, completion status, offending key...
  std::string operation{};  ///< "push_pull", "put", "barrier", ...
  int peer = -1;            ///< rank of the other side
  std::string path{};       ///< transport, device, queue pair: "shm", "tcp 10.0.0.2:4711"

  /// "push_pull to rank 3 (shm): peer_failed: the process ended".
  [[nodiscard]] std::string to_string() const;
};

/// A value or the Error that took its place.
template <class T>
using Result = tl::expected<T, Error>;

/// Shorthand for a failed Result: `return fail(Errc::not_found, "step 7", "load");`
[[nodiscard]] tl::unexpected<Error> fail(Errc code, std::string message, std::string operation = {}, int peer = -1,
                                         std::string path = {});

/// Passes the Error of another Result on.
[[nodiscard]] tl::unexpected<Error> fail(Error error);

/// errno in words, with the Errc that fits it best (ENOSPC -> no_space, ENOENT -> not_found, else io_error).
[[nodiscard]] Error errno_error(int number, std::string what, std::string operation = {});

/// Thrown by constructors only; everything else returns Result.
class Exception : public std::runtime_error {
 public:
  explicit Exception(Error cause);
  [[nodiscard]] const Error& error() const noexcept { return error_; }

 private:
  Error error_;
};

/// The value, or the Error as an Exception. For constructors and for programs that end on the first failure.
template <class T>
T value_or_throw(Result<T> result) {
  if (!result) throw Exception(std::move(result.error()));
  if constexpr (!std::is_void_v<T>) return std::move(*result);
}

}  // namespace dtr::inline v0
