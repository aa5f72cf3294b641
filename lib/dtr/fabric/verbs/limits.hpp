// Errors about limits: which one was hit, and how to raise it.
#pragma once

#include <string>

#include "dtr/base/error.hpp"

namespace dtr::inline v0 {
namespace fabric::verbs {

/// "locked memory: 64 KiB (ulimit -l)" of this process.
[[nodiscard]] std::string locked_memory_limit();

/// What a verbs call's errno means for `what` ("a completion queue of 512 entries"), with the limits that may have
/// been hit. ENOMEM, EMFILE, ENOSPC, EAGAIN give resource_exhausted, the rest device_error.
[[nodiscard]] Error device_refusal(int number, const std::string& what, const std::string& limits,
                                   const std::string& device, const std::string& operation);

}  // namespace fabric::verbs
}  // namespace dtr::inline v0
