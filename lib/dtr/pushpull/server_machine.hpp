// How a Server works: the handlers record what comes in, the caller's thread takes it from there.
// Internal to pushpull/.
#pragma once

#include <deque>
#include <map>
#include <mutex>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

#include "dtr/pushpull/registrar.hpp"
#include "dtr/pushpull/server.hpp"
#include "dtr/pushpull/wire.hpp"

namespace dtr::inline v0 {

class Server::Machine final : public fabric::PortHandler {
 public:
  Machine(Runtime& runtime, const ServerOptions& options);
  ~Machine() override;

  [[nodiscard]] Result<std::vector<Request>> get_batch(Deadline deadline);
  [[nodiscard]] Result<Request> get_any(Deadline deadline);
  [[nodiscard]] Result<void> respond(const Request& request, std::span<const ConstTensor> tensors,
                                     fabric::Completion& sent);
  [[nodiscard]] Result<void> wait_sent(const Request& request, fabric::Completion& sent, Deadline deadline);
  [[nodiscard]] Result<void> answer_with(const Request& request, const Error& error);
  void fail_all(const Error& error);

  void on_notify(fabric::PeerId from, std::uint32_t value) noexcept override;
  void on_message(fabric::PeerId from, std::span<const std::byte> payload) noexcept override;
  void on_peer_down(fabric::PeerId peer, const Error& error) noexcept override;

 private:
  struct Slots {
    Buffer memory;
    std::uint64_t bytes = 0;
    std::uint64_t stride = 0;
  };
  struct Destination {
    Key key = 0;
    std::uint64_t bytes = 0;
    const fabric::RemoteRegion* region = nullptr;
    std::uint64_t offset = 0;
  };
  /// A round from its complete description to its answer.
  struct Open {
    Request request;
    std::vector<std::shared_ptr<Slots>> slots;  ///< held while the views are in use
    std::vector<Destination> pulls;
    pushpull::ServerStamps stamps{};
  };
  struct Assembly {
    Bytes description;
    std::uint64_t received = 0;
  };
  struct WorkerState {
    fabric::PeerId peer = 0;
    std::unordered_map<Key, std::shared_ptr<Slots>> keys;
    std::unordered_map<std::uint32_t, const fabric::RemoteRegion*> regions;
    std::map<std::uint64_t, Assembly> assemblies;
    std::map<std::uint64_t, Open> waiting;  ///< complete, not handed out
    std::map<std::uint64_t, Open> handed;   ///< handed out, not answered
    std::uint64_t next = 0;                 ///< sequence that get_batch and get_any want
    bool finished = false;                  ///< said goodbye
    std::optional<Error> down;
  };

  void handle(WorkerState& worker, std::span<const std::byte> message);
  void bind(WorkerState& worker, const pushpull::Bind& bind);
  [[nodiscard]] std::optional<Open> open_round(WorkerState& worker, std::uint64_t sequence,
                                               std::span<const std::byte> description);
  [[nodiscard]] Request hand_out(WorkerState& worker, std::uint64_t sequence);
  [[nodiscard]] std::optional<Open> take(const Request& request);
  void send(fabric::PeerId to, std::span<const std::byte> message) noexcept;
  [[nodiscard]] static Bytes response(pushpull::Kind kind, std::uint64_t sequence, const Error* error,
                                      const pushpull::ServerStamps& stamps);
  [[nodiscard]] std::string list(const std::vector<int>& workers) const;

  Runtime& rt_;
  fabric::Port port_;
  fabric::Port worker_port_;
  std::uint32_t slots_;
  pushpull::Registrar registrar_;
  std::mutex mutex_;
  std::vector<WorkerState> workers_;
  std::size_t any_from_ = 0;  ///< get_any looks here first
};

}  // namespace dtr::inline v0
