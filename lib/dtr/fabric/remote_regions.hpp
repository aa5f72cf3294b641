// The peer's regions as one channel knows them.
#pragma once

#include <cstring>
#include <map>
#include <memory>
#include <mutex>

#include "dtr/fabric/transport.hpp"

namespace dtr::inline v0 {
namespace fabric {

/// For transports that leave it to the target to judge a key. Any thread.
class RemoteRegions {
 public:
  /// The same object for the same key, as long as this lives.
  [[nodiscard]] const RemoteRegion* get(const RemoteKey& key) {
    const std::lock_guard lock(mutex_);
    auto& region = regions_[key];
    if (region == nullptr) {
      region = std::make_unique<RemoteRegion>();
      region->key = key;
    }
    return region.get();
  }

 private:
  struct ByBytes {
    bool operator()(const RemoteKey& a, const RemoteKey& b) const noexcept { return std::memcmp(&a, &b, sizeof a) < 0; }
  };

  std::mutex mutex_;
  std::map<RemoteKey, std::unique_ptr<RemoteRegion>, ByBytes> regions_;
};

}  // namespace fabric
}  // namespace dtr::inline v0
