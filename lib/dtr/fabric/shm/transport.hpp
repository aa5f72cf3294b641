// All links of one process, and the one page of what progress does in which order.
#pragma once

#include <atomic>
#include <deque>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "dtr/fabric/shm/greeter.hpp"
#include "dtr/fabric/shm/in_link.hpp"
#include "dtr/fabric/shm/local.hpp"
#include "dtr/fabric/shm/out_link.hpp"

namespace dtr::inline v0 {
namespace fabric::shm {

class ShmTransport final : public Transport, private Watcher {
 public:
  ShmTransport(std::shared_ptr<Local> local, UniqueFd listener, const Address& address, std::string domain)
      : local_(std::move(local)), listener_(std::move(listener)), address_(address), domain_(std::move(domain)) {}
  ~ShmTransport() override;

  Result<void> watch();

  std::string_view name() const noexcept override { return "shm"; }
  std::string domain() const override { return domain_; }
  bool moves(MemoryKind kind) const noexcept override { return kind != MemoryKind::cuda; }
  std::size_t max_message() const noexcept override { return local_->options.eager_bytes; }
  std::vector<std::byte> address() const override {
    const auto bytes = std::as_bytes(std::span(&address_, 1));
    return {bytes.begin(), bytes.end()};
  }

  Result<void> register_region(Region& region) override;
  bool drained(const Region& region) noexcept override;
  void deregister_region(Region& region) noexcept override;
  Result<std::unique_ptr<Channel>> connect(PeerId peer, std::span<const std::byte> address, Deadline deadline) override;
  void fence(PeerId peer) noexcept override;
  void leave() noexcept override;

  int progress(int budget) noexcept override;
  int wait_descriptor() const noexcept override { return local_->poller.fd(); }
  bool prepare_sleep() noexcept override;
  Deadline::Clock::time_point next_deadline() const noexcept override;

 private:
  void on_readable(int fd) noexcept override;
  int round(int budget);
  int greet();
  void admit(InParts parts);
  void refuse(const Error& why);
  void take_requests();
  [[nodiscard]] bool has_work();

  const std::shared_ptr<Local> local_;
  const UniqueFd listener_;
  const Address address_;
  const std::string domain_;
  Watch listener_watch_;
  Watch doorbell_watch_;

  std::mutex mutex_;  ///< what other threads ask of progress
  std::vector<std::shared_ptr<OutLink>> new_links_;
  std::vector<PeerId> new_fences_;
  std::atomic<bool> requests_{false};

  std::deque<std::unique_ptr<Greeter>> greeters_;  // progress only, as what follows
  std::vector<std::unique_ptr<InLink>> in_;
  std::vector<std::shared_ptr<OutLink>> out_;
  std::uint32_t rounds_ = 0;
  bool slept_ = true;
  bool accepting_ = false;
  int refusals_ = 0;
  std::size_t first_ = 0;           ///< the link that is served first: none starves another
  std::vector<RemoteKey> revoked_;  ///< regions whose revocation all peers have seen
};

}  // namespace fabric::shm
}  // namespace dtr::inline v0
