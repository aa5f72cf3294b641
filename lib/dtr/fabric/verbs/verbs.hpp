// Data between hosts by RDMA: reliable queue pairs of InfiniBand and RoCE devices.
#pragma once

#include <memory>

#include "dtr/fabric/transport.hpp"
#include "dtr/fabric/verbs/options.hpp"
#include "dtr/fabric/verbs/verbs_api.hpp"

namespace dtr::inline v0 {
namespace fabric::verbs {

/// `control` makes the connection over which two ends agree on their queue pairs and notice each other's death: tcp.
/// Errors: unsupported (no library, no device, no active port: every one with its reason), invalid_argument,
/// resource_exhausted.
[[nodiscard]] Result<std::unique_ptr<Transport>> make_verbs(const TransportContext& context,
                                                            const VerbsOptions& options, std::shared_ptr<VerbsApi> api,
                                                            const TransportFactory& control);

}  // namespace fabric::verbs
}  // namespace dtr::inline v0
