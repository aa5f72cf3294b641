// Measures which way messages of which size go fastest between ranks 0 and 1.
#pragma once

#include <string>

#include "dtr/runtime/runtime.hpp"

namespace dtr::info {

/// All ranks call it. Rank 0 prints what it finds, and writes it to `path`: the table of the transport between the two
/// is new, those of others in the file stay.
[[nodiscard]] Result<void> calibrate(Runtime& rt, const std::string& path);

}  // namespace dtr::info
