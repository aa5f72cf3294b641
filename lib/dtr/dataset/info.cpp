#include "dtr/dataset/info.hpp"

namespace dtr::inline v0 {

const char* to_string(ShardUnit unit) noexcept { return unit == ShardUnit::shard ? "shard" : "sample"; }

const char* to_string(TailPolicy tail) noexcept {
  switch (tail) {
    case TailPolicy::drop:
      return "drop";
    case TailPolicy::pad:
      return "pad";
    case TailPolicy::uneven:
      return "uneven";
  }
  return "?";
}

Result<void> check_plannable(const DatasetInfo& info) {
  if (info.id.empty()) return fail(Errc::invalid_argument, "the dataset has no id", "plan shards");
  const std::string operation = "plan shards of '" + info.id + "'";
  if (info.total_samples == 0) {
    return fail(Errc::invalid_argument,
                "total_samples is 0; register the dataset to have them counted, or set it from the reader", operation);
  }
  if (info.total_samples > kMaxSamples) {
    return fail(Errc::invalid_argument, std::to_string(info.total_samples) + " samples, the most is 2^62", operation);
  }
  return {};
}

}  // namespace dtr::inline v0
