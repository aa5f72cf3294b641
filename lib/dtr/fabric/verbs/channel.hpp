// The Channel that the fabric holds: a handle to a Link, and the peer's regions.
#pragma once

#include <memory>
#include <string>
#include <utility>

#include "dtr/fabric/remote_regions.hpp"
#include "dtr/fabric/verbs/link.hpp"

namespace dtr::inline v0 {
namespace fabric::verbs {

class VerbsChannel final : public Channel {
 public:
  explicit VerbsChannel(std::shared_ptr<Link> link) noexcept : link_(std::move(link)) {}
  ~VerbsChannel() override { link_->detach(); }

  [[nodiscard]] PostResult post(std::span<const WorkRequest> requests, Deadline deadline) noexcept override {
    return link_->post(requests, deadline);
  }
  [[nodiscard]] bool posts_silently() const noexcept override { return true; }
  [[nodiscard]] Result<const RemoteRegion*> import(const RemoteKey& key) override { return regions_.get(key); }
  std::uint32_t cancel(Completion& completion) noexcept override { return link_->cancel(completion); }
  [[nodiscard]] bool quiesced() const noexcept override { return link_->quiesced(); }
  void reset() noexcept override { link_->reset(); }
  void close() noexcept override { link_->close(); }
  void abort(Errc code) noexcept override { link_->abort(code); }
  [[nodiscard]] ChannelState state() const noexcept override { return link_->state(); }
  [[nodiscard]] std::string path() const override { return link_->path(); }
  [[nodiscard]] std::string explain(const Status& status) const override { return link_->explain(status); }

 private:
  const std::shared_ptr<Link> link_;
  RemoteRegions regions_;
};

}  // namespace fabric::verbs
}  // namespace dtr::inline v0
