// For handlers on progress: nothing may leave them, not even the lack of memory.
#pragma once

#include <exception>

#include "dtr/base/error.hpp"

namespace dtr::inline v0 {
namespace pushpull {

/// A copy; where there is no memory for the words, one without.
[[nodiscard]] inline Error copy_of(const Error& error) noexcept {
  try {
    return error;
  } catch (const std::exception&) {
    return {.code = error.code, .message = {}, .operation = {}, .peer = error.peer, .path = {}};
  }
}

/// An Error that may lack its words; `make` returns the whole one.
template <class Make>
[[nodiscard]] Error error_or_bare(Errc code, int peer, Make&& make) noexcept {
  try {
    return make();
  } catch (const std::exception&) {
    return {.code = code, .message = {}, .operation = {}, .peer = peer, .path = {}};
  }
}

/// For what may be left out when there is no memory for it, like a line of log.
template <class Action>
void if_possible(Action&& action) noexcept {
  try {
    action();
  } catch (const std::exception&) {
    return;
  }
}

}  // namespace pushpull
}  // namespace dtr::inline v0
