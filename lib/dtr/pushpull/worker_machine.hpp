// How a Worker works: rounds are cut into one part a server, and a part is launched when the server has room for it.
// Internal to pushpull/.
#pragma once

#include <atomic>
#include <deque>
#include <map>
#include <mutex>
#include <optional>
#include <unordered_map>
#include <vector>

#include "dtr/pushpull/registrar.hpp"
#include "dtr/pushpull/wire.hpp"
#include "dtr/pushpull/worker.hpp"

namespace dtr::inline v0 {

/// State is guarded by one mutex, taken once an event. It is never held while the fabric copies data: launches are
/// done by whichever thread got the `launching_` flag, in order.
class Worker::Machine final : public fabric::PortHandler {
 public:
  static constexpr std::uint32_t kMaxRounds = 1024;

  Machine(Runtime& runtime, const WorkerOptions& options);
  ~Machine() override;

  [[nodiscard]] Result<RoundHandle> start(std::span<const PushPull> tensors);
  [[nodiscard]] Result<void> wait(RoundHandle handle, Deadline deadline);
  [[nodiscard]] Result<void> cancel(RoundHandle handle);
  [[nodiscard]] Result<void> quiesce(RoundHandle handle, Deadline deadline);
  [[nodiscard]] Result<std::vector<RoundTrace>> trace(RoundHandle handle) const;
  [[nodiscard]] pushpull::Registrar& registrar() noexcept { return registrar_; }

  void on_notify(fabric::PeerId from, std::uint32_t value) noexcept override;
  void on_message(fabric::PeerId from, std::span<const std::byte> payload) noexcept override;
  void on_peer_down(fabric::PeerId peer, const Error& error) noexcept override;

 private:
  struct Item {
    Key key = 0;
    pushpull::Registrar::Place place{};
    std::uint64_t bytes = 0;
  };

  /// What one server gets of a round.
  struct Part {
    int server = 0;
    std::vector<Item> pushes;
    std::vector<Item> pulls;
    std::uint64_t sequence = 0;
    enum class State : std::uint8_t { queued, launched, answered } state = State::queued;
    fabric::Completion posted;  ///< the fabric's use of this process's memory
    RoundTrace trace{};
  };

  struct Round {
    std::uint32_t generation = 0;
    std::vector<std::unique_ptr<Part>> parts;
    std::atomic<std::uint32_t> open{0};  ///< parts that no answer or Error has ended
    std::optional<Error> error;
    [[nodiscard]] bool posted() const noexcept;  ///< the fabric is done with all memory
  };

  struct KeyState {
    std::uint64_t bytes = 0;  ///< of the slots that are bound, 0 = none yet
    std::uint64_t asked = 0;  ///< of the binding that was asked for last
    const fabric::RemoteRegion* region = nullptr;
    std::uint64_t offset = 0;
    std::uint64_t stride = 0;
    std::uint32_t slots = 0;
    std::uint32_t in_use = 0;
    std::uint64_t uses = 0;
  };

  struct Server {
    fabric::PeerId peer = 0;
    std::uint64_t next_sequence = 0;
    std::deque<std::pair<Round*, Part*>> queue;                    ///< not launched yet, in order
    std::map<std::uint64_t, std::pair<Round*, Part*>> unanswered;  ///< launched
    std::unordered_map<Key, KeyState> keys;
    std::map<std::pair<std::uint32_t, std::uint32_t>, std::uint32_t> regions;  ///< announced: (slot, generation)
    std::optional<Error> broken;
  };

  [[nodiscard]] Result<void> check(std::span<const PushPull> tensors) const;
  [[nodiscard]] Result<std::vector<std::unique_ptr<Part>>> cut(std::span<const PushPull> tensors);
  [[nodiscard]] Round* find(RoundHandle handle) const noexcept;

  void pump() noexcept;
  /// With the lock: true if everything that the part needs is there; asks for what is missing.
  bool ready(Server& server, const Part& part);
  void ask_for_slots(Server& server, const Part& part);
  /// With the lock: takes slots and a sequence number, and fills the scratch with the requests.
  void prepare(Server& server, Part& part);

  void handle(int server, std::span<const std::byte> message);
  void end_part(Server& server, Round& round, Part& part, std::optional<Error> error);
  void break_server(Server& server, const Error& error);
  void send(fabric::PeerId to, std::span<const std::byte> message) noexcept;
  [[nodiscard]] int server_of(fabric::PeerId peer) const noexcept;

  Runtime& rt_;
  WorkerOptions options_;
  fabric::Port port_;
  fabric::Port server_port_;
  pushpull::Registrar registrar_;

  mutable std::mutex mutex_;
  std::vector<Server> servers_;
  std::vector<std::unique_ptr<Round>> rounds_;
  std::uint32_t next_round_ = 0;
  bool launching_ = false;

  // Used by the thread that launches, only.
  std::vector<fabric::WorkRequest> requests_;
  std::vector<Bytes> messages_;
};

}  // namespace dtr::inline v0
