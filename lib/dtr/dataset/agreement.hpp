// Collective steps that all ranks leave with the same result, whichever of them has the problem.
#pragma once

#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "dtr/base/deadline.hpp"
#include "dtr/base/error.hpp"
#include "dtr/runtime/group.hpp"

namespace dtr::inline v0 {
namespace dataset {

/// Everybody's value, by rank. A rank without one contributes its Error, and all get the Error of the lowest such
/// rank, with the rank's name in front: nobody waits in vain for a rank that gave up.
[[nodiscard]] Result<std::vector<Bytes>> exchange(Group& group, std::string_view topic, const Result<Bytes>& mine,
                                                  const std::string& operation, Deadline deadline);

/// Names and values in a fixed order.
using Fields = std::vector<std::pair<std::string, std::string>>;

/// All ranks contribute the same fields, or all get an Error that names a rank, the field and both values. Costs 8
/// bytes a rank when they agree; only when they do not are the fields themselves exchanged. The rank that is named is
/// the first one outside the largest set of ranks that agree. A rank that has an Error instead ends it as in exchange.
[[nodiscard]] Result<void> agree(Group& group, const Result<Fields>& fields, const std::string& operation,
                                 Deadline deadline);

}  // namespace dataset
}  // namespace dtr::inline v0
