// The verbs transport as one object: its ports, its links, and the control connections between the peers.
#pragma once

#include <atomic>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "dtr/fabric/verbs/hub.hpp"
#include "dtr/fabric/verbs/link.hpp"

namespace dtr::inline v0 {
namespace fabric::verbs {

class VerbsTransport final : private Hub, public Transport {
 public:
  VerbsTransport(const TransportContext& shared, std::unique_ptr<const VerbsOptions> chosen,
                 std::shared_ptr<VerbsApi> table, std::vector<std::unique_ptr<Nic>> ports);
  ~VerbsTransport() override;

  [[nodiscard]] Result<void> start(const TransportFactory& control);

  [[nodiscard]] std::string_view name() const noexcept override { return "verbs"; }
  [[nodiscard]] std::string describe() const override;
  [[nodiscard]] std::string domain() const override;
  [[nodiscard]] bool moves(MemoryKind kind) const noexcept override { return kind != MemoryKind::cuda; }
  [[nodiscard]] std::size_t max_message() const noexcept override { return options.eager_bytes; }
  [[nodiscard]] std::vector<std::byte> address() const override { return own_address().encode(); }
  [[nodiscard]] Result<void> introduce(PeerId peer, std::span<const std::byte> address) override;
  [[nodiscard]] Result<void> register_region(Region& region) override;
  [[nodiscard]] bool drained(const Region& region) noexcept override;
  void deregister_region(Region& region) noexcept override;
  [[nodiscard]] Result<std::unique_ptr<Channel>> connect(PeerId peer, std::span<const std::byte> address,
                                                         Deadline deadline) override;
  int progress(int budget) noexcept override;
  [[nodiscard]] int wait_descriptor() const noexcept override { return epoll_.get(); }
  [[nodiscard]] bool prepare_sleep() noexcept override;
  [[nodiscard]] Deadline::Clock::time_point next_deadline() const noexcept override;
  void leave() noexcept override;
  void fence(PeerId peer) noexcept override;

 private:
  /// Hears the control connections.
  class ControlReceiver final : public Receiver {
   public:
    explicit ControlReceiver(VerbsTransport& owner) noexcept : owner_(owner) {}
    void on_notify(PeerId, Port, std::uint32_t) noexcept override {}
    void on_message(PeerId from, Port, std::span<const std::byte> payload) noexcept override {
      owner_.on_control(from, payload);
    }
    void on_peer_down(PeerId peer, Errc code, std::string_view why) noexcept override {
      owner_.on_peer_down(peer, code, why);
    }

   private:
    VerbsTransport& owner_;
  };

  /// Has the queue pairs that no peer has taken up yet: nothing completes on them.
  class Nobody final : public CompletionSink {
   public:
    void on_sent(const ibv_wc&) noexcept override {}
    void on_received(const ibv_wc&, std::span<const std::byte>) noexcept override {}
  };

  [[nodiscard]] Address own_address() const override;
  void send_control(Link& link, std::vector<std::byte> message) noexcept override;
  void give_up(Link& link, Errc code, std::string_view why) noexcept override;

  void make_early();
  void drop_early() noexcept;
  void on_control(PeerId from, std::span<const std::byte> payload) noexcept;
  void on_peer_down(PeerId peer, Errc code, std::string_view why) noexcept;
  /// The link's end, and everybody is told once.
  void peer_down(Link& link, Errc code, std::string_view why) noexcept;
  void flush_control() noexcept;
  void flush_control(Link& link);
  void forget_unsaid(Link& link) noexcept;
  int on_time(std::int64_t now) noexcept;
  void look_at_devices() noexcept;
  [[nodiscard]] std::shared_ptr<Link> link_of(PeerId peer);
  /// All links so far, the newest first; none ever goes before the transport. Any thread.
  [[nodiscard]] Link* first_link() const noexcept { return first_link_.load(std::memory_order_acquire); }

  const std::unique_ptr<const VerbsOptions> chosen_;
  ControlReceiver control_receiver_;
  std::unique_ptr<Transport> control_;
  UniqueFd epoll_;

  mutable std::mutex mutex_;  ///< the map, and the regions until somebody needs them
  std::map<PeerId, std::shared_ptr<Link>> links_;
  std::atomic<Link*> first_link_{nullptr};
  std::vector<Region*> unregistered_;
  bool in_use_ = false;  ///< some peer is reached by verbs

  // Progress thread, or before it starts.
  Nobody nobody_;
  std::vector<std::vector<EarlyQueuePair>> early_;  ///< [rank][NIC]
  std::vector<QueuePairName> early_names_;
  bool early_dropped_ = false;
  std::size_t unsaid_ = 0;  ///< control messages of all links that wait for their connection
  std::uint32_t rounds_ = 0;
  std::int64_t next_control_ = 0;  ///< when to look at the control connections
  bool slept_ = true;
};

}  // namespace fabric::verbs
}  // namespace dtr::inline v0
