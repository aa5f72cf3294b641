// The TCP transport as one object: the loop that drives all its connections.
#pragma once

#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "dtr/fabric/tcp/hub.hpp"
#include "dtr/fabric/tcp/initiator.hpp"
#include "dtr/fabric/tcp/lobby.hpp"
#include "dtr/fabric/tcp/responder.hpp"
#include "dtr/fabric/transport.hpp"

namespace dtr::inline v0 {
namespace fabric::tcp {

class TcpTransport final : public Transport, private Hub {
 public:
  TcpTransport(const TransportContext& shared, const TcpOptions& chosen, std::vector<Endpoint> own, Poller set,
               ListeningSocket listening);
  ~TcpTransport() override;

  /// Begins to listen to strangers.
  [[nodiscard]] Result<void> start();

  [[nodiscard]] std::string_view name() const noexcept override { return "tcp"; }
  [[nodiscard]] std::string domain() const override { return "tcp"; }
  [[nodiscard]] bool moves(MemoryKind kind) const noexcept override { return kind != MemoryKind::cuda; }
  [[nodiscard]] std::size_t max_message() const noexcept override { return options.eager_bytes; }
  [[nodiscard]] std::vector<std::byte> address() const override { return encode(endpoints); }

  // Requests name a region by its key, and RegionTable::acquire guards it: nothing to prepare or to undo.
  [[nodiscard]] Result<void> register_region(Region&) override { return {}; }
  [[nodiscard]] bool drained(const Region& region) noexcept override { return region.uses() == 0; }
  void deregister_region(Region&) noexcept override {}

  [[nodiscard]] Result<std::unique_ptr<Channel>> connect(PeerId peer, std::span<const std::byte> address,
                                                         Deadline deadline) override;
  int progress(int budget) noexcept override;
  [[nodiscard]] int wait_descriptor() const noexcept override { return poller.fd(); }
  [[nodiscard]] bool prepare_sleep() noexcept override;
  [[nodiscard]] Deadline::Clock::time_point next_deadline() const noexcept override;
  void leave() noexcept override;
  void fence(PeerId peer) noexcept override;

 private:
  void admit(UniqueFd fd, const Hello& hello, const Endpoint& from) noexcept override;
  void link_lost(PeerRecord& peer, std::string why) noexcept override;
  void peer_down(PeerRecord& peer, Errc code, const std::string& why) noexcept override;
  void settle_later(PeerRecord& peer) noexcept override {
    if (owing_.empty()) owing_since_ = now_ns();
    owing_.push_back(&peer);
  }
  void settle() noexcept;

  [[nodiscard]] PeerRecord& record_of(PeerId peer);
  /// All records so far. Progress thread.
  [[nodiscard]] const std::vector<PeerRecord*>& everybody();
  [[nodiscard]] std::shared_ptr<Initiator> channel_of(const PeerRecord& peer);
  void bury(PeerRecord& peer) noexcept;
  void on_time(std::int64_t now) noexcept;
  [[nodiscard]] std::int64_t peer_on_time(PeerRecord& peer, std::int64_t now) noexcept;
  [[nodiscard]] std::int64_t look_pause() const noexcept;
  void judge_lost_peer(PeerRecord& peer, const Initiator* channel) noexcept;

  std::mutex mutex_;  ///< the map, and PeerRecord::channel
  std::map<PeerId, std::unique_ptr<PeerRecord>> peers_;
  std::vector<PeerRecord*> newcomers_;                 ///< that everybody() has not seen; with mutex_
  std::vector<PeerRecord*> round_;                     ///< everybody()
  std::vector<std::unique_ptr<Responder>> graveyard_;  ///< closed, but perhaps still in a function of theirs
  std::vector<std::shared_ptr<Initiator>> retired_;    ///< as above; with mutex_
  std::int64_t owing_since_ = kNever;                  ///< the oldest of these
  std::vector<PeerRecord*> owing_;                     ///< see settle_later
  std::int64_t last_ready_ = 0;                        ///< when a socket was ready last
  std::uint32_t rounds_ = 0;
  std::atomic<bool> in_use_{false};  ///< somebody has connected, or was dialed, since the start
  Lobby lobby_;
};

}  // namespace fabric::tcp
}  // namespace dtr::inline v0
