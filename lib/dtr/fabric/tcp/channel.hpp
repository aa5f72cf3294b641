// The Channel that the fabric holds: a handle to an Initiator, and the peer's regions.
#pragma once

#include <memory>
#include <string>
#include <utility>

#include "dtr/fabric/remote_regions.hpp"
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
  [[nodiscard]] bool posts_silently() const noexcept override { return true; }
  [[nodiscard]] Result<const RemoteRegion*> import(const RemoteKey& key) override { return regions_.get(key); }
  std::uint32_t cancel(Completion& completion) noexcept override { return initiator_->cancel(completion); }
  [[nodiscard]] bool quiesced() const noexcept override { return initiator_->quiesced(); }
  void reset() noexcept override { initiator_->reset(); }
  void close() noexcept override { initiator_->close(); }
  void abort(Errc code) noexcept override { initiator_->abort(code); }
  [[nodiscard]] ChannelState state() const noexcept override { return initiator_->state(); }
  [[nodiscard]] std::string path() const override { return initiator_->path(); }
  [[nodiscard]] std::string explain(const Status& status) const override { return initiator_->explain(status); }

 private:
  const std::shared_ptr<Initiator> initiator_;
  RemoteRegions regions_;
};

}  // namespace fabric::tcp
}  // namespace dtr::inline v0
