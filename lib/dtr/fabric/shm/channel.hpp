// The handle that a channel's user holds; the link may outlive it until progress has put it away.
#pragma once

#include <memory>
#include <string>
#include <utility>

#include "dtr/fabric/shm/out_link.hpp"

namespace dtr::inline v0 {
namespace fabric::shm {

class ShmChannel final : public Channel {
 public:
  explicit ShmChannel(std::shared_ptr<OutLink> link) : link_(std::move(link)) {}
  ~ShmChannel() override { link_->detach(); }

  PostResult post(std::span<const WorkRequest> requests, Deadline deadline) noexcept override {
    return link_->post(requests, deadline);
  }
  Result<const RemoteRegion*> import(const RemoteKey& key) override { return link_->import(key); }
  bool reads_process() const noexcept override { return link_->reads_process(); }
  Status read_process(std::uint64_t address, std::span<std::byte> to) noexcept override {
    return link_->read_process(address, to);
  }
  std::uint32_t cancel(Completion& completion) noexcept override { return link_->cancel(completion); }
  // What ends here is never touched again: copies happen in the caller, or under a lock that ending takes too.
  bool quiesced() const noexcept override { return true; }
  // A ring loses nothing, so there is nothing to replay and no connection to renew.
  void reset() noexcept override { link_->end_atomics(); }
  void close() noexcept override { link_->close(); }
  void abort(Errc code) noexcept override { link_->abort(code); }
  ChannelState state() const noexcept override { return link_->state(); }
  std::string path() const override { return link_->path(); }
  std::string explain(const Status& status) const override { return link_->explain(status); }

 private:
  std::shared_ptr<OutLink> link_;
};

}  // namespace fabric::shm
}  // namespace dtr::inline v0
