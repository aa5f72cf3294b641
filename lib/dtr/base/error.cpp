#include "dtr/base/error.hpp"

#include <cerrno>
#include <cstring>

namespace dtr::inline v0 {

std::string_view to_string(Errc code) noexcept {
  switch (code) {
    case Errc::ok:
      return "ok";
    case Errc::invalid_argument:
      return "invalid_argument";
    case Errc::out_of_range:
      return "out_of_range";
    case Errc::not_registered:
      return "not_registered";
    case Errc::overlap:
      return "overlap";
    case Errc::permission_denied:
      return "permission_denied";
    case Errc::not_found:
      return "not_found";
    case Errc::already_exists:
      return "already_exists";
    case Errc::unsupported:
      return "unsupported";
    case Errc::resource_exhausted:
      return "resource_exhausted";
    case Errc::busy:
      return "busy";
    case Errc::again:
      return "again";
    case Errc::timed_out:
      return "timed_out";
    case Errc::cancelled:
      return "cancelled";
    case Errc::peer_failed:
      return "peer_failed";
    case Errc::peer_left:
      return "peer_left";
    case Errc::fenced:
      return "fenced";
    case Errc::unreachable:
      return "unreachable";
    case Errc::handshake_rejected:
      return "handshake_rejected";
    case Errc::protocol_error:
      return "protocol_error";
    case Errc::would_deadlock:
      return "would_deadlock";
    case Errc::forked:
      return "forked";
    case Errc::revoked:
      return "revoked";
    case Errc::io_error:
      return "io_error";
    case Errc::no_space:
      return "no_space";
    case Errc::corrupt:
      return "corrupt";
    case Errc::truncated:
      return "truncated";
    case Errc::config_error:
      return "config_error";
    case Errc::mpi_error:
      return "mpi_error";
    case Errc::device_error:
      return "device_error";
    case Errc::internal:
      return "internal";
    case Errc::closed:
      return "closed";
    case Errc::stale_handle:
      return "stale_handle";
  }
  return "unknown";
}

std::string Error::to_string() const {
  std::string text;
  if (!operation.empty()) text += operation;
  if (peer >= 0) text += (text.empty() ? "rank " : " to rank ") + std::to_string(peer);
  if (!path.empty()) text += (text.empty() ? "(" : " (") + path + ")";
  if (!text.empty()) text += ": ";
  text += dtr::to_string(code);
  if (!message.empty()) text += ": " + message;
  return text;
}

tl::unexpected<Error> fail(Errc code, std::string message, std::string operation, int peer, std::string path) {
  return tl::unexpected<Error>(Error{.code = code,
                                     .message = std::move(message),
                                     .operation = std::move(operation),
                                     .peer = peer,
                                     .path = std::move(path)});
}

tl::unexpected<Error> fail(Error error) { return tl::unexpected<Error>(std::move(error)); }

Error errno_error(int number, std::string what, std::string operation) {
  Errc code = Errc::io_error;
  switch (number) {
    case ENOENT:
      code = Errc::not_found;
      break;
    case EEXIST:
      code = Errc::already_exists;
      break;
    case ENOSPC:
    case EDQUOT:
      code = Errc::no_space;
      break;
    case EACCES:
    case EPERM:
      code = Errc::permission_denied;
      break;
    case ENOMEM:
    case EMFILE:
    case ENFILE:
      code = Errc::resource_exhausted;
      break;
    case ETIMEDOUT:
      code = Errc::timed_out;
      break;
    default:
      break;
  }
  // strerrordesc_np is thread-safe and locale-free, unlike strerror.
  const char* words = strerrordesc_np(number);
  what += ": ";
  what += words != nullptr ? words : "errno " + std::to_string(number);
  return Error{.code = code, .message = std::move(what), .operation = std::move(operation), .peer = -1, .path = {}};
}

Exception::Exception(Error cause) : std::runtime_error(cause.to_string()), error_(std::move(cause)) {}

}  // namespace dtr::inline v0
