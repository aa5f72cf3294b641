// A world of ranks in one process, each with a software NIC of its own that a test can reach.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "dtr/fabric/tcp/tcp.hpp"
#include "dtr/fabric/verbs/verbs.hpp"
#include "fabric/world.hpp"
#include "support/software_nic/software_nic.hpp"

namespace dtr::testing {

using software_nic::Call;
using software_nic::SoftwareNic;

/// Remembers the packet sequence number that each of its queue pairs began to send with.
class WatchedNic final : public SoftwareNic {
 public:
  using SoftwareNic::SoftwareNic;
  int modify_qp(ibv_qp* qp, ibv_qp_attr* attributes, int mask) noexcept override {
    if ((mask & IBV_QP_SQ_PSN) != 0) {
      const std::lock_guard lock(mutex_);
      psns_.push_back(attributes->sq_psn);
    }
    return SoftwareNic::modify_qp(qp, attributes, mask);
  }
  [[nodiscard]] std::vector<std::uint32_t> psns() const {
    const std::lock_guard lock(mutex_);
    return psns_;
  }

 private:
  mutable std::mutex mutex_;
  std::vector<std::uint32_t> psns_;
};

struct NicsOptions {
  std::size_t rails = 1;
  fabric::verbs::VerbsOptions verbs{};
  software_nic::DeviceOptions device{};
  std::vector<software_nic::DeviceOptions> devices{};  ///< if there are any, in place of `rails` times `device`
  /// A rank's own settings.
  std::function<void(std::uint32_t rank, fabric::verbs::VerbsOptions& options)> adjust{};
  /// Called when a rank's transport has been made and has not met its peers.
  std::function<void(std::uint32_t rank, SoftwareNic& nic)> made{};
};

/// The NICs are made with the ranks: nic(r) is there once the World is.
class Nics {
 public:
  explicit Nics(NicsOptions options = {}) : state_(std::make_shared<State>()) { state_->options = std::move(options); }

  /// For World and Fabric.
  [[nodiscard]] TransportCase transport_case() const {
    return {.name = "verbs",
            .transports = {{.name = "verbs", .make = [state = state_](const fabric::TransportContext& context) {
                              return make(*state, context);
                            }}}};
  }
  [[nodiscard]] WatchedNic& nic(std::uint32_t rank) const { return *state_->nics.at(rank); }
  [[nodiscard]] software_nic::Network& network() const { return *state_->network; }
  /// Why rank `rank` has no verbs, in words.
  [[nodiscard]] const std::string& refusal(std::uint32_t rank) const { return state_->refusals[rank]; }

 private:
  struct State {
    NicsOptions options{};
    std::shared_ptr<software_nic::Network> network = std::make_shared<software_nic::Network>();
    std::map<std::uint32_t, std::shared_ptr<WatchedNic>> nics{};
    std::map<std::uint32_t, std::string> refusals{};
  };
  static Result<std::unique_ptr<fabric::Transport>> make(State& state, const fabric::TransportContext& context) {
    const std::uint32_t rank = context.identity.self;
    software_nic::NicOptions options{.name = "rank" + std::to_string(rank), .host = "host"};
    options.devices = state.options.devices;
    if (options.devices.empty()) options.devices.assign(state.options.rails, state.options.device);
    state.nics[rank] = std::make_shared<WatchedNic>(state.network, options);
    const fabric::TransportFactory control{.name = "tcp", .make = [](const fabric::TransportContext& inner) {
                                             return fabric::tcp::make_tcp(inner, {.bind_address = "127.0.0.1",
                                                                                  .eager_bytes = 256 << 10,
                                                                                  .queue_depth = 256,
                                                                                  .send_buffer_bytes = 4 << 20});
                                           }};
    auto verbs = state.options.verbs;
    if (state.options.adjust) state.options.adjust(rank, verbs);
    auto made = fabric::verbs::make_verbs(context, verbs, state.nics[rank], control);
    if (!made) state.refusals[rank] = made.error().to_string();
    if (made && state.options.made) state.options.made(rank, *state.nics[rank]);
    return made;
  }

  std::shared_ptr<State> state_;
};

}  // namespace dtr::testing
