// A world of ranks in one process, each with a software NIC of its own that a test can reach.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "dtr/fabric/tcp/tcp.hpp"
#include "dtr/fabric/verbs/verbs.hpp"
#include "fabric/world.hpp"
#include "support/software_nic/software_nic.hpp"

namespace dtr::testing {

using software_nic::Call;
using software_nic::SoftwareNic;

struct NicsOptions {
  std::size_t rails = 1;
  fabric::verbs::VerbsOptions verbs{};
  software_nic::DeviceOptions device{};
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
  [[nodiscard]] SoftwareNic& nic(std::uint32_t rank) const { return *state_->nics.at(rank); }
  [[nodiscard]] software_nic::Network& network() const { return *state_->network; }
  /// Why rank `rank` has no verbs, in words.
  [[nodiscard]] const std::string& refusal(std::uint32_t rank) const { return state_->refusals[rank]; }

 private:
  struct State {
    NicsOptions options{};
    std::shared_ptr<software_nic::Network> network = std::make_shared<software_nic::Network>();
    std::map<std::uint32_t, std::shared_ptr<SoftwareNic>> nics{};
    std::map<std::uint32_t, std::string> refusals{};
  };
  static Result<std::unique_ptr<fabric::Transport>> make(State& state, const fabric::TransportContext& context) {
    const std::uint32_t rank = context.identity.self;
    software_nic::NicOptions options{.name = "rank" + std::to_string(rank), .host = "host"};
    options.devices.assign(state.options.rails, state.options.device);
    state.nics[rank] = std::make_shared<SoftwareNic>(state.network, options);
    const fabric::TransportFactory control{.name = "tcp", .make = [](const fabric::TransportContext& inner) {
                                             return fabric::tcp::make_tcp(inner, {.bind_address = "127.0.0.1",
                                                                                  .eager_bytes = 256 << 10,
                                                                                  .queue_depth = 256,
                                                                                  .send_buffer_bytes = 4 << 20});
                                           }};
    auto made = fabric::verbs::make_verbs(context, state.options.verbs, state.nics[rank], control);
    if (!made) state.refusals[rank] = made.error().to_string();
    return made;
  }

  std::shared_ptr<State> state_;
};

}  // namespace dtr::testing
