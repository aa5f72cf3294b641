#include "dtr/fabric/verbs/limits.hpp"

#include <cerrno>
#include <system_error>

#include <sys/resource.h>

namespace dtr::inline v0 {
namespace fabric::verbs {

std::string locked_memory_limit() {
  rlimit limit{};
  ::getrlimit(RLIMIT_MEMLOCK, &limit);
  const std::string value =
      limit.rlim_cur == RLIM_INFINITY ? std::string("unlimited") : std::to_string(limit.rlim_cur / 1024) + " KiB";
  return "locked memory " + value + " (raise it with ulimit -l, or LimitMEMLOCK of the service that starts jobs)";
}

Error device_refusal(int number, const std::string& what, const std::string& limits, const std::string& device,
                     const std::string& operation) {
  const bool limit = number == ENOMEM || number == EMFILE || number == ENFILE || number == ENOSPC || number == EAGAIN;
  return {.code = limit ? Errc::resource_exhausted : Errc::device_error,
          .message = device + " refused " + what + ": " + std::generic_category().message(number) +
                     (limit ? "; limits: " + limits + ", " + locked_memory_limit() : std::string()),
          .operation = operation,
          .path = "verbs " + device};
}

}  // namespace fabric::verbs
}  // namespace dtr::inline v0
