// The Channel that the fabric holds: a handle to an Initiator, and the peer's regions.
#pragma once

#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <utility>

#include "dtr/fabric/tcp/initiator.hpp"
#include "dtr/fabric/transport.hpp"

namespace dtr::inline v0 {
namespace fabric::tcp {

class TcpChannel final : public Channel {
 public:
  explicit TcpChannel(std::shared_ptr<Initiator> initiator) noexcept : initiator_(std::move(initiator)) {}
  ~TcpChannel() override { initiator_->detach(); }

  [[nodiscard]] PostResult post(std::span<const WorkRequest> requests, Deadline deadline) noexcept override {
    return initiator_->post(requests, deadline);
  }
  [[nodiscard]] Result<const RemoteRegion*> import(const RemoteKey& key) override {
    const std::lock_guard lock(mutex_);
    auto& region = regions_[key];
    if (region == nullptr) {
      region = std::make_unique<RemoteRegion>();
      region->key = key;
    }
    return region.get();
  }
  std::uint32_t cancel(Completion& completion) noexcept override { return initiator_->cancel(completion); }
  [[nodiscard]] bool quiesced() const noexcept override { return initiator_->quiesced(); }
  void reset() noexcept override { initiator_->reset(); }
  void close() noexcept override { initiator_->close(); }
  void abort(Errc code) noexcept override { initiator_->abort(code); }
  [[nodiscard]] ChannelState state() const noexcept override { return initiator_->state(); }
  [[nodiscard]] std::string path() const override { return initiator_->path(); }
  [[nodiscard]] std::string explain(const Status& status) const override { return initiator_->explain(status); }

 private:
  struct ByBytes {
    bool operator()(const RemoteKey& a, const RemoteKey& b) const noexcept { return std::memcmp(&a, &b, sizeof a) < 0; }
  };

  const std::shared_ptr<Initiator> initiator_;
  std::mutex mutex_;
  std::map<RemoteKey, std::unique_ptr<RemoteRegion>, ByBytes> regions_;
};

}  // namespace fabric::tcp
}  // namespace dtr::inline v0
