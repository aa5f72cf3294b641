// The TCP transport: reaches every rank, needs nothing but sockets.
#pragma once

#include <memory>

#include "dtr/base/error.hpp"
#include "dtr/fabric/tcp/options.hpp"
#include "dtr/fabric/transport.hpp"

namespace dtr::inline v0 {
namespace fabric::tcp {

/// Listens at once, so that address() can be announced; strangers are answered by progress.
/// Errors: invalid_argument (options), unsupported (no usable address), io_error naming what the kernel refused.
[[nodiscard]] Result<std::unique_ptr<Transport>> make_tcp(const TransportContext& context, const TcpOptions& options);

}  // namespace fabric::tcp
}  // namespace dtr::inline v0
